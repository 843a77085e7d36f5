"""Fakes for the assistant and the server: an engine that says what it is told, tools that
remember their calls.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from quietchoir.core.assistant.adapters import AdapterInfo
from quietchoir.core.assistant.elicitation import ElicitResult, Form
from quietchoir.core.assistant.tools import ALONE, CallContext, Effect, ToolInfo, ToolResult
from quietchoir.core.engine.request import FinishReason, Generation, GenerationRequest, TextDelta
from quietchoir.core.engine.sampling.logprobs import Logprob, TokenLogprobs
from quietchoir.core.errors import EngineError, ModelNotFoundError
from quietchoir.core.models.tokenizer.chat_template import ChatTemplate
from quietchoir.core.toolcall import ToolCall

START = 1  # stands before every text that a model goes on with
MARK, MARKED = 3, "\0mark"  # a control token, and what a script writes for it
PARAMETERS = {"type": "object", "properties": {"area": {}, "name": {}}}
PLAIN = "{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}"


class WordTokenizer:
    """One token a word; what it was last asked to encode stays to be looked at."""

    control_names = ("[TOOL_CALLS]",)

    def __init__(self, template: str = PLAIN) -> None:
        self.words: dict[str, int] = {}
        self.last_messages: list[Mapping[str, Any]] = []
        self.last_tools: Sequence[Mapping[str, Any]] | None = None
        self.template = ChatTemplate(template)

    def spell(self, token: int) -> bytes:
        return b"[TOOL_CALLS]" if token == MARK else b"word"

    def encode(self, text: str) -> list[int]:
        return [self.words.setdefault(word, len(self.words)) for word in text.split()]

    def encode_prompt(self, text: str) -> list[int]:
        return [START, *self.encode(text)]

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        self.last_messages, self.last_tools = list(messages), tools
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
    logprob: float | None = None  # of each token, below 0
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
        token = MARK if text == MARKED else 7
        text = "" if text == MARKED else text
        told = (
            None if self.logprob is None else TokenLogprobs(Logprob(token, b"", self.logprob), ())
        )
        self.generations[number].deliver(
            TextDelta(text, token, None if rest else self.finished, told), error
        )

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
    effect: Effect = "read"
    fails: Exception | None = None
    hangs: bool = False
    calls: list[ToolCall] = field(default_factory=list)
    forms: tuple[Form, ...] = ()  # that a call of it puts to the owner
    filled_in: list[ElicitResult] = field(default_factory=list)

    def tools(self) -> Sequence[ToolInfo]:
        return [
            ToolInfo(name, "acts in the house", PARAMETERS, "quietchoir/household", self.effect)
            for name in self.names
        ]

    async def call(
        self, call: ToolCall, deadline_s: float, context: CallContext = ALONE
    ) -> ToolResult:
        self.calls.append(call)
        for form in self.forms:
            assert context.elicit is not None
            with suppress(TimeoutError):
                self.filled_in.append(await context.elicit(form))
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
    routes: dict[str, Any] = field(default_factory=dict)

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

    def route(self, id: str, embedding: str) -> Any:
        return self.routes.get(id)

    def activate(self, id: str | None) -> None:
        self.chosen = id
