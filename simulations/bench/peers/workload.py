"""What every engine of the comparison is asked.

Knows lengths and how prompts are drawn. Knows nothing of engines.
Always: no prompt comes twice, so a prefix kept from an earlier one helps nobody.
"""

import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np

PROMPT, PREFILL = 64, 512  # tokens before an answer; tokens of the long prompt
# token ids: no control token, and all in the vocabulary of both files
LOWEST, HIGHEST = 1_000, 40_000


class Peer(Protocol):
    """One engine with its model loaded."""

    def generate(self, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        """Greedy answers of exactly `tokens` tokens to all prompts at once; returns when they
        are there.
        """
        ...

    def close(self) -> None:
        """End what it started."""
        ...


class Prompts:
    """A stream of fresh prompts."""

    def __init__(self, seed: int, highest: int = HIGHEST) -> None:
        self.latest: list[int] = []
        self._draws, self._range = (
            np.random.default_rng(seed),
            (min(LOWEST, highest // 2), min(HIGHEST, highest)),
        )

    def take(self, count: int, length: int) -> list[list[int]]:
        """`count` prompts of `length` tokens."""
        drawn: list[list[int]] = self._draws.integers(*self._range, (count, length)).tolist()
        self.latest = drawn[-1]
        return drawn


def decode_speed(
    peer: Peer, prompts: Prompts, batch: int, tokens: int, length: int = PROMPT
) -> float:
    """Tokens a second of `batch` answers side by side, their prompts' own time taken off."""
    whole = seconds(peer, prompts.take(batch, length), tokens)
    first = seconds(peer, prompts.take(batch, length), 1)
    return batch * (tokens - 1) / (whole - first)


def prefill_speed(peer: Peer, prompts: Prompts, length: int = PREFILL) -> float:
    """Prompt tokens a second up to the first token of the answer."""
    return length / seconds(peer, prompts.take(1, length), 1)


def answer_speed(peer: Peer, prompts: Prompts, tokens: int, length: int) -> float:
    """Tokens a second of one answer after a prompt that its engine keeps: the latest one, if it is
    of that length, else one that is read before.

    Taking off the time of another prompt, as `decode_speed` does, would be lost in that time.
    """
    if len(prompts.latest) != length:
        seconds(peer, prompts.take(1, length), 1)
    return tokens / seconds(peer, [prompts.latest], tokens)


def seconds(peer: Peer, prompts: Sequence[Sequence[int]], tokens: int) -> float:
    """Seconds on the wall: threads are what is measured."""
    before = time.perf_counter()
    peer.generate(prompts, tokens)
    return time.perf_counter() - before
