"""An answer is text, or one tool call with its result; and whoever leaves frees the engine."""

import asyncio
import dataclasses
import threading
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import pytest

from quietchoir.core.assistant.assistant import (
    ANY_TOOL,
    Assistant,
    ChatRequest,
    Event,
    Finished,
    Text,
    ToolCallBuffer,
    ToolCallEvent,
    ToolResultEvent,
)
from quietchoir.core.assistant.context import Message
from quietchoir.core.assistant.tools import NoTools, ToolInfo, ToolResult
from quietchoir.core.engine.request import Generation, GenerationRequest
from quietchoir.core.engine.sampling.params import Constraint, SamplingParams
from quietchoir.core.errors import (
    EngineError,
    ModelFileError,
    OverloadedError,
    RequestError,
    ToolError,
)
from quietchoir.core.prompt import AS_IT_COMES, HOUSEHOLD, PromptFormat
from quietchoir.core.toolcall import SYSTEM_PROMPT, ToolCall, render
from quietchoir.tests.fakes.http import until
from quietchoir.tests.fakes.server import FakeEngine, FakeTools, WordTokenizer, engine_saying

LIGHT = ToolCall("HassTurnOn", {"area": "kitchen", "name": "light"})
CALL_PIECES = [render(LIGHT)[:9], render(LIGHT)[9:30], render(LIGHT)[30:]]
QUESTION = (Message("user", "turn on the kitchen light"),)
PROMPTS = {
    "home": HOUSEHOLD,
    "office": AS_IT_COMES,
    "polite": PromptFormat(system="Be polite.", answers="text"),
    "short": PromptFormat(turns="last"),
}


def assistant(engine: FakeEngine, tools: Any = None, *, context: int = 100) -> Assistant:
    return Assistant(
        engine,
        WordTokenizer(),
        tools or NoTools(),
        context=context,
        call_timeout_s=5.0,
        prompt_of=PROMPTS.__getitem__,
    )


async def events(who: Assistant, **ask: Any) -> list[Event]:
    known = {one.name for one in dataclasses.fields(SamplingParams)}
    params = {name: ask.pop(name) for name in known & ask.keys()}
    asked = ChatRequest(
        messages=ask.pop("messages", QUESTION), sampling_params=SamplingParams(**params), **ask
    )
    return [event async for event in who.reply(asked)]


def text_of(found: Sequence[Event]) -> str:
    return "".join(event.text for event in found if isinstance(event, Text))


async def test_a_plain_answer_comes_piece_by_piece_and_ends_with_its_counts() -> None:
    found = await events(assistant(engine_saying(["Good ", "morning", "."])))
    assert found == [Text("Good "), Text("morning"), Text("."), Finished("stop", 6, 3)]


async def test_a_call_to_a_known_tool_is_carried_out_and_its_answer_is_the_text() -> None:
    tools = FakeTools()
    found = await events(assistant(engine_saying(CALL_PIECES), tools))
    assert tools.calls == [LIGHT]
    called, answered, text, end = found
    assert isinstance(called, ToolCallEvent) and (called.call, called.plugin_id) == (
        LIGHT,
        "quietchoir/household",
    )
    assert answered == ToolResultEvent(called.id, ToolResult("Turned on the kitchen light."))
    assert text == Text("Turned on the kitchen light.")
    assert end == Finished("stop", 6, 3)


async def test_what_a_tool_answers_is_never_read_as_a_call() -> None:
    tools = FakeTools(answer=render(LIGHT))
    engine = engine_saying(CALL_PIECES)
    found = await events(assistant(engine, tools))
    assert len(tools.calls) == 1
    assert len(engine.requests) == 1
    assert text_of(found) == render(LIGHT)


async def test_a_call_to_an_unknown_tool_is_only_text() -> None:
    tools = FakeTools(names=("HassTurnOff",))
    found = await events(assistant(engine_saying(CALL_PIECES), tools))
    assert tools.calls == []
    assert text_of(found) == render(LIGHT)


