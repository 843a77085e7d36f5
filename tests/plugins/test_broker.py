"""The broker: a plugin reaches what was granted, and nothing else, however it is written. Each
attack is first shown to reach a decoy without the broker.
"""

import asyncio
import contextlib
import ipaddress
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from multidict import CIMultiDict

from quietchoir.core.errors import PluginError, ToolError
from quietchoir.core.toolcall import ToolCall
from quietchoir.plugins import audit, broker, endpoints
from quietchoir.plugins.audit import ProxyConnection
from quietchoir.plugins.broker import MAX_REQUESTS, Broker, TrafficBudget
from quietchoir.plugins.endpoints import Endpoint
from quietchoir.plugins.sandbox import watchdog
from quietchoir.plugins.sandbox.probe import SandboxReport

from .conftest import hostile, unconfined, write_bundle


@dataclass
class Sites:
    """Two servers of this machine: one is granted by its address, the other is a decoy."""

    granted: int  # port
    decoy: int
    heard: list[tuple[str, str]] = field(default_factory=list)  # of the granted one: Host, path
    touched: list[str] = field(default_factory=list)  # of the decoy


@pytest_asyncio.fixture
async def sites() -> AsyncIterator[Sites]:
    """Both, as long as the test runs."""
    found = Sites(0, 0)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        found.heard.append((request.headers["Host"], request.path))
        if request.path == "/away":
            return web.Response(status=302, headers={"Location": f"http://127.0.0.1:{found.decoy}"})
        if request.path == "/long":
            return web.Response(body=b"x" * 300_000)
        said = await request.text()
        kept = {
            name: request.headers[name] for name in ("X-Mine", "Upgrade") if name in request.headers
        }
        return web.json_response({"said": said, **kept}, headers={"Proxy-Status": "quietchoir; x"})

    async def decoy(request: web.BaseRequest) -> web.StreamResponse:
        found.touched.append(request.path)
        return web.Response(text="decoy")

    async with contextlib.AsyncExitStack() as stack:
        for name, handler in (("granted", answer), ("decoy", decoy)):
            runner = web.ServerRunner(web.Server(handler))
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            listening = socket.create_server(("127.0.0.1", 0))
            await web.SockSite(runner, listening).start()
            setattr(found, name, listening.getsockname()[1])
        yield found


@dataclass
class Inside:
    """A broker as the plugin sees it."""

    port: int
    log: list[ProxyConnection]
    resolved: list[str]
    serving: asyncio.Task[None] | None = None

    async def connect(self, target: str) -> tuple[int, asyncio.StreamReader, asyncio.StreamWriter]:
        """Ask for a tunnel: status, and the streams."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        return int(head.split()[1]), reader, writer

    async def ask(self, line: str, *headers: str) -> str:
        """One raw request; the whole answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        lines = [f"{line} HTTP/1.1", *headers, "Connection: close", "", ""]
        writer.write("\r\n".join(lines).encode())
        said = await reader.read()
        writer.close()
        return said.decode()


