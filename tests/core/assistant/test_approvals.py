"""What is done unasked, what is asked, and what a yes is good for."""

import asyncio
from typing import Any

import pytest

from quietchoir.core.assistant.approvals import REMEMBER, REMEMBERED, Approvals, misnamed
from quietchoir.core.assistant.tools import Effect, ToolInfo
from quietchoir.core.config import Rule, ToolsConfig
from quietchoir.core.errors import ApprovalError
from quietchoir.core.toolcall import ToolCall

CALL = ToolCall("t", {"area": "hall", "level": 3})


def tool(effect: Effect = "write", **schema: Any) -> ToolInfo:
    return ToolInfo("t", "Turns something on.", schema, "", effect)


def verdict(
    approvals: Approvals,
    effect: Effect,
    conversation: str = "c",
    *,
    confident: bool = False,
    foreign: bool = False,
) -> Rule:
    return approvals.verdict(tool(effect), conversation, confident=confident, foreign=foreign)


@pytest.mark.parametrize(
    ("effect", "confident", "foreign", "expected"),
    [
        ("read", False, False, "allow"),
        ("read", False, True, "allow"),
        ("write", False, False, "ask"),
        ("write", True, False, "allow"),
        ("write", True, True, "ask"),
        ("outside", True, False, "ask"),
    ],
)
def test_the_shipped_rules_read_unasked_and_act_only_where_they_are_sure(
    effect: Effect, confident: bool, foreign: bool, expected: str
) -> None:
    approvals = Approvals()
    assert verdict(approvals, effect, confident=confident, foreign=foreign) == expected


def test_a_rule_for_a_tool_comes_before_those_for_what_it_does() -> None:
    assert verdict(Approvals(ToolsConfig(never=("t",))), "read") == "never"
    assert verdict(Approvals(ToolsConfig(ask=("t",))), "read") == "ask"
    assert verdict(Approvals(ToolsConfig(allow=("t",))), "write") == "allow"
    assert verdict(Approvals(ToolsConfig(allow=("other",))), "write") == "ask"
    with pytest.raises(ValueError, match="both name t"):
        ToolsConfig(allow=("t",), never=("t",))


def test_nothing_that_was_allowed_outlives_its_conversation() -> None:
    approvals = Approvals()
    approvals.called("c", [CALL], foreign=False)
    assert approvals.is_own("c", [CALL]) and not approvals.is_own("c", [])
    approvals.called("c", [CALL], foreign=True)
    assert not approvals.is_own("c", [CALL])
    approvals._conversation("c").rules["t"] = "allow"
    assert verdict(approvals, "write") == "allow"
    approvals.forget("c")
    assert verdict(approvals, "write") == "ask"


@pytest.mark.parametrize("effect", ["write", "outside"])
def test_foreign_text_makes_the_laxest_file_ask(effect: Effect) -> None:
    approvals = Approvals(ToolsConfig(write="allow", outside="allow"))
    assert verdict(approvals, effect) == "allow"
    assert verdict(approvals, effect, foreign=True) == "ask"


def test_a_conversation_that_was_read_in_or_not_seen_to_begin_is_foreign() -> None:
    approvals = Approvals()
    assert not approvals.is_foreign("c", continued=False)
    assert not approvals.is_foreign("c", continued=True)
    approvals.read("c")
    assert approvals.is_foreign("c", continued=True) and approvals.is_foreign("c", continued=False)
    assert not approvals.is_foreign("another", continued=False)
    assert approvals.is_foreign("", continued=True) and not approvals.is_foreign(
        "", continued=False
    )
    restarted = Approvals()
    assert restarted.is_foreign("another", continued=True)


async def test_neither_a_flood_of_conversations_nor_a_yes_makes_an_unknown_one_clean() -> None:
    approvals = Approvals()
    approvals.is_foreign("c", continued=False)
    approvals.read("c")
    for number in range(REMEMBERED):
        approvals.is_foreign(f"other {number}", continued=False)
    assert approvals.is_foreign("c", continued=True)
    await answered(approvals, "write", yes=True)
    assert approvals.is_foreign("c", continued=True)
    assert not approvals.is_foreign(f"other {REMEMBERED - 1}", continued=True)


