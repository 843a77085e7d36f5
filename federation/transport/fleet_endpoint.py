"""The one door to the network: eight of Flower's fleet routes, and a request for work that waits
until there is some.

Knows requests, who proves to have made them, and which process of a member is the one that is here.
Knows nothing of messages, rounds or sockets.
Always: what is not a POST to one of the eight routes, or does not prove in its head that a member
makes it (`proof`), is refused with a status and no more: nothing of it is read, counted, passed on
or remembered. One process of a member at a time is here: a second one with the same keys is turned
away for as long as the first is heard. A request that was held is answered within `HOLD_S`, or at
once when there is work or the door closes. Of Flower's answers nothing but success passes as it is.

Covered: strangers, and members of other federations. Not covered: floods (see `listener`).
"""

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from ...core import log
from ...crypto.identity.keys import PublicIdentity
from . import proof
from .listener import Address
from .proof import NOT_DIALLED_IN, NOT_PROVED, TAKEN, UNHEARD_S, Proof

logger = log.get("federation.flower")
FLEET = "/v1/fleet/"
ASKS_FOR_WORK, DIALS_IN, LEAVES = (
    f"{FLEET}pull-messages",
    f"{FLEET}activate-node",
    f"{FLEET}deactivate-node",
)
BRINGS = frozenset({f"{FLEET}push-messages", f"{FLEET}push-object"})
SHORT = frozenset({DIALS_IN, LEAVES, ASKS_FOR_WORK}) | {
    f"{FLEET}{name}" for name in ("send-node-heartbeat", "pull-object", "confirm-message-received")
}
ROUTES = BRINGS | SHORT
LONG_BYTES, SHORT_BYTES = 8 << 20, 64 << 10  # of a member's body; chunks have 5 MiB
BODY_S, SILENCE_S = 600.0, 30.0  # a member's body takes so long, and pauses so long
HOLD_S = 4.0  # a node without work asks again after this; below every time limit between the two
HUNG_UP_S = 1.0  # a process without a connection is gone after this
LINES = 8  # connections of one member; one more ends the oldest, which the network may have broken

NOT_FOUND, NOT_ALLOWED, TOO_SLOW, TOO_LONG = 404, 405, 408, 413
REFUSED = 400  # whatever Flower did not do for a member

Event = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(slots=True)
class Caller:
    """One roster key at the door. Times are `time.monotonic`."""

    identity: PublicIdentity
    session: str = ""  # of the process that is here
    heard_at: float = -math.inf  # its last request
    dialled_at: float = -math.inf  # its last process, or that one's last line
    lines: dict[Address, None] = field(default_factory=dict)  # its connections, oldest first
    hung_up_at: float = -math.inf  # the last of them ended
    rival: str = ""  # the process that was turned away last
    idle_at: float = -math.inf  # last asked for work when there was none
    handed_at: float = -math.inf  # last got some
    # of its requests for work that are being answered
    bells: set[asyncio.Event] = field(default_factory=set)

    @property
    def asked_at(self) -> float:
        """When it last asked for work."""
        return max(self.idle_at, self.handed_at)

    @property
    def is_here(self) -> bool:
        """Is the process that dialled in alive, as far as can be seen from here?"""
        now = time.monotonic()
        return now - self.heard_at < UNHEARD_S if self.lines else now - self.hung_up_at < HUNG_UP_S


