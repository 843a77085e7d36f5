"""Collections and memory over HTTP, for the node's page and its owner's scripts.

Knows bodies and shapes. Knows nothing of files, formats or ranks.
Always: a passage opens only through the collection that it is in; a proposed fact is kept by its
owner's own request alone; what can be deleted here is deleted from what the node saved, too.
"""

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from aiohttp import web

from ..errors import AuthenticationError, ConfigError, RetrievalError
from ..retrieval.collections import Collections
from ..retrieval.indexing import Parser
from ..retrieval.memory import Fact, FactStore
from ..retrieval.store import RetrievedPassage
from .errors import BadRequest, parse_json
from .openapi import OBJECT, TEXT, WHOLE, described, many, shaped
from .schemas import Record, flag, named, number, text

MOST_FOUND = 50
CREATE = Record({"name": named}, ["name"])
SEARCH = Record({"question": named, "most": number(int, 1, MOST_FOUND)}, ["question"])
FORGET = Record({"path": named}, ["path"])
PROPOSE = Record(
    {
        "text": named,
        "kept": flag,
        "conversation": text,
        "turn": number(int, 0, 1 << 31),
        "said": text,
    },
    ["text"],
)
KEEP = Record({"text": named})


@dataclass(frozen=True, slots=True)
class OwnersDocuments:
    """What this file stands on."""

    collections: Collections
    memory: Callable[[], FactStore]  # opened at its first use; raises RetrievalError
    parser: Callable[[], Parser]  # for code that waits; raises PluginError
    forget_saved: Callable[[], None]  # what the node saved of conversations
    forget_consent: Callable[[str], None]  # what was said of a collection that is to be removed


