"""Connections are counted, and none may take its time."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from quietchoir.core.config import ServerConfig
from quietchoir.tests.fakes.http import HELLO, TOKEN, Served, until
from quietchoir.tests.fakes.server import engine_saying

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
BEARER = b"Authorization: Bearer " + TOKEN.encode() + b"\r\n"
Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def line(served: Served, said: bytes = b"") -> AsyncIterator[Line]:
    """A connection that has said something."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.server.port)
    try:
        writer.write(said)
        await writer.drain()
        yield reader, writer
    finally:
        writer.close()


async def rest(reader: asyncio.StreamReader) -> bytes:
    """Everything until the server closes, which it does."""
    async with asyncio.timeout(30):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


@pytest.mark.parametrize("said", [b"", b"GET", HEAD, HEAD + BEARER + b"X: y"])
async def test_a_head_that_does_not_come_closes_its_connection(said: bytes) -> None:
    async with (
        Served(engine_saying(["x"])).running(head_timeout_s=0.2) as served,
        line(served, said) as (reader, _),
    ):
        assert await rest(reader) == b""
        assert (await served.post("/v1/chat/completions", HELLO))[0] == 200


async def test_a_body_that_does_not_come_is_refused() -> None:
    async with Served(engine_saying(["x"])).running(body_timeout_s=0.2) as served:
        said = HEAD + BEARER + b"Connection: close\r\nContent-Length: 99\r\n\r\n{"
        async with line(served, said) as (reader, _):
            assert (await rest(reader)).startswith(b"HTTP/1.1 408 ")
        assert served.engine.requests == []


async def test_a_strangers_body_is_not_waited_for() -> None:
    said = HEAD + b"Connection: close\r\nContent-Length: 99\r\n\r\n{"
    async with (
        Served(engine_saying(["x"])).running() as served,
        line(served, said) as (reader, _),
        asyncio.timeout(30),
    ):
        assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")


async def test_strangers_who_wait_make_room_for_whoever_comes() -> None:
    async with Served(engine_saying(["x"])).running(max_connections=4) as served:
        # the owner's, kept alive
        assert (await served.post("/v1/chat/completions", HELLO))[0] == 200
        kept = len(served.server.crowd.open)
        assert kept == 1
        strangers = [
            await asyncio.open_connection("127.0.0.1", served.server.port) for _ in range(12)
        ]
        await until(lambda: len(served.server.crowd.open) == 4)
        for reader, _ in strangers[:9]:
            assert await rest(reader) == b""  # the longest wait goes first
        assert [one.trusted for one in served.server.crowd.open].count(True) == 1
        assert (await served.post("/v1/chat/completions", HELLO))[0] == 200
        for _, writer in strangers:
            writer.close()


async def test_where_every_connection_is_answered_the_next_is_told_so() -> None:
    async with Served(engine_saying(["one ", "two"], held=True)).running(
        max_connections=2
    ) as served:
        asked = [asyncio.create_task(served.post("/v1/chat/completions", HELLO)) for _ in range(2)]
        await until(lambda: len(served.engine.generations) == 2)
        async with line(served) as (reader, _):
            answer = await rest(reader)
        assert (
            answer.startswith(b"HTTP/1.1 503 ")
            and b"Retry-After" in answer
            and b"overloaded" in answer
        )
        for number in range(2):
            served.engine.release(number)
        assert [status for status, _ in await asyncio.gather(*asked)] == [200, 200]


@pytest.mark.parametrize(
    "wrong",
    [{"hosts": ("http://x",)}, {"hosts": ("x:80",)}, {"max_connections": 0}, {"head_timeout_s": 0}],
)
def test_limits_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"hosts|above 0|at least 1"):
        ServerConfig(**wrong)  # type: ignore[arg-type]


LOUD = HELLO | {"stream": True, "logprobs": True, "top_logprobs": 20}


