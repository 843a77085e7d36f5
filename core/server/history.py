"""The history's routes: what was said here, what its owner made of it, and what may train.

Knows the store and JSON. Knows no federation: the destinations that exist are told to it by name.
Always: nothing here trains; a refusal changes nothing that is kept.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aiohttp import web

from ..history.store import NEVER, HistoryStore
from ..toolcall import ToolCall
from .errors import BadRequest, parse_json
from .openapi import OBJECT, TEXT, WHOLE, described, many, shaped
from .schemas import Record, mapping, named, number, only, text

CALL = Record({"name": named, "arguments": mapping}, ["name", "arguments"])
FEEDBACK = Record(
    {
        "conversation": named,
        "turn": number(int, 1, 1 << 20),  # of the answers, as the owner saw them
        "verdict": only("up", "down", "corrected"),
        "answer": text,
        "call": CALL,
    },
    ["conversation", "verdict"],
)
CONSENT = Record({"consent": text}, ["consent"])


class HistoryApi:
    """The handlers.

    Args:
        destinations: what may be trained here: "personal", "federation:ID", each with its name for
            people.
        forgotten: called when a conversation is forgotten: takes away what else holds it, and
            returns the adapters that are deleted since they learned from it.
    """

    def __init__(
        self,
        store: HistoryStore,
        destinations: Callable[[], Mapping[str, str]],
        forgotten: Callable[[str], Sequence[str]],
    ) -> None:
        self.store = store
        self.destinations = destinations
        self.forgotten = forgotten

    def routes(self) -> list[web.RouteDef]:
        """What the application mounts."""
        one = "/api/conversations/{id}{end:/*}"
        return [
            web.post("/api/feedback{end:/*}", self.feedback),
            web.get("/api/conversations{end:/*}", self.list),
            web.get(one, self.show),
            web.post(one, self.consent),
            web.delete(one, self.forget),
        ]

    @described(shaped(conversation=OBJECT), FEEDBACK)
    async def feedback(self, request: web.Request) -> web.Response:
        """A verdict on an answer; a good one, or its correction, becomes an example."""
        body = FEEDBACK(parse_json(await request.read()), "")
        given = [key for key in ("answer", "call") if key in body]
        if (body["verdict"] == "corrected") != (len(given) == 1):
            raise BadRequest(
                'give "answer" (a text) or "call" ({"name": …, "arguments": …}) with the verdict '
                '"corrected", one of them, and neither with another verdict',
                "verdict",
            )
        example = await asyncio.to_thread(self.judge, body)
        info = await asyncio.to_thread(self.store.conversation, body["conversation"])
        return web.json_response({"example": example, "conversation": dataclasses.asdict(info)})

    def judge(self, body: Mapping[str, Any]) -> str | None:
        """Write a verdict down; the id of the example that it made."""
        where, turn = body["conversation"], body.get("turn")
        if body["verdict"] == "down":
            self.store.reject(where, turn)
            return None
        if body["verdict"] == "up":
            return self.store.approve(where, turn)
        call = body.get("call")
        right = ToolCall(call["name"], call["arguments"]) if call else body["answer"]
        return self.store.correct(where, right, turn)

    @described(shaped(conversations=many(OBJECT), destinations=OBJECT))
    async def list(self, _request: web.Request) -> web.Response:
        """All conversations, without what was said."""
        kept = await asyncio.to_thread(self.store.conversations)
        return web.json_response(
            {
                "conversations": [dataclasses.asdict(info) for info in kept],
                "destinations": {NEVER: NEVER, **self.destinations()},
            }
        )

    @described(shaped(messages=many(OBJECT)))
    async def show(self, request: web.Request) -> web.Response:
        """One conversation, with what was said."""
        name = request.match_info["id"]
        said = await asyncio.to_thread(self.store.messages, name)
        info = await asyncio.to_thread(self.store.conversation, name)
        messages = [
            {"role": one.role, "content": one.content}
            | ({"calls": [
                {"name": call.name, "arguments": dict(call.arguments)} for call in one.calls
            ]} if one.calls else {})
            for one in said
        ]  # fmt: skip
        return web.json_response(dataclasses.asdict(info) | {"messages": messages})

    @described(OBJECT, CONSENT)
    async def consent(self, request: web.Request) -> web.Response:
        """Say what one conversation may train."""
        name = request.match_info["id"]
        wanted = CONSENT(parse_json(await request.read()), "")["consent"]
        known = {NEVER, *self.destinations()}
        if wanted not in known:
            raise BadRequest(
                f"consent is {wanted[:80]!r}, expected one of {', '.join(sorted(known))}", "consent"
            )
        await asyncio.to_thread(self.store.consent, "conversation", name, wanted)
        info = await asyncio.to_thread(self.store.conversation, name)
        return web.json_response(dataclasses.asdict(info))

    @described(shaped(forgotten=WHOLE, adapters=many(TEXT)))
    async def forget(self, request: web.Request) -> web.Response:
        """Delete one conversation, its examples, and what else of this node holds them."""
        return web.json_response(await asyncio.to_thread(self._forget, request.match_info["id"]))

    def _forget(self, name: str) -> Mapping[str, Any]:
        try:
            count = self.store.forget_conversation(name)
        finally:  # asked again, it does what was left
            adapters = list(self.forgotten(name))
        return {"forgotten": count, "adapters": adapters}


@described(shaped(conversations=many(OBJECT), destinations=OBJECT))
async def nothing_kept(_request: web.Request) -> web.Response:
    """Of a node that keeps no conversations: the page asks, and shows no buttons."""
    return web.json_response({"conversations": [], "destinations": {}})
