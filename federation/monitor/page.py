"""A page that shows how a run is doing, on the coordinator's own machine.

Knows one board, HTTP and a token. Knows nothing of rounds.
Always: it listens on loopback alone, on a port of its own, and only reads; numbers need the token
(file `token` in the run's folder), which the page takes out of its address; foreign Host and Origin
headers are refused, as at a node's own page.
"""

import asyncio
import contextlib
import threading
from pathlib import Path

from aiohttp import web

from ...core.config import ServerConfig
from ...core.server import auth, connections, errors, static
from ...core.server.app import claim
from .metrics import CONTENT_TYPE, Metrics
from .run_status import RunStatus

HOST = "127.0.0.1"
FOLDER = Path(__file__).parent / "ui"
# of a node's own page
SHARED = ("api.js", "theme.js", "icon.svg", "style.css", "vendor/htm-preact.js")
START_S = 30.0


class Page:
    """A server in a thread of its own: the run never waits for whoever looks.

    Args:
        port: 0 takes a free one.
        home: where the token lies; made if there is none.

    Raises:
        ConfigError: the port is taken, or others can read the token.
    """

    def __init__(self, status: RunStatus, port: int, home: Path) -> None:
        self.run_status, self.metrics, self.token = status, Metrics(status), auth.load_token(home)
        self.files = static.Pages(FOLDER)
        shared = static.Pages()
        self.files.files |= {name: shared.files[name] for name in SHARED}
        self.socket = claim(ServerConfig(host=HOST, port=port))
        self.port = int(self.socket.getsockname()[1])
        self.ready, self.loop = threading.Event(), asyncio.new_event_loop()
        self.ended = asyncio.Event()
        self.thread = threading.Thread(target=self.run, name="quietchoir-page", daemon=True)

    @property
    def url(self) -> str:
        """With the token, for the operator's browser."""
        return f"http://{HOST}:{self.port}/#token={self.token}"

    def application(self) -> web.Application:
        """All routes behind the guard."""
        app = web.Application(
            middlewares=[connections.occupy, errors.answer_errors, auth.guard(self.token, HOST)]
        )
        app.on_response_prepare.append(static.add_headers)
        app.add_routes(
            [
                web.get("/api/status", self.status),
                web.get("/metrics", self.scrape),
                *self.files.routes(),
            ]
        )
        return app

    async def status(self, _request: web.Request) -> web.Response:
        """The run as JSON."""
        return web.json_response(self.run_status.snapshot())

    async def scrape(self, _request: web.Request) -> web.Response:
        """The run as Prometheus reads it."""
        return web.Response(body=self.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    def run(self) -> None:
        """Serve until told to end."""
        with contextlib.closing(self.loop):
            self.loop.run_until_complete(self.serve())

    async def serve(self) -> None:
        """One application on the claimed socket."""
        runner = web.AppRunner(self.application(), access_log=None, shutdown_timeout=0.5)
        try:
            listening, _ = await connections.listen(runner, ServerConfig(host=HOST), self.socket)
            self.ready.set()
            await self.ended.wait()
            listening.close()
        finally:
            await runner.cleanup()

    def __enter__(self) -> "Page":
        self.thread.start()
        self.ready.wait(START_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.ended.set)
        self.thread.join(START_S)
        self.socket.close()
