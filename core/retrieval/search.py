"""Questions to passages: by words, by meaning, and both fused.

Knows ranks. Knows nothing of files, formats or encoders: it is given a store and an embedder.
Always: a question is never read as a query language; vectors are compared only with vectors of the
same model; a collection without vectors is searched by words.

Not covered: words of scripts that put no spaces between them (Chinese, Japanese, Thai); their
passages are found by meaning alone, by an embedding model that knows them (`[embedding] model`).
Source: Robertson, Zaragoza, "The probabilistic relevance framework: BM25 and beyond", 2009 (as FTS5
computes it); Cormack, Clarke, Büttcher, "Reciprocal rank fusion", SIGIR 2009; Jégou, Chum,
"Negative evidences and co-occurences in image retrieval: the benefit of PCA and whitening", ECCV
2012 (short vectors first, whole ones for those that are near).
"""

import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from .indexing import Embedder
from .store import CollectionStore, RetrievedPassage

Vectors = npt.NDArray[np.float32]
Way = Literal["hybrid", "words", "meaning"]
DEPTH = 100  # ranks of either list that are fused
# What a rank is worth is 1 / (FUSION + rank), times its list's share. Cormack's 60 and equal shares
# lost to meaning alone; these were chosen on Python's questions, and hold on Debian's
# (simulations/LOG.md, 2026-11-30).
FUSION = 10
SHARES = {"words": 0.3, "meaning": 0.7}
# Of many vectors, those axes along which they differ most tell which few are worth comparing whole.
SKETCHED = 8192  # vectors; fewer are compared whole at once
SKETCH = 128  # axes
CANDIDATES = 30 * DEPTH  # that are compared whole
SAMPLE = 4096  # vectors that the axes are found from
MOST_WORDS = 24  # of a question that are looked up
MOST_MATCHES = 4096  # words of which it is remembered how many chunks hold them
# Of all chunks. Beside meaning, words that are in more than so many add nothing but time; alone,
# leaving them out would cost a tenth of the recall (simulations/LOG.md, 2026-11-30).
COMMON = 0.2
# Of English, in nearly every passage: they say nothing of what is asked, and cost the most.
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a about after all also am an and any are as at be because been before being but by can "
        "could did do does doing for from get had has have having how i if in into is it its just "
        "me my no not of on or our out should so some such than that the their them then there "
        "these they this to up was way we were what when where which while who whose why will "
        "with would you your",
    )
)


@dataclass(frozen=True, slots=True, eq=False)
class VectorIndex:
    """The vectors of one state of a collection's file."""

    ids: npt.NDArray[np.int64]  # of chunks, [N]
    vectors: Vectors  # [N, D], of length one
    sketch: tuple[Vectors, Vectors] | None  # [N, SKETCH], and the axes [D, SKETCH]
    matches: dict[str, int] = field(default_factory=dict)  # chunks that hold a word, once asked for

    def nearest(self, query: Vectors) -> list[int]:
        """At most DEPTH chunks by the cosine of their vectors with `query` [D], the best first."""
        places, vectors = np.arange(len(self.ids)), self.vectors
        if self.sketch is not None:
            short, axes = self.sketch
            places = best(short @ (query @ axes), CANDIDATES)
            vectors = vectors[places]
        scores = vectors @ query
        found = best(scores, DEPTH)
        return [
            int(id) for id in self.ids[places[found[np.argsort(-scores[found], kind="stable")]]]
        ]


class Search:
    """One collection, searched. Vectors are read once and kept while nobody changes the file.

    Hazard: vectors of a locked collection lie in clear in this process's memory.
    """

    def __init__(self, store: CollectionStore) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._seen: tuple[int, int] | None = None
        self._index = VectorIndex(np.empty(0, np.int64), np.empty((0, 0), np.float32), None)

    def find(
        self, question: str, most: int = 8, embedder: Embedder | None = None, way: Way = "hybrid"
    ) -> list[RetrievedPassage]:
        """At most `most` passages, the best first.

        Raises:
            RetrievalError: the collection is damaged.
        """
        lists: list[tuple[float, Sequence[int]]] = []
        if way != "words" and embedder is not None and self.comparable(embedder):
            lists.append((SHARES["meaning"], self.by_meaning(question, embedder)))
        if way != "meaning":
            lists.append((SHARES["words"], self.by_words(question, rare=bool(lists))))
        return self.store.passages(fused(lists)[:most])

    def comparable(self, embedder: Embedder) -> bool:
        """Are the vectors here of this model?"""
        return self.store.embedded_by() == embedder.identity

    def by_words(self, question: str, *, rare: bool = False) -> list[int]:
        """Chunks by BM25, the best first.

        Args:
            rare: leave out words of more than COMMON of all chunks, if rarer ones are found.
        """
        words = telling_words(question)
        if rare and len(words) > 1:
            index = self.read()
            most = COMMON * len(index.ids)  # of those that have a vector
            rarer = [word for word in words if 0 < self.matches(word, index) <= most]
            words = rarer or words
        return self.store.by_words(" OR ".join(words), DEPTH) if words else []

    def by_meaning(self, question: str, embedder: Embedder) -> list[int]:
        """Chunks by the cosine of their vectors with the question's, the best first."""
        index = self.read()
        return index.nearest(embedder.embed([question], "query")[0]) if len(index.ids) else []

    def matches(self, word: str, index: VectorIndex) -> int:
        """How many chunks hold a word."""
        if (found := index.matches.get(word)) is None:
            if len(index.matches) >= MOST_MATCHES:
                index.matches.clear()
            found = index.matches[word] = self.store.matches(word)
        return found

    def read(self) -> VectorIndex:
        """The vectors as the file has them now."""
        with self._lock:
            version = self.store.database.version()
            if version != self._seen:
                ids, vectors = self.store.vectors()
                sketch = sketched(vectors) if len(ids) >= SKETCHED else None
                self._index, self._seen = VectorIndex(ids, vectors, sketch), version
            return self._index


def best(scores: Vectors, count: int) -> npt.NDArray[np.int64]:
    """Places of the `count` highest scores [N], or of all, in no order."""
    if count >= len(scores):
        return np.arange(len(scores))
    return np.argpartition(-scores, count - 1)[:count]


def sketched(vectors: Vectors) -> tuple[Vectors, Vectors]:
    """Vectors [N, D] along the axes of most of their sum of squares: [N, SKETCH] and the axes."""
    sample = vectors[:: max(1, len(vectors) // SAMPLE)]
    axes = np.linalg.eigh(sample.T @ sample)[1][:, -SKETCH:]
    return vectors @ axes, axes


def telling_words(question: str) -> list[str]:
    """The question's words, each quoted for FTS5; stop words only where it has no others."""
    words = dict.fromkeys(re.findall(r"\w+", question.lower()))
    telling = [word for word in words if word not in STOP_WORDS] or list(words)
    return [f'"{word}"' for word in telling[:MOST_WORDS]]


def fused(lists: Iterable[tuple[float, Sequence[int]]]) -> list[int]:
    """Ids by the sum of what their ranks are worth, the best first; each list has its share."""
    worth: dict[int, float] = {}
    for share, ranked in lists:
        for rank, id in enumerate(ranked, 1):
            worth[id] = worth.get(id, 0.0) + share / (FUSION + rank)
    return sorted(worth, key=lambda id: (-worth[id], id))
