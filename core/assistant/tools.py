"""The seam to tools: who can be called, with what, and what comes back.

Knows names, JSON schemas and texts. Knows nothing of sandboxes, plugins or models.
Always: a result is untrusted text; nobody may read it as another call.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..engine.sampling.params import Constraint
from ..toolcall import ToolCall
from .embedding import closed, embedded


@dataclass(frozen=True, slots=True)
class ToolInfo:
    """One tool on offer."""

    name: str
    description: str
    schema: Mapping[str, Any] = field(default_factory=dict)  # JSON Schema of the arguments
    plugin_id: str = ""  # "publisher/name" of the plugin that answers


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What one call brought back.

    Hazard: `text` was written by other people's code; show it, never run or parse it.
    """

    text: str
    ok: bool = True


class Tools(Protocol):
    """Whoever can carry out tool calls."""

    def tools(self) -> Sequence[ToolInfo]:
        """The tools that can be called now; may change while the node runs."""
        ...

    async def call(self, call: ToolCall, deadline_s: float, /) -> ToolResult:
        """Carry out `call` within `deadline_s` seconds.

        Raises:
            ToolError: unknown tool, refused arguments, out of time, or the plugin died.
        """
        ...


class NoTools:
    """A node without plugins."""

    def tools(self) -> Sequence[ToolInfo]:
        """None at all."""
        return ()

    async def call(self, call: ToolCall, _deadline_s: float) -> ToolResult:
        """Refuse, in a result and not an error: the conversation goes on."""
        return ToolResult(f"no tool is called {call.name}", ok=False)


def tool_call_schema(tools: Sequence[ToolInfo]) -> Constraint:
    """The form of an answer that is one call to one of these tools, its arguments as the tool's
    schema says.

    Raises:
        RequestError: a schema that cannot stand beside others.
    """
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.name},
                "arguments": {"$ref": f"#/$defs/{number}"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for number, tool in enumerate(tools)
    ]
    schemas = {
        str(number): embedded(closed(tool.schema), f"#/$defs/{number}")
        for number, tool in enumerate(tools)
    }
    return Constraint("json_schema", json.dumps({"anyOf": calls, "$defs": schemas}))
