"""A node from afar yields the events that the assistant itself would."""

import pytest

from quietchoir.core.assistant.assistant import (
    Event,
    Finished,
    Text,
    ToolCallEvent,
    ToolResultEvent,
)
from quietchoir.core.assistant.context import Message
from quietchoir.core.assistant.tools import ToolResult
from quietchoir.core.config import ServerConfig
from quietchoir.core.errors import ConfigError, EngineError, OverloadedError
from quietchoir.core.server.app import claim
from quietchoir.core.server.client import RemoteAssistant
from quietchoir.core.toolcall import ToolCall, render
from quietchoir.tests.fakes.http import TOKEN, Served
from quietchoir.tests.fakes.server import engine_saying

CALL = ToolCall("HassTurnOn", {"name": "lamp"})
PAST = [Message("user", "first"), Message("assistant", "done", (CALL,)), Message("user", "hello")]


async def events(url: str, token: str = TOKEN) -> list[Event]:
    return [event async for event in RemoteAssistant(url, token).reply(PAST, 10)]


async def test_text_calls_and_counts_arrive() -> None:
    async with Served(engine_saying(["Good ", "day."], [render(CALL)])).running() as served:
        assert await events(served.server.url) == [
            Text("Good "),
            Text("day."),
            Finished("stop", 10, 2),
        ]
        called, answered, text, end = await events(served.server.url)
        assert isinstance(called, ToolCallEvent) and called.call == CALL
        assert answered == ToolResultEvent(called.id, ToolResult("Turned on the kitchen light."))
        assert (text, end) == (Text("Turned on the kitchen light."), Finished("stop", 10, 1))


async def test_a_wrong_token_is_told_as_such(served: Served) -> None:
    with pytest.raises(ConfigError, match="token"):
        await events(served.server.url, "wrong")


async def test_a_refusal_and_a_broken_answer_are_engine_errors() -> None:
    async with Served(engine_saying(["one", "two"], finished="error")).running() as served:
        with pytest.raises(EngineError, match="a kernel broke"):
            await events(served.server.url)
        served.engine.refuse = OverloadedError("the queue is full")
        with pytest.raises(EngineError, match="queue is full"):
            await events(served.server.url)


async def test_where_nobody_listens_the_sentence_says_how_to_start_one() -> None:
    with claim(ServerConfig(port=0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ConfigError, match="quietchoir serve"):
        await events(f"http://127.0.0.1:{port}")
