"""A conversation into prompt tokens, within a budget.

Knows messages and token counts. Knows nothing of models, tools or HTTP.
Always: system messages at the head and the newest turn stay; what is dropped is the oldest, and in
whole turns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import RequestError
from ..toolcall import ToolCall


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: str  # "system", "user", "assistant" or "tool"
    content: str
    calls: tuple[ToolCall, ...] = ()  # what an assistant's message called
    tool_call_id: str = ""  # of a tool's message: the call that it answers
    name: str = ""  # of a tool's message: the tool that answers

    def for_template(self) -> dict[str, Any]:
        """As chat templates read it, in OpenAI's shape."""
        shown: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.calls:
            shown["tool_calls"] = [
                {
                    "id": call.id or f"call{number}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": dict(call.arguments)},
                }
                for number, call in enumerate(self.calls)
            ]
        if self.role == "tool":
            shown |= {"tool_call_id": self.tool_call_id, "name": self.name}
        return shown


class ChatEncoder(Protocol):
    """The part of a tokenizer that this file needs."""

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Tokens of the whole conversation, ready for the assistant to go on."""
        ...


def turns(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """Split into (system messages at the head, turns); a turn begins with each user's message."""
    start = next(
        (index for index, message in enumerate(messages) if message.role != "system"), len(messages)
    )
    split: list[list[Message]] = []
    for message in messages[start:]:
        if message.role == "user" or not split:
            split.append([])
        split[-1].append(message)
    return list(messages[:start]), split


def fit(messages: Sequence[Message], encoder: ChatEncoder, budget: int) -> tuple[int, ...]:
    """Prompt tokens of the head and as many of the newest turns as fit into `budget` tokens.

    Raises:
        RequestError: the head and the newest turn alone are longer than `budget`.
    """
    head, split = turns(messages)

    def encode(count: int) -> list[int]:
        kept = head + [message for turn in split[len(split) - count :] for message in turn]
        return encoder.encode_chat([message.for_template() for message in kept])

    fits, too_many = min(1, len(split)), len(split) + 1
    tokens = encode(fits)
    if len(tokens) > budget:
        raise RequestError(
            f"the newest message takes {len(tokens)} tokens, at most {budget} fit; "
            f"send a shorter one"
        )
    # Doubling from the newest end: the cost stays near the budget, however long the history is.
    while too_many - fits > 1:
        count = min(fits * 2, (fits + too_many) // 2)
        candidate = encode(count)
        if len(candidate) <= budget:
            fits, tokens = count, candidate
        else:
            too_many = count
    return tuple(tokens)
