"""POST /v1/rerank: texts by how well they answer a question, where a reranker is on this disk.

Knows the bodies and answers of Jina's and Cohere's clients ("documents") and of Text Embeddings
Inference's ("texts"). Knows nothing of models: it is given one when it is first needed, or a
sentence why not.
Always: what a field would change is done, named as ignored, or refused; a text that is too long is
cut at its end, as all of those servers do.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from aiohttp import web

from ..engine.reranker import TokenPair, probability
from .answering import IGNORED
from .embeddings import OnDemand, Source
from .errors import BadRequest, parse_json
from .openapi import OBJECT, TEXT, described, many, shaped
from .paths import spelled
from .schemas import Record, either, flag, listed, named, number, only, text

MOST_TEXTS = 1000  # as Cohere's
DOCUMENT = either(text, Record({"text": text}, ["text"]))
BODY = Record(
    {
        "query": named,
        "model": text,
        "documents": listed(DOCUMENT, least=1, most=MOST_TEXTS),
        "top_n": number(int, 1, 1 << 20),
        "return_documents": flag,
        "texts": listed(text, least=1, most=MOST_TEXTS),
        "raw_scores": flag,
        "return_text": flag,
        "truncate": only(True),
        "truncation_direction": only("right", "Right"),
    },
    ["query"],
    {
        "user": text,
        "max_tokens_per_doc": number(int, 1, 1 << 20),
        "max_chunks_per_doc": number(int, 1, 1 << 20),
        "priority": number(int, 0, 999),
    },
)
THEIRS = {  # fields of one kind of clients, beside the other's list
    "documents": ("texts", "raw_scores", "return_text"),
    "texts": ("documents", "top_n", "return_documents"),
}
ANSWER = {
    "anyOf": [
        shaped(results=many(OBJECT), model=TEXT, usage=OBJECT),
        many(shaped(index={"type": "integer"}, score={"type": "number"})),
    ]
}


class RerankModel(Protocol):
    """The part of a reranker that this file needs."""

    def pairs(self, query: str, texts: Sequence[str]) -> list[TokenPair]:
        """The question beside each text, as the model reads them."""
        ...

    def logits(self, pairs: Sequence[TokenPair]) -> npt.NDArray[np.float32]:
        """What the model says of each pair, [N]."""
        ...


class Rerank:
    """The handler, around a model that is read at the first question."""

    def __init__(self, source: Source[RerankModel] | None) -> None:
        self.model = OnDemand(
            source,
            "this node has no reranker; give one, a folder or a GGUF file, with --reranker or as "
            "embedding.reranker in config.toml",
        )

    def routes(self) -> list[web.RouteDef]:
        """What the application mounts."""
        return [web.post(spelled("rerank"), self.rerank), web.post("/v2/rerank", self.rerank)]

    @described(ANSWER, BODY)
    async def rerank(self, request: web.Request) -> web.Response:
        """Texts by how well they answer a question, the best first."""
        written = parse_json(await request.read())
        body = BODY(written, "")
        request[IGNORED] = tuple(BODY.ignored(written))
        given = "texts" if "texts" in body else "documents"
        if given not in body:
            raise BadRequest("documents is missing; it must be there, or texts", "documents")
        for key in THEIRS[given]:
            if key in body:
                raise BadRequest(f"{key} has no meaning beside {given}; leave it out", key)
        texts = [one if isinstance(one, str) else one["text"] for one in body[given]]
        model = await self.model.get(body.get("model"), "scores nothing")
        pairs = await asyncio.to_thread(model.pairs, body["query"], texts)
        logits = await asyncio.to_thread(model.logits, pairs)
        order = np.argsort(-logits, kind="stable")
        scores = logits if body.get("raw_scores") else probability(logits)
        if given == "texts":
            shown = body.get("return_text", False)
            return web.json_response(
                [
                    {"index": place, "score": float(scores[place])}
                    | ({"text": texts[place]} if shown else {})
                    for place in order.tolist()
                ]
            )
        tokens = sum(len(pair.tokens) for pair in pairs)
        found = {
            "object": "list",
            "model": self.model.name,
            "results": results(body, texts, scores, order.tolist()),
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        return web.json_response(found)


def results(
    body: dict[str, Any],
    texts: Sequence[str],
    scores: npt.NDArray[np.float32],
    order: Sequence[int],
) -> list[dict[str, Any]]:
    """An entry a document, the best first, so many as were asked for."""
    shown = body.get("return_documents", False)
    return [
        {"index": place, "relevance_score": float(scores[place])}
        | ({"document": {"text": texts[place]}} if shown else {})
        for place in order[: body.get("top_n", len(order))]
    ]
