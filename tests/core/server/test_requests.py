"""Bodies are decoded once; what would change the answer and is not supported is refused."""

import dataclasses
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietchoir.core.assistant.context import Message
from quietchoir.core.assistant.events import ANY_TOOL, ChatRequest
from quietchoir.core.assistant.tools import ToolInfo
from quietchoir.core.config import SamplingConfig
from quietchoir.core.engine.sampling.params import Constraint, SamplingParams
from quietchoir.core.server import requests
from quietchoir.core.server.errors import BadRequest
from quietchoir.core.server.schemas import FieldGroup, flag
from quietchoir.core.toolcall import ToolCall

USER = {"role": "user", "content": "hi"}
CALL = {
    "id": "1",
    "type": "function",
    "function": {"name": "HassTurnOn", "arguments": '{"name": "lamp"}'},
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def chat(**fields: Any) -> requests.Body:
    return requests.chat(json.dumps({"messages": [USER]} | fields).encode())


def form(response_format: dict[str, Any]) -> Constraint | None:
    return chat(response_format=response_format).ask.sampling_params.constraint


def test_a_bare_question_is_greedy_and_whole() -> None:
    body = chat()
    assert body.ask.messages == (Message("user", "hi"),)
    assert (
        body.stream,
        body.model,
        body.ask.sampling_params.temperature,
        body.ask.sampling_params.seed,
        body.ask.caller_tools,
    ) == (False, None, 0.0, None, None)


def test_talk_is_drawn_as_recommended_and_the_clients_word_wins() -> None:
    recommended = SamplingConfig(temperature=0.7, top_k=20, repetition_penalty=1.1)

    def asked(**fields: Any) -> ChatRequest:
        body = requests.chat(json.dumps({"messages": [USER]} | fields).encode())
        return replace(body.ask, talk=body.talk.over(recommended))

    for_talk = asked().talk
    assert for_talk == SamplingParams(
        temperature=0.7, top_k=20, repetition_penalty=1.1, loop_guard=True
    )
    assert asked().sampling_params == SamplingParams()  # of calls and forms: greedy
    warmer = asked(temperature=1.2, loop_guard=False, max_tokens=9)
    assert warmer.talk == SamplingParams(
        temperature=1.2, top_k=20, repetition_penalty=1.1, max_tokens=9
    )
    assert warmer.sampling_params == SamplingParams(temperature=1.2, max_tokens=9)
    # who asks for the likeliest tokens gets just those
    assert asked(temperature=0).talk == SamplingParams()
    assert requests.completion(b'{"prompt": "x"}').talk.over(recommended) == for_talk


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
    ask, params = body.ask, body.ask.sampling_params
    assert (body.model, body.stream, body.include_usage, params.max_tokens) == ("m", True, True, 7)
    assert (params.temperature, params.top_p, params.top_k, params.stop) == (1.0, 0.5, 3, ("END",))
    assert params.seed is not None and params.seed >= 0
    assert ask.caller_tools is not None and [tool.name for tool in ask.caller_tools] == ["f"]


def test_penalties_biases_and_logprobs_arrive() -> None:
    fields = {
        "presence_penalty": 0.5,
        "frequency_penalty": -1,
        "repetition_penalty": 1.1,
        "min_p": 0.05,
    }
    body = chat(
        **fields, logit_bias={"7": -100, "9": 1.5}, logprobs=True, top_logprobs=3, speculate=False
    )
    assert {name: getattr(body.ask.sampling_params, name) for name in fields} == fields
    assert body.ask.sampling_params.logit_bias == ((7, -100.0), (9, 1.5))
    assert (body.ask.sampling_params.logprobs, body.ask.sampling_params.speculate) == (3, False)
    assert (
        chat().ask.sampling_params.logprobs,
        chat(logprobs=True).ask.sampling_params.logprobs,
        chat(logprobs=False).ask.sampling_params.logprobs,
    ) == (None, 0, None)
    assert requests.completion(b'{"prompt": "x", "logprobs": 2}').ask.sampling_params.logprobs == 2


def test_the_form_of_an_answer_arrives() -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "additionalProperties": False}
    named = {"name": "n", "strict": True, "schema": schema}
    assert form({"type": "json_schema", "json_schema": named}) == Constraint(
        "json_schema", json.dumps(schema)
    )
    assert form({"type": "text"}) is None
    assert form({"type": "json_object"}) == Constraint("json")
    for key in ("schema", "value"):  # as llama.cpp and as Hugging Face's client write it
        assert form({"type": "json_object", key: schema}) == Constraint(
            "json_schema", json.dumps(schema)
        )
    assert form({"type": "regex", "regex": "a+"}) == Constraint("regex", "a+")
    assert form({"type": "lark", "lark": 'start: "a"'}) == Constraint("lark", 'start: "a"')


