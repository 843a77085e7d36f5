"""An answer is kept as it ends; calls that its owner confirmed are examples."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, closing
from dataclasses import replace
from pathlib import Path

import pytest

from quietchoir.core.assistant.context import Message
from quietchoir.core.assistant.events import (
    ApprovedEvent,
    ChatRequest,
    Event,
    Finished,
    LoopStepEvent,
    Text,
    ToolCallEvent,
    ToolResultEvent,
)
from quietchoir.core.assistant.tools import ToolResult
from quietchoir.core.history.recorder import recorded
from quietchoir.core.history.store import HistoryStore
from quietchoir.core.toolcall import ToolCall, render

LAMP, FAN = (ToolCall("HassTurnOn", {"name": name}) for name in ("lamp", "fan"))
REQUEST = ChatRequest(messages=(Message("user", "lamp on"),), conversation="evening")
END = Finished("stop", 3, 2)


async def play(*told: Event) -> AsyncGenerator[Event, None]:
    for event in told:
        yield event


async def keep(store: HistoryStore, told: Sequence[Event]) -> list[Event]:
    """What passes, and what is kept before the last of it."""
    async with aclosing(recorded(store, REQUEST, "page", play(*told))) as events:
        return [event async for event in events]


@pytest.mark.parametrize(
    ("answers", "example"),
    [
        ([ApprovedEvent("a", True, "owner")], True),
        ([ApprovedEvent("a", False, "owner")], False),
        ([ApprovedEvent("a", False, "timeout")], False),
        ([], False),  # carried out unasked: nobody said that it was right
    ],
)
async def test_a_call_that_its_owner_confirmed_is_an_example(
    tmp_path: Path, answers: list[Event], example: bool
) -> None:
    store = HistoryStore(tmp_path)
    done = ToolResultEvent("1", ToolResult("done"))
    thought = [Text("<think>", thought=True, mark=True), Text("is it?", thought=True)]
    told = [*thought, ToolCallEvent("1", LAMP), *answers, done, Text("The lamp is on."), END]
    assert await keep(store, told) == told
    [_, answer, brought] = store.messages("evening")
    assert (answer.content, answer.calls) == ("The lamp is on.", (LAMP,))
    assert (brought.role, brought.content) == ("tool", "done")
    assert answer.thought == "is it?"
    again = [*REQUEST.messages, replace(answer, thought=""), brought, Message("user", "thanks")]
    store.keep("evening", [*again, Message("assistant", "Gladly.")], source="page")
    # clients do not send it back, and it stays; no example holds it
    assert [one.thought for one in store.messages("evening")] == ["", "is it?", "", "", ""]
    assert not any(said.thought for one in store.examples() for said in one.messages)
    assert [(one.origin, one.answer) for one in store.examples()] == [
        ("confirmed", render(LAMP))
    ] * example


async def test_a_confirmed_call_that_failed_is_no_example(tmp_path: Path) -> None:
    store = HistoryStore(tmp_path)
    failed = ToolResultEvent("1", ToolResult("there is no lamp in this house", ok=False))
    yes = ApprovedEvent("a", True, "owner")
    await keep(store, [ToolCallEvent("1", LAMP), yes, failed, Text("No lamp."), END])
    assert store.examples() == []


async def test_a_confirmed_call_that_did_not_do_all_that_was_asked_is_no_example(
    tmp_path: Path,
) -> None:
    store = HistoryStore(tmp_path)
    done, yes = ToolResultEvent("1", ToolResult("on")), ApprovedEvent("a", True, "owner")
    left: list[Event] = [
        LoopStepEvent(3, last=True),
        Text("How nice."),
    ]  # of two wishes one named nothing
    await keep(store, [ToolCallEvent("1", LAMP), yes, done, Text("on\n"), *left, END])
    assert store.examples() == [] and store.messages("evening")


async def test_one_call_that_nobody_confirmed_makes_no_example_of_the_other(tmp_path: Path) -> None:
    store = HistoryStore(tmp_path)
    calls = [ToolCallEvent("1", LAMP), ToolCallEvent("2", FAN)]
    await keep(store, [*calls, ApprovedEvent("a", True, "owner"), END])
    assert store.examples() == []


async def test_an_answer_that_broke_off_is_not_kept(tmp_path: Path) -> None:
    store = HistoryStore(tmp_path)
    await keep(store, [Text("The lamp")])
    assert store.conversations() == []
    await keep(store, [Text("The lamp is on."), END])  # asked again
    [info] = store.conversations()
    assert (info.title, info.turns) == ("lamp on", 2)


async def test_a_conversation_that_is_forgotten_while_its_first_answer_runs_stays_forgotten(
    tmp_path: Path,
) -> None:
    store = HistoryStore(tmp_path)
    answer = play(Text("on"), ToolCallEvent("1", LAMP), ApprovedEvent("a", True, "owner"), END)
    async with aclosing(recorded(store, REQUEST, "page", answer)) as events:
        async for event in events:
            if isinstance(event, Text):
                with closing(HistoryStore(tmp_path)) as other:  # as `quietchoir data forget` does
                    other.forget_conversation("evening")
    assert store.conversations() == [] and store.examples() == []
    await keep(store, [Text("The lamp is on."), END])  # its owner asks anew
    assert [info.id for info in store.conversations()] == ["evening"]


async def test_what_is_forgotten_while_it_is_answered_does_not_come_back(tmp_path: Path) -> None:
    store = HistoryStore(tmp_path)
    for forgotten in (False, True):
        store.keep("evening", [Message("user", "Kestrel"), Message("assistant", "ok")], source="a")
        async with aclosing(recorded(store, REQUEST, "page", play(Text("on"), END))) as events:
            async for event in events:
                if forgotten and isinstance(event, Text):
                    store.forget_conversation("evening")
        there = [info.id for info in store.conversations()]
        assert there[:1] == ["evening"] * (not forgotten) and len(there) == 2 * (not forgotten)
