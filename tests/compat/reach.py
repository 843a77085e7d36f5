"""Kind: every reason why a coordinator is not reached has its own sentence, and no habit of a
machine keeps a member out.

Loopback alone: what listens there is made here.
"""

import contextlib
import datetime
import os
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from quietchoir.core.errors import ConfigError
from quietchoir.federation.membership.certificates import self_signed
from quietchoir.federation.transport import reach

HOST, QUICK_S, BODY = "127.0.0.1", 1.0, b"hello"
NOW = datetime.datetime.now(datetime.UTC)
Serve = Callable[[socket.socket], None]


def certified(
    folder: Path, host: str = HOST, made: datetime.timedelta = datetime.timedelta()
) -> tuple[str, ssl.SSLContext]:
    """A certificate as `federation init` makes it, at another time; and a server's context with
    it.
    """
    key, form = ec.generate_private_key(ec.SECP384R1()), serialization.PrivateFormat.PKCS8
    text = self_signed(host, key, NOW + made)
    private = key.private_bytes(
        serialization.Encoding.PEM, form, serialization.NoEncryption()
    ).decode("ascii")
    path = folder / "both.pem"
    path.write_text(private + text, "ascii")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    path.unlink()
    return text, context


@contextlib.contextmanager
def listening(serve: Serve) -> Iterator[str]:
    """The address of somebody who deals with every connection like that."""
    with socket.create_server((HOST, 0)) as server:

        def go_on() -> None:
            with contextlib.suppress(OSError):
                while True:
                    line, _ = server.accept()
                    with contextlib.suppress(OSError), line:
                        serve(line)

        thread = threading.Thread(target=go_on, daemon=True)
        thread.start()
        yield f"{HOST}:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


def closed_port() -> str:
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return f"{HOST}:{probe.getsockname()[1]}"


def whole(line: socket.socket) -> None:
    """Read one request: what is left unread would reset the connection."""
    read = b""
    while not read.endswith(BODY) and (piece := line.recv(1 << 16)):
        read += piece


def answering(context: ssl.SSLContext) -> Serve:
    """A coordinator, as far as this kind looks."""

    def serve(line: socket.socket) -> None:
        with context.wrap_socket(line, server_side=True) as spoken:
            whole(spoken)
            spoken.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    return serve


def silent_after_tls(context: ssl.SSLContext) -> Serve:
    """Takes a request and says nothing."""

    def serve(line: socket.socket) -> None:
        with context.wrap_socket(line, server_side=True) as spoken:
            while spoken.recv(1 << 16):
                pass

    return serve


def cut_off(context: ssl.SSLContext) -> Serve:
    """Answers half, and hangs up."""

    def serve(line: socket.socket) -> None:
        with context.wrap_socket(line, server_side=True) as spoken:
            whole(spoken)
            spoken.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")

    return serve


def plain_http(line: socket.socket) -> None:
    """A web server."""
    line.recv(1 << 16)
    line.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")


def silent(line: socket.socket) -> None:
    """Reads on and on."""
    while line.recv(1 << 16):
        pass


def hang_up(line: socket.socket) -> None:
    """Closes after the first word."""
    line.recv(1 << 16)


def refusing_proxy(line: socket.socket) -> None:
    """A proxy that may not connect there."""
    line.recv(1 << 16)
    line.sendall(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")


def tunnel(target: str) -> Serve:
    """A proxy that works, for one request."""

    def serve(line: socket.socket) -> None:
        line.recv(1 << 16)
        host, _, port = target.rpartition(":")
        with socket.create_connection((host, int(port))) as onward:
            line.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=pour, args=(onward, line))
            back.start()
            pour(line, onward)
            back.join()

    return serve


