"""What names somebody does not reach training, and what does not is left alone."""

import pytest

from quietchoir.core.errors import DataError
from quietchoir.core.history.redactor import Redactor
from quietchoir.core.toolcall import ToolCall, parse, render


@pytest.fixture(scope="module")
def redactor() -> Redactor:
    """With four words of its owner's."""
    return Redactor(("Project Nightjar", "mopsy", "Weißmann", "Zoë"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("call Mary Smith at +49 30 901820", "call [NAME_1] at [PHONE_1]"),
        ("ring (212) 555-2368 now", "ring [PHONE_1] now"),
        ("add milk to Grace's list", "add milk to [NAME_1]'s list"),
        ("German Smith called", "[NAME_1] called"),
        ("ask Dr. Lovelace, or Jürgen Müller", "ask Dr. [NAME_1], or [NAME_2]"),
        ("My name is Mary Brandt. Say ok.", "My name is [NAME_1]. Say ok."),
        ("ask John F. Kennedy. Then go", "ask [NAME_1]. Then go"),
        (
            "Mary Brandt came; Mary left, Mr. Brandt too",
            "[NAME_1] came; [NAME_1] left, Mr. [NAME_1] too",
        ),
        ("Mary Smith, Mary Jones and Mary", "[NAME_1], [NAME_2] and [NAME_3]"),
        ("mail ann.b@example.org", "mail [MAIL_1]"),
        ("my card is 4111 1111 1111 1111", "my card is [CARD_1]"),
        ("pay to DE89 3704 0044 0532 0130 00", "pay to [ACCOUNT_1]"),
        ("come to 12 Baker Street", "come to [ADDRESS_1]"),
        ("I live at 1600 Pennsylvania Avenue NW, Washington, DC 20500", "I live at [ADDRESS_1]"),
        ("Sie wohnt in der Lindenallee 12", "Sie wohnt in der [ADDRESS_1]"),
        ("the password is hunter2hunter2", "the password is [KEY_1]"),
        ("use ghp_abcdefghijklmnopqrstuvwxyzABCDEFGHIJ", "use [KEY_1]"),
        ("project nightjar starts, tell Mopsy", "[WORD_1] starts, tell [WORD_2]"),
    ],
)
def test_what_names_somebody_is_taken_out(redactor: Redactor, text: str, shown: str) -> None:
    assert redactor.redact([text]).texts == (shown,)


@pytest.mark.parametrize(
    "text",
    [
        "Will you turn on the Reading Lamp in the Living Room?",
        "May I have 3 eggs",
        "Please answer in German, and translate it into Georgian",
        "set the timer to 1 hour 15 minutes and 30 seconds",
        "is the Kitchen Window open in the Guest Room on the First Floor?",
        "set brightness to 50 percent",
        "start timer 1200000 seconds",
        "the number 4111 1111 1111 1112 has a wrong check digit",
    ],
)
def test_a_request_that_names_nobody_stays_as_it_is(redactor: Redactor, text: str) -> None:
    done = redactor.redact([text])
    assert (done.texts, dict(done.found)) == ((text,), {})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("WEISSMANN and weissmann, Weißmann", "[WORD_1] and [WORD_1], [WORD_1]"),
        ("what of Zoe\u0308 and ZOË", "what of [WORD_1] and [WORD_1]"),
        ("Mop\u200bsy, mop\u00adsy", "[WORD_1], [WORD_1]"),
        ("see mopsy_budget.xls", "see [WORD_1]_budget.xls"),
        ("ｍｏｐｓｙ in full width", "[WORD_1] in full width"),
        ("project\u00a0Nightjar, Project\nNightjar", "[WORD_1], [WORD_1]"),
        (r'{"text": "plan\nmopsy"}', r'{"text": "plan\n[WORD_1]"}'),  # a tool's result
        (r'{"text": "Wei\u00dfmann"}', '{"text": "[WORD_1]"}'),
        ("mopsyland and Zoëlle stay", "mopsyland and Zoëlle stay"),
        ("write to M\u200bary Smith", "write to [NAME_1]"),
    ],
)
def test_an_owners_word_is_found_however_it_is_spelled(
    redactor: Redactor, text: str, shown: str
) -> None:
    assert redactor.redact([text]).texts == (shown,)


def test_words_in_every_call_of_an_example_are_taken_out(redactor: Redactor) -> None:
    noted = render(ToolCall("note", {"text": "plan\nmopsy is sold"}))
    plain = render(ToolCall("note", {"text": "b"}))
    mailed = render(ToolCall("note", {"text": "write\nann.smith@example.org"}))
    done = redactor.example(["note it", f"so:\n{noted}\n{mailed}", "thanks"], f"{noted}\n{plain}")
    out = render(ToolCall("note", {"text": "plan\n[WORD_1] is sold"}))
    mail = render(ToolCall("note", {"text": "write\n[MAIL_1]"}))
    assert done.texts == ("note it", f"so:\n{out}\n{mail}", "thanks", f"{out}\n{plain}")


def test_one_value_has_one_placeholder_in_request_and_call(redactor: Redactor) -> None:
    call = render(ToolCall("HassBroadcast", {"message": "mary smith, dinner is ready"}))
    done = redactor.example(["tell Mary Smith dinner is ready"], call)
    assert done.texts[0] == "tell [NAME_1] dinner is ready"
    made = parse(done.texts[1])
    assert made is not None and made.arguments == {"message": "[NAME_1], dinner is ready"}


def test_what_a_call_holds_as_a_number_leaves_the_example_out(redactor: Redactor) -> None:
    call = render(ToolCall("Pay", {"card": 4111111111111111}))
    with pytest.raises(DataError, match="stands in the call as no text"):
        redactor.example(["pay with 4111111111111111"], call)


def test_a_text_that_imitates_a_placeholder_finds_none(redactor: Redactor) -> None:
    assert redactor.redact(["\ue0000\ue001 mail a@b.org"]).texts == ("0\ue001 mail [MAIL_1]",)


def test_the_same_texts_are_redacted_alike(redactor: Redactor) -> None:
    texts = ["Anna and Jonas Weber live at 4 Mill Lane", "Jonas weber, +44 20 7946 0018"]
    assert redactor.redact(texts) == redactor.redact(texts)
