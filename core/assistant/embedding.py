"""A tool's JSON schema inside another schema.

Knows which keywords of JSON Schema (2020-12, and what is still in use of draft 7) hold schemas,
which hold data, and which hold references. Knows nothing of tools or grammars.
Always: the embedded schema allows what it allowed alone; data (`const`, `enum`, `default`,
`examples`) is never touched.
"""

from collections.abc import Iterator, Mapping
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
    return _moved(schema, at, anchors, own.rstrip("#") if isinstance(own, str) else "")


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


def _moved(schema: Any, at: str, anchors: Mapping[str, str], own: str) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("$anchor", "$id", "$schema"):
            continue  # they would speak of the whole now
        if key == "$ref" and isinstance(value, str):
            found[key] = _reference(value, at, anchors, own)
        elif key in NAMED and isinstance(value, Mapping):
            found[key] = {name: _moved(inner, at, anchors, own) for name, inner in value.items()}
        elif key in LISTS and isinstance(value, list):
            found[key] = [_moved(inner, at, anchors, own) for inner in value]
        else:
            found[key] = _moved(value, at, anchors, own) if key in ONE else value
    return found


def _reference(to: str, at: str, anchors: Mapping[str, str], own: str) -> str:
    if own and to.startswith(own) and to[len(own) :][:1] in ("", "#"):
        to = to[len(own) :] or "#"
    if not to.startswith("#"):
        return to  # elsewhere: the compiler says that it is not here
    fragment = to[1:]
    return at + fragment if fragment[:1] in ("", "/") else anchors.get(fragment, to)
