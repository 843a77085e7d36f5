"""The history's routes: what was said here, what its owner made of it, and what may train.

Knows the store and JSON. Knows no federation: the destinations that exist are told to it by name.
Always: nothing here trains; a refusal changes nothing that is kept.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from aiohttp import web

from ..assistant.context import Message
from ..history.store import NEVER, HistoryStore
from ..toolcall import ToolCall
from .errors import BadRequest, parse_json
from .openapi import OBJECT, TEXT, WHOLE, described, many, shaped
from .requests import MOST_COLLECTIONS, SAMPLING
from .schemas import Record, listed, mapping, named, number, only, text

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
# How a conversation is to be answered: kept for its client, which asks so.
SETTINGS = Record(
    {
        "system": text,
        "model": named,
        "collections": listed(named, most=MOST_COLLECTIONS),
        **{name: SAMPLING.fields[name] for name in ("temperature", "top_p", "max_tokens", "seed")},
    }
)
CHANGE = Record({"consent": text, "title": text, "settings": SETTINGS})
BRANCH = Record({"turn": number(int, 1, 1 << 20)}, ["turn"])  # of the user's messages
SEARCH = Record({"words": text}, ["words"])


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
            web.post("/api/conversations{end:/*}", self.search),
            web.get(one, self.show),
            web.post(one, self.change),
            web.post("/api/conversations/{id}/branches{end:/*}", self.branch),
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

    @described(shaped(found=many(TEXT)), SEARCH)
    async def search(self, request: web.Request) -> web.Response:
        """Names of the conversations with all these words in them."""
        words = SEARCH(parse_json(await request.read()), "")["words"]
        return web.json_response({"found": await asyncio.to_thread(self.store.matching, words)})

    @described(shaped(messages=many(OBJECT), settings=OBJECT, variants=OBJECT))
    async def show(self, request: web.Request) -> web.Response:
        """One conversation, with what was said, and where its branches part."""
        return web.json_response(await asyncio.to_thread(self._whole, request.match_info["id"]))

    def _whole(self, name: str) -> Mapping[str, Any]:
        return dataclasses.asdict(self.store.conversation(name)) | {
            "messages": list(map(as_json, self.store.messages(name))),
            "settings": self.store.settings(name),
            "variants": self.store.variants(name),
        }

    @described(OBJECT, CHANGE)
    async def change(self, request: web.Request) -> web.Response:
        """Say what one conversation may train, how it is called, or how it is to be answered."""
        wanted = CHANGE(parse_json(await request.read()), "")
        if not wanted:
            raise BadRequest('say "consent", "title" or "settings", what is to change', "")
        info = await asyncio.to_thread(self._change, request.match_info["id"], wanted)
        return web.json_response(info)

    def _change(self, name: str, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        known = {NEVER, *self.destinations()}
        if (consent := wanted.get("consent")) is not None and consent not in known:
            raise BadRequest(
                f"consent is {consent[:80]!r}, expected one of {', '.join(sorted(known))}",
                "consent",
            )
        if "title" in wanted:  # first: it may be refused
            self.store.rename(name, wanted["title"])
        if consent is not None:
            self.store.consent("conversation", name, consent)
        if "settings" in wanted:
            self.store.put_settings(name, wanted["settings"])
        return dataclasses.asdict(self.store.conversation(name))

    @described(OBJECT, BRANCH)
    async def branch(self, request: web.Request) -> web.Response:
        """A further branch of a conversation, which ends before one of the user's messages."""
        turn = BRANCH(parse_json(await request.read()), "")["turn"]
        name = await asyncio.to_thread(self.store.branch, request.match_info["id"], turn)
        return web.json_response(await asyncio.to_thread(self._whole, name))

    @described(shaped(forgotten=WHOLE, adapters=many(TEXT)))
    async def forget(self, request: web.Request) -> web.Response:
        """Delete one conversation, its branches and examples, and what else of this node holds
        them.
        """
        return web.json_response(await asyncio.to_thread(self._forget, request.match_info["id"]))

    def _forget(self, name: str) -> Mapping[str, Any]:
        branches = [one for one in self.store.branches(name) if one != name]
        with ExitStack() as others:
            for one in branches:  # before they are gone, so that a second try still knows them
                others.callback(self.forgotten, one)
        try:
            count = self.store.forget_conversation(name)
        finally:  # asked again, it does what was left
            adapters = list(self.forgotten(name))
        return {"forgotten": count, "adapters": adapters}


def as_json(message: Message) -> Mapping[str, Any]:
    """A message as JSON's types."""
    calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in message.calls]
    said = {"role": message.role, "content": message.content}
    beside = {"calls": calls, "thought": message.thought}
    return said | {name: value for name, value in beside.items() if value}


@described(shaped(conversations=many(OBJECT), destinations=OBJECT))
async def nothing_kept(_request: web.Request) -> web.Response:
    """Of a node that keeps no conversations: the page asks, and shows no buttons."""
    return web.json_response({"conversations": [], "destinations": {}})
