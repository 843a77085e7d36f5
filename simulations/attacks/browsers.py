"""Attacks by other web pages and processes on the machine: who reaches a port on loopback, and has
no token.

Knows the HTTP of a node, of the coordinator's page and of a library's host. Knows nothing of the
fleet's door.
"""

import asyncio
import contextlib
import functools
import socket
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any, cast
from unittest import mock

from aiohttp import web

from ...core.assistant.adapters import AdapterInfo, AdapterSwitch
from ...core.assistant.assistant import Assistant
from ...core.assistant.model_pool import LoadedModel, ModelPool, ModelProfile
from ...core.assistant.tools import NoTools
from ...core.config import ServerConfig
from ...core.server import app, auth, connections
from ...crypto.pir.search import Shape
from ...federation.monitor.page import Page
from ...federation.monitor.run_status import RunStatus
from ...private_search import host
from .catalogue import Attack, Result
from .targets import HOST, federation

BOMB_BYTES, HELD_BYTES = 256 << 20, 32 << 20


# Paths and names that look open


class Nothing:
    """No adapters, no model."""

    def encode(self, text: str) -> list[int]:
        """No tokens."""
        del text
        return []

    def list(self) -> tuple[AdapterInfo, ...]:
        """None."""
        return ()

    def active(self) -> None:
        """None."""


# in answers that are the owner's
SECRETS = (b"engine", b"budget", b"smollm2-decoy", b"quietchoir_members")
TOKEN = "a-token-that-no-stranger-has-" + "x" * 20
PATHS = (
    "/api/status",
    "/v1/models",
    "/metrics",
    "//api/status",
    "/ui/../api/status",
    "/ui/%2e%2e/api/status",
    "/ui/..%2fapi%2fstatus",
    "/ui//../../api/status",
    "/health/../api/status",
    "/health/",
    "/favicon.ico/../api/status",
    "/./api/status",
    "/api/status/",
    "/api%2fstatus",
    "/%61pi/status",
    "/api/status?ui/",
    "/api/status;/ui/x",
    "/api/status#/ui/",
    "/\\api\\status",
    "http://localhost/api/status",
    "/v1//models",
    "/v1/v1/models",
    "/models",
    "/ui/x/../../v1/models",
    "/api/status%00/ui/",
    "/ui/%252e%252e/api/status",
    "/API/STATUS",
    "/health\t/../api/status",
)
HEADS = (
    "",
    "Authorization: Bearer",
    "Authorization: Bearer \xff",
    "Authorization: Basic x",
    "Cookie: token=x",
    "X-Original-URL: /health",
    "X-Rewrite-URL: /ui/",
    "X-HTTP-Method-Override: GET",
    "X-Forwarded-Host: localhost",
    "Origin: http://127.0.0.1:1",
    "Connection: upgrade\r\nUpgrade: websocket",
)


def ask(port: int, words: bytes) -> bytes:
    """All that a server says to one request."""
    answer = b""
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=5) as line:
        line.sendall(words)
        while piece := line.recv(1 << 16):
            answer += piece
    return answer


def read_without_a_token(port: int) -> tuple[int, int]:
    """Requests made, and those whose answer holds something of the owner's."""
    tried = read = 0
    for method in ("GET", "HEAD", "OPTIONS"):
        for path, head in [(path, "") for path in PATHS] + [
            ("/api/status", head) for head in HEADS
        ]:
            lines = [
                f"{method} {path} HTTP/1.1",
                f"Host: {HOST}:{port}",
                "Connection: close",
                *([head] if head else []),
                "",
                "",
            ]
            answer = ask(port, "\r\n".join(lines).encode("latin-1"))
            tried += 1
            read += b" 200 " in answer[:20] and any(secret in answer for secret in SECRETS)
    return tried, read


def opens_to_all(_token: str, _host: str, _hosts: Any = ()) -> Any:
    """No guard."""

    @web.middleware
    async def through(request: web.Request, handler: Any) -> Any:
        return await handler(request)

    return through


def parts() -> app.Parts:
    """A node that serves nobody's model."""
    switch = AdapterSwitch("smollm2-decoy", cast(Any, None), cast(Any, Nothing()))
    assistant = Assistant(cast(Any, None), cast(Any, Nothing()), NoTools(), context=64)
    profile = ModelProfile(name="smollm2-decoy", adapters=switch)
    return app.Parts(
        pool=ModelPool.of_one(LoadedModel(profile=profile, assistant=assistant)),
        tools=assistant.tools,
        approvals=assistant.approvals,
        token=TOKEN,
    )


