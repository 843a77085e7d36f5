"""The network of one plugin: an HTTP proxy of ours that lets through what was granted.

Knows the endpoints that its owner granted, HTTP, and how to resolve a name. Knows nothing of
sandboxes: it is handed a socket that listens inside one (`sandbox/inside.py`).
Always: a host that is not granted is not even resolved; the address that was checked is the address
that is dialled; neither this machine nor its network is reached unless that very address and port
was named; every request is checked anew and logged: host, bytes, seconds, outcome, no contents.

Not covered: whoever is granted can be told anything. Inside of a tunnel (CONNECT) TLS is the
plugin's own, end to end: which of the sites at the granted host's address is spoken to there (SNI,
Host) is not seen. A host of the owner's network with a public address, other than this machine,
counts as public.
Source: RFC 9110 (7.6.1, 9.3.6), RFC 9112 (3.2), RFC 9209.
"""

import asyncio
import ipaddress
import logging
import socket
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web
from multidict import CIMultiDict, MultiMapping
from yarl import URL

from ..core import log
from ..core.errors import PluginError, ToolError
from . import endpoints
from .audit import Outcome, ProxyConnection
from .endpoints import Address, Endpoint

MAX_CONNECTIONS = 16  # of one plugin at once; one more is closed
MAX_REQUESTS = 120  # a minute
MAX_ARRIVALS = 1200  # connections a minute, requests or not; one that opens more is ended
CONNECT_S, IDLE_S, TOTAL_S = 10.0, 60.0, 600.0  # to resolve and dial; without a byte; altogether
TRIED = 4  # addresses of one name
CHUNK, PHRASE = 1 << 16, 300
BUFFER = 1 << 16  # what the kernel holds of one connection, each way
# What belongs to one connection and not to what is sent over it, and what would name its sender.
HOP_BY_HOP = frozenset(
    {
        *("connection", "host", "keep-alive", "proxy-authenticate", "proxy-authorization"),
        *(
            "proxy-connection",
            "proxy-status",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
            "expect",
        ),
    }
)
BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
Resolve = Callable[[Endpoint], Awaitable[Sequence[str]]]
logger = log.get("plugins")
UNHEARD = logging.getLogger("aiohttp.server.broker")  # malformed requests are the plugin's business
UNHEARD.setLevel(logging.CRITICAL)


class RequestRefused(Exception):
    """What is not let through, in words for the plugin's author."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


async def resolve(wanted: Endpoint) -> list[str]:
    """The addresses of a name, as this machine knows them."""
    loop = asyncio.get_running_loop()
    rows = await loop.getaddrinfo(wanted.host, wanted.port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(row[4][0]) for row in rows))


@dataclass(slots=True)
class TrafficBudget:
    """What one plugin may send and receive in an hour, and ask in a minute."""

    most_bytes: int
    clock: Callable[[], float] = time.monotonic
    _bytes: Counter[int] = field(default_factory=Counter)  # by minute
    _requests: Counter[int] = field(default_factory=Counter)
    _arrivals: Counter[int] = field(default_factory=Counter)

    def arrive(self) -> bool:
        """One connection more; whether they are still few enough."""
        minute = self._minute()
        self._arrivals[minute] += 1
        return self._arrivals[minute] <= MAX_ARRIVALS

    def ask(self) -> int:
        """One request more; how many of this minute are beyond what is answered."""
        minute = self._minute()
        self._requests[minute] += 1
        return max(0, self._requests[minute] - MAX_REQUESTS)

    def spend(self, count: int) -> None:
        """`count` bytes more. Raises: RequestRefused: they are more than was granted."""
        self._bytes[self._minute()] += count
        if self._bytes.total() > self.most_bytes:
            raise RequestRefused(
                429, f"more than limits.network_mb = {self.most_bytes >> 20} MB in an hour"
            )

    def _minute(self) -> int:
        """The minute it is now; what is older than an hour is forgotten."""
        minute = int(self.clock() // 60)
        for counter in (self._bytes, self._requests, self._arrivals):
            for old in [one for one in counter if one <= minute - 60]:
                del counter[old]
        return minute


@dataclass(slots=True)
class ProxyExchange:
    """One request on its way, and what it cost."""

    budget: TrafficBudget
    wanted: Endpoint = field(default_factory=lambda: Endpoint("", 0))
    answer: web.StreamResponse | None = None  # once its first byte may be on its way
    sent: int = 0
    received: int = 0

    def send(self, count: int) -> None:
        """Raises: RequestRefused: as `TrafficBudget.spend`."""
        self.sent += count
        self.budget.spend(count)

    def receive(self, count: int) -> None:
        """Raises: RequestRefused: as `TrafficBudget.spend`."""
        self.received += count
        self.budget.spend(count)


class Upstream:
    """What a tunnel's client sends, as aiohttp hands over an upgraded connection."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Take bytes."""
        self._reader.feed_data(data)
        return False, b""

    def feed_eof(self) -> None:
        """The client is gone."""
        self._reader.feed_eof()


