"""Connections: how many at once, and how long each may take to say what it wants.

Knows sockets, times and who was let in. Knows nothing of what is asked.
Always: where there is no room, a stranger's connection goes before the owner's and an idle one
before one that is answered; a head that aiohttp cannot read is answered in OpenAI's shape and costs
a line of the log at most, no traceback.
"""

import asyncio
import json
import socket
import ssl
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler, Middleware

from .. import log
from ..config import ServerConfig
from ..errors import OverloadedError
from . import errors, static
from .auth import OWNER, AccessDenied
from .errors import BadRequest

KEEPALIVE_S = 60.0  # an idle connection of the owner's is closed after this
LINGERING_S = 2.0  # what of a refused body is still read, so that its sender sees the refusal
# chunks or encodings that are none
UNREADABLE = (web.RequestPayloadError, HttpProcessingError, ClientPayloadError)
ENDING = "this node is about to end; ask again when it was started again"
Handling = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
logger = log.get("server")


class CountedConnection(web.RequestHandler):
    """One connection; aiohttp reads and answers, this counts."""

    def __init__(self, manager: web.Server, crowd: "Connections") -> None:
        super().__init__(
            manager,
            loop=crowd.loop,
            keepalive_timeout=KEEPALIVE_S,
            lingering_time=LINGERING_S,
            logger=logger,
            access_log=None,  # type: ignore[arg-type]  # how aiohttp itself turns it off
        )
        self.crowd = crowd
        self.trusted = False  # a request of its had the token
        self.answering = False
        self.idle_since = crowd.loop.time()
        self.deadline: asyncio.TimerHandle | None = None  # until its first head is whole
        self.patience: asyncio.TimerHandle | None = None  # while its client takes nothing

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a place, or say that there is none."""
        if self.crowd.enter(self):
            self.deadline = self.crowd.loop.call_later(
                self.crowd.config.head_timeout_s, self.force_close
            )
            super().connection_made(transport)
        elif isinstance(transport, asyncio.WriteTransport):
            transport.write(FULL)
            transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Give the place back."""
        self.crowd.leave(self)
        for timer in (self.deadline, self.patience):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Its client takes nothing, and what waits for it is enough."""
        super().pause_writing()
        self.patience = self.crowd.loop.call_later(self.crowd.config.write_timeout_s, self.let_go)

    def resume_writing(self) -> None:
        """It took something."""
        if self.patience is not None:
            self.patience.cancel()
        super().resume_writing()

    def let_go(self) -> None:
        """It has had its time: the connection ends, and with it whatever still answers there."""
        logger.warning(
            "a client took nothing of its answer for %g s; it is let go",
            self.crowd.config.write_timeout_s,
        )
        self.force_close()

    def force_close(self) -> None:
        """End it. What its client does not take now is lost; waiting for that would keep the
        connection for as long as the client likes.
        """
        transport = self.transport
        super().force_close()
        if transport is not None and transport.get_write_buffer_size():
            transport.abort()

    def begin(self) -> None:
        """A head was read."""
        self.answering = True
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def end(self, trusted: bool) -> None:
        """It was answered."""
        self.answering, self.idle_since = False, self.crowd.loop.time()
        self.trusted = self.trusted or trusted

    def log_exception(self, *args: Any, exc_info: object = None, **_: object) -> None:
        """What aiohttp did not expect: a stranger's broken body, which was refused before, or a
        bug.
        """
        if isinstance(exc_info, UNREADABLE):
            logger.debug("a body that cannot be read: %.200s", exc_info)
        else:
            logger.error(*args, exc_info=exc_info)  # type: ignore[arg-type]

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What aiohttp itself refuses: a head or a body that is not HTTP."""
        if status >= 500:
            logger.error("%s %r failed inside", request.method, request.path[:80], exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer had begun; it is broken off")
        said = (
            HTTPStatus(status).phrase
            if status >= 500
            else f"this is not HTTP as this node reads it: {message or exc!s:.200}"
        )
        error = errors.shape(said, "server_error" if status >= 500 else "invalid_request_error")
        response = web.json_response({"error": error}, status=status, headers=static.HEADERS)
        response.force_close()
        return response


class Connections:
    """All connections of one server."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.loop = asyncio.get_running_loop()
        self.open: set[CountedConnection] = set()
        self.draining = False  # the node is about to end: nothing new is begun

    def enter(self, connection: CountedConnection) -> bool:
        """Is there a place? If not, the stranger or the owner's connection that was idle longest
        makes room.
        """
        if len(self.open) >= self.config.max_connections:
            idle = [one for one in self.open if not one.answering]
            if not idle:
                return False
            longest = min(idle, key=lambda one: (one.trusted, one.idle_since))
            self.open.discard(longest)
            longest.force_close()
        self.open.add(connection)
        return True

    def leave(self, connection: CountedConnection) -> None:
        """It was closed, by whom ever."""
        self.open.discard(connection)


async def listen(
    runner: web.AppRunner,
    config: ServerConfig,
    claimed: socket.socket,
    tls: ssl.SSLContext | None = None,
) -> tuple[asyncio.Server, Connections]:
    """Serve a runner's application on a claimed socket, within the limits; `occupy` must be its
    first middleware.
    """
    await runner.setup()
    manager, crowd = runner.server, Connections(config)
    assert manager is not None
    manager.request_handler = refuse_expectations(manager.request_handler)
    loop = asyncio.get_running_loop()
    handshake_s = None if tls is None else config.head_timeout_s
    listening = await loop.create_server(
        lambda: CountedConnection(manager, crowd),
        sock=claimed,
        ssl=tls,
        ssl_handshake_timeout=handshake_s,
    )
    return listening, crowd


@web.middleware
async def occupy(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Around everything else: a connection whose request is being answered is not idle."""
    connection = request.protocol
    if not isinstance(connection, CountedConnection):
        return await handler(request)
    if connection.crowd.draining:
        response = errors.response(OverloadedError(ENDING), request.path)
        response.force_close()
        return response
    connection.begin()
    try:
        return await handler(request)
    finally:
        connection.end(request.get(OWNER, False))


def refuse_expectations(handle: Handling) -> Handling:
    """Around the application, since aiohttp looks at Expect before any middleware, and cannot
    say every one back.
    """

    async def refuse(request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Expect", "100-continue").lower() == "100-continue":
            return await handle(request)
        error = errors.shape(
            "Expect holds something else than 100-continue; leave it out", "invalid_request_error"
        )
        response = web.json_response({"error": error}, status=417, headers=static.HEADERS)
        response.force_close()
        return response

    return refuse


def limit_rate(per_s: float) -> Middleware:
    """Middleware behind the guard that refuses what comes faster, after a burst of as many as a
    second allows (one at least). Args: per_s: requests; 0: no limit.
    """
    most = max(1.0, per_s)
    left, since = most, 0.0

    @web.middleware
    async def limit(request: web.Request, handler: Handler) -> web.StreamResponse:
        nonlocal left, since
        if per_s:
            now = asyncio.get_running_loop().time()
            left, since = min(most, left + per_s * (now - since)), now
            if left < 1:
                raise AccessDenied(
                    429,
                    f"more than {per_s:g} requests a second came (server.max_requests_per_s); ask "
                    f"again later",
                )
            left -= 1
        return await handler(request)

    return limit


def read_bodies(timeout_s: float) -> Middleware:
    """Middleware that reads a body, behind the guard and where a route wants it; handlers find
    it read.
    """

    @web.middleware
    async def read(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.can_read_body and request.match_info.http_exception is None:
            try:
                async with asyncio.timeout(timeout_s):
                    await request.read()
            except TimeoutError:
                raise AccessDenied(
                    408, f"the body did not come within {timeout_s:g} s; send it at once"
                ) from None
            except UNREADABLE as error:
                raise BadRequest(f"the body cannot be read: {error!s:.200}") from None
        return await handler(request)

    return read


def _full() -> bytes:
    """The answer where nothing can be asked."""
    error = errors.shape(
        "all connections of this node are in use; try again later",
        "overloaded_error",
        code="overloaded",
    )
    body = json.dumps({"error": error}).encode()
    head = (
        f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: "
        f"{len(body)}\r\n"
        f"Retry-After: {errors.RETRY_AFTER_S}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


FULL = _full()