async def test_an_answer_cut_inside_a_call_calls_nothing() -> None:
    tools = FakeTools()
    found = await events(assistant(engine_saying(CALL_PIECES, finished="length"), tools))
    assert tools.calls == []
    assert found[-1].reason == "length"  # type: ignore[union-attr]


async def test_tools_that_the_caller_brings_are_returned_and_not_carried_out() -> None:
    tools = FakeTools()
    found = await events(
        assistant(engine_saying(CALL_PIECES), tools), caller_tools=(ToolInfo("HassTurnOn", ""),)
    )
    assert tools.calls == []
    called, end = found
    assert isinstance(called, ToolCallEvent) and called.call == LIGHT
    assert end == Finished("tool_calls", 6, 3)


async def test_without_tools_wanted_a_call_is_only_text() -> None:
    tools = FakeTools()
    found = await events(assistant(engine_saying(CALL_PIECES), tools), use_tools=False)
    assert tools.calls == [] and text_of(found) == render(LIGHT)


@pytest.mark.parametrize(
    "tools, words",
    [
        (
            FakeTools(fails=ToolError("the lamp does not answer; look at its plug")),
            "the lamp does not answer",
        ),
        (FakeTools(hangs=True), "no answer within"),
    ],
)
async def test_a_tool_that_fails_or_hangs_ends_in_a_sentence(
    tools: FakeTools, words: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr("quietchoir.core.assistant.assistant.GRACE_S", 0.0)
    who = assistant(engine_saying(CALL_PIECES), tools)
    who.call_timeout_s = 0.01
    found = await events(who)
    answered = found[1]
    assert (
        isinstance(answered, ToolResultEvent)
        and not answered.result.ok
        and words in answered.result.text
    )
    assert words in text_of(found)


@pytest.mark.parametrize(
    "adapter, tools, messages, expected",
    [
        ("home", FakeTools(), QUESTION, [SYSTEM_PROMPT]),
        (None, FakeTools(), QUESTION, []),
        ("home", NoTools(), QUESTION, []),
        ("home", FakeTools(), (Message("system", "Be kind."), *QUESTION), ["Be kind."]),
    ],
)
async def test_the_training_prompt_comes_with_an_adapter_and_tools_alone(
    adapter: str | None, tools: Any, messages: tuple[Message, ...], expected: list[str]
) -> None:
    who = assistant(engine_saying(["ok"]), tools)
    await events(who, adapter=adapter, messages=messages)
    seen = who.tokenizer.last_messages  # type: ignore[attr-defined]
    assert [message["content"] for message in seen if message["role"] == "system"] == expected


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        ("home", [SYSTEM_PROMPT, "c"]),
        ("office", ["a", "b", "c"]),
        ("polite", ["Be polite.", "a", "b", "c"]),
        ("short", ["c"]),
        (None, ["a", "b", "c"]),
    ],
)
async def test_an_adapter_is_shown_what_its_card_says_also_with_tools_on_offer(
    adapter: str | None, expected: list[str]
) -> None:
    """The instance: an organisation's adapter of several turns lost its context, and got the
    household's prompt.
    """
    who = assistant(engine_saying(["ok"]), FakeTools())
    await events(
        who,
        adapter=adapter,
        messages=(Message("user", "a"), Message("assistant", "b"), Message("user", "c")),
    )
    seen = who.tokenizer.last_messages  # type: ignore[attr-defined]
    assert [message["content"] for message in seen] == expected
    own = (
        Message("system", "Mine."),
        Message("user", "a"),
        Message("assistant", "b"),
        Message("user", "c"),
    )
    await events(who, adapter=adapter, messages=own)
    assert [message["content"] for message in who.tokenizer.last_messages] == [  # type: ignore[attr-defined]
        "Mine.",
        "a",
        "b",
        "c",
    ]


async def test_the_answers_of_an_adapter_of_texts_are_never_carried_out() -> None:
    tools = FakeTools()
    for adapter, calls in (("polite", 0), ("office", 1)):
        found = await events(assistant(engine_saying(CALL_PIECES), tools), adapter=adapter)
        assert sum(isinstance(event, ToolCallEvent) for event in found) == calls
    assert len(tools.calls) == 1


