"""A tool call as text: what the model is asked for, and how its answer is read.

Knows one JSON shape. Knows nothing of models, plugins or homes.
Always: `parse(render(call)) == call`, and equal calls render to equal text, which is one line.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

# Training and serving must show the model the same words, so they stand here once.
SYSTEM_PROMPT = "Call a tool if the home is to act, else answer."


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One request to a tool."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    # by which its result finds it; says nothing about what is asked
    id: str = field(default="", compare=False)


def render(call: ToolCall) -> str:
    """The one text for this call: name first, arguments in alphabetical order."""
    return json.dumps(
        {"name": call.name, "arguments": dict(sorted(call.arguments.items()))}, ensure_ascii=False
    )


def render_all(calls: Iterable[ToolCall]) -> str:
    """The one text for the calls of one answer, in their order."""
    return "\n".join(map(render, calls))


def parse_all(text: str) -> tuple[ToolCall, ...]:
    """Read the calls of an answer, one a line; none if anything else stands in it."""
    calls = tuple(parse(line) for line in text.strip().splitlines())
    return tuple(call for call in calls if call is not None) if None not in calls else ()


def parse(text: str) -> ToolCall | None:
    """Read a tool call out of a model's answer; None if the answer is not exactly one."""
    try:
        found = json.loads(text.strip())
    except (ValueError, RecursionError):  # a model writes what it likes, ten thousand brackets too
        return None
    if not isinstance(found, dict) or set(found) != {"name", "arguments"}:
        return None
    if not isinstance(found["name"], str) or not isinstance(found["arguments"], dict):
        return None
    return ToolCall(found["name"], found["arguments"])
