"""A conversation keeps its head and its newest turns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietchoir.core.assistant.context import Message, fit, turns
from quietchoir.core.errors import RequestError
from quietchoir.core.toolcall import ToolCall
from quietchoir.tests.fakes.server import WordTokenizer

SYSTEM = Message("system", "be brief")


def conversation(*lengths: int) -> list[Message]:
    """Turns of a user's message with so many words, and a short answer."""
    return [
        message
        for index, length in enumerate(lengths)
        for message in (
            Message("user", " ".join([f"q{index}"] * length)),
            Message("assistant", f"a{index}"),
        )
    ]


def test_a_conversation_within_the_budget_is_kept_whole() -> None:
    tokenizer = WordTokenizer()
    messages = [SYSTEM, *conversation(3, 3, 3)]
    fit(messages, tokenizer, 100)
    assert [message["content"] for message in tokenizer.last_messages] == [
        message.content for message in messages
    ]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 120))
def test_what_is_dropped_is_the_oldest_and_in_whole_turns(lengths: list[int], budget: int) -> None:
    messages = [SYSTEM, *conversation(*lengths)]
    tokenizer = WordTokenizer()
    # a role mark for each message, and the answer's one word
    costs = [length + 3 for length in lengths]
    head = 3
    possible = [
        count for count in range(1, len(lengths) + 1) if head + sum(costs[-count:]) <= budget
    ]
    if not possible:
        with pytest.raises(RequestError, match="at most"):
            fit(messages, tokenizer, budget)
        return
    assert len(fit(messages, tokenizer, budget)) == head + sum(costs[-max(possible) :])


def test_a_first_answer_before_any_question_is_a_turn_of_its_own() -> None:
    head, split = turns([SYSTEM, Message("assistant", "hello"), Message("user", "hi")])
    assert head == [SYSTEM]
    assert [[message.role for message in turn] for turn in split] == [["assistant"], ["user"]]


def test_a_conversation_of_a_system_message_alone_can_be_encoded() -> None:
    assert len(fit([SYSTEM], WordTokenizer(), 10)) == 3


def test_a_past_call_and_its_result_go_to_the_template_with_the_id_that_joins_them() -> None:
    call = ToolCall("HassTurnOn", {"name": "lamp"}, "call_1")
    assert Message("assistant", "At once.", (call,)).for_template() == {
        "role": "assistant",
        "content": "At once.",
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "HassTurnOn", "arguments": {"name": "lamp"}},
            }
        ],
    }
    assert Message("tool", "It is on.", (), "call_1", "HassTurnOn").for_template() == {
        "role": "tool",
        "content": "It is on.",
        "tool_call_id": "call_1",
        "name": "HassTurnOn",
    }
