"""OpenAI's API: /v1/models, /v1/chat/completions, /v1/completions.

Knows routes. Decoding stands in `requests.py`, shapes in `events.py`, refusals in `refusals.py`.
Always: a client that goes away cancels its own request and nobody else's.
"""

import dataclasses
from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiohttp import web

from ..assistant.adapters import AdapterSwitch
from ..assistant.assistant import Ask, Assistant, Event
from ..errors import ModelNotFoundError
from . import events, requests


class OpenAI:
    """The handlers, around one assistant."""

    def __init__(self, assistant: Assistant, adapters: AdapterSwitch, created: int) -> None:
        self.assistant = assistant
        self.adapters = adapters
        self.created = created  # Unix seconds

    def routes(self) -> list[web.RouteDef]:
        """What the application mounts."""
        return [
            web.get("/v1/models", self.list_models),
            web.get("/v1/models/{model}", self.show_model),
            web.post("/v1/chat/completions", self.chat),
            web.post("/v1/completions", self.complete),
        ]

    async def list_models(self, _request: web.Request) -> web.Response:
        """The plain model, then it with each adapter."""
        return web.json_response({"object": "list", "data": [self.model(name) for name in await self.names()]})

    async def show_model(self, request: web.Request) -> web.Response:
        """One of them."""
        name = request.match_info["model"]
        if name not in await self.names():
            raise ModelNotFoundError(f"{name} is not served here; GET /v1/models lists what is")
        return web.json_response(self.model(name))

    async def names(self) -> list[str]:
        """Model names that requests may use; ids alone and "base" work too."""
        model = self.adapters.model
        return [model, *(f"{model}:{info.id}" for info in await self.adapters.infos())]

    def model(self, name: str) -> dict[str, object]:
        """OpenAI's model object."""
        return {"id": name, "object": "model", "created": self.created, "owned_by": "quietchoir"}

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Answer a conversation."""
        body = requests.chat(await request.read())
        ask = dataclasses.replace(body.ask, adapter=await self.adapters.resolve(body.model))
        return await self.send(request, body, self.assistant.reply(ask), self.shapes("chat", ask))

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Go on after a text."""
        body = requests.completion(await request.read())
        ask = dataclasses.replace(body.ask, adapter=await self.adapters.resolve(body.model))
        return await self.send(request, body, self.assistant.complete(body.prompt, ask), self.shapes("text", ask))

    def shapes(self, endpoint: events.Endpoint, ask: Ask) -> events.Shapes:
        """A new answer's identity, under the model that really answers."""
        model = f"{self.adapters.model}:{ask.adapter}" if ask.adapter else self.adapters.model
        return events.Shapes(endpoint, model, tells=ask.logprobs is not None)

    async def send(
        self, request: web.Request, body: requests.Body, answer: AsyncGenerator[Event, None], shapes: events.Shapes
    ) -> web.StreamResponse:
        """Send an answer the way the client wants it; aiohttp cancels this task when the client goes away."""
        async with aclosing(answer):
            if body.stream:
                return await events.stream(request, shapes, answer, include_usage=body.include_usage)
            return web.json_response(await shapes.whole(answer))