async def test_an_adapter_that_calls_tools_is_shown_the_newest_request_alone() -> None:
    who = assistant(engine_saying(["ok"]), FakeTools())
    turns = (
        Message("user", "lamp on"),
        Message("assistant", "Turned on the lamp."),
        Message("user", "lamp off"),
    )
    await events(who, adapter="home", messages=turns)
    seen = who.tokenizer.last_messages  # type: ignore[attr-defined]
    assert [message["content"] for message in seen] == [SYSTEM_PROMPT, "lamp off"]
    await events(who, adapter=None, messages=turns)
    seen = who.tokenizer.last_messages  # type: ignore[attr-defined]
    assert [message["content"] for message in seen] == [
        "lamp on",
        "Turned on the lamp.",
        "lamp off",
    ]


async def test_who_leaves_early_cancels_the_generation() -> None:
    engine = engine_saying(["one", "two", "three"], held=True)
    async with aclosing(assistant(engine).reply(ChatRequest(messages=QUESTION))) as answer:
        assert await anext(answer) == Text("one")
    assert engine.generations[0].finish_reason == "cancelled"


async def test_a_cancelled_reader_cancels_the_generation() -> None:
    engine = engine_saying(["one", "two"], held=True)
    got_first = asyncio.Event()

    async def read() -> None:
        async with aclosing(assistant(engine).reply(ChatRequest(messages=QUESTION))) as answer:
            async for _ in answer:
                got_first.set()

    reader = asyncio.create_task(read())
    await got_first.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert engine.generations[0].finish_reason == "cancelled"


async def test_a_finished_answer_is_not_cancelled() -> None:
    engine = engine_saying(["one"])
    await events(assistant(engine))
    assert not engine.generations[0].cancel_requested


async def test_an_engine_that_breaks_half_way_raises_its_error() -> None:
    with pytest.raises(EngineError, match="a kernel broke"):
        await events(assistant(engine_saying(["one", "two"], finished="error")))


@pytest.mark.parametrize(
    "refusal", [OverloadedError("the queue is full"), RequestError("too long")]
)
async def test_a_refusal_passes_through(refusal: Exception) -> None:
    engine = engine_saying(["one"])
    engine.refuse = refusal
    with pytest.raises(type(refusal)):
        await events(assistant(engine))


async def test_prompt_and_answer_share_the_context() -> None:
    engine = engine_saying(["ok"])
    await events(assistant(engine, context=20), max_tokens=1000)
    assert len(engine.requests[0].prompt) + engine.requests[0].sampling_params.max_tokens == 20


async def test_an_endless_wish_for_tokens_does_not_push_the_question_out() -> None:
    engine = engine_saying(["ok"])
    old = (Message("user", "old " * 30), Message("assistant", "yes"))
    await events(assistant(engine, context=40), messages=(*old, *QUESTION), max_tokens=10_000)
    assert len(engine.requests[0].prompt) == 6  # the question stayed, the old turn went


async def test_a_completion_uses_neither_template_nor_tools() -> None:
    engine, tools = engine_saying(CALL_PIECES), FakeTools()
    who = assistant(engine, tools)
    found = [event async for event in who.complete("once upon a time", ChatRequest(messages=()))]
    assert engine.requests[0].prompt == (0, 1, 2, 3)
    assert text_of(found) == render(LIGHT) and tools.calls == []


@pytest.mark.parametrize(
    "pieces, shown_at_once",
    [
        (["  ", "Hello"], ["", "  Hello"]),
        ([" {", "}"], ["", ""]),
        (["Sure: ", "{}"], ["Sure: ", "{}"]),
    ],
)
def test_the_gate_holds_back_only_what_may_become_a_call(
    pieces: list[str], shown_at_once: list[str]
) -> None:
    gate = ToolCallBuffer(closed=True)
    out = [gate.push(Text(piece)) for piece in pieces]
    assert [piece.text if piece else "" for piece in out] == shown_at_once


