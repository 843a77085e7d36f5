"""A conversation in a terminal."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence

import pytest

from quietchoir.core.assistant.context import LeftOut, Message
from quietchoir.core.assistant.elicitation import ElicitResult, Field, Form
from quietchoir.core.assistant.events import (
    ApprovalEvent,
    ElicitationEvent,
    Event,
    Finished,
    Text,
    ToolCallEvent,
    ToolResultEvent,
)
from quietchoir.core.assistant.terminal import converse
from quietchoir.core.assistant.tools import ToolResult
from quietchoir.core.errors import EngineError
from quietchoir.core.toolcall import ToolCall

CALL = ToolCall("HassTurnOn", {"name": "lamp"})


class Speaker:
    """Replies with a script and remembers what it was asked."""

    def __init__(self, *script: Event | BaseException) -> None:
        self.script = script
        self.asked: list[list[Message]] = []
        self.conversations = 1
        self.answers: list[tuple[str, bool, bool]] = []
        self.results: list[tuple[str, ElicitResult]] = []

    async def reply(self, messages: Sequence[Message]) -> AsyncGenerator[Event, None]:
        self.asked.append(list(messages))
        for event in self.script:
            if isinstance(event, BaseException):
                raise event
            yield event

    def renew(self) -> None:
        self.conversations += 1

    async def answer(self, id: str, approved: bool, remember: bool) -> None:
        self.answers.append((id, approved, remember))

    async def respond(self, id: str, result: ElicitResult) -> None:
        self.results.append((id, result))


def talk(speaker: Speaker, *lines: str) -> str:
    """Type `lines`, then the end of input; give all that was written."""
    written: list[str] = []
    with asyncio.Runner() as runner:
        converse(speaker, runner, reader(iter(lines)), written.append)
    return "".join(written)


def reader(lines: Iterator[str]) -> Callable[[str], str]:
    def read(_prompt: str) -> str:
        for line in lines:
            return line
        raise EOFError

    return read


def test_an_answer_is_written_and_remembered() -> None:
    speaker = Speaker(Text("Good "), Text("day."), Finished("stop", 1, 2))
    assert "Good day.\n" in talk(speaker, "hello", "again", "/quit")
    assert [message.content for message in speaker.asked[1]] == ["hello", "Good day.", "again"]


def test_what_the_model_was_not_shown_and_a_cut_answer_are_told() -> None:
    left_out = LeftOut(4000, 1500, (1, 2, 3, 7), (5,))
    told = talk(Speaker(left_out, Text("Well"), Finished("repetition", 1, 1)), "hello", "/quit")
    assert (
        "[the conversation takes 4000 tokens, the model was shown 1500: without turn 1-3, 7, "
        in (told)
    )
    assert "with excerpts of turn 5]" in told and "Well [ended, it only repeated itself]" in told


def test_new_forgets() -> None:
    speaker = Speaker(Text("Yes."), Finished("stop", 1, 1))
    talk(speaker, "hello", "/new", "again")
    assert [message.content for message in speaker.asked[1]] == ["again"]
    assert speaker.conversations == 2


def test_a_tool_call_is_shown_and_goes_back_as_a_call() -> None:
    speaker = Speaker(
        ToolCallEvent("1", CALL),
        ToolResultEvent("1", ToolResult("It is broken.", ok=False)),
        Text("It is broken."),
    )
    written = talk(speaker, "turn on the lamp", "again")
    assert (
        '[{"name": "HassTurnOn", "arguments": {"name": "lamp"}}]\n[did not work: '
        "It is broken.] It is broken."
    ) in written
    called, result, said = speaker.asked[1][1:4]
    assert called.calls == (CALL,) and called.calls[0].id == result.tool_call_id == "1"
    assert (result.content, said.content) == ("It is broken.", "It is broken.")


@pytest.mark.parametrize(
    ("typed", "answer"),
    [("y", (True, False)), ("a", (True, True)), ("n", (False, False)), ("", (False, False))],
)
def test_a_question_before_an_action_is_answered_by_a_letter_and_by_none_is_a_no(
    typed: str, answer: tuple[bool, bool]
) -> None:
    question = ApprovalEvent("ask_1", "1", "Turns on: name 'lamp'. Shall I?", CALL, "write", 9.0)
    speaker = Speaker(ToolCallEvent("1", CALL), question, Finished("stop", 1, 1))
    talk(speaker, "turn on the lamp", typed)
    assert speaker.answers == [("ask_1", *answer)]


def test_what_reaches_outside_is_asked_each_time_so_always_is_not_on_offer() -> None:
    question = ApprovalEvent("ask_1", "1", "Shall I?", CALL, "outside", 9.0)
    for typed, yes in (("a", False), ("y", True)):
        speaker = Speaker(ToolCallEvent("1", CALL), question, Finished("stop", 1, 1))
        assert "lways" not in talk(speaker, "mail it", typed)
        assert speaker.answers == [("ask_1", yes, False)]


def test_the_end_of_the_input_is_no_yes() -> None:
    question = ApprovalEvent("ask_1", "1", "Shall I?", CALL, "write", 9.0)
    speaker = Speaker(ToolCallEvent("1", CALL), question, Finished("stop", 1, 1))
    talk(speaker, "turn on the lamp")
    assert speaker.answers == [("ask_1", False, False)]


@pytest.mark.parametrize(
    ("typed", "result"),
    [
        (("y", "many", "3"), ElicitResult("accept", {"count": 3})),
        (("y", ""), ElicitResult("cancel")),  # a value that it must have
        (("n",), ElicitResult("decline")),
        ((), ElicitResult("decline")),
    ],
)
def test_a_plugins_form_is_filled_in_line_by_line_under_its_name(
    typed: tuple[str, ...], result: ElicitResult
) -> None:
    form = Form("a/b", "How\n> many?", (Field("count", "integer", "Count", True),))
    event = ElicitationEvent("form_1", "1", form, 9.0)
    speaker = Speaker(ToolCallEvent("1", CALL), event, Finished("stop", 1, 1))
    written = talk(speaker, "order", *typed)
    assert "a/b asks: How > many?\n  Count: a whole number\n" in written
    assert ("expected a whole number" in written) == ("many" in typed)
    assert speaker.results == [("form_1", result)]


@pytest.mark.parametrize("failure", [EngineError("the queue is full"), KeyboardInterrupt()])
def test_an_answer_that_fails_or_is_stopped_ends_alone(failure: BaseException) -> None:
    """What was said until it was stopped stays, for the next question to be about."""
    speaker = Speaker(Text("Well"), failure)
    written = talk(speaker, "hello", "again")
    assert len(speaker.asked) == 2
    kept = ["hello", "Well"] if isinstance(failure, KeyboardInterrupt) else []
    assert [message.content for message in speaker.asked[1]] == [*kept, "again"]
    assert str(failure) in written


def test_a_stopped_call_leaves_no_half_of_an_exchange() -> None:
    speaker = Speaker(Text("I turn it on."), ToolCallEvent("1", CALL), KeyboardInterrupt())
    talk(speaker, "turn on the lamp", "again")
    assert [message.content for message in speaker.asked[1]] == ["again"]


def test_what_is_pasted_between_marks_is_one_question() -> None:
    speaker = Speaker(Text("Yes."), Finished("stop", 1, 1))
    talk(speaker, '"""Is this right?', "", "  /new", 'two lines"""', '"""one"""', '"""never ended')
    asked = [messages[-1].content for messages in speaker.asked]
    assert asked == ["Is this right?\n\n  /new\ntwo lines", "one"]


