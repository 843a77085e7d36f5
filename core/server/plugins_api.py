"""Plugins over HTTP, for the node's page and its owner's scripts: what is installed, what the
trusted registries have, what a release would be allowed, its installation and its end.

Knows bodies and shapes. Knows nothing of registries, signatures or sandboxes; `plugins/market.py`
does.
Always: a registry is asked only where a request says so; what is installed is the release whose
digest and permissions the request repeats, as its owner saw them.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from aiohttp import web

from .errors import parse_json
from .openapi import OBJECT, TEXT, described, many, shaped
from .schemas import Record, named, text

SEARCH = Record({"words": text}, ["words"])
OFFER = Record({"id": named, "version": text, "registry": text}, ["id"])
INSTALL = Record(
    {"id": named, "version": named, "registry": named, "sha256": named},
    ["id", "version", "registry", "sha256"],
)


class OwnersPlugins(Protocol):
    """What this file stands on."""

    def overview(self) -> dict[str, Any]:
        """Registries by name, and what is installed; nobody is asked."""

    def search(self, words: Sequence[str]) -> list[dict[str, Any]]:
        """Releases in whose name or description all words stand; the registries are asked."""

    def offer(self, plugin_id: str, version: str, registry: str) -> dict[str, Any]:
        """What a release would be allowed, who reviewed it, and what is new in it."""

    def install(self, plugin_id: str, version: str, registry: str, sha256: str) -> None:
        """Copy exactly this release in."""

    def remove(self, plugin_id: str) -> None:
        """Take one away; what it kept stays."""

    async def look(self) -> dict[str, Any]:
        """Ask the registries what is new and what was revoked, and stop that."""


class PluginsApi:
    """The handlers under /api/plugins."""

    def __init__(self, own: OwnersPlugins) -> None:
        self.own = own
        self._changing = asyncio.Lock()  # one installation at a time

    def routes(self) -> list[web.RouteDef]:
        """What the application mounts."""
        return [
            web.get("/api/plugins{end:/*}", self.list_plugins),
            web.post("/api/plugins/search{end:/*}", self.search),
            web.post("/api/plugins/offer{end:/*}", self.offer),
            web.post("/api/plugins/install{end:/*}", self.install),
            web.post("/api/plugins/look{end:/*}", self.look),
            web.delete(
                "/api/plugins/{publisher:[a-z0-9-]+}/{name:[a-z0-9-]+}{end:/*}", self.remove
            ),
        ]

    @described(shaped(registries=many(OBJECT), installed=many(OBJECT)))
    async def list_plugins(self, _request: web.Request) -> web.Response:
        """Trusted registries and installed plugins, as this node knows them without asking."""
        return web.json_response(await asyncio.to_thread(self.own.overview))

    @described(shaped(plugins=many(OBJECT)), SEARCH)
    async def search(self, request: web.Request) -> web.Response:
        """Plugins by words; the trusted registries are asked."""
        body = SEARCH(parse_json(await request.read()), "")
        found = await asyncio.to_thread(self.own.search, body["words"].split())
        return web.json_response({"plugins": found})

    @described(shaped(id=TEXT, version=TEXT, sha256=TEXT, permissions=many(OBJECT)), OFFER)
    async def offer(self, request: web.Request) -> web.Response:
        """One release, checked: what it may use, its tools, reviews and price, what is new."""
        body = OFFER(parse_json(await request.read()), "")
        found = await asyncio.to_thread(
            self.own.offer, body["id"], body.get("version", ""), body.get("registry", "")
        )
        return web.json_response(found)

    @described(shaped(installed=TEXT), INSTALL)
    async def install(self, request: web.Request) -> web.Response:
        """Install the release that /api/plugins/offer told, by its SHA-256. It answers from the
        node's next start on.
        """
        body = INSTALL(parse_json(await request.read()), "")
        async with self._changing:
            await asyncio.to_thread(
                self.own.install, body["id"], body["version"], body["registry"], body["sha256"]
            )
        return web.json_response({"installed": body["id"]})

    @described(shaped(registries=many(OBJECT), newer=many(OBJECT), stopped=many(TEXT)))
    async def look(self, _request: web.Request) -> web.Response:
        """Ask the trusted registries what is new; what they revoked is stopped."""
        return web.json_response(await self.own.look())

    @described(shaped(removed=TEXT))
    async def remove(self, request: web.Request) -> web.Response:
        """Take an installed plugin away; what it kept stays on the disk."""
        plugin_id = f"{request.match_info['publisher']}/{request.match_info['name']}"
        async with self._changing:
            await asyncio.to_thread(self.own.remove, plugin_id)
        return web.json_response({"removed": plugin_id})
