"""Any bytes on any route: an answer below 500 or a closed connection, no traceback, and the next
caller is served.
"""

import asyncio
import gzip
import json
import logging
import socket
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quietchoir.core.server import connections
from quietchoir.tests.fakes.http import HELLO, TOKEN, Served
from quietchoir.tests.fakes.server import engine_saying

BEARER = b"Authorization: Bearer " + TOKEN.encode() + b"\r\n"
BODY = json.dumps(HELLO).encode()
PROMPT = HELLO["messages"][0]["content"]
CHAT = b"/v1/chat/completions"
ROUTES = [
    CHAT,
    b"/v1/completions",
    b"/v1/embeddings",
    b"/v1/responses",
    b"/v1/models",
    b"/v1/models/x",
    b"/v1/responses/x",
    b"/api/chat",
    b"/api/generate",
    b"/api/show",
    b"/api/embed",
    b"/api/pull",
    b"/openapi.json",
    b"/api/status",
    b"/api/collections",
    b"/api/libraries",
    b"/api/collections/x/passages/1",
    b"/api/memory",
    b"/api/models",
    b"/api/models/pulls",
    b"/api/models/search",
    b"/api/elicitations",
    b"/api/elicitations/x",
]
ROUTES += [
    b"/api/adapters",
    b"/api/adapters/activate",
    b"/api/tools",
    b"/health",
    b"/",
    b"/ui/app.js",
    b"/nowhere",
    b"*",
]
ROUTES += [
    b"/v1/models/%ff",
    b"/ui/%2e%2e/x",
    b"/ui/\xff",
    b"/v1/models/%00%0d%0a",
    b"//v1//chat/completions/",
    b"/favicon.ico",
]
METHODS = [
    b"GET",
    b"POST",
    b"HEAD",
    b"PUT",
    b"DELETE",
    b"OPTIONS",
    b"PATCH",
    b"TRACE",
    b"CONNECT",
    b"\xff",
    b"get",
    b"P" * 99,
]


@dataclass
class Background:
    """A server in a thread of its own, and what it complained of."""

    port: int = 0
    complaints: list[str] = field(default_factory=list)

    def send(self, raw: bytes) -> bytes:
        """Everything that comes back until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as line:
            line.sendall(raw)
            found = b""
            try:
                while piece := line.recv(1 << 16):
                    found += piece
            except ConnectionResetError:
                pass
            return found


class Complaints(logging.Handler):
    """Keeps what a reader of the log would take for a fault."""

    def __init__(self, kept: list[str]) -> None:
        super().__init__(logging.DEBUG)
        self.kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        """A traceback or an error; and at any level, by whatever library, the token or a prompt."""
        line = self.format(record)
        if record.exc_info or record.levelno >= logging.ERROR or TOKEN in line or PROMPT in line:
            self.kept.append(f"{record.name}: {line}")


@pytest.fixture(scope="module")
def background() -> Iterator[Background]:
    found, ready = Background(), threading.Event()

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: found.complaints.append(str(context)))
        limits = {"head_timeout_s": 0.3, "body_timeout_s": 0.3, "max_body_bytes": 100_000}
        async with Served(engine_saying(["fine"])).running(**limits) as served:
            found.port = served.server.port
            stop = asyncio.Event()
            found.stop = lambda: loop.call_soon_threadsafe(stop.set)  # type: ignore[attr-defined]
            ready.set()
            await stop.wait()

    # where the bytes happen to ask to be kept
    before, connections.KEEPALIVE_S = connections.KEEPALIVE_S, 0.3
    handler = Complaints(found.complaints)
    levels = {name: logging.getLogger(name).level for name in ("", "quietchoir")}
    for name in levels:
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(logging.DEBUG)
    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(60)
    yield found
    found.stop()  # type: ignore[attr-defined]
    thread.join()
    connections.KEEPALIVE_S = before
    for name, level in levels.items():
        logging.getLogger(name).removeHandler(handler)
        logging.getLogger(name).setLevel(level)


def status_of(answer: bytes) -> int:
    """Of the first answer; 0 where the connection was only closed."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/") else 0