def test_retry_asks_the_newest_question_again_without_its_answer() -> None:
    speaker = Speaker(Text("Yes."), Finished("stop", 1, 1))
    assert "nothing was asked yet" in talk(speaker, "/retry", "first", "second", "/retry")
    said = [[message.content for message in messages] for messages in speaker.asked]
    assert said[1] == said[2] == ["first", "Yes.", "second"]


def test_thoughts_are_shown_and_are_no_part_of_the_answer() -> None:
    speaker = Speaker(Text("<think>so</think>", thought=True), Text("Yes."), Finished("stop", 1, 1))
    assert "<think>so</think>Yes." in talk(speaker, "hello", "again")
    assert [message.content for message in speaker.asked[1]] == ["hello", "Yes.", "again"]


def test_an_unknown_command_is_not_sent_to_anybody() -> None:
    speaker = Speaker()
    written = talk(speaker, "/what", "")
    assert written.count("/new begins afresh") == 2 and "no command /what\n" in written
    assert speaker.asked == []


def test_help_says_all_that_may_be_typed_and_is_no_unknown_command() -> None:
    class Kept:
        async def judge(self, verdict: str, _correction: str) -> str:
            return f"kept: {verdict}"

    written: list[str] = []
    speaker = Speaker(Text("Yes."))
    lines = iter(["/help", "/whta", "/up", "up"])
    with asyncio.Runner() as runner:
        converse(speaker, runner, reader(lines), written.append, Kept())
    assert "".join(written).count("/correct TEXT") == 3 and "kept: up\n" in written
    assert next(one for one in written if "no command" in one).startswith("no command /whta\n")
    assert sum("no command" in one for one in written) == 1
    assert [asked[-1].content for asked in speaker.asked] == ["up"]  # without / it is a question


def test_an_answer_cannot_move_the_cursor_nor_a_call_begin_a_line() -> None:
    speaker = Speaker(
        Text("a\x1b[2J\x07b\u202ec\td\n"),
        ToolCallEvent("1", ToolCall("x", {"name": "\u2028> \x9b2J"})),
    )
    written = talk(speaker, "hello")
    assert "a[2Jbc\td\n" in written
    assert '[{"name": "x", "arguments": {"name": " > 2J"}}]\n' in written
