"""Bodies are decoded once; what would change the answer and is not supported is refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietchoir.core.assistant.context import Message
from quietchoir.core.server import requests
from quietchoir.core.server.refusals import BadRequest
from quietchoir.core.toolcall import ToolCall

USER = {"role": "user", "content": "hi"}
CALL = {"id": "1", "type": "function", "function": {"name": "HassTurnOn", "arguments": '{"name": "lamp"}'}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def chat(**fields: Any) -> requests.Body:
    return requests.chat(json.dumps({"messages": [USER]} | fields).encode())


def test_a_bare_question_is_greedy_and_whole() -> None:
    body = chat()
    assert body.ask.messages == (Message("user", "hi"),)
    assert (body.stream, body.model, body.ask.temperature, body.ask.seed, body.ask.caller_tools) == (
        False,
        None,
        0.0,
        None,
        None,
    )


def test_every_supported_field_arrives() -> None:
    body = chat(
        model="m",
        stream=True,
        stream_options={"include_usage": True},
        max_completion_tokens=7,
        temperature=1,
        top_p=0.5,
        top_k=3,
        seed=-1,
        stop="END",
        user="me",
        n=1,
        tools=[{"type": "function", "function": {"name": "f"}}],
    )
    ask = body.ask
    assert (body.model, body.stream, body.include_usage, ask.max_tokens) == ("m", True, True, 7)
    assert (ask.temperature, ask.top_p, ask.top_k, ask.stop) == (1.0, 0.5, 3, ("END",))
    assert ask.seed is not None and ask.seed >= 0
    assert ask.caller_tools == frozenset({"f"})


def test_a_null_is_as_if_left_out() -> None:
    assert chat(temperature=None, stop=None, tools=None, seed=None) == chat()


def test_text_parts_and_past_calls_are_read() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = chat(
        messages=[{"role": "developer", "content": parts}, {"role": "assistant", "content": None, "tool_calls": [CALL]}, USER]
    )
    assert body.ask.messages[:2] == (
        Message("system", "ab"),
        Message("assistant", "", (ToolCall("HassTurnOn", {"name": "lamp"}),)),
    )


@pytest.mark.parametrize(
    "fields, parameter, words",
    [
        ({"temprature": 1}, "temprature", "did you mean temperature"),
        ({"colour": 1}, "colour", "unknown"),
        ({"n": 2}, "n", "not supported"),
        ({"presence_penalty": 0.5}, "presence_penalty", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"logprobs": True}, "logprobs", "not supported"),
        ({"tool_choice": "required"}, "tool_choice", "supported are"),
        ({"temperature": "hot"}, "temperature", "expected a number"),
        ({"temperature": True}, "temperature", "expected a number"),
        ({"temperature": 2.1}, "temperature", "expected 0 to 2"),
        ({"top_p": 0}, "top_p", "expected"),
        ({"max_tokens": 0}, "max_tokens", "expected 1"),
        ({"max_tokens": 1.5}, "max_tokens", "whole number"),
        ({"seed": 1 << 64}, "seed", "expected"),
        ({"stop": ["a"] * 5}, "stop", "up to 4"),
        ({"stop": [""]}, "stop", "none empty"),
        ({"stream": "yes"}, "stream", "expected a bool"),
        ({"model": 3}, "model", "expected a str"),
        ({"messages": []}, "messages", "at least one"),
        ({"messages": ["hi"]}, "messages[0]", "expected an object"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "expected one of"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "expected a text"),
        (
            {"messages": [USER, {"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[1].content[0]",
            "text parts alone",
        ),
        ({"messages": [USER | {"tool_calls": [{}]}]}, "messages[0].tool_calls[0]", "function.name"),
        ({"tools": [{"type": "web"}]}, "tools[0]", "function with a name"),
    ],
)
def test_a_field_that_cannot_be_used_is_named(fields: dict[str, Any], parameter: str, words: str) -> None:
    with pytest.raises(BadRequest, match=words) as refusal:
        chat(**fields)
    assert refusal.value.parameter == parameter


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"3", b"\xff", b'{"messages": "\\ud800"}', b"[" * 100_000, b'{"temperature": NaN}']
)
def test_what_is_not_a_json_object_is_refused(raw: bytes) -> None:
    for read in (requests.chat, requests.completion):
        with pytest.raises(BadRequest):
            read(raw)


@given(st.sampled_from(sorted(requests.CHAT | requests.COMPLETION | set(requests.NEUTRAL))), JSON)
def test_any_value_in_any_field_is_read_or_refused(field: str, value: Any) -> None:
    for read, start in ((requests.chat, {"messages": [USER]}), (requests.completion, {"prompt": "x"})):
        try:
            body = read(json.dumps(start | {field: value}).encode())
        except BadRequest:
            continue
        assert body.ask.max_tokens >= 1 and 0 <= body.ask.temperature <= 2


def test_a_completion_takes_one_text() -> None:
    assert requests.completion(b'{"prompt": ["once"]}').prompt == "once"
    for prompt in ('""', "[]", '["a", "b"]', "[1, 2]", "7"):
        with pytest.raises(BadRequest, match="one text"):
            requests.completion(f'{{"prompt": {prompt}}}'.encode())