def test_a_tool_choice_arrives() -> None:
    tools = [
        {
            "type": "function",
            "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
        }
    ]
    assert chat(tools=tools).ask.caller_tools == (ToolInfo("f", "d", {"type": "object"}),)
    assert chat(tools=tools, tool_choice="required").ask.tool_choice == ANY_TOOL
    assert (
        chat(
            tools=tools, tool_choice={"type": "function", "function": {"name": "f"}}
        ).ask.tool_choice
        == "f"
    )
    assert chat(tools=tools, tool_choice="auto").ask.tool_choice is None
    assert not chat(tools=tools, tool_choice="none").ask.use_tools


def test_a_null_is_as_if_left_out() -> None:
    assert chat(temperature=None, stop=None, tools=None, seed=None) == chat()


def test_text_parts_and_past_calls_are_read() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = chat(
        messages=[
            {"role": "developer", "content": parts},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            USER,
        ]
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
        ({"n": 9}, "n", "expected 1 to 8"),
        ({"presence_penalty": 2.5}, "presence_penalty", "expected -2 to 2"),
        ({"min_p": -0.1}, "min_p", "expected 0 to 1"),
        ({"logit_bias": {"cat": 1}}, "logit_bias", "expected token ids"),
        ({"logit_bias": {"7": 101}}, "logit_bias", "from -100 to 100"),
        ({"logit_bias": {"7": True}}, "logit_bias", "expected token ids"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias", "at most 1024"),
        ({"response_format": "json"}, "response_format", "expected an object"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "supported are"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
            "missing",
        ),
        ({"response_format": {"type": "regex", "regex": ""}}, "response_format.regex", "not empty"),
        ({"logprobs": 3}, "logprobs", "expected a bool"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "expected 0 to 20"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"tool_choice": "must"}, "tool_choice", "only 'auto', 'none', 'required'"),
        (
            {"tool_choice": {"type": "function", "function": {}}},
            "tool_choice.function.name",
            "missing",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters",
            "expected an object",
        ),
        ({"temperature": "hot"}, "temperature", "expected a number"),
        ({"temperature": True}, "temperature", "expected a number"),
        ({"temperature": 2.1}, "temperature", "expected 0 to 2"),
        ({"top_p": 0}, "top_p", "expected"),
        ({"max_tokens": 0}, "max_tokens", "expected 1 to 1048576"),
        ({"max_tokens": 1.5}, "max_tokens", "whole number"),
        ({"seed": 1 << 64}, "seed", "expected"),
        ({"stop": ["a"] * 5}, "stop", "0 to 4"),
        ({"stop": [""]}, "stop[0]", "not empty"),
        ({"stream": "yes"}, "stream", "expected a bool"),
        ({"model": 3}, "model", "expected a text"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": ["hi"]}, "messages[0]", "expected an object"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "supported are"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
        (
            {"messages": [USER, {"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[1].content[0]",
            "text parts alone",
        ),
        ({"messages": [USER | {"tool_calls": [{}]}]}, "messages[0].tool_calls", "unknown"),
        ({"tools": [{"type": "web"}]}, "tools[0].type", "only 'function'"),
    ],
)
def test_a_field_that_cannot_be_used_is_named(
    fields: dict[str, Any], parameter: str, words: str
) -> None:
    with pytest.raises(BadRequest, match=words) as refusal:
        chat(**fields)
    assert refusal.value.parameter == parameter


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"\xff",
        b'{"messages": "\\ud800"}',
        b"[" * 100_000,
        b'{"temperature": NaN}',
    ],
)
def test_what_is_not_a_json_object_is_refused(raw: bytes) -> None:
    for read in (requests.chat, requests.completion):
        with pytest.raises(BadRequest):
            read(raw)


@given(
    st.sampled_from(
        sorted({*requests.CHAT.fields, *requests.CHAT.harmless, *requests.COMPLETION.fields})
    ),
    JSON,
)
def test_any_value_in_any_field_is_read_or_refused(field: str, value: Any) -> None:
    for read, start in (
        (requests.chat, {"messages": [USER]}),
        (requests.completion, {"prompt": "x"}),
    ):
        try:
            body = read(json.dumps(start | {field: value}).encode())
        except BadRequest:
            continue
        assert (
            body.ask.sampling_params.max_tokens or 1
        ) >= 1 and 0 <= body.ask.sampling_params.temperature <= 2


def test_a_completion_takes_one_text() -> None:
    assert requests.completion(b'{"prompt": ["once"]}').prompt == "once"
    for prompt, sentence in (
        ('""', "expected"),
        ("[]", "holds 0, expected 1"),
        ('["a", "b"]', "holds 2, expected 1"),
        ("[1, 2]", "token ids are not read here"),
        ("[[1], [2]]", "token ids are not read here"),
        ("7", "expected"),
    ):
        with pytest.raises(BadRequest, match=sentence):
            requests.completion(f'{{"prompt": {prompt}}}'.encode())


@pytest.mark.parametrize(
    "name, use",
    [
        ("min_p", "sampler"),
        ("top_p", "sampler"),
        ("repetition_penalty", "penalties"),
        ("presence_penalty", "penalties"),
        ("frequency_penalty", "penalties"),
    ],
)
def test_a_sampling_parameter_is_a_field_a_line_of_the_schema_and_its_use(
    name: str, use: str
) -> None:
    """Whatever lies between them hands the whole value on and names none."""
    core = Path(requests.__file__).parent.parent
    named = {
        str(path.relative_to(core))
        for path in core.rglob("*.py")
        if re.search(rf"\b{name}\b", path.read_text("utf-8"))
    }
    sampling = {f"engine/sampling/{file}.py" for file in ("params", use)}
    # advice for the name that another server gives it; and what a model's makers and its owner say
    elsewhere = {
        "server/schemas.py",
        "config.py",
        "models/generation_config.py",
        "models/hub/catalog.py",
        "training/own_answers.py",
        "server/ollama_api.py",  # Ollama's name for one of them
        "server/responses_api.py",  # a response tells them
        "server/history.py",  # those that the page keeps for one conversation
    }
    assert named - elsewhere == {"server/requests.py", *sampling}


def test_every_sampling_parameter_can_be_asked_for() -> None:
    every = {field.name for field in dataclasses.fields(SamplingParams)}
    values = {
        "max_tokens": 3,
        "stop": ["x"],
        "logit_bias": {"1": 2},
        "logprobs": True,
        "response_format": {"type": "json_object"},
        "speculate": False,
        "loop_guard": True,
        "seed": 4,
        "top_k": 5,
        **dict.fromkeys(("temperature", "top_p", "min_p", "repetition_penalty"), 0.5),
        **dict.fromkeys(("presence_penalty", "frequency_penalty"), 1.5),
    }
    asked, plain = chat(**values).ask.sampling_params, SamplingParams()
    assert {name for name in every if getattr(asked, name) != getattr(plain, name)} == every


def test_a_key_that_is_no_field_of_its_value_is_a_bug_that_is_seen_at_once() -> None:
    with pytest.raises(TypeError, match="SamplingParams has no field top_q"):
        FieldGroup(SamplingParams, {"top_q": flag}, renamed={})