@contextlib.contextmanager
def node() -> Iterator[int]:
    """A node's HTTP on a free port."""
    loop, ready, port = asyncio.new_event_loop(), threading.Event(), 0
    ended = asyncio.Event()

    async def serve() -> None:
        nonlocal port
        config = ServerConfig(port=0)
        server = app.NodeServer(parts(), config, app.claim(config))
        await server.start()
        port = server.port
        ready.set()
        await ended.wait()
        await server.stop()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    ready.wait(30)
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(30)
        loop.close()


@contextlib.contextmanager
def page() -> Iterator[int]:
    """A coordinator's page on a free port."""
    with federation() as (file, policy), Page(RunStatus(policy), 0, file.parent / "home") as shown:
        yield shown.port


def without_a_token(
    serve: Callable[[], contextlib.AbstractContextManager[int]], guard: Callable[..., Any]
) -> Result:
    """What a process or a web page on this machine reads without the token."""
    with mock.patch.object(auth, "guard", guard), serve() as port:
        tried, read = read_without_a_token(port)
    return Result(
        read > 0, f"{tried} requests without a token, {read} were told something of the owner's"
    )


def unpacked(fetch: Callable[[int, bytes], None]) -> Result:
    """A body that unpacks to a thousand times its size, from somebody without a token."""
    packed = zlib.compress(bytes(BOMB_BYTES), 9)
    with node() as port:
        tracemalloc.start()
        try:
            fetch(port, packed)
            held = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    return Result(held > HELD_BYTES, f"{len(packed) >> 10} KiB sent, {held >> 20} MiB held at once")


def post(port: int, packed: bytes) -> None:
    """As a client sends it."""
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        f"Host: {HOST}",
        "Content-Encoding: deflate",
        f"Content-Length: {len(packed)}",
    ]
    ask(port, "\r\n".join([*lines, "", ""]).encode() + packed)


def unpack_whole(_port: int, packed: bytes) -> None:
    """What a server does that unpacks what it has."""
    zlib.decompress(packed)


# Connections that say nothing


async def unlimited(
    runner: web.AppRunner, _config: ServerConfig, claimed: socket.socket, _tls: Any = None
) -> tuple[Any, Any]:
    """Serve as aiohttp does by itself."""
    await runner.setup()
    site = web.SockSite(runner, claimed)
    await site.start()
    return mock.Mock(), None


@contextlib.contextmanager
def library() -> Iterator[int]:
    """A library's host on a free port, of which no passage is ever asked."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    crypto_worker = mock.Mock()
    crypto_worker.manifest.shape = Shape(dimension=24, passages=4, chunk_bytes=64)
    with socket.create_server((HOST, 0)) as claimed:
        serving = loop.create_task(host.serve(crypto_worker, claimed, ready=ready.set))

        def run() -> None:
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(serving)

        thread = threading.Thread(target=run)
        thread.start()
        ready.wait(30)
        try:
            yield claimed.getsockname()[1]
        finally:
            loop.call_soon_threadsafe(serving.cancel)
            thread.join(30)
            loop.close()


def silent(listen: Callable[..., Any]) -> Result:
    """How many connections that say nothing are held at once, at the page and at a library's
    host.
    """
    limit = ServerConfig().max_connections
    most = 0
    with mock.patch.object(connections, "listen", listen):
        for serve in (page, library):
            with serve() as port, contextlib.ExitStack() as opened_:
                lines = [
                    opened_.enter_context(socket.create_connection((HOST, port)))
                    for _ in range(2 * limit)
                ]
                ask(
                    port, f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode()
                )  # after all of them
                held = 0
                for line in lines:
                    line.setblocking(False)
                    try:
                        held += line.recv(1) != b""
                    except BlockingIOError:
                        held += 1
                    except OSError:
                        pass
                most = max(most, held)
    return Result(most > limit, f"of {2 * limit} silent connections {most} are held")


ATTACKS: tuple[Attack, ...] = (
    Attack(
        name="paths and heads that look open, at a node",
        who="another web page or process",
        mode="server",
        promise="what is the owner's needs the token",
        unprotected=lambda: without_a_token(node, opens_to_all),
        protected=functools.partial(without_a_token, node, auth.guard),
    ),
    Attack(
        name="paths and heads that look open, at the coordinator's page",
        who="another web page or process",
        mode="server",
        promise="numbers need the token",
        unprotected=lambda: without_a_token(page, opens_to_all),
        protected=functools.partial(without_a_token, page, auth.guard),
    ),
    Attack(
        name="silent connections without end, at the page and at a library",
        who="another web page or process",
        mode="server",
        promise="there are at most as many connections as a node may have",
        unprotected=lambda: silent(unlimited),
        protected=functools.partial(silent, connections.listen),
    ),
    Attack(
        name="a body that unpacks to a thousand times its size",
        who="another web page or process",
        mode="server",
        promise="nothing of a stranger's body is held",
        unprotected=lambda: unpacked(unpack_whole),
        protected=lambda: unpacked(post),
    ),
)
