"""Thoughts of a reasoning model and its answer are told apart, however the pieces fall."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietchoir.core.assistant.context import Message
from quietchoir.core.assistant.events import Text
from quietchoir.core.assistant.thoughts import ThoughtReader, unmarked, without_thoughts


def whole_unmarked(text: str, *, begun: bool) -> str:
    """What is thought in a text, read at once, without the marks around it."""
    opening = re.match(r"(\s*<think>)\n?", text)
    if not begun and opening is None:
        return ""
    thought, closing, _ = text[0 if begun or opening is None else opening.end(1) :].partition(
        "</think>"
    )
    thought = thought if begun else thought.removeprefix("\n")
    return thought.removesuffix("\n") if closing else thought


def read(text: str, cuts: list[int], *, begun: bool = False) -> tuple[str, str]:
    """What is thought and what is said of a text that comes in pieces."""
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    reader = ThoughtReader(begun=begun)
    found = [
        piece for start, end in pairwise(places) for piece in reader.push(Text(text[start:end]))
    ]
    found += reader.finish()
    assert "".join(piece.text for piece in found) == text
    unmarked_ = "".join(unmarked(piece) for piece in found if piece.thought)
    assert unmarked_ == whole_unmarked(text, begun=begun)
    return tuple(
        "".join(piece.text for piece in found if piece.thought is thought)
        for thought in (True, False)
    )  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("text", "begun", "thought"),
    [
        ("<think>\nIs it?\n</think>\n\nIt is.", False, "<think>\nIs it?\n</think>"),
        ("\n<think></think>It is.", False, "\n<think></think>"),
        ("so </thin, and so</think>It is.", True, "so </thin, and so</think>"),
        ("It is. <think>no</think>", False, ""),
        (
            "<think>\n\nIt says\n <think>\n.\n\n</think>So.",
            False,
            "<think>\n\nIt says\n <think>\n.\n\n</think>",
        ),
        ("\n<think>\nno\n</think>\nSo.", True, "\n<think>\nno\n</think>"),
        ("<think>\n</think>So.", False, "<think>\n</think>"),
        ("<think>\n", False, "<think>\n"),
        ("<thinking>It is.", False, ""),
        ("<think>never ended </thi", False, "<think>never ended </thi"),
        ("<thi", False, ""),
        ("", False, ""),
    ],
)
@given(cuts=st.lists(st.integers(0, 99), max_size=12))
def test_what_is_thought_ends_at_its_mark(
    text: str, begun: bool, thought: str, cuts: list[int]
) -> None:
    assert read(text, cuts, begun=begun) == (thought, text[len(thought) :])


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("<think>\nhm\n</think>\n\nYes.", "Yes."),
        ("It writes <think>, then </think>.", "It writes <think>, then </think>."),
        ("The mark is </think>.", "The mark is </think>."),
        ("Yes.", "Yes."),
        ("<think>never ended", ""),
    ],
)
def test_past_thoughts_do_not_go_back_to_the_model(said: str, shown: str) -> None:
    assert without_thoughts(Message("assistant", said)).content == shown
    assert without_thoughts(Message("user", said)).content == said
