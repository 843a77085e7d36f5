"""What of a long conversation bears on a question: its passages, found by words and by meaning.

Knows texts, their sentences, SQLite's full-text index (BM25) and an embedding model, where there is
one. Knows nothing of messages, prompts or token budgets.
Always: the passages of a text put together are the text, letter by letter; the same passages and
question have the same order. Nothing is written to disk.

Source: Robertson and Zaragoza 2009 (BM25, as SQLite's FTS5 computes it); Cormack, Clarke and
Büttcher 2009 (reciprocal rank fusion).
"""

import hashlib
import re
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

PASSAGE_CHARACTERS = 120  # some 25 tokens of English: finer finds better, coarser reads better
LONGEST_SENTENCE = 480  # characters; a longer one is cut at a space, or anywhere where it has none
CONTEXT_CHARACTERS = 80  # of what stands before a passage: "He was born there" needs it
RANK_CONSTANT = 60  # of reciprocal rank fusion, as its authors chose it
SETTLED = 32  # passages at a time whose meaning is computed
MOST_VECTORS = 16_384  # kept in memory, the least recently used forgotten first
FEW = 8  # passages that may hold a word that tells something, however few there are in all
COMMON = 0.04  # of the passages; a word that more of them hold tells nothing, where others do
MOST_TERMS = 64  # of a question, that are looked up
SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])|\n+")
WORD = re.compile(r"\w+")
# Letters of scripts that put no spaces between words (Thai to Khmer, kana, Han): each counts as a
# word, or a whole sentence would be one.
UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    r"\U00020000-\U0003ffff]"
)
# Questions about all of a text, in the languages in which we could check them; one in other words
# is answered of what bears on it, as any question is.
OF_ALL = re.compile(
    r"\b(summar(y|i[sz]\w*|ies)|tl;?dr|recap\w*|overview|the gist|key points|take-?aways"
    r"|main (points|ideas|topics|findings)|what (is|was|are) (this|it|that|all this) about"
    r"|what (did|have) (we|i|you) (talk(ed)?|discuss(ed)?|sa(y|id)|decided?)"
    r"|zusammenfass\w*|fass\w*\b.{0,80}\bzusammen|überblick|worum geht|kernaussagen?"
    r"|wichtigsten punkte|worüber haben wir|was haben wir (besprochen|beschlossen)"
    r"|résume[rz]?|synthèse|resumen|resum(ir|e esto|e el)|riassum\w*|samenvat\w*)\b",
    re.IGNORECASE,
)
Vectors = npt.NDArray[np.float32]
T = TypeVar("T")


class TextEmbedder(Protocol):
    """The part of an embedding model that this file needs."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors, [N, D]."""
        ...


@dataclass(frozen=True, slots=True)
class TextPassage:
    """A stretch of a text."""

    text: str
    indexed: str  # what is searched: the text, and what it needs from before it


def split_passages(text: str, before: str = "") -> list[TextPassage]:
    """A text in passages of whole sentences.

    Args:
        before: what the text answers to; its end is searched with the first passage.
    """
    found: list[TextPassage] = []
    held = ""
    last = " ".join(before.split())[-CONTEXT_CHARACTERS:]

    def close() -> None:
        nonlocal held, last
        if held:
            words = " ".join(held.split())
            found.append(TextPassage(held, f"{last} {words}" if last else words))
            held, last = "", words[-CONTEXT_CHARACTERS:]

    for sentence in sentences(text):
        if held and len(held) + len(sentence) > PASSAGE_CHARACTERS:
            close()
        held += sentence
    close()
    return found