def survives(background: Background, raw: bytes) -> bytes:
    """Send, and judge what came back."""
    answer = background.send(raw)
    assert not answer or answer.startswith(b"HTTP/"), answer[:200]
    assert status_of(answer) < 500 or status_of(answer) == 501, answer[:500]
    assert b"Traceback" not in answer
    complaints, background.complaints[:] = list(background.complaints), []
    assert not complaints, complaints
    return answer


def asked(
    method: bytes = b"POST",
    path: bytes = CHAT,
    head: bytes = BEARER,
    body: bytes = BODY,
    version: bytes = b"1.1",
) -> bytes:
    line = (
        method
        + b" "
        + path
        + b" HTTP/"
        + version
        + (b"\r\nHost: localhost\r\nConnection: close\r\n")
        + head
    )
    return line + b"Content-Length: %d\r\n\r\n" % len(body) + body


HEADS = {
    "a token that is no text": (b"Authorization: Bearer \xff\r\n", 401),
    "a token of many bytes": (b"Authorization: Bearer \xf0\x9f\x92\xa9\xc3\r\n", 401),
    "a scheme that is no text": (b"Authorization: \xff\xfe x\r\n", 401),
    "an origin that is no text": (BEARER + b"Origin: \xff\r\n", 403),
    "another host that is no text": (BEARER + b"Cookie: \xff\xff\r\nUser-Agent: \xff\r\n", 200),
    "a content type that is no text": (BEARER + b"Content-Type: \xff; charset=\xff\r\n", 200),
    "an unknown charset": (BEARER + b"Content-Type: application/json; charset=klingon\r\n", 200),
    "form data": (BEARER + b"Content-Type: multipart/form-data; boundary=\xff\r\n", 200),
    "an unknown encoding": (BEARER + b"Content-Encoding: klingon\r\n", None),
    "gzip that is none": (BEARER + b"Content-Encoding: gzip\r\n", 400),
    "deflate that is none": (BEARER + b"Content-Encoding: deflate\r\n", 400),
    "an expectation": (BEARER + b"Expect: 100-continue\r\n", None),
    "an unknown expectation": (BEARER + b"Expect: the unexpected\r\n", 417),
    "an upgrade": (
        BEARER + b"Upgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Key: \xff\r\n",
        None,
    ),
    "ranges": (
        BEARER + b"Range: bytes=-1-x\r\nIf-Modified-Since: \xff\r\nIf-None-Match: \xff\r\n",
        200,
    ),
    "another length": (BEARER + b"Content-Length: 7\r\n", 400),
    "a length that is none": (BEARER + b"Content-Length: -1\r\n", 400),
    "chunks and a length": (BEARER + b"Transfer-Encoding: chunked\r\n", 400),
    "a name with blanks": (BEARER + b"Bad Name: x\r\n", 400),
    "a null": (BEARER + b"X: a\x00b\r\n", 400),
    "a bare line": (BEARER + b"nothing\r\n", 400),
    "a long value": (BEARER + b"X: " + b"x" * 70_000 + b"\r\n", 400),
    "many headers": (BEARER + b"".join(b"X-%d: y\r\n" % number for number in range(5_000)), 400),
    "two hosts": (BEARER + b"Host: evil.example\r\n", None),
}