class DocumentsApi:
    """The handlers under /api/collections and /api/memory."""

    def __init__(self, own: OwnersDocuments) -> None:
        self.own = own

    def routes(self) -> list[web.RouteDef]:
        """What the application mounts."""
        one = "/api/collections/{name}"
        return [
            web.get("/api/collections{end:/*}", self.list_collections),
            web.post("/api/collections{end:/*}", self.create),
            web.delete(f"{one}{{end:/*}}", self.remove),
            web.get(f"{one}/documents{{end:/*}}", self.list_documents),
            web.put(f"{one}/documents/{{file}}", self.drop),
            web.post(f"{one}/forget{{end:/*}}", self.forget),
            web.post(f"{one}/search{{end:/*}}", self.search),
            web.get(f"{one}/passages/{{id:[0-9]{{1,15}}}}", self.passage),
            web.get("/api/memory{end:/*}", self.list_facts),
            web.post("/api/memory{end:/*}", self.propose),
            web.put("/api/memory/{id:[0-9]{1,15}}", self.keep),
            web.delete("/api/memory/{id:[0-9]{1,15}}", self.forget_fact),
        ]

    @described(shaped(collections=many(OBJECT)))
    async def list_collections(self, _request: web.Request) -> web.Response:
        """Names, and how much is in each; of one that does not open, why."""
        return web.json_response({"collections": await asyncio.to_thread(self._listed)})

    def _listed(self) -> list[dict[str, Any]]:
        found = []
        for name in self.own.collections.names():
            try:
                store = self.own.collections.store(name)
            except (AuthenticationError, ConfigError, RetrievalError) as error:
                found.append({"name": name, "locked": True, "problem": str(error)})
                continue
            chunks, vectors = store.count()
            found.append(
                {
                    "name": name,
                    "documents": len(store.documents()),
                    "passages": chunks,
                    "by_meaning": vectors,
                    "locked": store.locked,
                }
            )
        return found

    @described(shaped(name=TEXT), CREATE)
    async def create(self, request: web.Request) -> web.Response:
        """Make an empty collection. One that is locked is made in a terminal, where its
        passphrase is asked for.
        """
        body = CREATE(parse_json(await request.read()), "")
        with_name = self.own.collections.create
        await asked("name", with_name, body["name"])
        return web.json_response({"name": body["name"]})

    @described(shaped(removed=TEXT))
    async def remove(self, request: web.Request) -> web.Response:
        """Delete a collection."""
        await asyncio.to_thread(self.own.forget_consent, request.match_info["name"])
        await asyncio.to_thread(self.own.collections.remove, request.match_info["name"])
        await asyncio.to_thread(self.own.forget_saved)
        return web.json_response({"removed": request.match_info["name"]})

    @described(shaped(documents=many(OBJECT)))
    async def list_documents(self, request: web.Request) -> web.Response:
        """The documents of a collection, and why one is not found."""
        store = await asyncio.to_thread(self.own.collections.store, request.match_info["name"])
        documents = await asyncio.to_thread(store.documents)
        return web.json_response(
            {
                "sources": await asyncio.to_thread(store.sources),
                "documents": [
                    {"path": one.path, "passages": one.chunks, "problem": one.problem}
                    for one in documents.values()
                ],
            }
        )

    @described(shaped(file=TEXT, passages=WHOLE), reads_bytes=True)
    async def drop(self, request: web.Request) -> web.Response:
        """Take a document, its bytes as the body; no copy of them is kept."""
        name, file = request.match_info["name"], request.match_info["file"]
        data = await request.read()
        kept, count = await asyncio.to_thread(
            lambda: self.own.collections.drop(name, file, data, self.own.parser())
        )
        return web.json_response({"file": kept, "passages": count})

    @described(shaped(forgotten=TEXT), FORGET)
    async def forget(self, request: web.Request) -> web.Response:
        """Delete a document that was dropped, or a file or folder that was added."""
        body = FORGET(parse_json(await request.read()), "")
        await asyncio.to_thread(
            self.own.collections.forget, request.match_info["name"], body["path"]
        )
        await asyncio.to_thread(self.own.forget_saved)
        return web.json_response({"forgotten": body["path"]})

    @described(shaped(passages=many(OBJECT)), SEARCH)
    async def search(self, request: web.Request) -> web.Response:
        """The passages that a question finds."""
        body = SEARCH(parse_json(await request.read()), "")
        found = await asyncio.to_thread(
            self.own.collections.find,
            [request.match_info["name"]],
            body["question"],
            body.get("most", 8),
        )
        return web.json_response({"passages": [told(name, passage) for name, passage in found]})

    @described(shaped(around=many(OBJECT)))
    async def passage(self, request: web.Request) -> web.Response:
        """What a citation opens: the passage, and what stands around it."""
        name = request.match_info["name"]
        store = await asyncio.to_thread(self.own.collections.store, name)
        here, around = await asyncio.to_thread(store.passage, int(request.match_info["id"]))
        return web.json_response(told(name, here) | {"around": [told(name, one) for one in around]})

    @described(shaped(facts=many(OBJECT)))
    async def list_facts(self, _request: web.Request) -> web.Response:
        """What is remembered, and what waits for a yes."""
        facts = await asyncio.to_thread(lambda: self.own.memory().facts())
        return web.json_response({"facts": [fact_of(fact) for fact in facts]})

    @described(OBJECT, PROPOSE)
    async def propose(self, request: web.Request) -> web.Response:
        """A fact, to be kept later, or at once if its owner wrote it."""
        body = PROPOSE(parse_json(await request.read()), "")
        words = body.pop("text")
        fact = await asked("text", lambda: self.own.memory().propose(words, **body))
        return web.json_response(fact_of(fact))

    @described(OBJECT, KEEP)
    async def keep(self, request: web.Request) -> web.Response:
        """Say yes to a fact, perhaps in other words."""
        body = KEEP(parse_json(await request.read()), "")
        id = int(request.match_info["id"])
        fact = await asked("text", lambda: self.own.memory().keep(id, body.get("text")))
        if "text" in body:
            await asyncio.to_thread(self.own.forget_saved)
        return web.json_response(fact_of(fact))

    @described(shaped(forgotten=WHOLE))
    async def forget_fact(self, request: web.Request) -> web.Response:
        """Delete a fact."""
        id = int(request.match_info["id"])
        await asyncio.to_thread(lambda: self.own.memory().forget(id))
        await asyncio.to_thread(self.own.forget_saved)
        return web.json_response({"forgotten": id})


async def asked(parameter: str, work: Callable[..., Any], *arguments: Any) -> Any:
    """Work in a thread; what its owner can mend is a fault of `parameter`."""
    try:
        return await asyncio.to_thread(work, *arguments)
    except ConfigError as error:
        raise BadRequest(str(error), parameter) from error


def told(collection: str, passage: RetrievedPassage) -> dict[str, Any]:
    """A passage, as a citation and a search tell it."""
    return asdict(passage) | {"collection": collection, "place": passage.place}


def fact_of(fact: Fact) -> dict[str, Any]:
    """A fact, as JSON."""
    return asdict(fact)