def sentences(text: str) -> Iterator[str]:
    """A text's sentences and lines, each with the white space behind it."""
    start = 0
    for end in [*(match.end() for match in SENTENCE_END.finditer(text)), len(text)]:
        while end - start > LONGEST_SENTENCE:
            cut = text.rfind(" ", start + LONGEST_SENTENCE // 2, start + LONGEST_SENTENCE) + 1
            cut = cut or start + LONGEST_SENTENCE
            yield text[start:cut]
            start = cut
        if end > start:
            yield text[start:end]
            start = end


def asks_of_all(question: str) -> bool:
    """Is it about a text or talk as a whole, so that no passage of it bears on it more than others
    do?
    """
    return OF_ALL.search(question) is not None


def evenly(found: Sequence[T], most: int | None = None) -> list[T]:
    """The same in an order whose every beginning is spread evenly (van der Corput's); with `most`,
    so many of them, in their own order.
    """
    bits = max(1, (len(found) - 1).bit_length())
    turned = (int(f"{place:0{bits}b}"[::-1], 2) for place in range(1 << bits))
    order = [place for place in turned if place < len(found)]
    if most is not None:
        return [found[place] for place in sorted(order[:most])]
    return [found[place] for place in order]


class PassageRanker:
    """Orders passages by how well they answer a question; every method may be called from any
    thread.

    What a passage means is computed when nobody waits (`settle`), since that takes longer than
    reading a prompt; until then its words speak for it.
    """

    def __init__(self, embedder: Callable[[], TextEmbedder | None] = lambda: None) -> None:
        """`embedder`: None where there is none, and words alone decide."""
        self._embedder = embedder
        self._vectors: OrderedDict[bytes, Vectors] = OrderedDict()
        self._pending: OrderedDict[bytes, str] = OrderedDict()
        self._lock = threading.Lock()

    def rank(self, questions: Sequence[str], passages: Sequence[str]) -> list[int]:
        """Places of `passages`, the best first.

        Args:
            questions: what is asked; the first is the question itself, others (what was said before
                it, what stands around it) only help.
        """
        score = np.zeros(len(passages))
        places, vectors = self._known(passages)
        unread = np.setdiff1d(np.arange(len(passages)), places)
        for question in questions:
            orders = [by_words(question, passages)]
            if len(places) and (embedder := self._embedder()) is not None:
                near = vectors @ embedder.embed([question])[0]
                orders.append(places[np.argsort(-near, kind="stable")])
            for order in orders:
                score[order] += 1 / (RANK_CONSTANT + 1 + np.arange(len(order)))
            # what nobody read yet is neither near nor far: it stands in the middle of the others
            score[unread] += (len(orders) - 1) / (RANK_CONSTANT + 1 + len(places) / 2)
        return [int(place) for place in np.argsort(-score, kind="stable")]

    def settle(self) -> bool:
        """Compute what some passages mean that were ranked by their words; False: none waits."""
        with self._lock:
            batch = dict(islice(self._pending.items(), SETTLED))
        if not batch:
            return False
        if (embedder := self._embedder()) is None:
            self._pending.clear()
            return False
        vectors = embedder.embed([*batch.values()])
        with self._lock:
            for name, vector in zip(batch, vectors, strict=True):
                self._vectors[name] = vector
                self._pending.pop(name, None)
            while len(self._vectors) > MOST_VECTORS:
                self._vectors.popitem(last=False)
        return True

    def _known(self, passages: Sequence[str]) -> tuple[npt.NDArray[np.int64], Vectors]:
        """Places of the passages whose vectors are known, [K], and those, [K, D]; the others wait
        for `settle`.
        """
        found: dict[int, Vectors] = {}
        with self._lock:
            for place, text in enumerate(passages):
                name = hashlib.sha256(text.encode("utf-8", "replace")).digest()
                if (vector := self._vectors.get(name)) is not None:
                    self._vectors.move_to_end(name)
                    found[place] = vector
                elif len(self._pending) < MOST_VECTORS:
                    self._pending[name] = text
        vectors = np.stack([*found.values()]) if found else np.empty((0, 0), np.float32)
        return np.array([*found], np.int64), vectors


def by_words(question: str, passages: Sequence[str]) -> npt.NDArray[np.int64]:
    """Places of the passages that share a word with `question`, by BM25, the best first."""
    terms = list(dict.fromkeys(WORD.findall(spaced(question.lower()))))[:MOST_TERMS]
    if not terms or not passages:
        return np.empty(0, np.int64)
    with sqlite3.connect(":memory:") as index:
        index.execute("CREATE VIRTUAL TABLE passage USING fts5(text, tokenize='porter unicode61')")
        index.executemany(
            "INSERT INTO passage(rowid, text) VALUES (?, ?)", enumerate(map(spaced, passages))
        )
        told = [
            term for term in terms if 0 < holding(index, term) <= max(FEW, COMMON * len(passages))
        ]
        wanted = " OR ".join(f'"{term}"' for term in told or terms)
        rows = index.execute(
            "SELECT rowid FROM passage WHERE passage MATCH ? ORDER BY rank, rowid", (wanted,)
        )
        found = np.array([row for (row,) in rows], np.int64)
    index.close()
    return found


def spaced(text: str) -> str:
    """A text whose words all stand by themselves."""
    return UNSPACED.sub(r" \g<0> ", text)


def holding(index: sqlite3.Connection, term: str) -> int:
    """How many passages hold a word."""
    (count,) = index.execute(
        "SELECT count(*) FROM passage WHERE passage MATCH ?", (f'"{term}"',)
    ).fetchone()
    return int(count)
