"""Facts about chat-format files."""

import json
from pathlib import Path

import pytest

from quietchoir.core.errors import DataError
from quietchoir.core.prompt import AS_IT_COMES, HOUSEHOLD, PromptFormat
from quietchoir.core.training.examples import Example, check_prompts, read_jsonl, write_jsonl
from quietchoir.tests.fakes.training import conversation

GOOD = json.dumps(
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
)
NO_ANSWER = json.dumps(
    {"messages": [{"role": "assistant", "content": "hello"}, {"role": "user", "content": "hi"}]}
)
EMPTY_ANSWER = json.dumps(
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": " "}]}
)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    examples = [conversation("grüß dich\n{}", "→ ok"), conversation("b", "c")]
    write_jsonl(tmp_path / "a.jsonl", examples)
    assert read_jsonl(tmp_path / "a.jsonl") == examples
    assert examples[0].request == "grüß dich\n{}"
    assert examples[0].answer == "→ ok"


def test_blank_lines_and_other_keys_are_no_fault(tmp_path: Path) -> None:
    record = json.loads(GOOD) | {"source": "me"}
    (tmp_path / "a.jsonl").write_text(f"\n{GOOD}\n\n{json.dumps(record)}\n")
    assert len(read_jsonl(tmp_path / "a.jsonl")) == 2


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "Expecting"),
        ("[]", "expected an object"),
        ('{"messages": []}', "two or more"),
        ('{"messages": [1, 2]}', "message 1 is a number"),
        (GOOD.replace('"user"', '"root"'), "role 'root'"),
        (GOOD.replace('"hi"', "7"), "message 1 must have a text"),
        (NO_ANSWER, "expected the assistant's answer"),
        (EMPTY_ANSWER, "answer is empty"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_bad_line_is_named_by_its_number_and_fault(tmp_path: Path, line: str, fault: str) -> None:
    (tmp_path / "a.jsonl").write_text(f"{GOOD}\n\n{line}\n{GOOD}\n")
    with pytest.raises(DataError, match=r"1 bad line, nothing was read\. line 3: ") as caught:
        read_jsonl(tmp_path / "a.jsonl")
    assert fault in str(caught.value)


def test_bytes_that_are_no_text_are_a_bad_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD.encode() + b"\n\xff\xfe\xff\n")
    with pytest.raises(DataError, match="line 2"):
        read_jsonl(tmp_path / "a.jsonl")


def test_many_bad_lines_are_counted_and_not_all_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{x\n" * 20)
    with pytest.raises(DataError, match=r"20 bad lines.*lines 1, 2, .*, 8 and 12 more: "):
        read_jsonl(tmp_path / "a.jsonl")


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match="no examples"):
        read_jsonl(tmp_path / "a.jsonl")


def test_a_missing_file_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl"):
        read_jsonl(tmp_path / "none.jsonl")


def test_nothing_is_written_when_there_is_nothing_to_write(tmp_path: Path) -> None:
    empty: list[Example] = []
    with pytest.raises(DataError, match="no examples to write"):
        write_jsonl(tmp_path / "a.jsonl", empty)
    assert list(tmp_path.iterdir()) == []


def several(*contents: str, system: str = "") -> Example:
    """A conversation of these contents, by turns."""
    head = ({"role": "system", "content": system},) if system else ()
    turns = tuple(
        {"role": "assistant" if index % 2 else "user", "content": text}
        for index, text in enumerate(contents)
    )
    return Example((*head, *turns))


CALL = '{"name": "turn_on", "arguments": {}}'
TEXTS = PromptFormat(answers="text")
ALONE = PromptFormat(answers="tool_call", turns="last")


@pytest.mark.parametrize(
    ("prompt", "example"),
    [
        (HOUSEHOLD, several("on", CALL, system=HOUSEHOLD.system)),
        (HOUSEHOLD, several("on", f"{CALL}\n{CALL}", "off", CALL, system=HOUSEHOLD.system)),
        (HOUSEHOLD, several("on", CALL, "thanks", "Gladly.", system=HOUSEHOLD.system)),
        (AS_IT_COMES, several("a", "b", "c", "d")),
        (TEXTS, several("a", "b")),
        (PromptFormat(system="s"), several("a", "b", "c", CALL, system="s")),
    ],
)
def test_examples_that_show_what_the_federation_says_pass(
    prompt: PromptFormat, example: Example
) -> None:
    check_prompts([example, example], prompt, "data")


@pytest.mark.parametrize(
    ("prompt", "example", "fault"),
    [
        (HOUSEHOLD, several("on", CALL), r"of 2 examples, 1 do not begin .* --prompt-system"),
        (HOUSEHOLD, several("on", CALL, system="s"), r"of 2 examples, 1 do not begin"),
        (
            HOUSEHOLD,
            several("hi", "Hello.", "off", CALL, system=HOUSEHOLD.system),
            r"1 have several turns, and not one that a call answered .*--prompt-turns all",
        ),
        (ALONE, several("on", CALL, "off", CALL), r"1 have several turns; .*--prompt-turns all"),
        (
            ALONE,
            several("on", "Done."),
            r"1 have answers that are no tool calls; .*--prompt-answers any",
        ),
        (TEXTS, several("on", CALL), r"1 have answers that are tool calls"),
    ],
)
def test_examples_that_would_be_served_otherwise_are_refused_with_the_flag(
    prompt: PromptFormat, example: Example, fault: str
) -> None:
    good = several("on", "x" if prompt is TEXTS else CALL, system=prompt.system)
    with pytest.raises(DataError, match=fault):
        check_prompts([good, example], prompt, "data")


def test_one_system_message_in_all_examples_has_to_be_said() -> None:
    with pytest.raises(DataError, match='--prompt-system "s"'):
        check_prompts(
            [several("a", "b", system="s"), several("c", "d", system="s")], AS_IT_COMES, "data"
        )
    check_prompts(
        [several("a", "b", system="s"), several("c", "d", system="t")], AS_IT_COMES, "data"
    )  # each caller's own
