"""Fakes for private search: an embedder without a model, a library without a disk, services that
misbehave.
"""

import os
import signal
import time
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from quietchoir.crypto.pir.search import PassageTable, PirServer
from quietchoir.private_search.index import PROBE, Index, Passage

DIMENSION = 24


class FakeEmbedder:
    """Words to a unit vector: each word adds its own fixed direction, so texts with common words
    are near.
    """

    def __init__(self, dimension: int = DIMENSION, salt: int = 0) -> None:
        self.dimension, self.salt = dimension, salt

    def embed(self, texts: list[str]) -> npt.NDArray[np.float32]:
        rows = np.stack(
            [
                sum(
                    (self._direction(word) for word in text.lower().split()),
                    np.zeros(self.dimension),
                )
                for text in texts
            ]
        )
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def _direction(self, word: str) -> npt.NDArray[np.float64]:
        return np.random.default_rng(
            zlib.crc32(word.strip(".,?").encode()) + self.salt
        ).standard_normal(self.dimension)


TEXTS = (
    "The kettle in the kitchen whistles at seven.",
    "Tomatoes want sun, water and a stick.",
    "A cello has four strings, tuned in fifths.",
    "The night bus to the harbour leaves at one.",
    "Snow closes the mountain pass in November.",
)


def fake_index(texts: tuple[str, ...] = TEXTS, embedder: FakeEmbedder | None = None) -> Index:
    """Passages and vectors, made up in memory."""
    vectors = (embedder or FakeEmbedder()).embed([*texts, PROBE])
    return Index.of([Passage("notes.md", text) for text in texts], vectors[:-1], vectors[-1])


def pir_server(
    rows: npt.NDArray[np.float32], texts: Sequence[bytes], *, noisy: bool = True, workers: int = 1
) -> PirServer:
    """Embeddings and passages, served from memory."""
    return PirServer(rows, PassageTable.of(texts), noisy=noisy, workers=workers)


def unit_rows(rows: int, dimension: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Random rows of length 1."""
    found = np.random.default_rng(seed).standard_normal((rows, dimension))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


class Moody:
    """A service for `Worker` that does what a hostile input could make a real one do."""

    def __init__(self, *numbers: int) -> None:
        self.calls = 0
        if numbers == (13,):
            raise RuntimeError("no")

    def echo(self, *blobs: bytes) -> list[bytes]:
        self.calls += 1
        return [*blobs, str(self.calls).encode()]

    def segfault(self) -> list[bytes]:
        os.kill(os.getpid(), signal.SIGSEGV)
        return []

    def hang(self) -> list[bytes]:
        while True:
            time.sleep(60)

    def raises(self, kind: bytes) -> list[bytes]:
        from quietchoir.core import errors

        raise {"ProtocolError": errors.ProtocolError, "ValueError": ValueError}[kind.decode()](
            "as asked"
        )

    def devour(self) -> list[bytes]:
        return [bytes(64 << 30)]
