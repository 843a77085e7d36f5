"""A request that was read, answered: by which model and adapter, how many times, and whether it is
kept.

Knows the one value that every protocol's body becomes (`requests.Body`) and the assistant's events.
Knows nothing of any protocol's shapes.
Always: leaving an answer cancels its own generations and nobody else's; of several answers to one
question none acts.
"""

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from ..assistant.adapters import AdapterSwitch
from ..assistant.citations import Cited
from ..assistant.context import LeftOut
from ..assistant.events import (
    ApprovalEvent,
    ApprovedEvent,
    ChatRequest,
    ElicitationEvent,
    ElicitedEvent,
    Event,
    Finished,
    Text,
    ToolCallEvent,
    ToolResultEvent,
)
from ..assistant.model_pool import LoadedModel, ModelPool, ModelProfile
from ..assistant.thoughts import unmarked
from ..engine.sampling.logprobs import TokenLogprobs
from ..errors import ModelNotFoundError
from ..history.recorder import recorded
from ..history.store import HistoryStore
from ..models.hub.elsewhere import plain_name
from .requests import Body

IGNORED = web.RequestKey("ignored", tuple[str, ...])  # fields that change nothing here
IGNORED_HEADER = "X-Quietchoir-Ignored"
Choices = Sequence[AsyncGenerator[Event, None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingAnswer:
    """What answers one request."""

    model: str  # under the name of what really answers
    choices: Choices  # one, or as many as were asked for
    tells: bool  # logprobs stand beside the text
    loading_s: float = 0.0  # that it waited for its model


class Answering:
    """Every protocol's way to the assistant."""

    def __init__(self, pool: ModelPool, history: HistoryStore | None = None) -> None:
        self.pool = pool
        self.history = history  # keeps conversations that their client names

    @asynccontextmanager
    async def chat(self, body: Body) -> AsyncIterator[PendingAnswer]:
        """Answer a conversation; its model stays loaded while the block runs.

        Raises:
            ModelNotFoundError: it names none that is here. ModelError: it cannot be loaded.
            OverloadedError: there is no room for it now.
        """
        body = by_plain_name(body)
        async with self._model(body) as (model, loading_s):
            asked = [message.content for message in body.ask.messages if message.role == "user"]
            adapter = await model.profile.adapters.choose(body.model, asked)
            ask = asked_of(model, body, adapter)
            passages = model.assistant.passages(ask)  # looked for once, however many answers
            choices = [model.assistant.reply(one, passages) for one in drafts(ask, body.n)]
            if self.history is not None and ask.conversation:
                choices = [recorded(self.history, ask, body.source, one) for one in choices]
            yield pending(model, ask, choices, loading_s)

    @asynccontextmanager
    async def complete(self, body: Body) -> AsyncIterator[PendingAnswer]:
        """Go on after a text. Raises: as `chat`."""
        body = by_plain_name(body)
        async with self._model(body) as (model, loading_s):
            ask = asked_of(model, body, await model.profile.adapters.resolve(body.model))
            several = drafts(ask, body.n)
            choices = [model.assistant.complete(body.prompt, one) for one in several]
            yield pending(model, ask, choices, loading_s)

    @asynccontextmanager
    async def _model(self, body: Body) -> AsyncIterator[tuple[LoadedModel, float]]:
        begun = time.monotonic()
        async with self.pool.use(body.model, body.keep_s) as model:
            yield model, time.monotonic() - begun

    @property
    def adapters(self) -> AdapterSwitch:
        """Those of the model that answers where none is named."""
        return self.pool.profiles[self.pool.default].adapters

    async def names(self) -> list[str]:
        """Names of whatever chats: the default model and its adapters, models that were loaded
        here and theirs, then all others on this disk.
        """
        found = list[str]()
        for name in dict.fromkeys((self.pool.default, *self.pool.profiles)):
            adapters = self.pool.profiles[name].adapters
            found += [name, *(f"{name}:{info.id}" for info in await adapters.infos())]
        return [*dict.fromkeys((*found, *await asyncio.to_thread(self.pool.installed)))]

    async def check(self, name: str) -> ModelProfile | None:
        """What is known of the model that `name` means, loading nothing; None: it is on this disk
        and was not loaded yet.

        Raises:
            ModelNotFoundError: nothing answers to it.
        """
        name = plain_name(name)
        model = await self.pool.model_of(name)
        profile = self.pool.profiles.get(model)
        if profile is not None:
            await profile.adapters.check(name)
        elif name != model:
            raise ModelNotFoundError(
                f"{name}: {model} is not loaded yet; ask for it without an adapter"
            )
        return profile

    def slower(self, name: str) -> str:
        """Why a model is slower than the compiled kernels would be; "": it is not, or who knows."""
        profiles = self.pool.profiles
        whole = profiles.get(name) or profiles.get(name.rpartition(":")[0])
        return whole.slower if whole else ""


def by_plain_name(body: Body) -> Body:
    """The same, its model as this node calls it: Ollama's may come with `:latest`."""
    return dataclasses.replace(body, model=None if body.model is None else plain_name(body.model))


def asked_of(model: LoadedModel, body: Body, adapter: str | None) -> ChatRequest:
    """What a body asks of the model that answers it."""
    talk = body.talk.over(model.profile.sampling)
    return dataclasses.replace(body.ask, talk=talk, adapter=adapter)


def pending(
    model: LoadedModel, ask: ChatRequest, choices: Choices, loading_s: float
) -> PendingAnswer:
    """An answer that is about to begin."""
    return PendingAnswer(
        model=f"{model.name}:{ask.adapter}" if ask.adapter else model.name,
        choices=choices,
        tells=ask.sampling_params.logprobs is not None,
        loading_s=loading_s,
    )


def drafts(ask: ChatRequest, count: int) -> Sequence[ChatRequest]:
    """The same question so many times. One answer may act; of several the client takes one, so the
    node's own tools are left out. A seed gives each draft its own.
    """
    if count == 1:
        return [ask]

    def draft(number: int) -> ChatRequest:
        params = [
            one and dataclasses.replace(one, seed=None if one.seed is None else one.seed + number)
            for one in (ask.sampling_params, ask.talk)
        ]
        return dataclasses.replace(
            ask,
            sampling_params=params[0] or ask.sampling_params,
            talk=params[1],
            use_tools=ask.use_tools and ask.caller_tools is not None,
        )

    return [draft(number) for number in range(count)]


@asynccontextmanager
async def merged(choices: Choices) -> AsyncIterator[AsyncIterator[tuple[int, Event]]]:
    """The events of several answers as they come, each with its answer's number; leaving the block
    ends all of them.

    Raises:
        QuietchoirError: what one of them raises, from the iterator.
    """
    ready: asyncio.Queue[tuple[int, Event | Exception | None]] = asyncio.Queue(1)

    async def read(number: int, choice: AsyncGenerator[Event, None]) -> None:
        try:
            async for event in choice:
                await ready.put((number, event))
            await ready.put((number, None))
        except Exception as error:  # raised again where it is read
            await ready.put((number, error))

    async def alone() -> AsyncIterator[tuple[int, Event]]:
        async for event in choices[0]:
            yield 0, event

    async def together() -> AsyncIterator[tuple[int, Event]]:
        left = len(choices)
        while left:
            number, event = await ready.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                left -= 1
            else:
                yield number, event

    if len(choices) == 1:
        async with aclosing(choices[0]):
            yield alone()
        return
    reading = [asyncio.create_task(read(*one)) for one in enumerate(choices)]
    try:
        yield together()
    finally:
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        for choice in choices:
            await choice.aclose()


@dataclass(slots=True)
class Collected:
    """All that one answer said, once it ended."""

    text: str = ""
    thought: str = ""  # before it
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    calls: list[ToolCallEvent] = field(default_factory=list)
    results: list[ToolResultEvent] = field(default_factory=list)
    approvals: dict[str, tuple[ApprovalEvent, ApprovedEvent | None]] = field(default_factory=dict)
    elicitations: dict[str, tuple[ElicitationEvent, ElicitedEvent | None]] = field(
        default_factory=dict
    )
    cited: Cited | None = None
    left_out: LeftOut | None = None
    end: Finished | None = None

    def add(self, event: Event) -> None:
        """One more event; those that are of interest only while it runs are skipped."""
        match event:
            case Text():
                if event.thought:
                    self.thought += unmarked(event)
                else:
                    self.text += event.text
                self.logprobs += event.logprobs
            case ToolCallEvent():
                self.calls.append(event)
            case ToolResultEvent():
                self.results.append(event)
            case ApprovalEvent():
                self.approvals[event.id] = event, None
            case ApprovedEvent():
                self.approvals[event.id] = self.approvals[event.id][0], event
            case ElicitationEvent():
                self.elicitations[event.id] = event, None
            case ElicitedEvent():
                self.elicitations[event.id] = self.elicitations[event.id][0], event
            case Cited():
                self.cited = event
            case LeftOut():
                self.left_out = event
            case Finished():
                self.end = event

    @property
    def finished(self) -> Finished:
        """Its end."""
        if self.end is None:
            raise RuntimeError("an answer without an end")  # our bug
        return self.end


async def collected(choices: Choices) -> Sequence[Collected]:
    """Answers, whole. Raises: QuietchoirError: one of them broke."""
    found = [Collected() for _ in choices]
    async with merged(choices) as events:
        async for number, event in events:
            found[number].add(event)
    return found


async def name_ignored(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """A signal on every response: fields of its request that change nothing here, by name."""
    if isinstance(request, web.Request) and (names := request.get(IGNORED)):
        # a name is a key of a schema of ours, so it is a header's text
        response.headers[IGNORED_HEADER] = ", ".join(names)