class ProxyInbound(web.RequestHandler):
    """A connection of the plugin's.

    Args:
        malformed: hears of what comes on it and is no HTTP.
    """

    def __init__(self, server: web.Server, malformed: Callable[[], None], **options: Any) -> None:
        super().__init__(server, **options)
        self.malformed = malformed

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """As aiohttp answers it; what broke while a request was answered is logged there."""
        if status < 500:
            self.malformed()
        return super().handle_error(request, status, exc, message)


class Turned(asyncio.Protocol):
    """A connection beyond what is served."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close it."""
        transport.close()


class Broker:
    """The network of one plugin, from its first start to the node's end.

    Args:
        plugin: its id, for the log.
        granted: all that it may connect to.
        budget: outlives the plugin's restarts.
        tell: hears of every request that ended.
        resolve: the addresses of a name.
    """

    def __init__(
        self,
        plugin: str,
        granted: Sequence[Endpoint],
        budget: TrafficBudget,
        tell: Callable[[ProxyConnection], None],
        resolve: Resolve = resolve,
    ) -> None:
        self.plugin, self.granted, self.budget = plugin, frozenset(granted), budget
        self._tell, self._resolve = tell, resolve
        self._ended: asyncio.Future[str] | None = None  # why its plugin must be ended

    async def serve(self, channel: socket.socket) -> None:
        """Take the socket that listens inside out of `channel`, and answer on it until cancelled.

        Raises:
            OSError: there is none: the sandbox ended before it was ready.
            ToolError: it must be ended: it floods its network, or what it does there cannot be
            logged.
        """
        with channel:
            listening = await received(channel)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):  # accepted ones inherit them
            listening.setsockopt(socket.SOL_SOCKET, option, BUFFER)
        async with ClientSession(
            connector=TCPConnector(limit=0, force_close=True),
            cookie_jar=DummyCookieJar(),
            timeout=ClientTimeout(total=TOTAL_S, sock_connect=CONNECT_S, sock_read=IDLE_S),
            auto_decompress=False,
        ) as session:

            async def answer(request: web.BaseRequest) -> web.StreamResponse:
                return await self._answer(request, session)

            options: dict[str, Any] = {
                "access_log": None,
                "logger": UNHEARD,
                "keepalive_timeout": IDLE_S,
                "lingering_time": 0,
                "auto_decompress": False,
            }
            server, loop = web.Server(answer, **options), asyncio.get_running_loop()
            ended = self._ended = loop.create_future()

            def admit() -> asyncio.BaseProtocol:
                if not self.budget.arrive():
                    self._end(f"it opened more than {MAX_ARRIVALS} connections in a minute")
                few = len(server.connections) < MAX_CONNECTIONS and not ended.done()
                if not few:
                    return Turned()
                return ProxyInbound(server, self._malformed, loop=loop, **options)

            accepting = await loop.create_server(admit, sock=listening, backlog=MAX_CONNECTIONS)
            try:
                raise ToolError(await ended)
            finally:
                accepting.close()
                await server.shutdown(0)

    def _end(self, reason: str) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(reason)

    async def _answer(self, request: web.BaseRequest, session: ClientSession) -> web.StreamResponse:
        exchange, begun = ProxyExchange(self.budget), time.monotonic()
        outcome: Outcome = "failed"
        beyond = self.budget.ask()
        try:
            if beyond:
                raise RequestRefused(429, f"more than {MAX_REQUESTS} requests in a minute")
            exchange.wanted, url = wanted_of(request)
            self._check(exchange)
            if url is None:
                answer = await self._tunnel(request, exchange)
            else:
                answer = await self._forward(request, url, exchange, session)
            outcome = "ok"
            return answer
        except RequestRefused as error:
            outcome = "refused"
            return self._no(request, exchange, error.status, str(error))
        except (OSError, ClientError, TimeoutError) as error:
            said = str(error) or type(error).__name__
            return self._no(request, exchange, 502, f"{exchange.wanted} did not answer ({said})")
        finally:
            if beyond < 2:  # one line says that there were too many
                self._log(exchange, time.monotonic() - begun, outcome)

    def _malformed(self) -> None:
        """What was no HTTP counts as a request, and is logged as one to nowhere."""
        if self.budget.ask() < 2:
            self._log(ProxyExchange(self.budget), 0.0, "refused")

    def _check(self, exchange: ProxyExchange) -> None:
        """Raises: RequestRefused: it was not granted, or no byte is left."""
        if exchange.wanted not in self.granted:
            raise RequestRefused(
                403,
                f"{exchange.wanted} is not granted to {self.plugin}; granted are: "
                f"{', '.join(map(str, sorted(self.granted))) or 'none'}",
            )
        exchange.send(0)

    def _no(
        self, request: web.BaseRequest, exchange: ProxyExchange, status: int, reason: str
    ) -> web.StreamResponse:
        """A refusal; of what was answered in part already, its end."""
        logger.debug("plugin %s: network: %s", self.plugin, reason)
        if exchange.answer is not None:
            if request.transport is not None:
                request.transport.abort()  # whoever reads sees that it is not whole
            return exchange.answer
        # whoever asked for a tunnel is shown the reason phrase alone; Proxy-Status tells our answer
        # from that of a host
        phrase = phrase_of(reason)
        kind = "destination_unavailable" if status == 502 else "http_request_denied"
        answer = web.Response(status=status, reason=phrase, text=f"quietchoir: {reason}\n")
        answer.headers["Proxy-Status"] = f"quietchoir; error={kind}"
        answer.force_close()
        return answer

    def _log(self, exchange: ProxyExchange, seconds: float, outcome: Outcome) -> None:
        row = ProxyConnection(
            plugin=self.plugin,
            host=exchange.wanted.host,
            port=exchange.wanted.port,
            sent_bytes=exchange.sent,
            received_bytes=exchange.received,
            seconds=round(seconds, 4),
            outcome=outcome,
        )
        try:
            self._tell(row)
        except PluginError as error:
            self._end(str(error))

    async def _addresses(self, wanted: Endpoint) -> list[str]:
        """What may be dialled: checked, not resolved again. Raises: RequestRefused: see above."""
        if wanted.address is not None:  # named itself, or it were not granted
            return [wanted.host]
        try:
            async with asyncio.timeout(CONNECT_S):
                found = [ipaddress.ip_address(one) for one in await self._resolve(wanted)]
        except (OSError, TimeoutError, UnicodeError, ValueError) as error:
            raise RequestRefused(502, f"{wanted.host} has no address ({error})") from None
        for address in found:
            if not self._may_dial(address, wanted.port):
                raise RequestRefused(
                    403,
                    f"{wanted.host} leads to {address}, which is not of the public network; its "
                    f"owner may name that address with its port",
                )
        return [str(address) for address in found[:TRIED]]

    def _may_dial(self, address: Address, port: int) -> bool:
        if Endpoint(str(address), port) in self.granted:
            return True
        return endpoints.is_public(address) and not is_ours(address)

    async def _tunnel(
        self, request: web.BaseRequest, exchange: ProxyExchange
    ) -> web.StreamResponse:
        """CONNECT: bytes both ways, unread."""
        reader, writer = await dialled(await self._addresses(exchange.wanted), exchange.wanted.port)
        try:
            answer = exchange.answer = web.StreamResponse(reason="Connection established")
            answer.force_close()
            await answer.prepare(request)
            if request.transport is None:
                raise ConnectionResetError("the plugin hung up")
            above = asyncio.StreamReader(limit=CHUNK)
            above.set_transport(request.transport)
            request.protocol.set_parser(Upstream(above))  # type: ignore[arg-type]

            async def give(chunk: bytes) -> None:
                exchange.send(len(chunk))
                writer.write(chunk)
                await writer.drain()

            async def take(chunk: bytes) -> None:
                exchange.receive(len(chunk))
                await answer.write(chunk)

            await relay((above, give), (reader, take))
        finally:
            writer.close()
        return answer

    async def _forward(
        self, request: web.BaseRequest, url: URL, exchange: ProxyExchange, session: ClientSession
    ) -> web.StreamResponse:
        """A request in the clear, to the address that was checked; a redirect comes back as it
        is.
        """
        headers = end_to_end(request.headers)
        headers["Host"] = url.host_port_subcomponent or ""
        exchange.send(len(str(url)) + size_of(headers))

        async def body() -> AsyncIterator[bytes]:
            async for chunk in request.content.iter_chunked(CHUNK):
                exchange.send(len(chunk))
                yield chunk

        address = (await self._addresses(exchange.wanted))[0]
        async with session.request(
            request.method,
            url.with_host(address),
            headers=headers,
            data=body() if request.body_exists else None,
            allow_redirects=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        ) as found:
            kept = end_to_end(found.headers)
            exchange.receive(size_of(kept))
            answer = exchange.answer = web.StreamResponse(
                status=found.status, reason=phrase_of(found.reason or ""), headers=kept
            )
            await answer.prepare(request)
            async for chunk in found.content.iter_chunked(CHUNK):
                exchange.receive(len(chunk))
                await answer.write(chunk)
            await answer.write_eof()
        return answer


