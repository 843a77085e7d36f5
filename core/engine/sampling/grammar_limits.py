"""What is too large or too deep before anything native reads it.

Knows texts, JSON values and the references between them. Knows nothing of the compiler, which
follows each nested schema and each rule with a step of its own down the stack.
Always: work and memory here are linear in the text, and nothing here follows a foreign value by
recursion.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from ...errors import RequestError
from .params import Constraint

# Measured: on a stack of 2 MB the compiler ended in a segmentation fault at 207 objects chained by
# references (619 levels as they are counted here), 582 bare references, 644 rules. The compiler's
# own stacks are twice and sixteen times that.
MAX_CHARACTERS = 100_000
# JSON values one inside the other, as written; the library's own reader takes 127
MAX_NESTING = 120
MAX_DEPTH = 1_000  # the same, where references are followed, each target once
MAX_REFERENCES = 2_000
MAX_RULES = 1_000  # of a Lark grammar, terminals included
MAX_BRACKETS = 200  # open at once in an expression or a grammar

REFERENCE = re.compile(r'"\$(?:ref|dynamicRef|recursiveRef)"\s*:')
# One repetition after the name's first letter, and none that could share letters with it: two that
# overlap take the square of a line's length, with everybody's answers waiting.
RULE = re.compile(r"^[ \t]*[?!]*[A-Za-z_][^:\n\"/]*:", re.MULTILINE)
ESCAPED = re.compile(r"\\.", re.DOTALL)


def check(constraint: Constraint) -> None:
    """Let through what the compiler can be asked about.

    Raises:
        RequestError: too long, too deep, or too many references or rules; or a schema that is not
        JSON.
    """
    text = constraint.text
    within(len(text), MAX_CHARACTERS, "characters", constraint.kind)
    within(len(REFERENCE.findall(text)), MAX_REFERENCES, "references", constraint.kind)
    match constraint.kind:
        case "json_schema":
            check_schema(text)
        case "lark":
            within(len(RULE.findall(text)), MAX_RULES, "rules", constraint.kind)
            within(open_brackets(text), MAX_BRACKETS, "open brackets", constraint.kind)
        case "regex":
            within(open_brackets(text), MAX_BRACKETS, "open brackets", constraint.kind)


def within(found: int, most: int, of_what: str, kind: str) -> None:
    """Raises: RequestError: more than `most`."""
    if found > most:
        raise RequestError(
            f"the {kind} has {found} {of_what}, at most {most} are taken; make it simpler"
        )


def open_brackets(text: str) -> int:
    """The most brackets that are open at once; those in quotes and classes count too, which errs
    on the safe side.
    """
    depth = deepest = 0
    for letter in ESCAPED.sub("", text):
        if letter in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif letter in ")]}" and depth:
            depth -= 1
    return deepest


def check_schema(text: str) -> None:
    """Raises: RequestError: as `check`."""
    # before Python's own reader, which recurses; quotes and escapes only add to it
    if open_brackets(text) > MAX_BRACKETS:
        raise RequestError(
            f"the json_schema nests deeper than {MAX_BRACKETS} brackets; make it simpler"
        )
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the json_schema is not JSON: {error}; send a JSON schema") from None
    within(depth_of(schema, schema, follow=False), MAX_NESTING, "levels", "json_schema")
    within(
        depth_of(schema, schema, follow=True),
        MAX_DEPTH,
        "levels through its references",
        "json_schema",
    )


def depth_of(value: Any, root: Any, *, follow: bool) -> int:
    """Levels of `value`; with `follow`, as a reader goes that enters each reference when it
    first meets it.
    """
    pending, seen, deepest = [(value, 1)], set[str](), 0
    while pending:
        value, level = pending.pop()
        deepest = max(deepest, level)
        pending += [(inner, level + 1) for inner in inside(value)]
        if (
            follow
            and isinstance(value, dict)
            and isinstance(to := value.get("$ref"), str)
            and to not in seen
        ):
            seen.add(to)
            pending.append((target(root, to), level + 1))
    return deepest


def inside(value: Any) -> Iterator[Any]:
    """The values that stand in a value."""
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def target(root: Any, reference: str) -> Any:
    """What a JSON pointer (RFC 6901) means; None for what is not here, which the compiler
    refuses or finds elsewhere.
    """
    if not reference.startswith("#"):
        return None
    found = root
    for part in reference[1:].split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict):
            found = found.get(part)
        elif isinstance(found, list):
            found = (
                found[int(part)]
                if part.isdecimal() and part.isascii() and int(part[:9]) < len(found)
                else None
            )
        else:
            return None
    return found