class FleetEndpoint:
    """The SuperLink's app, as the network sees it; counts what passes.

    Args:
        federation: its number, which proofs are for.
    """

    def __init__(self, app: Application, federation: bytes) -> None:
        self.app, self.federation = app, federation
        self.callers: dict[bytes, Caller] = {}  # by transport key, of the roster
        self.owners: dict[Address, Caller] = {}  # whose connections these are
        # something was brought, or a node has asked for work; the link clears it
        self.news = threading.Event()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.closing = False
        self.drop: Callable[[bytes], None] = lambda key: None  # forget the session of this key
        self.proved: Callable[[Address], None] = lambda address: None  # a member is on it
        self.end: Callable[[Address], None] = lambda address: None  # close this connection
        self.bytes_in = 0  # bodies of members' requests
        self.bytes_out = 0  # of the answers to them

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the server's start and end."""
        if scope["type"] == "lifespan":
            self.loop = asyncio.get_running_loop()
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["path"] not in ROUTES:
            await refuse(send, NOT_FOUND)
        elif scope["method"] != "POST":
            await refuse(send, NOT_ALLOWED)
        elif (
            proved := proof.check(scope["headers"], scope["path"], self.federation, self.identity)
        ) is None:
            await refuse(send, NOT_PROVED)
        else:
            await self.serve(proved, scope, receive, send)

    def identity(self, key: bytes) -> PublicIdentity | None:
        """What signs for the member with this transport key."""
        caller = self.callers.get(key)
        return None if caller is None else caller.identity

    async def serve(self, proved: Proof, scope: Scope, receive: Receive, send: Send) -> None:
        """A member's request, within the limits."""
        here, path = self.callers[proved.key], str(scope["path"])
        if status := self.turned_away(here, proved.session, path):
            await refuse(send, status)
            return
        self.note_line(here, scope.get("client"))
        here.heard_at = time.monotonic()
        try:
            async with asyncio.timeout(BODY_S):
                body = await whole(receive, SHORT_BYTES if path in SHORT else LONG_BYTES)
        except TimeoutError:
            await refuse(send, TOO_SLOW)
            return
        except ConnectionError:
            return
        if body is None:
            await refuse(send, TOO_LONG)
            return
        self.bytes_in += len(body)
        if path == DIALS_IN:
            self.drop(proved.key)  # of a process before, or of this one if its line broke
        answer = await (
            self.hold(here, scope, body, receive)
            if path == ASKS_FOR_WORK
            else self.ask_flower(scope, body)
        )
        if answer[0]["status"] != 200:
            await refuse(send, NOT_PROVED if answer[0]["status"] == NOT_PROVED else REFUSED)
            return
        if path == DIALS_IN:
            here.dialled_at = time.monotonic()
        if path == LEAVES:
            here.session = ""
        for event in answer:
            self.bytes_out += len(event.get("body", b""))
            await send(event)
        if path in BRINGS:
            self.news.set()

    def note_line(self, here: Caller, address: Address | None) -> None:
        """A member is on this connection; it has few."""
        if address is None:
            return
        self.proved(address)
        here.lines[address], self.owners[address] = None, here
        while len(here.lines) > LINES:
            oldest = next(iter(here.lines))
            del here.lines[oldest]
            self.end(oldest)

    def line_gone(self, address: Address) -> None:
        """A connection has ended."""
        caller = self.owners.pop(address, None)
        if caller is not None and address in caller.lines:
            del caller.lines[address]
            caller.hung_up_at = time.monotonic()

    def turned_away(self, here: Caller, session: str, path: str) -> int:
        """0 if this is the process of the member that is here; one that dials in becomes it, unless
        another one is.
        """
        if here.session == session:
            return 0
        if here.session and here.is_here:
            if here.rival != session:
                here.rival = session
                logger.warning(
                    "a second process came with the keys of a member that is here; turned away"
                )
            return TAKEN
        if path != DIALS_IN:
            return NOT_DIALLED_IN
        here.session = session
        return 0

    async def hold(
        self, here: Caller, scope: Scope, request: bytes, receive: Receive
    ) -> list[Event]:
        """The answer to a request for work: at once if there is some or Flower refuses it, else
        when there is, or none.
        """
        # `gone` ends when the caller hangs up
        bell, gone = asyncio.Event(), asyncio.ensure_future(receive())
        here.bells.add(bell)  # before Flower is asked: no message can slip in between
        deadline = time.monotonic() + HOLD_S
        try:
            while True:
                answer = await self.ask_flower(scope, request)
                now = time.monotonic()
                if answer[0]["status"] != 200:
                    return answer
                if any(event.get("body") for event in answer):
                    here.handed_at = now
                    return answer
                here.idle_at = now
                self.news.set()
                if self.closing:
                    return answer
                rung = asyncio.ensure_future(bell.wait())
                await asyncio.wait(
                    {gone, rung}, timeout=deadline - now, return_when=asyncio.FIRST_COMPLETED
                )
                rung.cancel()
                if gone.done() or not bell.is_set():
                    return answer
                bell.clear()
        finally:
            here.bells.discard(bell)
            gone.cancel()

    async def ask_flower(self, scope: Scope, request: bytes) -> list[Event]:
        """One whole request to Flower's own app; its events, whole."""
        waiting, answer = [request], list[Event]()

        async def receive() -> Event:
            if waiting:
                return {"type": "http.request", "body": waiting.pop(), "more_body": False}
            stays: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
            return await stays  # nobody hangs up

        async def send(event: Event) -> None:
            answer.append(event)

        await self.app({**scope, "state": dict(scope.get("state", {}))}, receive, send)
        return answer

    def ring(self, key: bytes) -> None:
        """There is work for `key`; from any thread."""
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.answer, self.callers[key])

    def answer(self, here: Caller) -> None:
        """In the server's own thread: let what is held go on."""
        for bell in here.bells:
            bell.set()

    def close(self) -> None:
        """Answer whoever is held."""
        self.closing = True
        for key in list(self.callers):
            self.ring(key)


async def whole(receive: Receive, limit: int) -> bytes | None:
    """A request's body; None if it is longer than that.

    Raises:
        TimeoutError: it paused for too long. ConnectionError: its sender hung up.
    """
    body = bytearray()
    while True:
        async with asyncio.timeout(SILENCE_S):
            event = await receive()
        if event["type"] == "http.disconnect":
            raise ConnectionError
        body += event.get("body", b"")
        if len(body) > limit:
            return None
        if not event.get("more_body"):
            return bytes(body)


async def refuse(send: Send, status: int) -> None:
    """A status, and the end of the connection: what else came on it is not read."""
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