def wanted_of(request: web.BaseRequest) -> tuple[Endpoint, URL | None]:
    """Where a request is to go; and what it asks for there, if not a tunnel.

    Raises:
        RequestRefused: it is written in another way than a proxy's requests are.
    """
    url = None
    asked = request.raw_path
    if request.method != "CONNECT":
        url = request.url
        if not asked.lower().startswith("http://") or url.raw_host is None:
            raise RequestRefused(400, "ask for http://HOST/…, or for a tunnel (CONNECT HOST:PORT)")
        if url.raw_user is not None or url.raw_password is not None:
            raise RequestRefused(
                400, "a user or a password stands before the host; send a header instead"
            )
        host = f"[{url.raw_host}]" if ":" in url.raw_host else url.raw_host
        asked = f"{host}:{url.port}"
    try:
        return endpoints.parse(asked, private=True), url
    except ValueError as error:
        raise RequestRefused(400, str(error)) from None


async def dialled(
    addresses: Sequence[str], port: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the first address that takes one. Raises: OSError: none does."""
    said: OSError = ConnectionError("no address")
    for address in addresses:
        try:
            async with asyncio.timeout(CONNECT_S):
                return await asyncio.open_connection(address, port, limit=CHUNK)
        except OSError as error:  # TimeoutError too
            said = error
    raise said


async def relay(*flows: tuple[asyncio.StreamReader, Callable[[bytes], Awaitable[None]]]) -> None:
    """Hand on what each source says, until one of them ends.

    Raises:
        TimeoutError: no byte for long, or it takes too long altogether.
        RequestRefused, OSError: as whoever is handed it.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(TOTAL_S), asyncio.timeout(IDLE_S) as idle:

        async def flow(
            source: asyncio.StreamReader, write: Callable[[bytes], Awaitable[None]]
        ) -> None:
            while chunk := await source.read(CHUNK):
                idle.reschedule(loop.time() + IDLE_S)
                await write(chunk)

        tasks = [asyncio.create_task(flow(*one)) for one in flows]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def received(channel: socket.socket) -> socket.socket:
    """The socket that comes through `channel`. Raises: OSError: none does."""
    channel.setblocking(False)
    while True:
        try:
            _, descriptors, _, _ = socket.recv_fds(channel, 1, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            await readable(channel)
            continue
        if not descriptors:
            raise ConnectionResetError("the sandbox ended before its network was ready")
        return socket.socket(fileno=descriptors[0])


async def readable(channel: socket.socket) -> None:
    """Wait until there is something to read, or the other end is gone."""
    loop = asyncio.get_running_loop()
    there = asyncio.Event()
    loop.add_reader(channel, there.set)
    try:
        await there.wait()
    finally:
        loop.remove_reader(channel)


def trusted() -> bytes:
    """The certificates that this machine trusts, for a plugin's own TLS; empty if it has none."""
    for path in (ssl.get_default_verify_paths().cafile, *BUNDLES):
        if path and Path(path).is_file():
            return Path(path).read_bytes()
    return b""


def is_ours(address: Address) -> bool:
    """Whether it is this machine's own: what it would send there would come from there. Sends
    nothing.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as trial:
            trial.connect((str(address), 9))
            return str(trial.getsockname()[0]) == str(address)
    except OSError:
        return False  # no way there: dialling fails too


def end_to_end(headers: MultiMapping[str]) -> CIMultiDict[str]:
    """All headers but those of one connection."""
    named = ",".join(headers.getall("Connection", ())).lower().split(",")
    dropped = HOP_BY_HOP.union(name.strip() for name in named)
    return CIMultiDict(
        (name, value) for name, value in headers.items() if name.lower() not in dropped
    )


def phrase_of(reason: str) -> str:
    """A reason as it stands in an answer's first line: ASCII without control characters."""
    shown = "".join(one if one.isascii() and one.isprintable() else "?" for one in reason)
    return shown[:PHRASE]


def size_of(headers: Mapping[str, str]) -> int:
    """Bytes of headers as they are sent."""
    return sum(len(name) + len(value) + 4 for name, value in headers.items())