@pytest_asyncio.fixture
async def start() -> AsyncIterator[Callable[..., Any]]:
    """Starts brokers, and stops them after the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def begin(
            *granted: str,
            names: dict[str, Sequence[str]] | None = None,
            budget: TrafficBudget | None = None,
            tell: Callable[[ProxyConnection], None] | None = None,
        ) -> Inside:
            answers = {name: list(of) for name, of in (names or {}).items()}
            listening, (ours, theirs) = socket.create_server(("127.0.0.1", 0)), socket.socketpair()
            found = Inside(listening.getsockname()[1], [], [])

            async def resolve(wanted: Endpoint) -> list[str]:
                found.resolved.append(wanted.host)
                return [answers[wanted.host].pop(0)]

            ends = [endpoints.parse(one, private=True) for one in granted]
            made = Broker(
                "a/b", ends, budget or TrafficBudget(64 << 20), tell or found.log.append, resolve
            )
            with theirs, listening:
                socket.send_fds(theirs, [b"."], [listening.fileno()])
            serving = asyncio.create_task(made.serve(ours))
            stack.push_async_callback(asyncio.wait, [serving])
            stack.callback(serving.cancel)
            found.serving = serving
            return found

        yield begin


async def test_a_granted_host_is_asked_and_answers(start: Callable[..., Any], sites: Sites) -> None:
    inside = await start(f"127.0.0.1:{sites.granted}")
    url = f"http://127.0.0.1:{sites.granted}/path?q=1"
    proxy = f"http://127.0.0.1:{inside.port}"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, proxy=proxy, data="a secret", headers={"X-Mine": "kept"}) as answer,
    ):
        assert await answer.json() == {"said": "a secret", "X-Mine": "kept"}
        assert "Proxy-Status" not in answer.headers  # that header is ours alone
    status, reader, writer = await inside.connect(f"127.0.0.1:{sites.granted}")
    assert status == 200
    writer.write(b"GET /tunnel HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert b'"said": ""' in await reader.read()
    writer.close()
    assert [path for _, path in sites.heard] == ["/path", "/tunnel"]
    async with asyncio.timeout(10):
        while len(inside.log) < 2:
            await asyncio.sleep(0)
    assert [(row.host, row.port, row.outcome) for row in inside.log] == [
        ("127.0.0.1", sites.granted, "ok")
    ] * 2
    assert all(row.sent_bytes > 40 and row.received_bytes > 100 for row in inside.log)
    assert "secret" not in repr(inside.log)


# Each leads to this machine, if it is passed to the C library or to a lenient parser.
ELSEWHERE = (
    "localhost:{port}",
    "2130706433:{port}",
    "0x7f000001:{port}",
    "0x7f.1:{port}",
    "127.1:{port}",
    "0177.0.0.1:{port}",
    "127.0.0.1.:{port}",
    "0.0.0.0:{port}",
    "[::1]:{port}",
    "[::ffff:127.0.0.1]:{port}",
    "[::ffff:7f00:1]:{port}",
    "[::127.0.0.1]:{port}",
    "[fe80::1%25lo]:{port}",
    "127.0.0.1:{port}",
    "api.test@127.0.0.1:{port}",
    "api.test:80@127.0.0.1:{port}",
    "127.0.0.1:{port}#@api.test:80",
    "127.0.0.1:{port}/api.test:80",
    "api.test\\\\@127.0.0.1:{port}",
    "api.test.127.0.0.1.nip.test:{port}",
    "API.test.:80",
    "api.test%00.decoy.test:80",
)


@pytest.mark.parametrize("spelled", ELSEWHERE)
async def test_no_spelling_leads_elsewhere(
    start: Callable[..., Any], sites: Sites, spelled: str
) -> None:
    target = spelled.format(port=sites.decoy)
    inside = await start("api.test:80", names={"api.test": ["127.0.0.1"] * 9})
    status, _, writer = await inside.connect(target)
    writer.close()
    assert status in (400, 403)
    said = await inside.ask(f"GET http://{target}/", f"Host: {target}")
    assert said.split()[1] in ("400", "403"), said
    assert sites.touched == []
    assert set(inside.resolved) <= {"api.test"}


def test_the_spellings_lead_to_this_machine_without_the_broker() -> None:
    """The control arm: what the C library makes of them."""
    for spelled in ("localhost", "2130706433", "0x7f000001", "0x7f.1", "127.1", "0177.0.0.1"):
        rows = socket.getaddrinfo(spelled, 80, family=socket.AF_INET, type=socket.SOCK_STREAM)
        assert {row[4][0] for row in rows} == {"127.0.0.1"}
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_INET6) as mapped:
        mapped.connect(("::ffff:127.0.0.1", server.getsockname()[1]))


NOT_PUBLIC = (
    *("127.0.0.2", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
    *("0.0.0.0", "255.255.255.255", "224.0.0.1", "192.0.2.1", "192.88.99.1", "198.18.0.1"),
    *("::1", "::", "fe80::1", "fe80::1%lo", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1"),
    *("::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1"),
    *("2001:db8::1", "3fff::1", "2002:7f00:1::1", "2001:0:7f00:1::1"),
)


@pytest.mark.parametrize("address", NOT_PUBLIC)
async def test_a_granted_name_that_leads_to_no_public_address_is_refused(
    start: Callable[..., Any], address: str
) -> None:
    inside = await start("api.test:80", names={"api.test": [address] * 2})
    status, _, writer = await inside.connect("api.test:80")
    writer.close()
    assert status == 403
    assert "not of the public network" in await inside.ask("GET http://api.test/", "Host: api.test")
    assert {row.outcome for row in inside.log} == {"refused"}


def test_no_header_of_one_connection_and_no_odd_reason_is_handed_on() -> None:
    said = CIMultiDict([("Connection", "x-one"), ("Connection", "X-Two"), ("X-Kept", "3")])
    said.extend({"X-One": "1", "X-Two": "2"})
    assert dict(broker.end_to_end(said)) == {"X-Kept": "3"}
    assert broker.phrase_of("no\r\nX: y\x00é") == "no??X: y??"


def test_public_addresses_are_public() -> None:
    for text in ("8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808"):
        assert endpoints.is_public(ipaddress.ip_address(text))
    assert broker.is_ours(ipaddress.ip_address("127.0.0.1"))
    assert not broker.is_ours(ipaddress.ip_address("192.0.2.1"))


async def test_a_name_whose_address_changes_is_checked_each_time(
    start: Callable[..., Any], sites: Sites
) -> None:
    """Rebinding. The first address is one that was named, the second is not."""
    there = f"127.0.0.1:{sites.granted}"
    names = ["127.0.0.1", "127.0.0.2"]
    inside = await start(f"api.test:{sites.granted}", there, names={"api.test": names})
    url, host = f"http://api.test:{sites.granted}/", f"Host: api.test:{sites.granted}"
    assert " 200 OK" in await inside.ask(f"GET {url}", host)
    assert inside.resolved == ["api.test"]  # once: what was checked is what was dialled
    assert " 403 " in await inside.ask(f"GET {url}", host)
    assert len(sites.heard) == 1
    # the control arm: who checks one answer and dials another is led away
    checked, dialled = names
    assert checked == "127.0.0.1" and dialled == "127.0.0.2"
    with socket.create_server(("127.0.0.2", 0)) as decoy:
        socket.create_connection((dialled, decoy.getsockname()[1]), 2).close()


async def test_a_redirect_is_handed_back_and_asked_for_anew(
    start: Callable[..., Any], sites: Sites
) -> None:
    inside = await start(f"127.0.0.1:{sites.granted}")
    url = f"http://127.0.0.1:{sites.granted}/away"
    async with aiohttp.ClientSession() as session:
        async with session.get(url) as answer:  # the control arm: followed
            assert await answer.text() == "decoy"
        sites.touched.clear()
        async with session.get(url, proxy=f"http://127.0.0.1:{inside.port}") as answer:
            assert answer.status == 403
            assert "is not granted to a/b" in await answer.text()
    assert sites.touched == []
    assert [row.outcome for row in inside.log] == ["ok", "refused"]


async def test_the_host_that_is_asked_is_the_host_that_was_checked(
    start: Callable[..., Any], sites: Sites
) -> None:
    inside = await start(f"127.0.0.1:{sites.granted}")
    there = f"127.0.0.1:{sites.granted}"
    await inside.ask(f"GET http://{there}/", "Host: other.test", "Upgrade: websocket")
    assert sites.heard == [(there, "/")]
    # Said in `Not covered`: inside of a tunnel the plugin may name another site of that address.
    _, reader, writer = await inside.connect(there)
    writer.write(b"GET / HTTP/1.1\r\nHost: other.test\r\nConnection: close\r\n\r\n")
    await reader.read()
    writer.close()
    assert sites.heard[1] == ("other.test", "/")


async def test_only_a_proxys_requests_are_answered(start: Callable[..., Any], sites: Sites) -> None:
    there = f"127.0.0.1:{sites.granted}"
    inside = await start(there)
    for line in ("GET /", f"GET https://{there}/", f"GET ftp://{there}/", "OPTIONS *"):
        assert (await inside.ask(line, f"Host: {there}")).split()[1] == "400", line
    smuggled = ("Content-Length: 5", "Transfer-Encoding: chunked")
    assert (await inside.ask(f"POST http://{there}/", f"Host: {there}", *smuggled)).split()[
        1
    ] == "400"
    assert sites.heard == []


async def test_what_is_no_http_is_logged_as_a_request_to_nowhere_and_not_without_end(
    start: Callable[..., Any],
) -> None:
    inside = await start("127.0.0.1:9", budget=TrafficBudget(64 << 20, clock=lambda: 0.0))
    for line in ("\x16\x03\x01 hello", "GET", "NO SUCH THING AT ALL"):
        assert (await inside.ask(line)).split()[1] == "400"
    rows = [(row.host, row.port, row.outcome) for row in inside.log]
    assert rows == [("", 0, "refused")] * 3
    for _ in range(MAX_REQUESTS + 5):
        await inside.ask("GET")
    assert len(inside.log) == MAX_REQUESTS + 1


async def test_bytes_and_requests_are_counted_across_restarts_of_the_plugin(
    start: Callable[..., Any], sites: Sites
) -> None:
    now = [0.0]
    budget = TrafficBudget(400_000, lambda: now[0])
    there = f"127.0.0.1:{sites.granted}"
    url, host = f"GET http://{there}/long", f"Host: {there}"
    assert len(await (await start(there, budget=budget)).ask(url, host)) > 300_000
    inside = await start(there, budget=budget)  # after a restart
    assert len(await inside.ask(url, host)) < 300_000
    assert "in an hour" in await inside.ask(url, host)
    now[0] = 3600.0
    assert len(await inside.ask(url, host)) > 300_000
    now[0] = 10_000.0
    said = [await inside.ask("GET /", host) for _ in range(broker.MAX_REQUESTS + 5)]
    assert [" 400 " in one for one in said[:-5]] == [True] * broker.MAX_REQUESTS
    assert all(" 429 " in one for one in said[-5:])
    # of those beyond, one line
    assert len(inside.log) == 3 + broker.MAX_REQUESTS + 1


async def test_connections_beyond_the_limit_are_closed_and_a_flood_ends_the_network(
    start: Callable[..., Any], sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = f"127.0.0.1:{sites.granted}"
    inside = await start(there)
    held = [await inside.connect(there) for _ in range(broker.MAX_CONNECTIONS)]
    assert {status for status, *_ in held} == {200}
    reader, writer = await asyncio.open_connection("127.0.0.1", inside.port)
    assert await reader.read() == b""
    for *_, one in (*held, (0, reader, writer)):
        one.close()
    monkeypatch.setattr(broker, "MAX_ARRIVALS", 20)
    for _ in range(4):  # and the 17 before
        _, writer = await asyncio.open_connection("127.0.0.1", inside.port)
        writer.close()
    with pytest.raises(ToolError, match="more than 20 connections in a minute"):
        await inside.serving


async def test_what_cannot_be_logged_ends_the_network(
    start: Callable[..., Any], sites: Sites
) -> None:
    def full(row: ProxyConnection) -> None:
        raise PluginError("the disk is full")

    there = f"127.0.0.1:{sites.granted}"
    inside = await start(there, tell=full)
    await inside.ask(f"GET http://{there}/", f"Host: {there}")
    with pytest.raises(ToolError, match="the disk is full"):
        await inside.serving


@pytest.mark.parametrize("limit", ["IDLE_S", "TOTAL_S"])
async def test_a_tunnel_that_says_nothing_or_takes_too_long_is_ended(
    start: Callable[..., Any], sites: Sites, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(broker, limit, 0.05)
    there = f"127.0.0.1:{sites.granted}"
    inside = await start(there)
    status, reader, writer = await inside.connect(there)
    assert status == 200
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    writer.close()
    assert inside.log[0].outcome == "failed"


ONLINE: dict[str, Any] = {
    "permissions": {"hosts": ["home"]},
    "limits": {"memory_mb": 64, "scratch_mb": 2},
}


def filled_in(folder: Path, *hosts: str) -> None:
    """What the owner of the plugin under test filled in for `home`."""
    private = folder / "plugins" / "tests" / "hostile"
    private.mkdir(parents=True, mode=0o700)
    (private / "settings.json").write_text(json.dumps({"hosts": {"home": hosts}}))


async def test_a_plugin_reaches_its_host_and_nothing_beside_it(
    sandbox: SandboxReport, hosts: Callable[..., Any], sites: Sites, tmp_path: Path
) -> None:
    body = f"""
    import urllib.request
    from quietchoir_sdk import ToolFailure, fetch, hosts
    found = [fetch(f"http://{{hosts('home')[0]}}/", data=b"hello").json()["said"]]
    # any program finds the broker by the variables that all know
    found.append(str(urllib.request.urlopen(f"http://{{hosts('home')[0]}}/").status))
    found.append(str(fetch(f"http://{{hosts('home')[0]}}/away").status))
    for url in ("http://127.0.0.1:{sites.decoy}/", "https://localhost:{sites.decoy}/"):
        try:
            found.append(fetch(url).text())
        except ToolFailure as failure:
            found.append("no" if "not granted" in str(failure) else str(failure))
    tries = (
        lambda: socket.create_connection(("127.0.0.1", {sites.decoy}), 2),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        lambda: socket.socket(socket.AF_INET6),
        lambda: socket.socket(socket.AF_UNIX),
        lambda: socket.socket(16, 3),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262),
        lambda: socket.socket().bind(("127.0.0.1", 0)),
        lambda: socket.socket().listen(1),
        lambda: socket.socket().setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20),
        lambda: socket.getaddrinfo("api.test", 80),
    )
    for attempt in tries:
        try:
            attempt()
            found.append("opened")
        except OSError as error:
            found.append(errno.errorcode.get(error.errno, type(error).__name__))
    return " ".join(found)
    """
    filled_in(tmp_path, f"127.0.0.1:{sites.granted}")
    host = await hosts(write_bundle(tmp_path / "plugin", hostile(body), **ONLINE))
    assert host.tools()[0].effect == "write"  # it reaches the owner's own network alone
    said = (await host.call(ToolCall("attack"))).text
    refused = ["ECONNREFUSED", *["EAFNOSUPPORT"] * 6, "EPERM", "EPERM", "EPERM"]
    assert said.split()[:-1] == ["hello", "200", "302", "no", "no", *refused]
    assert "opened" not in said
    assert sites.touched == []
    rows = [
        json.loads(line) for line in (tmp_path / "plugins/audit.jsonl").read_text().splitlines()
    ]
    connections = [row for row in rows if "host" in row]
    assert [row["outcome"] for row in connections] == ["ok", "ok", "ok", "refused", "refused"]
    assert "hello" not in (tmp_path / "plugins/audit.jsonl").read_text()
    assert audit.verify(tmp_path / "plugins/audit.jsonl")[0] == len(rows)


async def test_what_waits_in_connections_is_counted(
    sandbox: SandboxReport,
    hosts: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = socket.create_server(("127.0.0.1", 0), backlog=64)  # whom nobody reads
    there = f"127.0.0.1:{server.getsockname()[1]}"
    body = f"""
    held, sent = [socket.create_connection(("127.0.0.1", 3128)) for _ in range(16)], 0
    for one in held:
        one.sendall(b"CONNECT {there} HTTP/1.1\\r\\nHost: {there}\\r\\n\\r\\n")
        assert b" 200 " in one.recv(1000)
        one.setblocking(False)
    for _ in range(50):
        for one in held:
            try:
                sent += one.send(bytes(1 << 20))
            except BlockingIOError:
                pass
        time.sleep(0.01)
    time.sleep(1)
    return str(sent)
    """
    filled_in(tmp_path, there)
    small = ONLINE | {"limits": {"memory_mb": 32, "scratch_mb": 2}}
    bundle = write_bundle(tmp_path / "plugin", hostile(body), **small)
    try:
        with monkeypatch.context() as patch:  # the control arm: nobody counts what waits
            patch.setattr(watchdog, "queued_bytes", lambda pids: 0)
            assert int((await (await hosts(bundle)).call(ToolCall("attack"))).text) > 16 << 20
        with pytest.raises(ToolError, match="its processes held"):
            await (await hosts(bundle)).call(ToolCall("attack"))
    finally:
        server.close()


async def test_without_the_permission_there_is_no_socket_and_without_a_sandbox_the_decoy_answers(
    attack: Callable[..., Any], sites: Sites
) -> None:
    body = f"""
    try:
        with socket.create_connection(("127.0.0.1", {sites.decoy}), 2):
            return "connected"
    except OSError as error:
        return errno.errorcode[error.errno]
    """
    assert await asyncio.to_thread(unconfined, body) == "connected"
    assert await attack(body) == "EPERM"


def test_whoever_can_tell_others_is_asked_for_each_call(
    sandbox: SandboxReport, tmp_path: Path
) -> None:
    from quietchoir.plugins import manifest
    from quietchoir.plugins.running import Plugin

    public: dict[str, Any] = {"permissions": {"network": ["api.example.org"]}}
    terms = manifest.read(write_bundle(tmp_path / "public", "", **public))
    assert Plugin(terms, tmp_path / "one", {}).effect("read") == "outside"
    terms = manifest.read(write_bundle(tmp_path / "named", "", **ONLINE))
    assert Plugin(terms, tmp_path / "two", {}).effect("read") == "outside"  # nobody filled it in
    filled_in(tmp_path, "192.168.1.7:8123")
    home = tmp_path / "plugins/tests/hostile"
    assert Plugin(terms, home, {}).effect("read") == "read"
    (home / "settings.json").write_text('{"hosts": {"home": ["192.168.1.7:8123", "a.example"]}}')
    assert Plugin(terms, home, {}).effect("read") == "outside"


async def test_tls_is_the_plugins_own_from_end_to_end(
    sandbox: SandboxReport,
    hosts: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chain = certificate(tmp_path / "site.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(chain)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text=f"{request.scheme} {await request.text()}")

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    listening = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listening, ssl_context=context).start()
    there = f"127.0.0.1:{listening.getsockname()[1]}"
    body = f"""
    from quietchoir_sdk import ToolFailure, fetch
    try:
        return fetch("https://{there}/", data=b"unread").text()
    except ToolFailure as failure:
        return str(failure)
    """
    try:
        filled_in(tmp_path, there)
        bundle = write_bundle(tmp_path / "plugin", hostile(body), **ONLINE)
        assert (
            "CERTIFICATE_VERIFY_FAILED"
            in (await (await hosts(bundle)).call(ToolCall("attack"))).text
        )
        monkeypatch.setenv(
            "SSL_CERT_FILE", str(chain.with_name("trusted.pem"))
        )  # now this machine trusts it
        assert (await (await hosts(bundle)).call(ToolCall("attack"))).text == "https unread"
    finally:
        await runner.cleanup()


def certificate(path: Path) -> Path:
    """A certificate of 127.0.0.1 that stands for itself, with its key; without it beside."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a decoy")])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    shown = made.public_bytes(serialization.Encoding.PEM)
    path.with_name("trusted.pem").write_bytes(shown)
    path.write_bytes(
        shown
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path
