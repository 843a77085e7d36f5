"""Somebody between the members and their coordinator, who delays, repeats, cuts and mixes up what
passes.

Knows the coordinator's TLS key: it is worse than any stranger on the network, who sees none of what
it sees. Knows HTTP bodies and the stage that a message names. Knows no member's key and no
coordinator's.
Always: without a rule everything passes as it is; leaving it closes its port and its threads.
"""

import asyncio
import io
import re
import ssl
import tempfile
import threading
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from aiohttp import web
from cryptography.hazmat.primitives import serialization

from ...core.errors import QuietchoirError
from ...federation.membership.keys import transport_point
from ...federation.spec.policy import Policy
from ..cluster import HOST

STAGE = re.compile(rb'"stage":"([a-z]+)"')  # in a message's header, wherever it lies in a body
KEY_HEADER = "flwr-public-key"
PULL, PUSH = "/v1/fleet/pull-messages", "/v1/fleet/push-messages"
START_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxiedBody:
    """One body on its way."""

    up: bool  # from a member
    node: str  # the member, if its key is known
    path: str
    stage: str  # of the message inside; empty if there is none
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """What is done to one passage; as it stands: nothing."""

    wait_s: float = 0.0
    cut: bool = False  # the connection ends instead
    half: bool = False  # the first half arrives, then the connection ends
    twice: bool = False  # a request that is made twice
    instead: bytes | None = None  # another body


PASS = Act()
Rule = Callable[[ProxiedBody], Act]


@dataclass
class Proxy:
    """One listening proxy.

    Args:
        port: where members dial.
        behind: where the coordinator listens; `elsewhere` names other ports for some members.
    """

    policy: Policy
    tls_key: Path
    port: int
    behind: int
    rule: Rule | None = None
    elsewhere: dict[str, int] = field(default_factory=dict)

    def __enter__(self) -> "Proxy":
        """Listen."""
        self.names = {key_of(member.transport): member.name for member in self.policy.members}
        self.pool = ThreadPoolExecutor(max_workers=32, thread_name_prefix="proxy-rule")
        self.loop, ready = asyncio.new_event_loop(), threading.Event()
        self.thread = threading.Thread(target=self.serve, args=(ready,), name="proxy", daemon=True)
        self.thread.start()
        if not ready.wait(START_S):
            raise QuietchoirError("the proxy did not start")
        return self

    def __exit__(self, *exception: object) -> None:
        """Let go of the port."""
        self.loop.call_soon_threadsafe(self.ended.set)
        self.thread.join(START_S)
        self.pool.shutdown(wait=False, cancel_futures=True)

    def serve(self, ready: threading.Event) -> None:
        """The loop's thread."""
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self.listen(ready))
        self.loop.close()

    async def listen(self, ready: threading.Event) -> None:
        """Until told to end."""
        self.ended = asyncio.Event()
        with tempfile.TemporaryDirectory(prefix="quietchoir-proxy-") as scratch:
            certificate = Path(scratch) / "certificate.pem"
            certificate.write_text(self.policy.coordinator.certificate, "ascii")
            inward = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            inward.load_cert_chain(certificate, self.tls_key)
            outward = ssl.create_default_context(cafile=str(certificate))
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{rest:.*}", self.handle)
        runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=0.5, handler_cancellation=True
        )
        await runner.setup()
        await web.TCPSite(runner, HOST, self.port, ssl_context=inward).start()
        connector = aiohttp.TCPConnector(ssl=outward, limit=0)
        async with aiohttp.ClientSession(
            connector=connector, auto_decompress=False
        ) as self.session:
            ready.set()
            await self.ended.wait()
            await runner.cleanup()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request there and its answer back."""
        node, body = self.names.get(request.headers.get(KEY_HEADER, ""), ""), await request.read()
        act = await self.judge(
            ProxiedBody(up=True, node=node, path=request.path, stage=stage_in(body), body=body)
        )
        if act.cut:
            return hang_up(request)
        body = body if act.instead is None else act.instead
        body = body[: len(body) // 2] if act.half else body
        try:
            if act.twice:
                await self.forward(request, node, body)
            status, headers, answer = await self.forward(request, node, body)
        except (aiohttp.ClientError, OSError):
            return hang_up(request)
        act = await self.judge(
            ProxiedBody(up=False, node=node, path=request.path, stage=stage_in(answer), body=answer)
        )
        if act.cut:
            return hang_up(request)
        answer = answer if act.instead is None else act.instead
        if not act.half:
            return web.Response(status=status, headers=headers, body=answer)
        broken = web.StreamResponse(
            status=status, headers={**headers, "Content-Length": str(len(answer))}
        )
        await broken.prepare(request)
        await broken.write(answer[: len(answer) // 2])
        return hang_up(request)

    async def forward(
        self, request: web.Request, node: str, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """The coordinator's answer."""
        port = self.elsewhere.get(node, self.behind)
        kept = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in ("host", "content-length")
        }
        async with self.session.post(
            f"https://{HOST}:{port}{request.path}", data=io.BytesIO(body), headers=kept
        ) as answer:
            shown = {
                name: answer.headers[name]
                for name in ("content-type", "date")
                if name in answer.headers
            }
            return answer.status, shown, await answer.read()

    async def judge(self, passage: ProxiedBody) -> Act:
        """What the rule says; it may take its time."""
        rule = self.rule
        act = PASS if rule is None else await self.loop.run_in_executor(self.pool, rule, passage)
        if act.wait_s:
            await asyncio.sleep(act.wait_s)
        return act


def key_of(transport: str) -> str:
    """How a member names its transport key in its requests."""
    form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return b64encode(transport_point(transport).public_bytes(*form)).decode("ascii")


def hang_up(request: web.Request) -> web.Response:
    """End the connection without an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def stage_in(body: bytes) -> str:
    """The stage of the message in a body; empty if there is none."""
    found = STAGE.search(body)
    return found[1].decode("ascii") if found else ""
