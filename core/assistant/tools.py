"""The seam to tools: who can be called, with what, and what comes back.

Knows names, JSON schemas and texts. Knows nothing of sandboxes, plugins or models.
Always: a result is untrusted text; nobody may read it as another call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ..toolcall import ToolCall
from .elicitation import Elicit

# What a call does: it tells something of this machine; it changes something here; it reaches
# somebody else, to whom it may also tell something.
Effect = Literal["read", "write", "outside"]


@dataclass(frozen=True, slots=True)
class ToolInfo:
    """One tool on offer."""

    name: str
    description: str
    schema: Mapping[str, Any] = field(default_factory=dict)  # JSON Schema of the arguments
    plugin_id: str = ""  # "publisher/name" of the plugin that answers
    effect: Effect = "write"  # what nobody said is not harmless


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What one call brought back.

    Hazard: `text` was written by other people's code; show it, never run or parse it.
    """

    text: str
    ok: bool = True


@dataclass(frozen=True, slots=True)
class CallContext:
    """For whom a call is carried out."""

    conversation: str = ""  # whose rules hold; "": nothing was said in it
    elicit: Elicit | None = None  # puts a form to the owner; None: nobody can be asked


ALONE = CallContext()


class Tools(Protocol):
    """Whoever can carry out tool calls."""

    def tools(self) -> Sequence[ToolInfo]:
        """The tools that can be called now; may change while the node runs."""
        ...

    async def call(
        self, call: ToolCall, deadline_s: float, context: CallContext = ALONE, /
    ) -> ToolResult:
        """Carry out `call` within `deadline_s` seconds, besides those in which its owner is asked.

        Raises:
            ToolError: unknown tool, refused arguments, out of time, or the plugin died.
        """
        ...


class NoTools:
    """A node without plugins."""

    def tools(self) -> Sequence[ToolInfo]:
        """None at all."""
        return ()

    async def call(
        self, call: ToolCall, _deadline_s: float, _context: CallContext = ALONE
    ) -> ToolResult:
        """Refuse, in a result and not an error: the conversation goes on."""
        return ToolResult(f"no tool is called {call.name}", ok=False)
