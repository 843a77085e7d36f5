"""What an adapter was shown in training, so that it is asked the same way when it serves.

Knows three choices. Knows nothing of adapters, federations or models.
Always: a federation's file says it, members check their examples against it, the adapter's card
carries it, and serving follows.
"""

from dataclasses import dataclass, replace
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
        if len(self.system) > MAX_SYSTEM:
            raise ValueError(
                f"prompt.system has {len(self.system)} characters, expected at most {MAX_SYSTEM}"
            )
        if visible(self.system) != self.system:
            raise ValueError(
                f"prompt.system = {ascii(self.system)[:200]} holds what a terminal obeys, expected "
                f"visible characters alone"
            )

    def told(self) -> str:
        """In words, for people."""
        words = {"any": "texts and calls", "text": "texts", "tool_call": "tool calls"}[self.answers]
        turns = {"all": "whole conversations", "last": "single requests"}[self.turns]
        return (f"{words} to {turns}") + (
            f", after {self.system!r}" if self.system else ", no system message"
        )

    def changed(self, **given: str) -> "PromptFormat":
        """The same with what its owner says otherwise.

        The sentence that asks for a tool call goes where calls are no longer what is answered,
        unless its owner names it.

        Raises:
            ValueError: a system message that is too long, or not visible.
        """
        asks = self.system == SYSTEM_PROMPT and given.get("answers", "tool_call") != "tool_call"
        return replace(self, **({"system": ""} if asks else {}) | given)  # type: ignore[arg-type]


AS_IT_COMES = PromptFormat()
# the default task's
HOUSEHOLD = PromptFormat(system=SYSTEM_PROMPT, answers="tool_call", turns="last")
# the same with talk and second requests in it (`data build home --talk N`): it learns when
# to be silent
HOUSEHOLD_TALK = PromptFormat(system="Call a tool if the home is to act, else answer.")