@pytest.mark.parametrize("name", HEADS)
def test_an_unlucky_head_is_refused_or_read(background: Background, name: str) -> None:
    head, status = HEADS[name]
    answer = survives(background, asked(head=head))
    assert status is None or status_of(answer) == status, answer[:300]
    assert status_of(background.send(asked())) == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"GET /\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        b"GET http://[::1/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /?\xff#\xff HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n" + BEARER + b"Connection: close\r\n\r\n",
        b"POST " + CHAT + b" HTTP/1.1\r\nHost: localhost\r\n" + BEARER + b"Transfer-Encoding: "
        b"chunked\r\n\r\nzz\r\n",
        b"POST " + CHAT + b" HTTP/1.1\r\nHost: localhost\r\n" + BEARER + b"Transfer-Encoding: "
        b"chunked\r\n\r\n5\r\n{",
        b"POST " + CHAT + b" HTTP/1.1\r\nHost: "
        b"localhost\r\n" + BEARER + b"Content-Length: 50\r\n\r\n{",
        asked()[:-5] + asked() + asked(),
        asked().replace(b"\r\n", b"\n"),
        asked(head=BEARER + b"nothing\r\n").replace(b"\r\n", b"\n"),
        asked(head=BEARER + b"Content-Length: x\r\n"),
        asked(head=BEARER + b"Transfer-Encoding: chunked\r\n"),
    ],
)
def test_what_is_hardly_http_is_refused_or_closed(background: Background, raw: bytes) -> None:
    survives(background, raw)
    assert status_of(background.send(asked())) == 200


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [{"role": "user", "content": '
        b'"\xed\xa0\x80"}]}',  # half a surrogate pair in bytes
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "\\udfff": 1}',
        json.dumps(HELLO).encode("utf-16"),
        json.dumps(HELLO).encode("utf-32"),
        b"\xff\xfe\x00\x00",
        b"[" * 50_000,
        b'{"messages": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"n": ' + b"[" * 600 + b"]" * 600 + b', "messages": []}',
        b'{"messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 5_000 + b"}",
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "x"}], "top_k": -Infinity}',
        b'{"messages": [{"role": "assistant", "tool_calls": 5}]}',
        b'{"messages": [{"role": ["user"], "content": {}}]}',
        b'{"messages": {"role": "user"}, "tools": 5, "tool_choice": [], "response_format": 7, '
        b'"logit_bias": []}',
        b'{"messages": [{"role": "user", "content": "x"}], "logit_bias": {"99999999999999999999": '
        b"1}}",
        b'{"messages": [{"role": "user", "content": "x"}], "model": "\\u0000../\\u202e"}',
    ],
)
@pytest.mark.parametrize(
    "path", [CHAT, b"/v1/completions", b"/v1/embeddings", b"/api/adapters/activate"]
)
def test_an_unlucky_body_is_refused(background: Background, path: bytes, body: bytes) -> None:
    assert 400 <= status_of(survives(background, asked(path=path, body=body))) < 500


def test_compressed_bodies_are_bounded_after_they_are_opened(background: Background) -> None:
    for encoding, pack in ((b"gzip", gzip.compress), (b"deflate", zlib.compress)):
        head = BEARER + b"Content-Encoding: " + encoding + b"\r\n"
        assert status_of(survives(background, asked(head=head, body=pack(BODY)))) == 200
        assert status_of(survives(background, asked(head=head, body=pack(bytes(50 << 20))))) == 413


def test_a_utf8_mark_before_the_body_is_skipped(background: Background) -> None:
    assert status_of(survives(background, asked(body=b"\xef\xbb\xbf" + BODY))) == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=9,
)
KEYS = [
    "messages",
    "prompt",
    "input",
    "tools",
    "tool_choice",
    "response_format",
    "stop",
    "stream_options",
    "logit_bias",
    "model",
]
BODIES = st.binary(max_size=60) | st.one_of(
    st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4).map(
        lambda found: json.dumps(found).encode()
    ),
    st.builds(
        lambda role, rest: json.dumps({"messages": [{"role": role} | rest]}).encode(),
        st.sampled_from(["user", "assistant", "tool", "system"]),
        st.dictionaries(
            st.sampled_from(["content", "tool_calls", "name", "refusal", "tool_results"]),
            JSON,
            max_size=3,
        ),
    ),
)
NAMES = [
    b"Authorization",
    b"Host",
    b"Origin",
    b"Content-Type",
    b"Content-Encoding",
    b"Expect",
    b"Range",
    b"Cookie",
    b"Upgrade",
]
VALUES = st.binary(max_size=20).map(lambda value: value.replace(b"\r", b"").replace(b"\n", b""))
EXTRA = st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=2).map(
    lambda found: b"".join(name + b": " + value + b"\r\n" for name, value in found)
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(METHODS),
    st.sampled_from(ROUTES) | VALUES.map(lambda path: b"/" + path),
    EXTRA,
    BODIES,
    st.booleans(),
)
def test_any_request_at_all(
    background: Background, method: bytes, path: bytes, extra: bytes, body: bytes, owner: bool
) -> None:
    survives(background, asked(method, path, (BEARER if owner else b"") + extra, body))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=80), st.integers(0, 300))
def test_any_bytes_at_all(background: Background, noise: bytes, place: int) -> None:
    """A good request with bytes in it that nobody meant."""
    good = asked()
    survives(background, good[:place] + noise + good[place:])
