"""Connections from the network: few and short until a member has proved itself on one.

Knows sockets, TLS and time limits. Knows nothing of routes, keys or messages; the door says on
which connections a member is.
Always: a connection on which nobody has proved who it is ends `HEAD_S` after it was made, at the
latest, whatever it does; there are at most `UNPROVEN` of them, and one more ends the oldest of the
address that has the most, so that strangers at fewer than `UNPROVEN` addresses never keep a member
at another from coming in; the head of a request takes at most `HEAD_S` and `HEAD_BYTES`, a member's
too.

Not covered: floods. TLS handshakes cost processor time, and a full line is full. A stranger behind
the member's own address (one router, one proxy) that connects some hundreds of times a second.
"""

import asyncio
import contextlib
import ipaddress
import socket
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ...core import log

logger = log.get("federation.flower")
UNPROVEN = 64  # a member proves itself within some milliseconds
HEAD_S = 10.0  # from connecting, or from the first byte of a later request, to the end of a head
HEAD_BYTES = 16 << 10
IDLE_S = 15.0  # a connection between two requests; heartbeats come every four seconds
CLOSE_S = 2.0  # TLS's goodbye
BACKLOG = 256
AGAIN_S = 0.1  # after the system had no room for another connection

Address = tuple[str, int]


def source(peer: tuple[Any, ...]) -> str:
    """Who is behind an address: an IPv4 address, or the network of an IPv6 one (its holder has
    all of 2^64).
    """
    address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


class Inbound(asyncio.Protocol):
    """One connection, in front of uvicorn's protocol for it."""

    def __init__(self, listener: "Listener") -> None:
        self.listener = listener
        self.inner = cast(HttpToolsProtocol, listener.protocol())
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self.opening: asyncio.Task[None] | None = None  # TLS's handshake
        self.greeted = False  # it has begun
        self.head_bytes = 0
        self.timer: asyncio.TimerHandle | None = self.loop.call_later(HEAD_S, self.end)

    @property
    def address(self) -> Address | None:
        """As the scopes of its requests name it."""
        return self.inner.client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake is done."""
        self.transport = cast(asyncio.Transport, transport)
        self.inner.connection_made(self.transport)
        self.listener.opened(self)

    def data_received(self, data: bytes) -> None:
        """Pass it on; watch the head of a request."""
        head = self.inner.cycle
        waiting = head is None or head.response_complete
        if waiting and self.timer is None:
            self.timer = self.loop.call_later(HEAD_S, self.end)
        self.inner.data_received(data)
        if self.inner.cycle is not head:  # a head is here; the rest is the door's to limit
            self.head_bytes = 0
            if self not in self.listener.unproven:
                self.in_time()
        elif waiting:
            self.head_bytes += len(data)
            if self.head_bytes > HEAD_BYTES:
                self.end()

    def in_time(self) -> None:
        """What was waited for has come."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def end(self) -> None:
        """Without a word."""
        if self.transport is not None:
            self.transport.abort()
        elif self.opening is not None:
            self.opening.cancel()

    def eof_received(self) -> None:
        """The other side has said all it will."""
        self.inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Gone, by whomever."""
        self.in_time()
        self.listener.closed(self)
        self.inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """The other side reads slowly."""
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        """It has caught up."""
        self.inner.resume_writing()


class Listener(uvicorn.Server):
    """uvicorn's server, with an eye on who connects.

    Args:
        listening: a bound socket.
        gone: called with the address of each connection that has ended.
    """

    def __init__(
        self, config: uvicorn.Config, listening: socket.socket, gone: Callable[[Address], None]
    ) -> None:
        super().__init__(config)
        self.listening, self.gone = listening, gone
        self.unproven: dict[Inbound, str] = {}  # whose they are; oldest first
        self.inbound: dict[Address, Inbound] = {}

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets=sockets or [])
        self.listening.setblocking(False)
        self.listening.listen(BACKLOG)
        self.accepting = asyncio.get_running_loop().create_task(self.accept())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let nobody else in, and end what is unproven."""
        self.accepting.cancel()
        self.listening.close()
        for inbound in list(self.unproven):
            inbound.end()
        await super().shutdown(sockets=sockets or [])

    async def accept(self) -> None:
        """Connections as they come, without end."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                taken, peer = await loop.sock_accept(self.listening)
            except OSError as error:
                logger.warning("no room for another connection: %s", error)
                await asyncio.sleep(AGAIN_S)
                continue
            inbound = Inbound(self)
            self.unproven[inbound] = source(peer)
            inbound.opening = loop.create_task(self.greet(inbound, taken))
            inbound.opening.add_done_callback(partial(self.greeted, inbound, taken))
            while len(self.unproven) > UNPROVEN:
                crowding = self.crowding()
                del self.unproven[crowding]
                crowding.end()

    def crowding(self) -> Inbound:
        """Who must go: the oldest connection of the source that has the most.

        A source alone never pushes out another's, however fast it knocks. The oldest of all would
        be the member, if it is as far away as strangers can connect 64 times in: a few hundred a
        second.
        """
        held = Counter(self.unproven.values())
        most = max(held.values())
        return next(inbound for inbound, whose in self.unproven.items() if held[whose] == most)

    async def greet(self, inbound: Inbound, taken: socket.socket) -> None:
        """TLS's handshake."""
        inbound.greeted = True
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: inbound,
            taken,
            ssl=self.config.ssl,
            ssl_handshake_timeout=HEAD_S,
            ssl_shutdown_timeout=CLOSE_S,
        )

    def greeted(
        self, inbound: Inbound, taken: socket.socket, opening: "asyncio.Task[None]"
    ) -> None:
        """The handshake has ended, well or not: no TLS, hung up, too slow, or one too many."""
        if not opening.cancelled() and (error := opening.exception()) is None:
            return
        if not opening.cancelled() and not isinstance(error, OSError):
            logger.warning("a connection ended in %s", type(error).__name__)
        inbound.in_time()
        self.closed(inbound)
        if inbound.greeted:  # the loop has the socket, and closes it once it sees the end
            with contextlib.suppress(OSError):
                taken.shutdown(socket.SHUT_RDWR)
        else:
            taken.close()

    def protocol(self) -> asyncio.Protocol:
        """What speaks HTTP on one connection."""
        return HttpToolsProtocol(self.config, self.server_state, self.lifespan.state)

    def opened(self, inbound: Inbound) -> None:
        """It can carry requests from here on."""
        if inbound.address is not None:
            self.inbound[inbound.address] = inbound

    def closed(self, inbound: Inbound) -> None:
        """It carries no more."""
        self.unproven.pop(inbound, None)
        address = inbound.address
        if address is not None and self.inbound.get(address) is inbound:
            del self.inbound[address]
            self.gone(address)

    def proved(self, address: Address) -> None:
        """A member is on this one."""
        inbound = self.inbound.get(address)
        if inbound is not None and inbound in self.unproven:
            del self.unproven[inbound]
            inbound.in_time()

    def end(self, address: Address) -> None:
        """Close this one."""
        if (inbound := self.inbound.get(address)) is not None:
            inbound.end()
