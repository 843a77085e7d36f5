"""The routes of this node's memberships, for its page: what left, and the word that pauses.

Knows JSON. Knows no federation: what there is comes from whoever put the node together, since the
federation's floor stands on this one.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from aiohttp import web

from .errors import parse_json
from .openapi import FLAG, OBJECT, TEXT, WHOLE, described, many, shaped
from .schemas import Record, flag

PAUSE = Record({"paused": flag}, ["paused"])


class Memberships(Protocol):
    """The federations that this node is a member of."""

    def federations(self) -> Sequence[Mapping[str, Any]]:
        """Each of them, as JSON's types."""
        ...

    def training(self, federation: str) -> Mapping[str, Any]:
        """What its next round would train on. Raises DataError: not a member."""
        ...

    def pause(self, federation: str, paused: bool) -> None:
        """Let nothing more leave, or go on. Raises DataError: not a member."""
        ...


class FederationApi:
    """The handlers. Args: memberships: None where this node has no part in any."""

    def __init__(self, memberships: Memberships | None) -> None:
        self.memberships = memberships

    def routes(self) -> list[web.RouteDef]:
        """What the application mounts."""
        one = "/api/federations/{id:[0-9a-f]{64}}"
        routes = [web.get("/api/federations{end:/*}", self.list)]
        if self.memberships is not None:
            routes += [
                web.get(f"{one}/training{{end:/*}}", self.training),
                web.post(f"{one}{{end:/*}}", self.pause),
            ]
        return routes

    @described(shaped(federations=many(OBJECT)))
    async def list(self, _request: web.Request) -> web.Response:
        """What left this node, when, under which protection, and what it cost in privacy."""
        own = self.memberships
        found = [] if own is None else await asyncio.to_thread(own.federations)
        return web.json_response({"federations": list(found)})

    @described(shaped(train=WHOLE, test=WHOLE, examples=many({"type": "array"}), source=TEXT))
    async def training(self, request: web.Request) -> web.Response:
        """What the next round would train on, redacted, as `data show --for` prints it."""
        assert self.memberships is not None  # mounted with them
        id = request.match_info["id"]
        return web.json_response(await asyncio.to_thread(self.memberships.training, id))

    @described(shaped(paused=FLAG), PAUSE)
    async def pause(self, request: web.Request) -> web.Response:
        """Pause this node's part: nothing more is trained or sent until it is resumed."""
        assert self.memberships is not None  # mounted with them
        paused = PAUSE(parse_json(await request.read()), "")["paused"]
        await asyncio.to_thread(self.memberships.pause, request.match_info["id"], paused)
        return web.json_response({"paused": paused})
