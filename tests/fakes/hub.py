"""A hub of models on this machine, which answers as Hugging Face's does, or as it is told to.

The files themselves lie on another host of it ("localhost"), as a hub's do.
"""

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

COMMIT = "c0ffee" * 6 + "abcd"


@dataclass
class FakeHub:
    """Repositories by name, and what goes wrong with them."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    licence: str | None = "apache-2.0"
    gated: bool = False  # whoever has no token is refused
    breaks_after: int = 0  # bytes of a file, then the connection is cut
    hold: threading.Event | None = None  # a file's second half waits for it
    sends: bytes | None = None  # instead of every file
    hashes: dict[str, str] = field(default_factory=dict)  # by path, instead of the right ones
    asked: list[tuple[str, str, str, str]] = field(default_factory=list)  # host, path, range, token
    address: str = ""

    @contextmanager
    def running(self) -> Iterator["FakeHub"]:
        """Answer in a thread of its own, until the block ends."""
        loop, ready = asyncio.new_event_loop(), threading.Event()
        ended = asyncio.Event()

        async def serve() -> None:
            app = web.Application()
            app.router.add_get("/api/models", self.search)
            app.router.add_get("/api/models/{owner}/{repo}/revision/{revision}", self.describe)
            app.router.add_get("/{owner}/{repo}/resolve/{revision}/{path:.+}", self.resolve)
            app.router.add_get("/files/{owner}/{repo}/{path:.+}", self.file)
            runner = web.AppRunner(app, shutdown_timeout=0)
            await runner.setup()
            await web.TCPSite(runner, "localhost", 0).start()
            self.port = runner.addresses[0][1]
            self.address = f"http://127.0.0.1:{self.port}"
            ready.set()
            await ended.wait()
            await runner.cleanup()

        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
        thread.start()
        ready.wait(30)
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(ended.set)
            thread.join(30)
            loop.close()

    def note(self, request: web.Request) -> None:
        """Remember who asked for what."""
        headers = request.headers
        self.asked.append(
            (
                str(request.host).partition(":")[0],
                request.path,
                headers.get("Range", ""),
                headers.get("Authorization", ""),
            )
        )

    def refused(self, request: web.Request) -> web.Response | None:
        """Consent is asked for."""
        self.note(request)
        if self.gated and "Authorization" not in request.headers:
            return web.json_response({"error": "Access is restricted"}, status=401)
        return None

    async def search(self, request: web.Request) -> web.Response:
        self.note(request)
        words = request.query["search"].lower()
        return web.json_response(
            [
                {"id": name, "downloads": 12345, "gated": self.gated, "tags": ["license:mit"]}
                for name in self.repositories
                if words in name.lower()
            ]
        )

    async def describe(self, request: web.Request) -> web.Response:
        if (refusal := self.refused(request)) is not None:
            return refusal
        name = f"{request.match_info['owner']}/{request.match_info['repo']}"
        if name not in self.repositories:
            return web.json_response({"error": "Repository not found"}, status=404)
        return web.json_response(
            {
                "id": name,
                "sha": COMMIT,
                "gated": "manual" if self.gated else False,
                "cardData": {"license": self.licence} if self.licence else {},
                "siblings": [
                    self.row(path, held) for path, held in self.repositories[name].items()
                ],
            }
        )

    def row(self, path: str, held: bytes) -> dict[str, Any]:
        """One file in the list; small ones have git's hash alone."""
        blob = hashlib.sha1(b"blob %d\0" % len(held) + held).hexdigest()
        found: dict[str, Any] = {"rfilename": path, "size": len(held), "blobId": blob}
        if path.endswith((".gguf", ".safetensors")):
            right = hashlib.sha256(held).hexdigest()
            found["lfs"] = {"sha256": self.hashes.get(path, right), "size": len(held)}
        return found

    async def resolve(self, request: web.Request) -> web.Response:
        if (refusal := self.refused(request)) is not None:
            return refusal
        found = request.match_info
        assert found["revision"] == COMMIT
        where = (
            f"http://localhost:{self.port}/files/{found['owner']}/{found['repo']}/{found['path']}"
        )
        return web.Response(status=302, headers={"Location": where})

    async def file(self, request: web.Request) -> web.StreamResponse:
        self.note(request)
        found = request.match_info
        held = self.repositories[f"{found['owner']}/{found['repo']}"].get(found["path"])
        if held is None:
            return web.Response(status=404)
        if self.sends is not None:
            return web.Response(body=self.sends)
        begun = int(request.headers.get("Range", "bytes=0-")[6:-1])
        headers = {"Content-Length": str(len(held) - begun)}
        if begun:
            headers["Content-Range"] = f"bytes {begun}-{len(held) - 1}/{len(held)}"
        answer = web.StreamResponse(status=206 if begun else 200, headers=headers)
        await answer.prepare(request)
        rest = held[begun:]
        if self.breaks_after and len(rest) > self.breaks_after:
            await answer.write(rest[: self.breaks_after])
            assert request.transport is not None
            request.transport.close()
            return answer
        half = len(rest) // 2
        await answer.write(rest[:half])
        while self.hold is not None and not self.hold.is_set():
            await asyncio.sleep(0.01)
        await answer.write(rest[half:])
        return answer
