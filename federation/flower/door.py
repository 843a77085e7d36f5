"""The one door to the network: eight of Flower's fleet routes, and a request for work that waits until there is some.

Knows HTTP requests and who made them. Knows nothing of letters or rounds.
Always: whatever is not one of the eight routes is 404; nothing is held for a caller whom Flower has not checked; a request
that was held is answered within `HOLD_S`, or at once when there is work or the door closes.

Covered: a request larger than a chunk may be. Not covered: floods; whoever can reach the port can keep it busy.
"""

import asyncio
import base64
import math
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER

ROUTES = frozenset(
    f"/v1/fleet/{name}"
    for name in (
        "activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages", "push-object",
        "pull-object", "confirm-message-received",
    )
)  # fmt: skip
ASKS_FOR_WORK = "/v1/fleet/pull-messages"
DIALS_IN = "/v1/fleet/activate-node"
NOT_CHECKED = frozenset({400, 401, 415, 422})  # of an answer: the caller did not prove who it is, or spoke no protobuf
BRINGS = frozenset({"/v1/fleet/push-messages", "/v1/fleet/push-object"})
MAX_REQUEST_BYTES = 32 << 20  # Flower cuts objects into chunks of 5 MiB
HOLD_S = 4.0  # a node without work asks again after this; below every time limit between the two

Event = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(slots=True)
class Caller:
    """One roster key at the door. Times are `time.monotonic`."""

    idle_at: float = -math.inf  # last asked for work when there was none
    handed_at: float = -math.inf  # last got some
    bells: set[asyncio.Event] = field(default_factory=set)  # of its requests for work that are being answered

    @property
    def asked_at(self) -> float:
        """When it last asked for work."""
        return max(self.idle_at, self.handed_at)


class FleetDoor:
    """The SuperLink's app, as the network sees it; counts what passes."""

    def __init__(self, app: Application) -> None:
        self.app = app
        self.callers: dict[bytes, Caller] = {}  # transport keys of the roster
        self.news = threading.Event()  # something was brought, or a node has asked for work; the link clears it
        self.loop: asyncio.AbstractEventLoop | None = None
        self.closing = False
        self.drop: Callable[[bytes], None] = lambda key: None  # forget the session of this key
        self.bytes_in = 0  # request bodies
        self.bytes_out = 0  # response bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """404 to everything that is not one of the fleet's routes."""
        if scope["type"] == "lifespan":
            self.loop = asyncio.get_running_loop()
            await self.app(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] in ROUTES:
            await self.serve(scope, receive, self.counted(send))
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, within the limit."""
        body = bytearray()
        while True:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            body += event.get("body", b"")
            if len(body) > MAX_REQUEST_BYTES:
                await send({"type": "http.response.start", "status": 413, "headers": [(b"connection", b"close")]})
                await send({"type": "http.response.body", "body": b""})
                return
            if not event.get("more_body"):
                break
        self.bytes_in += len(body)
        key = caller(scope) or b""
        if scope["path"] == ASKS_FOR_WORK and key in self.callers:
            answer = await self.hold(self.callers[key], scope, bytes(body), receive)
        else:
            answer = await self.ask_flower(scope, bytes(body))
        if scope["path"] == DIALS_IN and key in self.callers and answer[0]["status"] not in (200, *NOT_CHECKED):
            self.drop(key)  # a node that was killed and is back before Flower has missed its heartbeats
            answer = await self.ask_flower(scope, bytes(body))
        for event in answer:
            await send(event)
        if scope["path"] in BRINGS:
            self.news.set()

    async def hold(self, here: Caller, scope: Scope, request: bytes, receive: Receive) -> list[Event]:
        """The answer to a request for work: at once if there is some or Flower refuses it, else when there is, or none."""
        bell, gone = asyncio.Event(), asyncio.ensure_future(receive())  # `gone` ends when the caller hangs up
        here.bells.add(bell)  # before Flower is asked: no letter can slip in between
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
                await asyncio.wait({gone, rung}, timeout=deadline - now, return_when=asyncio.FIRST_COMPLETED)
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
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]  # stays: nobody hangs up

        async def send(event: Event) -> None:
            answer.append(event)

        await self.app({**scope, "state": dict(scope.get("state", {}))}, receive, send)
        return answer

    def counted(self, send: Send) -> Send:
        """`send`, with its bytes noted."""

        async def count(event: Event) -> None:
            self.bytes_out += len(event.get("body", b""))
            await send(event)

        return count

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


def caller(scope: Scope) -> bytes | None:
    """The transport key that a request claims; Flower checks that the caller holds it."""
    wanted = FLEET_HTTP_PUBLIC_KEY_HEADER.lower().encode("ascii")
    values = [value for name, value in scope["headers"] if name == wanted]
    try:
        return base64.b64decode(values[0], validate=True) if len(values) == 1 else None
    except ValueError:
        return None
