"""Forms, penalties and log-probabilities over HTTP, answered by a real engine with a tiny model
of random words.
"""

import json
import math
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from quietchoir.core.assistant.call_formats import BARE
from quietchoir.core.assistant.tools import ToolInfo
from quietchoir.core.engine.engine import Engine
from quietchoir.core.engine.sampling.grammar import Grammars
from quietchoir.core.engine.sampling.params import Constraint
from quietchoir.tests.fakes.engine import byte_tokenizer, config, tiny_weights
from quietchoir.tests.fakes.http import HELLO, Served

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ASK = HELLO | {"max_tokens": 120}
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["cat", "dog"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 30},
    },
    "required": ["kind", "age"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "pet", "schema": SCHEMA}}
PLACE = {
    "type": "object",
    "$defs": {"room": {"enum": ["hall", "bath"]}},
    "properties": {"room": {"$ref": "#/$defs/room"}},
    "required": ["room"],
    "additionalProperties": False,
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "light", "parameters": PLACE}},
    {"type": "function", "function": {"name": "count", "parameters": SCHEMA}},
]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine(tiny_weights(), config())
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture
async def served(engine: Engine) -> AsyncIterator[Served]:
    async with Served(engine).running() as served:  # type: ignore[arg-type]  # a real engine where a fake one stands
        yield served


