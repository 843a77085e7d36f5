"""A tool's schema means beside others what it meant alone, and its values have an end."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quietchoir.core.assistant.call_formats import BARE
from quietchoir.core.assistant.tool_schema import MAX_INTEGER, MAX_STRING, arguments_schema, bounded
from quietchoir.core.assistant.tools import ToolInfo
from quietchoir.core.engine.sampling.grammar import Grammars
from quietchoir.core.engine.sampling.params import Constraint
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
    tools = [ToolInfo("other", "", other), ToolInfo("f", "", schema)]
    matcher: Any = grammars.compile(Constraint("lark", BARE.demanded(tools, 1))).inside
    matcher = matcher.inner
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
    beside = {"properties": {"a": {}}, "anyOf": [{"required": ["b"]}]}
    assert arguments_schema(beside).keys() == {"type", "properties", "anyOf"}


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


def test_parameters_may_be_called_like_keywords(grammars):
    schema = {
        "properties": {
            name: {"$ref": "#/$defs/room"} for name in ("$ref", "const", "$id", "$anchor")
        }
    }
    assert takes(
        grammars, schema | {"$defs": {"room": ROOM}, "required": ["const"]}, {"const": "hall"}
    )


def test_objects_are_closed_at_every_depth_unless_they_are_opened():
    room = {"type": "object", "properties": {"area": {"enum": ["a"]}}}
    free = {"type": "object", "additionalProperties": {"enum": [1]}}
    schema = {
        "properties": {"rooms": {"type": "array", "items": room, "maxItems": 3}, "notes": free},
        "anyOf": [{"required": ["rooms"]}],
    }
    found = bounded(schema)
    assert "additionalProperties" not in found  # its other half asks for properties too
    assert found["properties"]["rooms"]["items"] == room | {"additionalProperties": False}
    assert found["properties"]["notes"] == free


def test_definitions_that_are_judged_together_stay_open():
    base = {"type": "object", "properties": {"a": {"enum": [1]}}}
    joined = {
        "$defs": {"base": base},
        "allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": {"enum": [2]}}}],
    }
    assert bounded(joined) == joined
    alone = {"$defs": {"base": base}, "properties": {"x": {"$ref": "#/$defs/base"}}}
    assert bounded(alone)["$defs"]["base"]["additionalProperties"] is False


def test_texts_and_numbers_have_an_end_unless_the_schema_gives_one():
    found = bounded({"properties": {"s": {"type": "string"}, "n": {"type": ["integer", "null"]}}})
    assert found["properties"]["s"]["maxLength"] == MAX_STRING
    assert found["properties"]["n"]["maximum"] == 2**53 - 1
    own: dict[str, Any] = {
        "properties": {
            "s": {"type": "string", "pattern": "^a$"},
            "n": {"type": "integer", "minimum": 0, "maximum": 10**20},
            "one": {"const": {"type": "string"}},
        },
        "additionalProperties": False,
    }
    assert bounded(own) == own


@pytest.mark.parametrize(
    ("schema", "endless"),
    [
        ({"type": "string"}, '"' + "a" * 5000),
        ({"type": "integer"}, "1" * 40),
        ({"type": "number"}, "0." + "3" * 40),
        ({"type": "array", "items": {"enum": [1]}}, "[" + "1, " * 200),
        ({"type": "object", "properties": {"a": {"enum": [1]}}}, '{"a": 1, "b'),
    ],
)
def test_what_a_model_would_go_on_writing_is_ended_by_the_form(grammars, schema, endless):
    def taken(one):
        text = json.dumps({"type": "object", "properties": {"x": one}, "required": ["x"]})
        matcher = grammars.compile(Constraint("json_schema", text)).inside.inner
        whole = list(f'{{"x": {endless}'.encode())
        return matcher.try_consume_tokens(whole) == len(whole)

    assert taken(schema)  # without bounds it may go on like this for ever
    assert not taken(bounded(schema))


LEAVES = st.sampled_from(
    [{"type": "integer"}, {"type": "string"}, {"type": "number"}, ROOM, {"$ref": "#/$defs/a"}, True]
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda value: {"items": value}, inner),
        st.builds(
            lambda key, value: {key: value},
            st.sampled_from(["anyOf", "allOf", "prefixItems"]),
            st.lists(inner, min_size=1, max_size=2),
        ),
        st.builds(
            lambda value, more: {"properties": value} | more,
            st.dictionaries(st.sampled_from(["a", "$ref", "~/"]), inner, max_size=2),
            st.sampled_from([{}, {"additionalProperties": True}, {"required": ["a"]}]),
        ),
        st.builds(lambda value: {"not": value}, inner),
    ),
    max_leaves=5,
)
VALUES = st.recursive(
    st.sampled_from([1, "hall", "x", None, 1.5, 10**30]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["a", "$ref", "~/", "z"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@example({"not": {"$ref": "#/$defs/a"}}, {"type": "integer"}, 10**30)  # found by chance once
@given(SCHEMAS, st.sampled_from([{"type": "integer"}, ROOM, {"items": ROOM}]), VALUES)
def test_what_a_bounded_schema_allows_the_schema_allows(schema, a, value):
    alone = {"$defs": {"a": a}, "allOf": [schema]}
    if jsonschema.Draft202012Validator(bounded(alone)).is_valid(value):
        assert jsonschema.Draft202012Validator(alone).is_valid(value)
    outside = schema | {"$defs": {"a": a}} if isinstance(schema, dict) else schema
    if jsonschema.Draft202012Validator(bounded(outside)).is_valid(value):
        assert jsonschema.Draft202012Validator(outside).is_valid(value)


def fits(grammars: Grammars, schema: Any, text: str) -> bool:
    """Is `text` a whole answer in the form of this schema?"""
    form: Any = grammars.compile(Constraint("json_schema", json.dumps(schema))).inside
    matcher = form.inner
    taken = matcher.validate_tokens(list(text.encode())) == len(text)
    return bool(taken and matcher.consume_tokens(list(text.encode())) and matcher.is_accepting())


@pytest.mark.parametrize(
    "schema, ends, runs_on",
    [
        ({"type": "integer"}, [str(MAX_INTEGER), str(-MAX_INTEGER), "0"], ["9" * 60]),
        ({"type": "integer", "minimum": 3}, ["3"], ["2", "9" * 60]),
        ({"type": ["integer", "null"]}, ["null", "-7"], ["9" * 60]),
        ({"type": "number"}, ["-0.25", "1234.5"], ["0." + "3" * 60, "9" * 60]),
        ({"type": "number", "minimum": 0, "maximum": 1}, ["0.125"], ["0." + "3" * 60]),
        ({"type": "string"}, ['"abc"'], ['"' + "a" * (MAX_STRING + 1) + '"']),
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
        {"type": "integer", "minimum": MAX_INTEGER * 10},
        {"type": "integer", "maximum": -MAX_INTEGER * 10},
        {"type": "integer", "minimum": 0, "maximum": MAX_INTEGER * 10},
        {"type": "string", "maxLength": MAX_STRING * 2},
        {"type": "string", "pattern": "^a+$"},
        {"type": "string", "format": "date"},
        {"enum": [1, {"type": "integer"}]},
        {"const": {"type": "string"}, "default": {"type": "integer"}},
        {"examples": [{"type": "integer"}]},
    ],
)
def test_what_a_schema_says_itself_stays(schema: dict[str, Any]) -> None:
    assert bounded(schema) == schema
