"""POST /v1/rerank as Jina's, Cohere's and Text Embeddings Inference's clients send it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quietchoir.core.engine.reranker import TokenPair, probability
from quietchoir.core.server.embeddings import Source
from quietchoir.tests.fakes.http import Served
from quietchoir.tests.fakes.server import engine_saying


class SharedWords:
    """Scores a text by the words that it shares with the question."""

    def pairs(self, query: str, texts: Sequence[str]) -> list[TokenPair]:
        asked = set(query.split())
        return [TokenPair(tuple(int(word in asked) for word in text.split()), 0) for text in texts]

    def logits(self, pairs: Sequence[TokenPair]) -> npt.NDArray[np.float32]:
        return np.array([sum(pair.tokens) - 1 for pair in pairs], np.float32)


TEXTS = ["rain falls", "the cat sat", "a cat"]
SCORES = probability(np.array([-1, 1, 0], np.float32)).tolist()
BEST_FIRST = [(1, SCORES[1]), (2, SCORES[2]), (0, SCORES[0])]


def served(**more: Any) -> Served:
    source = Source("words", lambda: Path("words"), lambda _: SharedWords())
    return Served(engine_saying(["x"]), **{"reranker": source} | more)


async def test_each_kind_of_client_gets_its_shape() -> None:
    async with served().running() as node:
        asked: dict[str, Any] = {"query": "the cat", "documents": TEXTS, "model": "words"}
        _, jina = await node.post(
            "/v1/rerank", asked | {"top_n": 2, "return_documents": True, "user": "me"}
        )
        assert jina["results"] == [
            {"index": place, "relevance_score": score, "document": {"text": TEXTS[place]}}
            for place, score in BEST_FIRST[:2]
        ]
        assert (jina["model"], jina["usage"]["total_tokens"]) == ("words", 7)
        _, cohere = await node.post(
            "/v2/rerank", {"query": "the cat", "documents": [{"text": one} for one in TEXTS]}
        )
        assert [(one["index"], one["relevance_score"]) for one in cohere["results"]] == BEST_FIRST
        assert all("document" not in one for one in cohere["results"])
        _, tei = await node.post(
            "/rerank", {"query": "the cat", "texts": TEXTS, "return_text": True, "truncate": True}
        )
        assert tei == [
            {"index": place, "score": score, "text": TEXTS[place]} for place, score in BEST_FIRST
        ]
        _, raw = await node.post(
            "/v1/rerank", {"query": "the cat", "texts": TEXTS, "raw_scores": True}
        )
        assert [one["score"] for one in raw] == [1.0, 0.0, -1.0]


async def test_what_cannot_be_is_refused_with_its_place() -> None:
    good: dict[str, Any] = {"query": "the cat", "documents": TEXTS}
    async with served().running() as node:
        for change, place in (
            ({"query": ""}, "query"),
            ({"documents": []}, "documents"),
            ({"documents": ["a", 3]}, "documents[1]"),
            ({"documents": [{"text": "a", "title": "b"}]}, "documents[0].title"),
            ({"documents": None}, "documents"),
            ({"texts": ["a"]}, "documents"),
            ({"top_n": 0}, "top_n"),
            ({"raw_scores": True}, "raw_scores"),
            ({"truncate": False}, "truncate"),
            ({"rank_fields": ["text"]}, "rank_fields"),
        ):
            status, answer = await node.post("/v1/rerank", good | change)
            assert (status, answer["error"]["param"]) == (400, place), change
        assert (await node.post("/v1/rerank", good | {"model": "other"}))[0] == 404
    async with served(reranker=None).running() as node:
        status, answer = await node.post("/v1/rerank", good)
        assert status == 404 and "--reranker" in answer["error"]["message"]
