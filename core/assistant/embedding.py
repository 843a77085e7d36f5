"""A caller's JSON schema made fit for answers: inside another schema, and with an end.

Knows which keywords of JSON Schema (2020-12, and what is still in use of draft 7) hold schemas,
which hold data, and which hold references. Knows nothing of tools or grammars.
Always: the embedded schema allows what it allowed alone, the bounded one a part of it; data
(`const`, `enum`, `default`, `examples`) is never touched.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..errors import RequestError

ONE = {
    "additionalProperties",
    "additionalItems",
    "contains",
    "contentSchema",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
}
ONE |= {"then", "unevaluatedItems", "unevaluatedProperties"}  # keywords that hold a schema
LISTS = {"allOf", "anyOf", "items", "oneOf", "prefixItems"}  # a list of schemas
NAMED = {
    "$defs",
    "definitions",
    "dependencies",
    "dependentSchemas",
    "patternProperties",
    "properties",
}  # schemas by name
SCHEMA = "$schema"
# Beside these alone, an object without named properties has none: nothing else could let one in.
SAYS_NOTHING = {
    "type",
    "properties",
    "required",
    "title",
    "description",
    SCHEMA,
    "$id",
    "$defs",
    "definitions",
    "$comment",
}
# Keywords whose schemas judge the same object: beside them a closed object would forbid what they
# ask for.
BESIDE = {
    "$ref",
    "allOf",
    "anyOf",
    "oneOf",
    "if",
    "not",
    "dependentSchemas",
    "dependencies",
    "patternProperties",
}


# Bounds of what a schema leaves without: a model that finds no end writes digits or letters until
# its tokens are used up, and the answer is no JSON.
WHOLE = (1 << 53) - 1  # numbers that every reader of JSON takes alike; RFC 8259, section 6
FRACTION = 1e-9  # of a number, the smallest step
LETTERS = 4_000  # of a text; about a thousand tokens


def closed(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema of arguments that names them all: no others are made up, unless it says so
    itself.
    """
    arguments: dict[str, Any] = {"type": "object", **schema}
    none = not arguments.get("properties") and arguments.keys() <= SAYS_NOTHING
    named = bool(arguments.get("properties")) and not arguments.keys() & (
        BESIDE | {"unevaluatedProperties"}
    )
    if (none or named) and "additionalProperties" not in arguments:
        arguments["additionalProperties"] = False
    return arguments


def embedded(schema: Any, at: str) -> Any:
    """The schema as it reads when its root stands at the JSON pointer `at`.

    References to its own root, to places below it and to its anchors become references to where
    those are now.

    Raises:
        RequestError: a name that the schema gives to a part of itself (`$id` below the root,
        `$dynamicAnchor`).
    """
    anchors: dict[str, str] = {}
    for part, where in parts(schema, at):
        if isinstance(name := part.get("$anchor"), str):
            anchors[name] = where
        for key in ("$id", "$dynamicAnchor", "$recursiveAnchor"):
            if key in part and not (key == "$id" and where == at):
                raise RequestError(
                    f"a tool's schema has {key} at {where[len(at) :] or 'its root'}, which is not "
                    f"supported here"
                )
    own = schema.get("$id") if isinstance(schema, Mapping) else None
    named = own.rstrip("#") if isinstance(own, str) else ""

    def moved(part: dict[str, Any]) -> dict[str, Any]:
        # they would speak of the whole now
        kept = {key: value for key, value in part.items() if key not in ("$anchor", "$id", SCHEMA)}
        if isinstance(to := kept.get("$ref"), str):
            kept["$ref"] = _reference(to, at, anchors, named)
        return kept

    return rebuilt(schema, moved)


def bounded(schema: Any) -> Any:
    """The same with an end to every number and text that has none of its own.

    A schema says otherwise with bounds, a `pattern`, a `format`, or the values themselves. Not
    covered: values that no schema describes, and the length of lists.
    """
    return rebuilt(schema, _with_bounds)


def rebuilt(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """A schema with `change` made to every schema in it, the inner ones first."""
    if not isinstance(schema, Mapping):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key in NAMED and isinstance(value, Mapping):
            found[key] = {name: rebuilt(inner, change) for name, inner in value.items()}
        elif key in LISTS and isinstance(value, list):
            found[key] = [rebuilt(inner, change) for inner in value]
        else:
            found[key] = rebuilt(value, change) if key in ONE else value
    return change(found)


def _with_bounds(part: dict[str, Any]) -> dict[str, Any]:
    types = part.get("type")
    kinds = {one for one in (types if isinstance(types, list) else [types]) if type(one) is str}
    if not kinds or "enum" in part or "const" in part:
        return part
    more: dict[str, Any] = {}
    if kinds & {"integer", "number"}:
        low, high = (_number(part, key) for key in ("inimum", "aximum"))
        if low is None and (high is None or high >= -WHOLE):
            more["minimum"] = -WHOLE
        if high is None and (low is None or low <= WHOLE):
            more["maximum"] = WHOLE
        if "number" in kinds and "integer" not in kinds and "multipleOf" not in part:
            more["multipleOf"] = FRACTION
    if "string" in kinds and not part.keys() & {"maxLength", "pattern", "format"}:
        least = part.get("minLength")
        more["maxLength"] = max(LETTERS, least if type(least) is int else 0)
    return part | more


def _number(part: Mapping[str, Any], end: str) -> float | None:
    """The bound "m…" or "exclusiveM…" of a schema, if it has one that is a number."""
    for key in (f"m{end}", f"exclusiveM{end}"):
        if isinstance(value := part.get(key), int | float) and not isinstance(value, bool):
            return value
    return None


def parts(schema: Any, at: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Every schema in a schema, with the JSON pointer to it."""
    pending = [(schema, at)]
    while pending:
        found, where = pending.pop()
        if not isinstance(found, Mapping):
            continue
        yield found, where
        for key, value in found.items():
            pending += [
                (inner, f"{where}/{escaped(key)}{below}") for inner, below in inside(key, value)
            ]


def inside(key: str, value: Any) -> Iterator[tuple[Any, str]]:
    """The schemas that a keyword holds, with what its pointer needs behind the keyword."""
    if key in NAMED and isinstance(value, Mapping):
        yield from ((inner, f"/{escaped(name)}") for name, inner in value.items())
    elif key in LISTS and isinstance(value, list):
        yield from ((inner, f"/{place}") for place, inner in enumerate(value))
    elif key in ONE:
        yield value, ""


def escaped(name: str) -> str:
    """A key in a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


def _reference(to: str, at: str, anchors: Mapping[str, str], own: str) -> str:
    if own and to.startswith(own) and to[len(own) :][:1] in ("", "#"):
        to = to[len(own) :] or "#"
    if not to.startswith("#"):
        return to  # elsewhere: the compiler says that it is not here
    fragment = to[1:]
    return at + fragment if fragment[:1] in ("", "/") else anchors.get(fragment, to)