def pour(source: socket.socket, sink: socket.socket) -> None:
    """All of one into the other."""
    with contextlib.suppress(OSError):
        while piece := source.recv(1 << 16):
            sink.sendall(piece)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """These variables, and no other proxies."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def dial(address: str, certificate: str, proxy: str = "") -> str:
    """What a member is told; empty: it got through."""
    try:
        with reach.client(certificate, proxy) as client:
            client.post(f"https://{address}/", content=BODY).raise_for_status()
    except httpx.HTTPError as error:
        return reach.reason(error, address, proxy)
    except ConfigError as error:
        return str(error)
    return ""


def check() -> Iterator[tuple[str, str]]:
    """Every case; each sentence has its own words, and no other case's."""
    patience, reach.TIMEOUT_S = reach.TIMEOUT_S, QUICK_S
    try:
        with tempfile.TemporaryDirectory() as scratch:
            told = dict(tried(Path(scratch)))
    finally:
        reach.TIMEOUT_S = patience
    for name, (words, said) in told.items():
        if not words:
            yield name, said
            continue
        fits = words in said and "\n" not in said and "Error" not in said
        wrong = "" if fits else f"said {said!r}, expected {words!r}"
        vague = [
            other for other, (word, _) in told.items() if word and word != words and word in said
        ]
        yield name, wrong or ("" if not vague or "proxy" in name else f"as vague as {vague[0]}")


def tried(folder: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    """Case → the words that only its sentence has (none: it is reached), and what was said."""
    ours, context = certified(folder)
    coordinator = answering(context)
    with ExitStack() as opened:
        opened.enter_context(environment({}))

        def at(serve: Serve) -> str:
            manager: AbstractContextManager[str] = listening(serve)
            return opened.enter_context(manager)

        there = at(coordinator)
        yield "a coordinator", ("", dial(there, ours))
        yield "nobody listens", ("nobody listens there", dial(closed_port(), ours))
        yield (
            "a name that nobody knows",
            ("is not known on this machine", dial("no-such-coordinator.invalid:8790", ours)),
        )
        yield "plain HTTP", ("speaks no TLS", dial(at(plain_http), ours))
        yield "somebody who hangs up", ("hung up before TLS began", dial(at(hang_up), ours))
        yield "somebody who says nothing", ("nothing came back", dial(at(silent), ours))
        yield (
            ("nothing after TLS"),
            ("took the connection", dial(at(silent_after_tls(context)), ours)),
        )
        yield "half an answer", ("in the middle of a request", dial(at(cut_off(context)), ours))
        other, _ = certified(folder)
        yield "another certificate than the file's", ("another certificate", dial(there, other))
        named, elsewhere = certified(folder, host="192.0.2.7")
        yield (
            ("the certificate of another address"),
            ("another certificate", dial(at(answering(elsewhere)), named)),
        )
        for days in (3, -20 * 365):
            dated, service = certified(folder, made=datetime.timedelta(days=days))
            when = "three days behind" if days > 0 else "ten years ahead"
            yield (
                (f"a clock that is {when} of the certificate"),
                ("", dial(at(answering(service)), dated)),
            )
        dead = f"http://{closed_port()}"
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            for url in (
                dead,
                "socks5://127.0.0.1:1080",
                "socks5h://user:word@localhost:9050",
                "nonsense",
            ):
                with environment({name: url}):
                    yield f"{name}={url} in the environment", ("", dial(there, ours))
        yield "a proxy that is dead", ("is not there", dial(there, ours, dead))
        yield (
            "a proxy that refuses",
            ("which does not connect to it", dial(there, ours, f"http://{at(refusing_proxy)}")),
        )
        yield "a proxy that works", ("", dial(there, ours, f"http://{at(tunnel(there))}"))
        yield (
            ("another certificate behind a proxy"),
            ("another certificate", dial(there, other, f"http://{at(tunnel(there))}")),
        )
        for url in (
            "socks5://127.0.0.1:1080",
            "127.0.0.1:3128",
            "http://",
            "ftp://127.0.0.1",
            "http://[",
            "http://a:99999",
        ):
            yield f"--proxy {url}", ("expected http://HOST:PORT", dial(there, ours, url))
        hidden = dial(there, ours, "socks5://ann:secret@127.0.0.1:1080")
        yield "a proxy's password stays unsaid", ("", "it was said" if "secret" in hidden else "")
    for error, words in UNREACHED.items():
        raised = httpx.ConnectError("x")
        raised.__cause__ = OSError(error, os.strerror(error))
        yield os.strerror(error), (words, reach.reason(raised, "192.0.2.7:8790"))


UNREACHED = {
    101: "there is no way to it",
    113: "there is no way to it",
    13: "there is no way to it",
}
