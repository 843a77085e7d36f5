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
from typing import Protocol

import numpy as np
import numpy.typing as npt

PASSAGE_CHARACTERS = 240  # some 50 tokens of English: finer finds better, coarser reads better
LONGEST_SENTENCE = 480  # characters; a longer one is cut at a space, or anywhere where it has none
CONTEXT_CHARACTERS = 160  # of what stands before a passage: "He was born there" needs it
RANK_CONSTANT = 60  # of reciprocal rank fusion, as its authors chose it
MOST_VECTORS = 16_384  # kept in memory, the least recently used forgotten first
MOST_TERMS = 64  # of a question, that are looked up
SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])|\n+")
WORD = re.compile(r"\w+")
Vectors = npt.NDArray[np.float32]


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


class PassageRanker:
    """Orders passages by how well they answer a question; every method may be called from any
    thread.
    """

    def __init__(self, embedder: Callable[[], TextEmbedder | None] = lambda: None) -> None:
        """`embedder`: asked at each ranking; None where there is none, and words alone decide."""
        self._embedder = embedder
        self._vectors: OrderedDict[bytes, Vectors] = OrderedDict()
        self._lock = threading.Lock()

    def rank(self, questions: Sequence[str], passages: Sequence[str]) -> list[int]:
        """Places of `passages`, the best first.

        Args:
            questions: what is asked; the first is the question itself, others (what was said before
                it, what stands around it) only help.
        """
        orders = [order for question in questions for order in self._orders(question, passages)]
        score = np.zeros(len(passages))
        for order in orders:
            score[order] += 1 / (RANK_CONSTANT + 1 + np.arange(len(order)))
        return [int(place) for place in np.argsort(-score, kind="stable")]

    def _orders(self, question: str, passages: Sequence[str]) -> Iterator[npt.NDArray[np.int64]]:
        """Places by BM25 (those that share a word), then by meaning (all)."""
        yield by_words(question, passages)
        if (vectors := self.vectors([question, *passages])) is not None:
            yield np.argsort(-(vectors[1:] @ vectors[0]), kind="stable")

    def vectors(self, texts: Sequence[str]) -> Vectors | None:
        """Unit vectors of texts [N, D]; None without an embedding model. Each text is read once."""
        if (embedder := self._embedder()) is None:
            return None
        names = [hashlib.sha256(text.encode("utf-8", "replace")).digest() for text in texts]
        with self._lock:
            new = {
                name: text
                for name, text in zip(names, texts, strict=True)
                if name not in self._vectors
            }
            for name, vector in zip(new, embedder.embed([*new.values()]), strict=True):
                self._vectors[name] = vector
            for name in names:
                self._vectors.move_to_end(name)
            found = np.stack([self._vectors[name] for name in names])
            while len(self._vectors) > MOST_VECTORS:
                self._vectors.popitem(last=False)
        return found


def by_words(question: str, passages: Sequence[str]) -> npt.NDArray[np.int64]:
    """Places of the passages that share a word with `question`, by BM25, the best first."""
    terms = list(dict.fromkeys(WORD.findall(question.lower())))[:MOST_TERMS]
    if not terms or not passages:
        return np.empty(0, np.int64)
    with sqlite3.connect(":memory:") as index:
        index.execute("CREATE VIRTUAL TABLE passage USING fts5(text, tokenize='porter unicode61')")
        index.executemany("INSERT INTO passage(rowid, text) VALUES (?, ?)", enumerate(passages))
        wanted = " OR ".join(f'"{term}"' for term in terms)
        rows = index.execute(
            "SELECT rowid FROM passage WHERE passage MATCH ? ORDER BY rank, rowid", (wanted,)
        )
        found = np.array([row for (row,) in rows], np.int64)
    index.close()
    return found