async def test_a_client_that_takes_nothing_of_its_answer_is_let_go_and_frees_what_it_held() -> None:
    """Its answer is more than the buffers on the way hold."""
    piece = "x" * 60_000
    engine = engine_saying([piece] * 400)
    async with Served(engine).running(write_timeout_s=0.3, max_connections=20) as served:
        body = json.dumps(LOUD).encode()
        said = HEAD + BEARER + b"Content-Length: %d\r\n\r\n" % len(body) + body
        silent = [await asyncio.open_connection("127.0.0.1", served.server.port) for _ in range(20)]
        for _, writer in silent:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(said)
        await until(lambda: len(engine.generations) == 20)
        assert len(served.server.crowd.open) == 20
        await until(lambda: not served.server.crowd.open)
        # there is room again, and what is asked is answered
        assert (await served.get("/v1/models"))[0] == 200
        for _, writer in silent:
            writer.close()


async def test_a_client_that_reads_slowly_but_reads_gets_everything() -> None:
    engine = engine_saying(["x" * 60_000] * 100)
    async with Served(engine).running(write_timeout_s=2.0) as served:
        body = json.dumps(LOUD).encode()
        said = HEAD + BEARER + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        async with line(served, said) as (reader, _), asyncio.timeout(60):
            got = b""
            while part := await reader.read(1 << 16):
                got += part
        assert got.count(b"x" * 60_000) == 100 and b"[DONE]" in got


async def test_three_hundred_half_sent_heads_leave_room_and_are_closed() -> None:
    async with Served(engine_saying(["x"])).running(
        max_connections=32, head_timeout_s=0.5
    ) as served:
        halves = [
            await asyncio.open_connection("127.0.0.1", served.server.port) for _ in range(300)
        ]
        for _, writer in halves:
            writer.write(HEAD[:30])
        assert (await served.post("/v1/chat/completions", HELLO))[0] == 200
        assert len(served.server.crowd.open) <= 32
        for reader, _ in halves:
            assert await rest(reader) == b""
        await until(lambda: not any(not one.trusted for one in served.server.crowd.open))
        for _, writer in halves:
            writer.close()


@pytest.mark.parametrize("count", [1, 3])
async def test_a_client_that_leaves_ends_all_its_generations(count: int) -> None:
    engine = engine_saying(["one ", "two"], held=True)
    async with Served(engine).running() as served:
        asked = asyncio.create_task(served.post("/v1/chat/completions", HELLO | {"n": count}))
        await until(lambda: len(engine.generations) == count)
        asked.cancel()
        await until(lambda: all(one.finish_reason == "cancelled" for one in engine.generations))


async def test_a_client_that_closes_its_half_has_left() -> None:
    """aiohttp reads an end of what a client sends as its leaving: said in the README."""
    engine = engine_saying(["one ", "two"], held=True)
    async with Served(engine).running() as served:
        body = json.dumps(HELLO).encode()
        said = HEAD + BEARER + b"Content-Length: %d\r\n\r\n" % len(body) + body
        async with line(served, said) as (reader, writer):
            await until(lambda: len(engine.generations) == 1)
            writer.write_eof()
            assert await rest(reader) == b""
            await until(lambda: engine.generations[0].finish_reason == "cancelled")


async def test_requests_beyond_the_owners_rate_are_refused_with_when_to_come_again() -> None:
    async with Served(engine_saying(["ok"])).running(max_requests_per_s=0.001) as served:
        assert (await served.get("/api/status"))[0] == 200
        async with served.session.get("/api/status") as response:
            told = (await response.json())["error"]["message"]
            assert (response.status, response.headers["Retry-After"]) == (429, "2")
            assert "more than 0.001 requests a second came (server.max_requests_per_s)" in told
    for rate in (0.0, 1e6):
        async with Served(engine_saying(["ok"])).running(max_requests_per_s=rate) as served:
            assert [(await served.get("/api/status"))[0] for _ in range(20)] == [200] * 20