async def answered(approvals: Approvals, effect: Effect, yes: bool, remember: bool = True) -> None:
    with approvals.ask(CALL, tool(effect), "c") as question:
        approvals.answer(question.id, yes, remember=remember)
        assert await approvals.wait(question) is yes


async def test_a_remembered_yes_holds_in_its_conversation_and_nowhere_else() -> None:
    approvals = Approvals()
    await answered(approvals, "write", yes=True)
    assert verdict(approvals, "write", foreign=True) == "allow"
    assert verdict(approvals, "write", "another") == "ask"
    await answered(approvals, "write", yes=False)
    assert verdict(approvals, "write") == "never"


async def test_a_yes_for_going_outside_is_for_one_call_and_a_no_is_remembered() -> None:
    approvals = Approvals()
    await answered(approvals, "outside", yes=True)
    assert verdict(approvals, "outside") == "ask"
    await answered(approvals, "outside", yes=False)
    assert verdict(approvals, "outside") == "never"


async def test_a_yes_that_is_not_remembered_is_for_one_call() -> None:
    approvals = Approvals()
    await answered(approvals, "write", yes=True, remember=False)
    assert verdict(approvals, "write") == "ask"


async def test_an_answer_too_late_twice_or_to_nothing_is_refused_and_changes_nothing() -> None:
    approvals = Approvals(ToolsConfig(approval_timeout_s=0.001))
    with approvals.ask(CALL, tool(), "c") as question:
        assert [one.id for one in approvals.pending()] == [question.id]
        assert await approvals.wait(question) is None
        with pytest.raises(ApprovalError, match="ran out of time"):
            approvals.answer(question.id, True, remember=True)
    with approvals.ask(CALL, tool(), "c") as question:
        # a terminal that is read holds the loop up, and no wait has seen the time run out
        question.until = asyncio.get_running_loop().time() - 1
        with pytest.raises(ApprovalError, match="ran out of time"):
            approvals.answer(question.id, True)
    approvals = Approvals()
    with approvals.ask(CALL, tool(), "c") as question:
        approvals.answer(question.id, False)
        with pytest.raises(ApprovalError, match="it was answered"):
            approvals.answer(question.id, True)
    assert approvals.pending() == [] and verdict(approvals, "write") == "ask"
    with pytest.raises(ApprovalError, match="no question 'ask_x' is open"):
        approvals.answer("ask_x", True)


async def test_who_stops_waiting_leaves_no_question() -> None:
    approvals = Approvals()

    async def ask() -> None:
        with approvals.ask(CALL, tool(), "") as question:
            await approvals.wait(question)

    asking = asyncio.create_task(ask())
    await asyncio.sleep(0)
    assert len(approvals.pending()) == 1
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert approvals.pending() == []


async def test_a_conversation_without_a_name_remembers_nothing() -> None:
    approvals = Approvals()
    approvals.read("")
    with approvals.ask(CALL, tool(), "") as question:
        with pytest.raises(ApprovalError, match="no name"):
            approvals.answer(question.id, True, remember=True)
        approvals.answer(question.id, True)
    assert verdict(approvals, "write", "") == "ask"


@pytest.mark.parametrize(
    ("call", "schema", "words"),
    [
        (CALL, {}, "Turns something on: area 'hall', level '3'. Shall I?"),
        (ToolCall("t"), {}, "Turns something on. Shall I?"),
        (
            ToolCall("t"),
            {"properties": {"area": {}}},
            "Turns something on, with nothing named, so it may mean everything. Shall I?",
        ),
    ],
)
async def test_a_question_spells_the_call_out(
    call: ToolCall, schema: dict[str, Any], words: str
) -> None:
    with Approvals().ask(call, tool(**schema), "") as question:
        assert question.text == words


async def test_a_fact_is_shown_whole_before_it_is_kept_and_other_long_arguments_are_cut() -> None:
    long = ToolCall("t", {"fact": "I like tea" + " and biscuits" * 30 + ". And evil."})
    for asked, whole in ((REMEMBER, True), (tool(), False)):
        with Approvals().ask(long, asked, "") as question:
            assert ("And evil." in question.text) is whole


def test_a_rule_for_a_tool_that_is_not_there_is_named() -> None:
    rules = ToolsConfig(allow=("HassTurnOn",), never=("HassTurnOnn", "remember"))
    assert misnamed(rules, ["HassTurnOn", "HassTurnOff"]) == ["HassTurnOnn"]
