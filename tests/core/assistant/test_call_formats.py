"""The usual ways in which models write tool calls are read as calls, and nothing else is."""

import json
from functools import partial
from typing import Any

import llguidance
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietchoir.core.assistant.call_formats import (
    BARE,
    FORMATS,
    HERMES,
    CallFormat,
    ToolCallBuffer,
    calls_in,
    format_of,
)
from quietchoir.core.assistant.events import Text
from quietchoir.core.assistant.tools import ToolInfo
from quietchoir.core.engine.sampling import grammar_compiler
from quietchoir.core.engine.sampling.logprobs import Logprob, TokenLogprobs
from quietchoir.core.toolcall import ToolCall
from quietchoir.tests.fakes.engine import byte_tokenizer

LIGHT = ToolCall("turn_on", {"name": "lamp", "level": 3})
RADIO = ToolCall("play", {"title": 'a "b" </tool_call>'})
JSON = '{"name": "turn_on", "arguments": {"name": "lamp", "level": 3}}'
LLAMA = JSON.replace("arguments", "parameters")
OPENAI = json.dumps(
    {
        "id": "call_1",
        "type": "function",
        "function": {"name": "turn_on", "arguments": '{"name": "lamp", "level": 3}'},
    }
)
# By whose manner. Each is what a published model writes, or its template asks for.
WRITTEN = {
    "ours": JSON,
    "llama 3": LLAMA,
    "llama 3, with its mark": f"<|python_tag|>{LLAMA}",
    "llama 3.2": '[turn_on(name="lamp", level=3)]',
    "hermes, qwen": f"<tool_call>\n{JSON}\n</tool_call>",
    "smollm": f"<tool_call>[{JSON}]</tool_call>",
    "qwen coder": "<tool_call>\n<function=turn_on>\n<parameter=name>\nlamp\n</parameter>\n"
    "<parameter=level>\n3\n</parameter>\n</function>\n</tool_call>",
    "llama's function tag": '<function=turn_on>{"name": "lamp", "level": 3}</function>',
    "mistral": f"[TOOL_CALLS] [{JSON}]",
    "mistral, newer": '[TOOL_CALLS]turn_on[ARGS]{"name": "lamp", "level": 3}',
    "gemma": '```tool_code\nturn_on(name="lamp", level=3)\n```',
    "functiongemma": "<start_function_call>call:turn_on{name:<escape>lamp<escape>,level:3}"
    "<end_function_call>",
    "phi, granite": f"<|tool_call|>[{JSON}]<|/tool_call|>",
    "a fence": f"```json\n{JSON}\n```",
    "a list": f"[{JSON}]",
    "openai's shape": OPENAI,
    "openai's list": f'{{"tool_calls": [{OPENAI}]}}',
}


def read(text: str, *names: str, size: int = 3) -> tuple[list[ToolCall], str]:
    """The calls of an answer that comes in pieces, and its text."""
    buffer = ToolCallBuffer(names or ("turn_on", "play"))
    out = "".join(
        buffer.push(Text(text[place : place + size])).text for place in range(0, len(text), size)
    )
    return buffer.calls, out + buffer.finish().text


@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN.keys())
def test_every_usual_way_of_writing_a_call_is_read(written: str) -> None:
    for size in (1, 7, len(written)):
        assert read(written, size=size) == ([LIGHT], "")


@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN.keys())
def test_a_call_to_what_is_not_on_offer_stays_text(written: str) -> None:
    assert read(written, "sing") == ([], written)


@pytest.mark.parametrize("row", [row for row in FORMATS if row.key], ids=lambda row: f"{row.name}")
def test_what_a_format_writes_it_reads_and_its_grammars_allow(row: CallFormat) -> None:
    tools = [
        ToolInfo("play", "", {"properties": {"title": {"type": "string"}}}),
        ToolInfo("turn_on", "", {"properties": {"level": {}, "name": {}}}),
    ]
    both = row.write([LIGHT, RADIO])
    assert read(both)[0] == [LIGHT, RADIO]
    assert taken(row.demanded(tools, 2), both) == "whole"
    assert taken(row.demanded(tools, 1), both) != "whole"
    one = row.write([LIGHT])
    assert one.startswith(row.trigger)
    assert taken(row.rest(tools), one.removeprefix(row.trigger)) == "whole"
    assert taken(row.rest(tools), one.removeprefix(row.trigger).replace("level", "depth")) == ""


def taken(grammar: str, text: str) -> str:
    """How far a grammar lets a text go: "whole", "so far" or ""."""
    tokenizer = byte_tokenizer()
    words = grammar_compiler.words(grammar_compiler.spelling(tokenizer), tokenizer.encode)
    matcher: Any = llguidance.LLMatcher(
        words, llguidance.LLMatcher.grammar_from_lark(grammar), log_level=0
    )
    assert not matcher.is_error(), matcher.get_error()
    count = matcher.try_consume_tokens(list(text.encode()))
    if count < len(text.encode()):
        return ""
    return "whole" if matcher.is_accepting() else "so far"


