"""OpenAI's API: /v1/models, /v1/chat/completions, /v1/completions; and what is said about those
that are not here.

Knows routes, also as clients spell them whose base address lacks /v1, or has it twice, or
ends with a stroke. Decoding stands in `requests.py`, shapes in `completions.py`, refusals in
`errors.py`.
Always: a client that goes away cancels its own request and nobody else's.
"""

from aiohttp import web

from . import completions, errors, requests
from .answering import IGNORED, Answering, PendingAnswer, collected
from .embeddings import Embeddings
from .openapi import OBJECT, TEXT, WHOLE, described, many, shaped
from .paths import spelled

NOT_HERE = (
    "audio/{rest:.*}",
    "images/{rest:.*}",
    "moderations",
    "batches{rest:(?:/.*)?}",
    "files{rest:(?:/.*)?}",
    "fine_tuning/{rest:.*}",
    "assistants{rest:(?:/.*)?}",
    "threads{rest:(?:/.*)?}",
)
INSTEAD = (
    "this node reads and writes text; it answers conversations at /v1/chat/completions and "
    "/v1/responses, goes on after texts at /v1/completions, embeds them at "
    "/v1/embeddings, scores them at /v1/rerank, lists /v1/models"
)


MODEL = shaped(id=TEXT, object=TEXT, created=WHOLE, owned_by=TEXT)
CHAT_COMPLETION = shaped(
    id=TEXT, object=TEXT, created=WHOLE, model=TEXT, choices=many(OBJECT), usage=OBJECT
)


class OpenAI:
    """The handlers."""

    def __init__(self, answering: Answering, embeddings: Embeddings, created: int) -> None:
        self.answering = answering
        self.embeddings = embeddings
        self.created = created  # Unix seconds

    def routes(self) -> list[web.RouteDef]:
        """What the application mounts."""
        return [
            web.get(spelled("models"), self.list_models),
            web.get(spelled("models/{model:.+?}"), self.show_model),
            web.post(spelled("chat/completions"), self.chat),
            web.post(spelled("completions"), self.complete),
            *(web.route("*", spelled(path), self.elsewhere) for path in NOT_HERE),
        ]

    async def elsewhere(self, request: web.Request) -> web.Response:
        """A route of OpenAI's that this node does not have. Its clients ask again after a 5xx,
        unless they are told not to.
        """
        error = errors.shape(
            f"{request.path[:80]} is not here: {INSTEAD}", "invalid_request_error", code="not_here"
        )
        headers = {"x-should-retry": "false"}
        return web.json_response({"error": error}, status=501, headers=headers)

    @described(shaped(object=TEXT, data=many(MODEL)))
    async def list_models(self, _request: web.Request) -> web.Response:
        """The model that answers where none is named, with each adapter, then all others on this
        disk.
        """
        return web.json_response(
            {"object": "list", "data": [self.model(name) for name in await self.names()]}
        )

    @described(MODEL)
    async def show_model(self, request: web.Request) -> web.Response:
        """One of them, or whatever else a request's `model` may say for it."""
        name = request.match_info["model"]
        if name not in await self.names():
            await self.answering.check(name)
        return web.json_response(self.model(name))

    async def names(self) -> list[str]:
        """Model names that are listed; ids alone, names and "base" work too."""
        own = await self.answering.names()
        return own + ([self.embeddings.name] if await self.embeddings.here() else [])

    def model(self, name: str) -> dict[str, object]:
        """OpenAI's model object."""
        found: dict[str, object] = {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "quietchoir",
        }
        if slower := self.answering.slower(name):
            found["slower"] = slower
        if name == self.embeddings.name:
            found["kind"] = "embedding"  # which no client need offer for talk
        return found

    @described(CHAT_COMPLETION, requests.CHAT, streams="text/event-stream")
    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Answer a conversation."""
        body = requests.chat(await request.read())
        async with self.answering.chat(body) as answer:
            return await self.send(request, body, "chat", answer)

    @described(CHAT_COMPLETION, requests.COMPLETION, streams="text/event-stream")
    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Go on after a text."""
        body = requests.completion(await request.read())
        async with self.answering.complete(body) as answer:
            return await self.send(request, body, "text", answer)

    async def send(
        self,
        request: web.Request,
        body: requests.Body,
        endpoint: completions.Endpoint,
        answer: PendingAnswer,
    ) -> web.StreamResponse:
        """Send an answer the way the client wants it; aiohttp cancels this task when the client
        goes away.
        """
        request[IGNORED] = body.ignored
        if body.stream:
            return await completions.stream(
                request, endpoint, answer, include_usage=body.include_usage
            )
        found = await collected(answer.choices)
        return web.json_response(completions.whole(completions.shapes_of(endpoint, answer), found))
