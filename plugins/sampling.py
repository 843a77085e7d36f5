"""What a plugin may ask of the model: a text for texts, within a budget of tokens.

Knows MCP's `sampling/createMessage`. Knows no engine: whoever runs the model hands over `Write`.
Always: it is the plain model that answers, without adapters, documents, tools or a conversation, so
that it knows nothing of its owner; one request at a time, while a call of the plugin is waited for,
and no more tokens in an hour than were granted, prompts included.

Not covered: what the plugin makes of the text. Of its wishes for a model, a temperature or a
context none is followed, as MCP allows.
Source: modelcontextprotocol.io, specification 2025-11-25, client/sampling.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import QuietchoirError, RequestError
from .audit import Outcome, Sampled

INVALID, REFUSED = -32602, -1  # JSON-RPC; MCP's "user rejected"
MAX_MESSAGES, MAX_PROMPT_BYTES = 64, 64 << 10
MAX_REQUESTS = 120  # a minute; each is a row of the log
FRAME_TOKENS = 16  # that a template puts around a message, at most


@dataclass(frozen=True, slots=True)
class Written:
    """What a model wrote."""

    text: str
    tokens: int  # of prompt and answer
    model: str
    whole: bool = True  # it ended by itself


# messages (role, content); how many tokens the answer may have, and both together
Write = Callable[[Sequence[Mapping[str, str]], int, int], Awaitable[Written]]


class HostRefusal(Exception):
    """A request of a plugin's that is not answered, with the code of its error."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class SamplingRefused(HostRefusal):
    """The model does not write."""


@dataclass(slots=True)
class RequestRate:
    """How often a plugin asks for something in a minute."""

    most: int
    clock: Callable[[], float] = time.monotonic
    _minute: int = -1
    _count: int = 0

    def ask(self) -> int:
        """One request more; how many of this minute are beyond what is answered."""
        minute = int(self.clock() // 60)
        self._count = self._count + 1 if minute == self._minute else 1
        self._minute = minute
        return max(0, self._count - self.most)


class ModelAccess:
    """The model, as one plugin may use it.

    Args:
        most_tokens: in an hour.
        tell: hears of every request that was not one too many, and once a minute of those that
            were, without what was said.
    """

    def __init__(
        self,
        plugin: str,
        most_tokens: int,
        write: Write,
        tell: Callable[[Sampled], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plugin, self.most_tokens = plugin, most_tokens
        self._write, self._tell, self._clock = write, tell, clock
        self._spent: Counter[int] = Counter()  # by minute
        self._rate = RequestRate(MAX_REQUESTS, clock)
        self._turn = asyncio.Lock()

    def left(self) -> int:
        """Tokens of this hour."""
        minute = int(self._clock() // 60)
        for old in [one for one in self._spent if one <= minute - 60]:
            del self._spent[old]
        return self.most_tokens - self._spent.total()

    async def create(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The result of `sampling/createMessage`. Raises: SamplingRefused: and why."""
        messages, wanted = messages_of(params), params.get("maxTokens")
        if type(wanted) is not int or wanted < 1:
            raise SamplingRefused(INVALID, "maxTokens must be a whole number of at least 1")
        size = sum(len(message["content"].encode(errors="replace")) for message in messages)
        if size > MAX_PROMPT_BYTES:  # before it is cut into tokens, which takes a second for 1 MB
            raise SamplingRefused(INVALID, f"{size} bytes; a prompt has at most {MAX_PROMPT_BYTES}")
        if beyond := self._rate.ask():
            if beyond == 1:  # one row says that there were too many
                self._log(0, 0.0, "refused")
            raise SamplingRefused(REFUSED, f"more than {MAX_REQUESTS} requests in a minute")
        begun, tokens = time.monotonic(), 0
        outcome: Outcome = "failed"
        async with self._turn:
            try:
                if (left := self.left()) <= 0:
                    outcome = "refused"
                    raise SamplingRefused(
                        REFUSED, f"all {self.most_tokens} tokens of this hour are spent"
                    )
                # whoever gives up has used them; a token is at least a byte
                tokens = min(left, wanted + size + FRAME_TOKENS * len(messages))
                written = await self._write(messages, wanted, left)
                tokens, outcome = written.tokens, "ok"
            except QuietchoirError as error:
                # a prompt that is too long was cut into tokens all the same
                tokens = min(left, 1 + size // 64) if isinstance(error, RequestError) else 0
                raise SamplingRefused(REFUSED, str(error)) from None
            finally:
                self._spent[int(self._clock() // 60)] += tokens
                self._log(tokens, time.monotonic() - begun, outcome)
        return {
            "role": "assistant",
            "content": {"type": "text", "text": written.text},
            "model": written.model,
            "stopReason": "endTurn" if written.whole else "maxTokens",
        }

    def _log(self, tokens: int, seconds: float, outcome: Outcome) -> None:
        row = Sampled(plugin=self.plugin, tokens=tokens, seconds=round(seconds, 4), outcome=outcome)
        self._tell(row)


def messages_of(params: Mapping[str, Any]) -> list[dict[str, str]]:
    """A request's messages as the model is asked. Raises: SamplingRefused: they are no texts."""
    given = params.get("messages")
    if not isinstance(given, list) or not 0 < len(given) <= MAX_MESSAGES:
        raise SamplingRefused(INVALID, f"messages must be a list of 1 to {MAX_MESSAGES}")
    found = list[dict[str, str]]()
    if isinstance(system := params.get("systemPrompt"), str):
        found.append({"role": "system", "content": system})
    for message in given:
        match message:
            case {"role": "user" | "assistant" as role, "content": content}:
                parts = content if isinstance(content, list) else [content]
                texts = [text_of(part) for part in parts]
                found.append({"role": role, "content": "\n".join(texts)})
            case _:
                raise SamplingRefused(
                    INVALID, "a message has a role, user or assistant, and content"
                )
    return found


def text_of(part: Any) -> str:
    """One part of a message. Raises: SamplingRefused: it is no text."""
    match part:
        case {"type": "text", "text": str(text)}:
            return text
    raise SamplingRefused(INVALID, "this host's model reads texts alone")