@pytest.mark.parametrize(
    "text",
    [
        "Here is how one writes it: " + JSON,
        "- " + JSON,
        "The list [turn_on(level=3)] is Python.",
        '{"name": "turn_on"}',
        '{"name": "turn_on", "arguments": {}, "comment": "x"}',
        '{"answer": 4, "name": "turn_on"}',
        "[1](https://example.org)",
        "<tool_call>not JSON</tool_call>",
        "<tool_call>",
        "[TOOL_CALLS] nothing",
        "<function=turn_on>{]</function>",
        "```tool_code\nimport os; os.remove('x')\n```",
        "```tool_code\nturn_on(name=open('/etc/passwd').read())\n```",
        "```tool_code\nturn_on(**{'name': 'lamp'})\n```",
        "a < b and [x] {y}",
        "<|python_tag|>" + "[" * 5000,
        "{" * 3000,
    ],
)
def test_what_is_no_call_comes_out_letter_for_letter(text: str) -> None:
    assert read(text) == ([], text)


def test_text_before_between_and_behind_calls_is_kept() -> None:
    mark = f"<tool_call>{JSON}</tool_call>"
    calls, text = read(f"At once. {mark} And: {mark} Done.")
    assert calls == [LIGHT, LIGHT] and text == "At once.  And:  Done."
    assert read(f"{JSON}\nI did it.") == ([LIGHT], "\nI did it.")


def test_several_calls_without_marks_stand_one_behind_the_other() -> None:
    for between in ("\n", "; ", ", ", ""):
        assert read(JSON + between + JSON)[0] == [LIGHT, LIGHT]


def test_text_goes_out_as_soon_as_it_can_be_no_call_any_more() -> None:
    buffer = ToolCallBuffer(("turn_on",))
    said = [buffer.push(Text(piece)).text for piece in ("Good <", "tool", "box> ", '{"a', '": 1}')]
    assert said == ["Good ", "", "<toolbox> ", '{"a', '": 1}']
    buffer = ToolCallBuffer(("turn_on",))
    assert [buffer.push(Text(piece)).text for piece in ("{", '"answ', 'er": 4}')] == [
        "",
        '{"answ',
        'er": 4}',
    ]


def refuse(seen: list[str], _call: ToolCall, written: str) -> bool:
    seen.append(written)
    return False


def test_the_letters_of_a_call_are_looked_at_before_it_counts() -> None:
    for written in (*WRITTEN.values(), *OPEN.values()):
        seen: list[str] = []
        buffer = ToolCallBuffer(("turn_on",), partial(refuse, seen))
        assert buffer.push(Text(written)).text + buffer.finish().text == written
        assert buffer.calls == [] and all(letters in written for letters in seen) and seen


def test_a_call_that_has_begun_is_known_from_text_that_only_looks_like_one() -> None:
    for text, begun in (
        ("<tool_call>", True),
        ('<tool_call>\n{"name": "tu', True),
        ('{"name": "turn_on", "argu', True),
        ('{"name": "some', False),
        ('{"answer": ', False),
        ("Good day", False),
        (f"<tool_call>{JSON}</tool_call>", False),
    ):
        buffer = ToolCallBuffer(("turn_on",))
        buffer.push(Text(text))
        assert buffer.begun is begun, text


def test_the_probability_of_a_call_is_that_of_its_own_tokens() -> None:
    buffer = ToolCallBuffer(("turn_on",))
    for piece, logprob in (
        ("Well. ", -5.0),
        ("<tool_call>", -1.0),
        (JSON, -0.5),
        ("</tool_call>", 0),
    ):
        told = TokenLogprobs(Logprob(1, piece.encode(), logprob), ())
        buffer.push(Text(piece, (told,)))
    assert buffer.calls == [LIGHT] and buffer.call_logprob == -1.5


@given(st.lists(st.sampled_from([*"{}[]<>\"'`:,= \n", "tool_call", "<tool_call>", JSON])))
def test_no_text_is_lost_or_made_up(parts: list[str]) -> None:
    text = "".join(parts)
    calls, out = read(text)
    if not calls:
        assert out == text
    assert all(call == LIGHT for call in calls)


OPEN = {
    "llama 3, python": '<|python_tag|>turn_on(name="lamp", level=3)',
    "gemma": '```tool_code\nturn_on(name="lamp", level=3)',
    "functiongemma": "<start_function_call>call:turn_on{name:<escape>lamp<escape>,level:3}",
    "llama's tag": '<function=turn_on>{"name": "lamp", "level": 3}',
    "qwen coder": "<function=turn_on>\n<parameter=name>lamp</parameter>\n"
    "<parameter=level>3</parameter>",
    "a list with a comma": '[turn_on(name="lamp", level=3),]',
}


@pytest.mark.parametrize("written", OPEN.values(), ids=OPEN.keys())
def test_the_end_of_an_answer_ends_a_call(written: str) -> None:
    assert read(written) == ([LIGHT], "")


@given(st.text(max_size=60))
def test_calls_are_found_wherever_they_stand_in_a_foreign_text(text: str) -> None:
    for written in WRITTEN.values():
        assert LIGHT in calls_in(f"{text}\n{written}\n{text}")


def test_a_template_tells_its_models_format() -> None:
    assert format_of("{{ '<tool_call>' }}").name == "hermes"
    assert format_of("[TOOL_CALLS] … <tool_call>").name == "mistral"
    assert format_of("… <tool_call>[{name}] …").name == "smollm"
    assert format_of("""{{ '", "parameters": ' }}""").key == "parameters"
    assert format_of("{{ message.content }}") is HERMES
    assert (
        BARE.write([ToolCall("f", {"b": 1, "a": 2})])
        == '{"name": "f", "arguments": {"a": 2, "b": 1}}'
    )
