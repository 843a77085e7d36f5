"""A tool's schema means inside a larger one what it meant alone."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietchoir.core.assistant.embedding import LETTERS, WHOLE, bounded, closed, embedded
from quietchoir.core.assistant.tools import ToolInfo, tool_call_schema
from quietchoir.core.engine.sampling.grammar import Grammars
from quietchoir.core.engine.sampling.params import Constraint
from quietchoir.core.errors import RequestError
from quietchoir.tests.fakes.engine import byte_tokenizer

ROOM = {"enum": ["hall", "bath"]}
REFERS: dict[str, dict[str, Any]] = {
    "#/$defs/room": {"$defs": {"room": ROOM}},
    "#room": {"$defs": {"r": ROOM | {"$anchor": "room"}}},
}
REFERS |= {
    "#/properties/kind/anyOf/1": {"properties": {"kind": {"anyOf": [{"type": "null"}, ROOM]}}}
}
REFERS |= {
    "https://x.example/y#/definitions/a~1b": {
        "$id": "https://x.example/y",
        "definitions": {"a/b": ROOM},
    }
}


@pytest.fixture(scope="module")
def grammars() -> Iterator[Grammars]:
    grammars = Grammars(byte_tokenizer())
    yield grammars
    grammars.close()


def takes(grammars: Grammars, schema: dict[str, Any], arguments: Any) -> bool:
    """Can a call with these arguments be made, beside a tool with the same names for other
    things?
    """
    other = {"$defs": {"room": {"type": "integer"}, "r": {"$anchor": "room", "type": "integer"}}}
    matcher = grammars.compile(
        tool_call_schema([ToolInfo("other", "", other), ToolInfo("f", "", schema)])
    ).inner
    text = json.dumps({"name": "f", "arguments": arguments})
    return bool(matcher.consume_tokens(list(text.encode())) and matcher.is_stopped())


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": "object", "properties": {}},
        {
            "properties": {},
            "required": [],
            "type": "object",
            "title": "f",
            "description": "d",
            "$defs": {"room": ROOM},
        },
        {"type": "object", "properties": {}, "additionalProperties": False},
    ],
)
def test_a_tool_without_parameters_gets_none(grammars, schema):
    assert takes(grammars, schema, {})
    assert not takes(grammars, schema, {"a": 1})


def test_a_tool_that_names_its_parameters_gets_no_others_unless_it_says_so(grammars):
    named = {"properties": {"a": {"type": "integer"}}}
    assert takes(grammars, named, {"a": 1}) and not takes(grammars, named, {"a": 1, "b": 2})
    assert takes(grammars, named | {"additionalProperties": True}, {"a": 1, "b": 2})
    assert takes(
        grammars, {"type": "object", "additionalProperties": {"type": "integer"}}, {"b": 2}
    )
    assert closed({"properties": {"a": {}}, "anyOf": [{"required": ["b"]}]}).keys() == {
        "type",
        "properties",
        "anyOf",
    }


@pytest.mark.parametrize("reference", REFERS)
def test_references_lead_where_they_led(grammars, reference):
    beside = copy.deepcopy(REFERS[reference])
    properties = beside.pop("properties", {})
    schema = beside | {
        "properties": {"room": {"$ref": reference}, **properties},
        "required": ["room"],
    }
    assert takes(grammars, schema, {"room": "hall"})
    assert not takes(grammars, schema, {"room": "cellar"}) and not takes(
        grammars, schema, {"room": 1}
    )


def test_a_schema_may_refer_to_itself_by_any_of_its_names(grammars):
    for own in ("#", "https://x.example/tree", "https://x.example/tree#"):
        schema = {
            "$id": "https://x.example/tree",
            "properties": {"kids": {"type": "array", "items": {"$ref": own}}},
        }
        assert takes(grammars, schema, {"kids": [{"kids": []}]})


@pytest.mark.parametrize("key", ["const", "default", "examples", "enum"])
def test_data_that_looks_like_a_reference_is_data(key):
    data = {"$ref": "#/x", "$anchor": "a", "$id": "b", "properties": {"$ref": "#"}}
    value = [data] if key in ("enum", "examples") else data
    schema = {"properties": {"a": {key: value}}}
    assert embedded(schema, "#/$defs/0") == schema


def test_parameters_may_be_called_like_keywords(grammars):
    schema = {
        "properties": {
            name: {"$ref": "#/$defs/room"} for name in ("$ref", "const", "$id", "$anchor")
        }
    }
    found = embedded(schema | {"$defs": {"room": ROOM}}, "#/$defs/0")
    assert found["properties"] == {
        name: {"$ref": "#/$defs/0/$defs/room"} for name in schema["properties"]
    }
    assert takes(
        grammars, schema | {"$defs": {"room": ROOM}, "required": ["const"]}, {"const": "hall"}
    )


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"$id": "https://x.example/a"}}},
        {"$dynamicAnchor": "n"},
        {"$defs": {"a": {"$dynamicAnchor": "n"}}},
    ],
)
def test_what_names_parts_for_others_is_refused(schema):
    with pytest.raises(RequestError, match="not supported"):
        tool_call_schema([ToolInfo("f", "", schema)])


LEAVES = st.sampled_from(
    [{"type": "integer"}, {"type": "string"}, ROOM, {"$ref": "#/$defs/a"}, {"$ref": "#named"}, True]
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(
            lambda key, value: {key: value},
            st.sampled_from(["items", "not", "additionalProperties"]),
            inner,
        ),
        st.builds(
            lambda key, value: {key: value},
            st.sampled_from(["anyOf", "allOf"]),
            st.lists(inner, min_size=1, max_size=2),
        ),
        st.builds(
            lambda value: {"properties": value},
            st.dictionaries(st.sampled_from(["a", "$ref", "~/"]), inner, max_size=2),
        ),
    ),
    max_leaves=5,
)
VALUES = st.recursive(
    st.sampled_from([1, "hall", "x", None]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["a", "$ref", "~/", "z"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(SCHEMAS, st.sampled_from([{"type": "integer"}, ROOM, {"items": ROOM}]), VALUES)
def test_the_same_values_are_right_inside_and_alone(schema, a, value):
    alone = {
        "$defs": {"a": a, "b": {"$anchor": "named", "type": ["string", "null"]}},
        "allOf": [schema],
    }
    inside = {"$defs": {"0": embedded(alone, "#/$defs/0")}, "$ref": "#/$defs/0"}
    judges = [jsonschema.Draft202012Validator(one) for one in (alone, inside)]
    assert judges[0].is_valid(value) == judges[1].is_valid(value)


def fits(grammars: Grammars, schema: Any, text: str) -> bool:
    """Is `text` a whole answer in the form of this schema?"""
    matcher = grammars.compile(Constraint("json_schema", json.dumps(schema))).inner
    taken = matcher.validate_tokens(list(text.encode())) == len(text)
    return bool(taken and matcher.consume_tokens(list(text.encode())) and matcher.is_accepting())


@pytest.mark.parametrize(
    "schema, ends, runs_on",
    [
        ({"type": "integer"}, [str(WHOLE), str(-WHOLE), "0"], ["9" * 60]),
        ({"type": "integer", "minimum": 3}, ["3"], ["2", "9" * 60]),
        ({"type": ["integer", "null"]}, ["null", "-7"], ["9" * 60]),
        ({"type": "number"}, ["-0.25", "1234.5"], ["0." + "3" * 60, "9" * 60]),
        ({"type": "number", "minimum": 0, "maximum": 1}, ["0.125"], ["0." + "3" * 60]),
        ({"type": "string"}, ['"abc"'], ['"' + "a" * (LETTERS + 1) + '"']),
        ({"$ref": "#/$defs/n", "$defs": {"n": {"type": "integer"}}}, ["12"], ["9" * 60]),
        ({"type": "array", "items": {"type": "integer"}}, ["[1, 2]"], [f"[1, {'9' * 60}]"]),
    ],
)
def test_a_bounded_schema_has_an_end(
    grammars: Grammars, schema: dict[str, Any], ends: list[str], runs_on: list[str]
) -> None:
    before = copy.deepcopy(schema)
    assert all(fits(grammars, bounded(schema), text) for text in ends)
    assert not any(fits(grammars, bounded(schema), text) for text in runs_on)
    assert schema == before


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": WHOLE * 10},
        {"type": "integer", "maximum": -WHOLE * 10},
        {"type": "integer", "minimum": 0, "maximum": WHOLE * 10},
        {"type": "string", "maxLength": LETTERS * 2},
        {"type": "string", "pattern": "^a+$"},
        {"type": "string", "format": "date"},
        {"enum": [1, {"type": "integer"}]},
        {"const": {"type": "string"}, "default": {"type": "integer"}},
        {"examples": [{"type": "integer"}]},
    ],
)
def test_what_a_schema_says_itself_stays(schema: dict[str, Any]) -> None:
    assert bounded(schema) == schema
