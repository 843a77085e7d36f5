"""What an adapter was shown in training, so that it is asked the same way when it serves.

Knows three choices. Knows nothing of adapters, federations or models.
Always: a federation's file says it, members check their examples against it, the adapter's card
carries it, and serving follows.
"""

from dataclasses import dataclass
from typing import Literal

from .screen import visible
from .toolcall import SYSTEM_PROMPT

MAX_SYSTEM = 4000  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFormat:
    """How conversations reach the model. The defaults change nothing of them."""

    # in front of a conversation that brings no system message of its own; empty: nothing
    system: str = ""
    answers: Literal["any", "text", "tool_call"] = (
        "any"  # "text": never carried out as a call; "tool_call": where tools are on offer
    )
    # "last": each request alone, as if nothing was said before
    turns: Literal["all", "last"] = "all"

    def __post_init__(self) -> None:
        if len(self.system) > MAX_SYSTEM or visible(self.system) != self.system:
            raise ValueError(
                f"prompt.system must be a text of at most {MAX_SYSTEM} visible characters"
            )

    def told(self) -> str:
        """In words, for people."""
        words = {"any": "texts and calls", "text": "texts", "tool_call": "tool calls"}[self.answers]
        turns = {"all": "whole conversations", "last": "single requests"}[self.turns]
        return (f"{words} to {turns}") + (
            f", after {self.system!r}" if self.system else ", no system message"
        )


AS_IT_COMES = PromptFormat()
# the default task's
HOUSEHOLD = PromptFormat(system=SYSTEM_PROMPT, answers="tool_call", turns="last")
