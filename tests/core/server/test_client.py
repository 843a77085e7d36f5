"""A node from afar yields the events that the assistant itself would."""

import pytest

from quietchoir.core.assistant.context import LeftOut, Message
from quietchoir.core.assistant.elicitation import ElicitResult, Field, Form
from quietchoir.core.assistant.events import (
    ApprovalEvent,
    ApprovedEvent,
    ElicitationEvent,
    ElicitedEvent,
    Event,
    Finished,
    LoopStepEvent,
    Text,
    ToolCallEvent,
    ToolResultEvent,
)
from quietchoir.core.assistant.tools import ToolResult
from quietchoir.core.config import ServerConfig
from quietchoir.core.errors import ConfigError, EngineError, OverloadedError
from quietchoir.core.server.app import claim
from quietchoir.core.server.client import RemoteAssistant
from quietchoir.core.toolcall import ToolCall, render
from quietchoir.tests.fakes.http import TOKEN, Served
from quietchoir.tests.fakes.server import FakeTools, engine_saying

CALL = ToolCall("HassTurnOn", {"name": "lamp"})
PAST = [Message("user", "first"), Message("assistant", "done", (CALL,)), Message("user", "hello")]


async def events(url: str, token: str = TOKEN) -> list[Event]:
    return [event async for event in RemoteAssistant(url, token).reply(PAST)]


async def test_text_calls_and_counts_arrive() -> None:
    script = [["Good ", "day."], [render(CALL)], ["It is on."]]
    async with Served(engine_saying(*script)).running() as served:
        good, day, end = await events(served.server.url)
        assert (good, day) == (Text("Good "), Text("day."))
        assert isinstance(end, Finished) and (end.reason, end.completion_tokens) == ("stop", 2)
        called, answered, step, text, end = await events(served.server.url)
        assert isinstance(called, ToolCallEvent) and called.call == CALL
        assert answered == ToolResultEvent(called.id, ToolResult("Turned on the kitchen light."))
        assert (step, text) == (LoopStepEvent(2), Text("It is on."))
        assert isinstance(end, Finished) and end.completion_tokens == 2


async def test_a_question_is_answered_from_afar_and_remembered_in_the_conversation() -> None:
    script = [[render(CALL)], ["It is on."], [render(CALL)], ["Again."]]
    async with Served(engine_saying(*script), FakeTools(effect="write")).running() as served:
        who, found = RemoteAssistant(served.server.url, TOKEN), list[Event]()
        async for event in who.reply(PAST):
            found.append(event)
            if isinstance(event, ApprovalEvent):
                assert event.call == CALL and served.tools.calls == []
                await who.answer(event.id, True, True)
        assert served.tools.calls == [CALL]
        assert [event.approved for event in found if isinstance(event, ApprovedEvent)] == [True]
        again = [event async for event in who.reply(PAST)]
        assert len(served.tools.calls) == 2
        assert not any(isinstance(event, ApprovalEvent) for event in again)
        with pytest.raises(EngineError, match="no question 'ask_1' is open"):
            await who.answer("ask_1", True, False)


async def test_a_plugins_form_is_filled_in_from_afar() -> None:
    form = Form("a/b", "How many?", (Field("count", "integer", "Count", True, (), 1, 9),))
    tools = FakeTools(forms=(form, form))
    async with Served(engine_saying([render(CALL)], ["Done."]), tools).running() as served:
        who, found = RemoteAssistant(served.server.url, TOKEN), list[Event]()
        results = [ElicitResult("accept", {"count": 3}), ElicitResult("cancel")]
        async for event in who.reply(PAST):
            found.append(event)
            if isinstance(event, ElicitationEvent):
                assert event.form == form
                if results[0].content:
                    with pytest.raises(EngineError, match="expected from 1 to 9"):
                        await who.respond(event.id, ElicitResult("accept", {"count": 30}))
                await who.respond(event.id, results.pop(0))
        assert tools.filled_in == [ElicitResult("accept", {"count": 3}), ElicitResult("cancel")]
        elicited = [event for event in found if isinstance(event, ElicitedEvent)]
        assert [(one.action, one.by) for one in elicited] == [
            ("accept", "owner"),
            ("cancel", "owner"),
        ]


async def test_what_was_left_out_and_why_it_ended_arrive_over_the_api() -> None:
    words = " ".join(f"w{number}" for number in range(3000))
    past = [Message("user", words), Message("assistant", "yes"), Message("user", "and w7?")]
    engine = engine_saying(["w8"], finished="repetition")
    async with Served(engine).running() as served:
        told, text, end = [
            event async for event in RemoteAssistant(served.server.url, TOKEN).reply(past)
        ]
        assert isinstance(told, LeftOut) and told.excerpted_turns == (1,)
        assert told.shown_tokens == len(engine.requests[0].prompt) < told.tokens
        assert (text, end) == (Text("w8"), Finished("repetition", told.shown_tokens, 1))
        body = {"messages": [{"role": one.role, "content": one.content} for one in past]}
        status, found = await served.post("/v1/chat/completions", body)
    assert status == 200 and found["context"] == {
        "tokens": told.tokens,
        "shown_tokens": told.shown_tokens,
        "left_out_turns": [],
        "excerpted_turns": [1],
        "condensed_turns": [],
    }
    choice = found["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "repetition")


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
