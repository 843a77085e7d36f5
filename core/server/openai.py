"""OpenAI's API: /v1/models, /v1/chat/completions, /v1/completions; and what is said about those
that are not here.

Knows routes, also as clients spell them whose base address lacks /v1, or has it twice, or
ends with a stroke. Decoding stands in `requests.py`, shapes in `events.py`, refusals in
`refusals.py`.
Always: a client that goes away cancels its own request and nobody else's.
"""

import dataclasses
from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiohttp import web

from ..assistant.adapters import AdapterSwitch
from ..assistant.assistant import Assistant
from ..assistant.events import ChatRequest, Event
from ..config import SamplingConfig
from ..history.recorder import recorded
from ..history.store import HistoryStore
from . import errors as refusals
from . import requests
from . import responses as events
from .embeddings import Embeddings
from .paths import spelled

NOT_HERE = (
    "responses{rest:(?:/.*)?}",
    "audio/{rest:.*}",
    "images/{rest:.*}",
    "moderations",
    "batches{rest:(?:/.*)?}",
    "files{rest:(?:/.*)?}",
    "fine_tuning/{rest:.*}",
    "assistants{rest:(?:/.*)?}",
    "threads{rest:(?:/.*)?}",
    "rerank",
)
INSTEAD = (
    "this node answers conversations at /v1/chat/completions, goes on after texts at "
    "/v1/completions, lists /v1/models"
)


class OpenAI:
    """The handlers, around one assistant."""

    def __init__(
        self,
        assistant: Assistant,
        adapters: AdapterSwitch,
        embeddings: Embeddings,
        created: int,
        sampling: SamplingConfig,
        history: HistoryStore | None = None,
    ) -> None:
        self.assistant = assistant
        self.sampling = sampling  # how talk is drawn where clients leave it open
        self.adapters = adapters
        self.embeddings = embeddings
        self.created = created  # Unix seconds
        self.history = history  # keeps conversations that their client names

    def routes(self) -> list[web.RouteDef]:
        """What the application mounts."""
        return [
            web.get(spelled("models"), self.list_models),
            web.get(spelled("models/{model}"), self.show_model),
            web.post(spelled("chat/completions"), self.chat),
            web.post(spelled("completions"), self.complete),
            *(web.route("*", spelled(path), self.elsewhere) for path in NOT_HERE),
        ]

    async def elsewhere(self, request: web.Request) -> web.Response:
        """A route of OpenAI's that this node does not have; 404, since clients ask a 501 again."""
        error = refusals.shape(
            f"{request.path[:80]} is not here: {INSTEAD}", "invalid_request_error", code="not_here"
        )
        return web.json_response({"error": error}, status=404)

    async def list_models(self, _request: web.Request) -> web.Response:
        """The plain model, then it with each adapter."""
        return web.json_response(
            {"object": "list", "data": [self.model(name) for name in await self.names()]}
        )

    async def show_model(self, request: web.Request) -> web.Response:
        """One of them, or whatever else a request's `model` may say for it."""
        name = request.match_info["model"]
        if name not in await self.names():
            await self.adapters.check(name)
        return web.json_response(self.model(name))

    async def names(self) -> list[str]:
        """Model names that are listed; ids alone, names and "base" work too."""
        model = self.adapters.model
        own = [model, *(f"{model}:{info.id}" for info in await self.adapters.infos())]
        return own + ([self.embeddings.name] if await self.embeddings.here() else [])

    def model(self, name: str) -> dict[str, object]:
        """OpenAI's model object."""
        return {"id": name, "object": "model", "created": self.created, "owned_by": "quietchoir"}

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Answer a conversation."""
        body = requests.chat(await request.read(), self.sampling)
        asked = [message.content for message in body.ask.messages if message.role == "user"]
        ask = dataclasses.replace(body.ask, adapter=await self.adapters.choose(body.model, asked))
        answer = self.assistant.reply(ask)
        if self.history is not None and ask.conversation:
            answer = recorded(self.history, ask, body.source, answer)
        return await self.send(request, body, answer, self.shapes("chat", ask))

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Go on after a text."""
        body = requests.completion(await request.read(), self.sampling)
        ask = dataclasses.replace(body.ask, adapter=await self.adapters.resolve(body.model))
        return await self.send(
            request, body, self.assistant.complete(body.prompt, ask), self.shapes("text", ask)
        )

    def shapes(self, endpoint: events.Endpoint, ask: ChatRequest) -> events.Shapes:
        """A new answer's identity, under the model that really answers."""
        model = f"{self.adapters.model}:{ask.adapter}" if ask.adapter else self.adapters.model
        return events.Shapes(endpoint, model, tells=ask.sampling_params.logprobs is not None)

    async def send(
        self,
        request: web.Request,
        body: requests.Body,
        answer: AsyncGenerator[Event, None],
        shapes: events.Shapes,
    ) -> web.StreamResponse:
        """Send an answer the way the client wants it; aiohttp cancels this task when the client
        goes away.
        """
        async with aclosing(answer):
            if body.stream:
                return await events.stream(
                    request, shapes, answer, include_usage=body.include_usage
                )
            return web.json_response(await shapes.whole(answer))