async def chunks(served: Served, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The choices of a stream."""
    async with served.session.post(path, json=body | {"stream": True}) as response:
        lines = [line[6:] async for line in response.content if line.strip()]
    assert lines.pop() == b"[DONE]\n"
    return [json.loads(line)["choices"][0] for line in lines]


@pytest.mark.parametrize("temperature", [0, 1.5])
async def test_an_answer_fits_its_schema_and_ends_with_it(served, temperature) -> None:
    body = ASK | {"response_format": FORMAT, "temperature": temperature, "seed": 3}
    status, answer = await served.post(CHAT, body)
    assert status == 200
    choice = answer["choices"][0]
    jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)
    assert choice["finish_reason"] == "stop"
    streamed = await chunks(served, CHAT, body)
    assert (
        "".join(part["delta"].get("content", "") for part in streamed)
        == choice["message"]["content"]
    )


async def test_json_object_regex_and_lark_are_forms_too(served) -> None:
    forms = [
        ({"type": "regex", "regex": "(ab|c)[0-9]{3}"}, "(ab|c)[0-9]{3}"),
        ({"type": "lark", "lark": 'start: "no" | "yes" NAME\nNAME: /[a-z]{2}/'}, "no|yes[a-z]{2}"),
    ]
    for form, expected in forms:
        for path, ask in ((CHAT, ASK), (COMPLETIONS, {"prompt": "x y", "max_tokens": 99})):
            _, answer = await served.post(path, ask | {"response_format": form})
            choice = answer["choices"][0]
            assert re.fullmatch(
                expected, choice["text"] if path is COMPLETIONS else choice["message"]["content"]
            )
    _, answer = await served.post(
        CHAT, ASK | {"response_format": {"type": "json_object"}, "max_tokens": 5}
    )
    assert answer["choices"][0]["message"]["content"].startswith("{")


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_schema", "json_schema": {"schema": {"type": "strin"}}},
        {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/nowhere"}}},
        {"type": "regex", "regex": "(a|b"},
        {"type": "regex", "regex": "a" * 100_001},
        {"type": "lark", "lark": "start: missing"},
    ],
)
async def test_a_form_that_cannot_be_compiled_is_refused(served, form) -> None:
    for stream in (False, True):
        status, answer = await served.post(CHAT, ASK | {"response_format": form, "stream": stream})
        assert (status, answer["error"]["code"]) == (400, "request_not_possible")


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "light"}}]
)
async def test_a_demanded_call_has_the_arguments_that_its_schema_asks_for(served, choice) -> None:
    body = ASK | {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False}
    status, answer = await served.post(CHAT, body)
    assert status == 200
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    function = answer["choices"][0]["message"]["tool_calls"][0]["function"]
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
    jsonschema.validate(json.loads(function["arguments"]), schemas[function["name"]])
    assert choice == "required" or function["name"] == "light"


async def test_a_tool_that_is_not_offered_cannot_be_demanded(served) -> None:
    choice = {"type": "function", "function": {"name": "fly"}}
    status, answer = await served.post(CHAT, ASK | {"tools": TOOLS, "tool_choice": choice})
    assert status == 400 and "on offer are light, count" in answer["error"]["message"]


def test_a_tools_schema_may_refer_to_itself() -> None:
    tree = {
        "properties": {"kids": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}},
        "additionalProperties": False,
    }
    matcher = Grammars(byte_tokenizer()).compile(
        Constraint("lark", BARE.demanded([ToolInfo("plain", ""), ToolInfo("tree", "", tree)], 1))
    )
    text = '{"name": "tree", "arguments": {"kids": [{"kids": []}]}}'
    assert matcher.inside is not None and matcher.complete is False
    assert matcher.inside.inner.consume_tokens(list(text.encode())) and matcher.complete


async def test_logprobs_stand_beside_the_tokens_whole_and_streamed(served) -> None:
    body = HELLO | {"logprobs": True, "top_logprobs": 3, "max_tokens": 12}
    _, answer = await served.post(CHAT, body)
    whole = answer["choices"][0]["logprobs"]["content"]
    assert len(whole) == answer["usage"]["completion_tokens"] == 12
    for entry in whole:
        best = [other["logprob"] for other in entry["top_logprobs"]]
        assert best == sorted(best, reverse=True) and len(best) == 3
        assert entry["logprob"] == best[0] <= 0  # greedy
        assert sum(map(math.exp, best)) <= 1.001
    told = b"".join(bytes(entry["bytes"]) for entry in whole).decode("utf-8", "replace")
    assert told == answer["choices"][0]["message"]["content"]
    streamed = await chunks(served, CHAT, body)
    told_streamed = [
        entry for part in streamed for entry in (part.get("logprobs") or {"content": []})["content"]
    ]
    assert [entry["bytes"] for entry in told_streamed] == [entry["bytes"] for entry in whole]
    assert "logprobs" not in (await served.post(CHAT, ASK))[1]["choices"][0]


async def test_completions_tell_logprobs_in_their_own_shape(served) -> None:
    body = {"prompt": "one two", "logprobs": 2, "max_tokens": 8}
    _, answer = await served.post(COMPLETIONS, body)
    told = answer["choices"][0]["logprobs"]
    assert [
        len(told[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    ] == [8] * 4
    assert told["text_offset"][0] == 0 and told["text_offset"] == sorted(told["text_offset"])
    streamed = await chunks(served, COMPLETIONS, body)
    offsets = [
        offset
        for part in streamed
        if part["logprobs"]
        for offset in part["logprobs"]["text_offset"]
    ]
    assert offsets == told["text_offset"]
    assert (await served.post(COMPLETIONS, {"prompt": "one two", "max_tokens": 9}))[1]["choices"][
        0
    ]["logprobs"] is None


async def test_penalties_and_biases_change_what_is_said(served) -> None:
    async def said(**fields: Any) -> str:
        return (await served.post(COMPLETIONS, {"prompt": "one two", "max_tokens": 30} | fields))[
            1
        ]["choices"][0]["text"]

    plain = await said()
    assert await said(speculate=False) == plain
    for fields in (
        {"presence_penalty": 2},
        {"frequency_penalty": 2},
        {"repetition_penalty": 5},
        {"logit_bias": {"120": 100}},
    ):
        assert await said(**fields) != plain
    assert await said(logit_bias={"120": 100}) == "x" * 30
    status, answer = await served.post(
        COMPLETIONS, {"prompt": "x", "max_tokens": 9, "logit_bias": {"257": 1}}
    )
    assert status == 400 and "outside 0..256" in answer["error"]["message"]
