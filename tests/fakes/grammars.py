"""Grammars that somebody wrote to do harm: each kind grows with one number."""

import json
from collections.abc import Callable
from typing import Any

from quietchoir.core.engine.sampling.params import Constraint


def nested(size: int, wrap: Callable[[str], str], inner: str = '{"type": "string"}') -> Constraint:
    """As text: Python's own writer gives up long before."""
    for _ in range(size):
        inner = wrap(inner)
    return Constraint("json_schema", inner)


def objects(size: int) -> Constraint:
    return nested(size, '{{"type": "object", "properties": {{"a": {}}}}}'.format)


def arrays(size: int) -> Constraint:
    return nested(size, '{{"type": "array", "items": {}}}'.format)


def choices(size: int) -> Constraint:
    return nested(size, '{{"anyOf": [{}, {{"type": "null"}}]}}'.format)


def negations(size: int) -> Constraint:
    return nested(size, '{{"not": {}}}'.format)


def constants(size: int) -> Constraint:
    return nested(1, '{{"const": {}}}'.format, "[" * size + "]" * size)


def chained(size: int, link: Callable[[str], Any], last: Any, room: str = "$defs") -> Constraint:
    links = {str(number): link(f"#/{room}/{number + 1}") for number in range(size)}
    return Constraint(
        "json_schema", json.dumps({room: links | {str(size): last}, "$ref": f"#/{room}/0"})
    )


def references(size: int) -> Constraint:
    return chained(size, lambda to: {"$ref": to}, {"type": "integer"})


def old_references(size: int) -> Constraint:
    return chained(size, lambda to: {"$ref": to}, {"type": "integer"}, "definitions")


def linked_objects(size: int) -> Constraint:
    link = lambda to: {"type": "object", "properties": {"a": {"$ref": to}}, "required": ["a"]}  # noqa: E731
    return chained(size, link, {"type": "integer"})


def linked_conjunctions(size: int) -> Constraint:
    return chained(
        size,
        lambda to: {"allOf": [{"$ref": to}, {"properties": {to[-3:]: {}}}]},
        {"type": "object"},
    )


def linked_arrays(size: int) -> Constraint:
    return chained(
        size, lambda to: {"type": "array", "prefixItems": [{"$ref": to}]}, {"type": "integer"}
    )


def rules(size: int) -> Constraint:
    lines = ["start: r0", *(f"r{number}: r{number + 1}" for number in range(size)), f'r{size}: "x"']
    return Constraint("lark", "\n".join(lines))


def growing_rules(size: int) -> Constraint:
    lines = [
        "start: r0",
        *(f'r{number}: "a" r{number + 1} "b"?' for number in range(size)),
        f'r{size}: "x"',
    ]
    return Constraint("lark", "\n".join(lines))


def terminals(size: int) -> Constraint:
    lines = [
        "start: R0",
        *(f'R{number}: R{number + 1} "a"' for number in range(size)),
        f'R{size}: "x"',
    ]
    return Constraint("lark", "\n".join(lines))


def embedded(size: int) -> Constraint:
    return Constraint("lark", f"start: %json {references(size).text}")


def brackets(size: int) -> Constraint:
    return Constraint("lark", "start: " + "(" * size + '"x"' + ")?" * size)


def groups(size: int) -> Constraint:
    return Constraint("regex", "(" * size + "x" + ")*" * size)


def repeated(size: int) -> Constraint:
    return Constraint("regex", f"(((a{{{size}}}){{{size}}}){{{size}}})")


def options(size: int) -> Constraint:
    return Constraint("regex", "(a|b)?" * size)


# The size at which each is far beyond what is taken, within the characters that are.
HARMFUL: list[tuple[Callable[[int], Constraint], int]] = [
    (objects, 1_400),
    (arrays, 2_000),
    (choices, 2_000),
    (negations, 3_000),
    (constants, 40_000),
    (references, 3_000),
    (old_references, 1_950),
    (linked_objects, 1_000),
    (linked_conjunctions, 900),
    (linked_arrays, 1_200),
    (rules, 3_000),
    (growing_rules, 3_000),
    (terminals, 4_000),
    (embedded, 2_300),
    (brackets, 20_000),
    (groups, 20_000),
    (repeated, 100),
    (repeated, 1_000),
]