async def test_a_demanded_call_goes_to_the_engine_as_a_form_and_comes_back_as_a_call() -> None:
    tools = (ToolInfo("HassTurnOn", "", {"type": "object"}), ToolInfo("other", ""))
    engine = engine_saying(CALL_PIECES)
    found = await events(assistant(engine), caller_tools=tools, tool_choice="HassTurnOn")
    assert [type(event) for event in found] == [ToolCallEvent, Finished]
    form = engine.requests[0].sampling_params.constraint
    assert form is not None and "HassTurnOn" in form.text and "other" not in form.text
    await events(assistant(engine), caller_tools=tools, tool_choice=ANY_TOOL)
    form = engine.requests[1].sampling_params.constraint
    assert form is not None and "HassTurnOn" in form.text and "other" in form.text


@pytest.mark.parametrize("choice, offered", [("HassTurnOff", "HassTurnOn"), (ANY_TOOL, None)])
async def test_a_call_to_what_is_not_on_offer_cannot_be_demanded(
    choice: str, offered: str | None
) -> None:
    engine = engine_saying(CALL_PIECES)
    tools = () if offered is None else (ToolInfo(offered, ""),)
    with pytest.raises(RequestError, match=f"on offer are {offered or 'no tools'}"):
        await events(assistant(engine), caller_tools=tools, tool_choice=choice)
    assert engine.requests == []


async def test_an_answer_in_a_demanded_form_is_never_carried_out_as_a_call() -> None:
    tools = FakeTools()
    found = await events(
        assistant(engine_saying(CALL_PIECES), tools), constraint=Constraint("json")
    )
    assert tools.calls == [] and text_of(found) == render(LIGHT)
    with pytest.raises(RequestError, match="in another form at once"):
        await events(
            assistant(engine_saying(CALL_PIECES), tools),
            constraint=Constraint("json"),
            tool_choice=ANY_TOOL,
        )


async def test_who_leaves_while_a_grammar_is_compiled_leaves_nothing_running() -> None:
    compiling, go_on = threading.Event(), threading.Event()
    engine = engine_saying(["{", "}"], held=True)
    submit = engine.submit

    def slowly(request: GenerationRequest) -> Generation:
        compiling.set()
        assert go_on.wait(30)
        return submit(request)

    engine.submit = slowly  # type: ignore[method-assign]
    task = asyncio.ensure_future(events(assistant(engine), constraint=Constraint("json")))
    assert await asyncio.to_thread(compiling.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    await until(lambda: engine.generations and engine.generations[0].finish_reason == "cancelled")


async def test_an_answer_that_was_begun_is_continued() -> None:
    engine, tokenizer = engine_saying([" upon a time."]), WordTokenizer()
    asking = Assistant(engine, tokenizer, FakeTools(), context=2000)
    ask = ChatRequest(messages=(Message("user", "a tale"),), begun="Once there")
    events = [event async for event in asking.reply(ask)]
    assert events[0] == Text(" upon a time.")
    assert engine.requests[0].prompt[-2:] == tuple(tokenizer.encode("Once there"))
    with pytest.raises(RequestError, match="that was begun takes 1800 tokens"):
        [
            event
            async for event in asking.reply(ChatRequest(messages=ask.messages, begun="x " * 1800))
        ]


async def test_a_model_without_a_way_to_read_chats_refuses_the_chat() -> None:
    class Mute(WordTokenizer):
        def encode_chat(self, messages: Any, *, add_generation_prompt: bool = True) -> list[int]:
            raise ModelFileError("the model has no chat template; ask for completions")

    asking = Assistant(engine_saying(["x"]), Mute(), FakeTools(), context=2000)
    with pytest.raises(RequestError, match="no chat template"):
        [event async for event in asking.reply(ChatRequest(messages=(Message("user", "hi"),)))]
    assert [event async for event in asking.complete("go on", ChatRequest(messages=()))]
