"""A JSON schema that an answer is held to, closed and bounded where it says nothing.

Knows which keywords of JSON Schema (2020-12, and what is still in use of draft 7) hold schemas and
which hold data. Knows nothing of tools or grammars.
Always: what the bounded schema allows, the schema itself allows; data (`const`, `enum`, `default`,
`examples`) is never touched.

Why: a model that may write any key, digit or letter goes on writing them until its tokens run out.
"""

from collections.abc import Iterator, Mapping
from typing import Any

# characters of a string without a limit of its own; each costs the grammar up to five states, of
# which one request has 20,000 (`grammar_compiler.LIMITS`): at 4,096 a string that ran on failed it
MAX_STRING = 2000
MAX_ITEMS = 128  # of an array
MAX_INTEGER = 2**53 - 1  # what every JSON reader takes whole
MAX_NUMBER, STEP = 1e12, 1e-9  # of a number that is none: nine digits behind the point

# keywords that hold schemas which a value must fit as it stands
ONE = {"additionalProperties", "items", "unevaluatedItems", "unevaluatedProperties"}
LISTS = {"anyOf", "oneOf", "items", "prefixItems"}
NAMED = {"$defs", "definitions", "patternProperties", "properties"}
# Keywords whose schemas judge the same object: beside them a closed object would forbid what they
# ask for.
BESIDE = {"$ref", "allOf", "anyOf", "oneOf", "if", "not", "dependentSchemas", "dependencies"}
OPENS = {"additionalProperties", "unevaluatedProperties", "patternProperties"}
# What makes a definition judge one object together with another.
SHARING = {"allOf", "if", "not", "dependentSchemas", "unevaluatedProperties", "$dynamicRef"}
# Whoever fits a schema under these fits the whole less: a definition that one of them names would
# let more through if it were bounded.
TURNING = {"not", "if", "contains"}
# Beside these alone, an object without named properties has none: nothing else could let one in.
SAYS_NOTHING = {
    "type",
    "properties",
    "required",
    "title",
    "description",
    "$schema",
    "$id",
    "$defs",
    "definitions",
    "$comment",
}
SPOKEN = {"enum", "const"}


def arguments_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A tool's schema of its arguments: an object that names them all; no others are made up,
    unless it says so itself.
    """
    found: dict[str, Any] = bounded({"type": "object", **schema})
    if not found.get("properties") and found.keys() <= SAYS_NOTHING:
        found["additionalProperties"] = False
    return found


def bounded(schema: Any) -> Any:
    """The schema, its objects closed and its numbers, strings and arrays limited where it does not
    open or limit them itself.
    """
    return _bounded(schema, closing=True, shared=_shares(schema), turned=_turns(schema))


def _bounded(schema: Any, *, closing: bool, shared: bool, turned: bool) -> Any:
    """
    Args:
        closing: no other schema judges the same value.
        shared: definitions may be judged together with others.
        turned: definitions may be what a value must not be, and stay as they are.
    """
    if not isinstance(schema, Mapping):
        return schema
    alone = closing and not (schema.keys() & BESIDE and "properties" in schema)
    found: dict[str, Any] = {}
    for key, value in schema.items():
        inner = key not in LISTS or key in ("items", "prefixItems") or alone
        if key in ("$defs", "definitions"):
            if turned:
                found[key] = value
                continue
            inner = not shared
        if key in NAMED and isinstance(value, Mapping):
            found[key] = {
                name: _bounded(one, closing=inner, shared=shared, turned=turned)
                for name, one in value.items()
            }
        elif key in LISTS and isinstance(value, list):
            found[key] = [
                _bounded(one, closing=inner, shared=shared, turned=turned) for one in value
            ]
        else:
            found[key] = (
                _bounded(value, closing=True, shared=shared, turned=turned) if key in ONE else value
            )
    if alone and found.get("properties") and not found.keys() & (BESIDE | OPENS):
        found["additionalProperties"] = False
    return found if found.keys() & SPOKEN else found | _limits(found)


def _limits(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The limits that a schema of this type lacks."""
    kind = schema.get("type")
    kinds = set(kind) if isinstance(kind, list) else {kind}
    found: dict[str, Any] = {}
    if "string" in kinds and not schema.keys() & {"maxLength", "pattern", "format"}:
        found["maxLength"] = max(MAX_STRING, _whole(schema.get("minLength")))
    if "array" in kinds and "maxItems" not in schema:
        found["maxItems"] = max(MAX_ITEMS, _whole(schema.get("minItems")))
    if not kinds & {"integer", "number"}:
        return found
    most = MAX_INTEGER if "number" not in kinds else MAX_NUMBER
    ends = [schema.get(key) for key in ("minimum", "maximum")]
    ends += [schema.get(f"exclusive{key}") for key in ("Minimum", "Maximum")]
    given = [end for end in ends if isinstance(end, int | float) and not isinstance(end, bool)]
    if any(abs(end) > most for end in given):
        return found  # it knows of larger numbers; whoever does, says how large
    if not schema.keys() & {"minimum", "exclusiveMinimum"}:
        found["minimum"] = -most
    if not schema.keys() & {"maximum", "exclusiveMaximum"}:
        found["maximum"] = most
    fine = all(float(end) == round(float(end), 9) for end in given)
    if "number" in kinds and "multipleOf" not in schema and fine:
        found["multipleOf"] = STEP
    return found


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _shares(schema: Any) -> bool:
    """Whether some part of a schema may judge an object together with another part."""
    return any(
        part.keys() & SHARING or ("$ref" in part and "properties" in part)
        for part in _parts(schema)
    )


def _turns(schema: Any) -> bool:
    """Whether a definition is named where fitting it may forbid a value."""
    return any(
        inner.keys() & {"$ref", "$dynamicRef"}
        for part in _parts(schema)
        for key in part.keys() & TURNING
        for inner in _parts(part[key])
    )


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Every table in a schema, itself included."""
    waiting = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
