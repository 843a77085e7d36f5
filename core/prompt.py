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
    # "text": never carried out as a call; "tool_call": where tools are on offer;
    # "tool_call_or_text": the same, or words where nothing is to be called
    answers: Literal["any", "text", "tool_call", "tool_call_or_text"] = "any"
    # "last": each request alone, as if nothing was said before; "follow_up": so, but after the
    # request before it where calls answered that, and those calls
    turns: Literal["all", "last", "follow_up"] = "all"

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

    @property
    def ends_with_call(self) -> bool:
        """Whether nothing is written behind a call: what its tool says then answers."""
        return self.answers in ("tool_call", "tool_call_or_text")

    def told(self) -> str:
        """In words, for people."""
        words = {
            "any": "texts and calls",
            "text": "texts",
            "tool_call": "tool calls",
            "tool_call_or_text": "tool calls, or texts where nothing is to be called",
        }[self.answers]
        turns = {
            "all": "whole conversations",
            "last": "single requests",
            "follow_up": "requests, each alone or after one that was called for",
        }[self.turns]
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
        changed = replace(self, **given)  # type: ignore[arg-type]
        asks = self.system == SYSTEM_PROMPT and not changed.ends_with_call
        return replace(changed, system="") if asks and "system" not in given else changed


AS_IT_COMES = PromptFormat()
# the default task's
HOUSEHOLD = PromptFormat(system=SYSTEM_PROMPT, answers="tool_call_or_text", turns="follow_up")
