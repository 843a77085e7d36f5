"""Fakes for the assistant and the server: an engine that says what it is told, tools that
remember their calls.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quietchoir.core.assistant.adapters import AdapterInfo
from quietchoir.core.assistant.tools import ToolInfo, ToolResult
from quietchoir.core.engine.request import FinishReason, Generation, GenerationRequest, TextDelta
from quietchoir.core.errors import EngineError, ModelNotFoundError
from quietchoir.core.toolcall import ToolCall


class WordTokenizer:
    """One token a word; what it was last asked to encode stays to be looked at."""

    def __init__(self) -> None:
        self.words: dict[str, int] = {}
        self.last_messages: list[Mapping[str, str]] = []

    def encode(self, text: str) -> list[int]:
        return [self.words.setdefault(word, len(self.words)) for word in text.split()]

    def encode_chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        self.last_messages = list(messages)
        return [
            token
            for message in messages
            for token in self.encode(f"<{message['role']}> {message['content']}")
        ]


@dataclass
class FakeEngine:
    """Plays scripts, one a request; a held engine gives one piece and waits for `release`, as a
    slow model would.
    """

    scripts: Iterator[Sequence[str]]
    held: bool = False
    finished: FinishReason = "stop"
    refuse: Exception | None = None
    requests: list[GenerationRequest] = field(default_factory=list)
    generations: list[Generation] = field(default_factory=list)
    rests: list[deque[str]] = field(default_factory=list)

    def submit(self, request: GenerationRequest) -> Generation:
        if self.refuse is not None:
            raise self.refuse
        self.requests.append(request)
        number = len(self.generations)
        generation = Generation(
            len(request.prompt), on_cancel=lambda: self.end(number, "cancelled")
        )
        self.generations.append(generation)
        self.rests.append(deque(next(self.scripts)))
        self.say(number)
        if not self.held:
            self.release(number)
        return generation

    def say(self, number: int) -> None:
        rest = self.rests[number]
        text = rest.popleft()
        error = EngineError("a kernel broke") if self.finished == "error" and not rest else None
        self.generations[number].deliver(TextDelta(text, 7, None if rest else self.finished), error)

    def release(self, number: int = 0) -> None:
        while self.rests[number] and self.generations[number].finish_reason is None:
            self.say(number)

    def end(self, number: int, reason: FinishReason) -> None:
        self.generations[number].deliver(TextDelta("", None, reason))


def engine_saying(
    *scripts: Sequence[str], held: bool = False, finished: FinishReason = "stop"
) -> FakeEngine:
    """An engine that plays `scripts`, the last one for ever."""
    return FakeEngine(itertools.chain(scripts[:-1], itertools.repeat(scripts[-1])), held, finished)


@dataclass
class FakeTools:
    """Tools of a household that does not exist."""

    answer: str = "Turned on the kitchen light."
    names: tuple[str, ...] = ("HassTurnOn",)
    fails: Exception | None = None
    hangs: bool = False
    calls: list[ToolCall] = field(default_factory=list)

    def tools(self) -> Sequence[ToolInfo]:
        return [
            ToolInfo(name, "acts in the house", {"type": "object"}, "quietchoir/household")
            for name in self.names
        ]

    async def call(self, call: ToolCall, deadline_s: float) -> ToolResult:
        self.calls.append(call)
        if self.hangs:
            await asyncio.Event().wait()
        if self.fails is not None:
            raise self.fails
        return ToolResult(self.answer)


@dataclass
class FakeShelf:
    held: dict[str, Any] = field(default_factory=dict)

    def load(self, name: str, adapter: Any) -> None:
        self.held[name] = adapter

    def names(self) -> Sequence[str]:
        return list(self.held)


@dataclass
class FakeStore:
    """Adapters by name; one of them may be broken."""

    ids: tuple[str, ...] = ("home-1",)
    chosen: str | None = None
    broken: frozenset[str] = frozenset()
    loads: list[str] = field(default_factory=list)
    called: dict[str, str] = field(default_factory=dict)

    def list(self) -> Sequence[AdapterInfo]:
        return [
            AdapterInfo(id, "trained together", name=self.called.get(id, "")) for id in self.ids
        ]

    def load(self, id: str) -> Any:
        self.loads.append(id)
        if id in self.broken:
            raise ModelNotFoundError(f"{id} was made for another model")
        return object()

    def active(self) -> str | None:
        return self.chosen

    def activate(self, id: str | None) -> None:
        self.chosen = id
