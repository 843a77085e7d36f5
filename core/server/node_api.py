"""The node's own routes, for its page and its owner's scripts.

Knows adapters, tools, open questions and the engine's counters. Nothing here changes what the node
may do to the outside, but the owner's own answers.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from ..assistant.adapters import AdapterSwitch
from ..assistant.approvals import REMEMBER, Approvals
from ..assistant.elicitation import ACTIONS, ElicitResult
from ..assistant.tools import Tools
from ..metrics import CONTENT_TYPE, NodeMetrics
from .errors import BadRequest, parse_json
from .openapi import FLAG, OBJECT, TEXT, described, many, path_of, shaped
from .schemas import Record, flag, mapping, only, text

ACTIVATE = Record({"name": text})
APPROVAL = Record({"approved": flag, "remember": flag}, ["approved"])
ELICITED = Record({"action": only(*ACTIONS), "content": mapping}, ["action"])


class Api:
    """The handlers under /api, and /health."""

    def __init__(
        self,
        adapters: AdapterSwitch,
        tools: Tools,
        approvals: Approvals,
        stats: Callable[[], Mapping[str, Any]],
        metrics: NodeMetrics,
        *,
        documents: bool = False,
    ) -> None:
        """`documents`: this node has collections and memory."""
        self.adapters = adapters
        self.tools = tools
        self.approvals = approvals
        self.stats = stats
        self.metrics = metrics
        self.documents = documents

    def routes(self) -> list[web.RouteDef]:
        """What the application mounts."""
        return [
            web.get("/health{end:/*}", self.health),
            web.get("/metrics{end:/*}", self.scrape),
            web.get("/api/status{end:/*}", self.status),
            web.get("/api/adapters{end:/*}", self.list_adapters),
            web.post("/api/adapters/activate{end:/*}", self.activate),
            web.get("/api/tools{end:/*}", self.list_tools),
            web.get("/api/approvals{end:/*}", self.list_approvals),
            web.post("/api/approvals/{id}{end:/*}", self.answer_approval),
            web.get("/api/elicitations{end:/*}", self.list_elicitations),
            web.post("/api/elicitations/{id}{end:/*}", self.answer_elicitation),
        ]

    @described(shaped(status=TEXT), open=True)
    async def health(self, _request: web.Request) -> web.Response:
        """Alive. Says nothing else: it needs no token."""
        return web.json_response({"status": "ok"})

    @described(shaped(model=TEXT, engine=OBJECT, documents=FLAG))
    async def status(self, _request: web.Request) -> web.Response:
        """Model, active adapter, the engine's counters."""
        stats = await asyncio.to_thread(self.stats)
        return web.json_response(
            {
                "model": self.adapters.model,
                "adapter": self.adapters.active,
                "engine": stats,
                "documents": self.documents,
            }
        )

    @described(TEXT, content="text/plain")
    async def scrape(self, _request: web.Request) -> web.Response:
        """Latencies and counters, as Prometheus reads them."""
        body = await asyncio.to_thread(self.metrics.exposition)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    @described(shaped(model=TEXT, adapters=many(OBJECT)))
    async def list_adapters(self, _request: web.Request) -> web.Response:
        """Adapters for this node's model, and the active one."""
        infos = [
            {"id": info.id, "description": info.description} for info in await self.adapters.infos()
        ]
        return web.json_response(
            {"model": self.adapters.model, "active": self.adapters.active, "adapters": infos}
        )

    @described(OBJECT, ACTIVATE)
    async def activate(self, request: web.Request) -> web.Response:
        """Switch the active adapter; a null name means the plain model."""
        raw = parse_json(await request.read())
        if "name" not in raw:
            raise BadRequest(
                'the body must be {"name": ADAPTER}, or {"name": null} for the plain model', "name"
            )
        await self.adapters.activate(ACTIVATE(raw, "").get("name"))
        return web.json_response({"active": self.adapters.active})

    @described(shaped(tools=many(OBJECT)))
    async def list_tools(self, _request: web.Request) -> web.Response:
        """Tools that the assistant may call now; `remember` where a conversation uses memory."""
        remembers = self.documents and self.approvals.rule(REMEMBER) != "never"
        infos = [
            {
                "name": info.name,
                "description": info.description,
                "schema": dict(info.schema),
                "plugin": info.plugin_id,
                "effect": info.effect,
                # each fact is shown before it is kept, whatever the rules allow
                "rule": "ask" if info is REMEMBER else self.approvals.rule(info),
            }
            for info in (*self.tools.tools(), *([REMEMBER] if remembers else ()))
        ]
        return web.json_response({"tools": infos})

    @described(shaped(approvals=many(OBJECT)))
    async def list_approvals(self, _request: web.Request) -> web.Response:
        """Calls that wait for the owner's word, whoever asked for them."""
        infos = [
            {
                "id": question.id,
                "question": question.text,
                "name": question.call.name,
                "arguments": dict(question.call.arguments),
                "effect": question.tool.effect,
                "conversation": question.conversation,
            }
            for question in self.approvals.pending()
        ]
        return web.json_response({"approvals": infos})

    @described(shaped(id=TEXT, approved=FLAG), APPROVAL)
    async def answer_approval(self, request: web.Request) -> web.Response:
        """The owner's word: yes or no, for this call or for its tool in the whole conversation."""
        found = APPROVAL(parse_json(await request.read()), "")
        id = request.match_info["id"]
        self.approvals.answer(id, found["approved"], remember=found.get("remember", False))
        return web.json_response({"id": id, "approved": found["approved"]})

    @described(shaped(elicitations=many(OBJECT)))
    async def list_elicitations(self, _request: web.Request) -> web.Response:
        """Forms of plugins that wait for the owner, whoever asked for the call."""
        infos = [
            {
                "id": waiting.id,
                "plugin": waiting.form.plugin,
                "message": waiting.form.message,
                "requested_schema": waiting.form.schema,
                "conversation": waiting.conversation,
            }
            for waiting in self.approvals.elicitations()
        ]
        return web.json_response({"elicitations": infos})

    @described(shaped(id=TEXT, action=TEXT), ELICITED)
    async def answer_elicitation(self, request: web.Request) -> web.Response:
        """The owner's word on a form: its values, a no, or neither; nothing of it is kept."""
        found = ELICITED(parse_json(await request.read()), "")
        id, action, content = request.match_info["id"], found["action"], found.get("content")
        if content is not None and action != "accept":
            raise BadRequest(f"content belongs to accept, and action is {action}", "content")
        try:
            self.approvals.respond(id, ElicitResult(action, content or {}))
        except ValueError as error:
            raise BadRequest(f"content: expected {error}", "content") from None
        return web.json_response({"id": id, "action": action})


def count_responses(metrics: NodeMetrics) -> Middleware:
    """Middleware that counts answers by the route as it is mounted: a path that a client made up is
    "none", so it makes no series.
    """

    @web.middleware
    async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
        status = "gone"  # the client, before there was an answer
        try:
            response = await handler(request)
            status = str(response.status)
            return response
        finally:
            resource = request.match_info.route.resource
            route = "none" if resource is None else path_of(resource)
            metrics.responses.labels(request.method, route, status).inc()

    return count
