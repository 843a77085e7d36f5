"""Which token comes next.

Knows logits and how each request wants to be sampled. Knows nothing of text or of who asks.
Always: a request's token depends on its own logits, settings and random numbers, never on who
shares its batch. A row after guessed tokens is sampled as if they had been said; whether they were
is for `scheduler.commit` to find: a guess stands if it is the very token that its place would have
got anyway, so guessing changes no distribution.
"""

from collections import abc
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .grammar import apply_grammar_mask
from .state import LogitRow

# Candidates sorted first: 64 hold what top-k and top-p leave in most steps at a fraction of the
# cost of 1,024; sorting a whole vocabulary costs thirty times as much and is rarely needed.
HEADS = (64, 1024)
# tokens that are first looked at as one when a whole vocabulary is searched or drawn from
CHUNK = 64
Numbers = NDArray[np.float32]
Exact = NDArray[np.float64]
Places = NDArray[np.int64]


def sample(logits: Numbers, rows: abc.Sequence[LogitRow]) -> list[int | None]:
    """Choose one token a row; None where the best logit is no finite number or the sequence failed:
    no token can be chosen.

    Args:
        logits: [R, V]; biases, penalties and grammars are applied in place.
        rows: whose rows these are. No random number is used up: `SamplingState.accept` does that
            for the tokens that stand.
    """
    if not len(rows):
        return []
    # once over the logits, which are megabytes; what is no number counts as the largest
    best = logits.argmax(-1)
    # before a grammar writes minus infinity everywhere
    sound = np.isfinite(logits[np.arange(len(best)), best]).tolist()
    for index, row in enumerate(rows):
        if row.state.penalised:
            row.state.penalties.apply(logits[index], row.ahead)
    formed = [
        (index, row.state.matcher, row.drafts)
        for index, row in enumerate(rows)
        if row.offset == 0 and row.state.matcher is not None
    ]
    apply_grammar_mask(logits, formed)
    if formed or any(row.state.penalised for row in rows):
        best = logits.argmax(-1)
    sound = [ok and row.state.failure is None for ok, row in zip(sound, rows, strict=True)]
    chosen: list[int | None] = [
        token if ok else None for token, ok in zip(best.tolist(), sound, strict=True)
    ]
    drawn = [index for index, row in enumerate(rows) if row.state.temperature > 0 and sound[index]]
    if drawn:
        for index, token in zip(
            drawn, draw(logits[drawn], [rows[index] for index in drawn]), strict=True
        ):
            chosen[index] = token
    return chosen


def draw(logits: Numbers, rows: abc.Sequence[LogitRow]) -> list[int]:
    """Sample rows by temperature, then top-k, then top-p of what top-k left, then min-p, by
    inverting the cumulative sum.
    """
    wanted = [row.state.params for row in rows]
    uniform = np.array([[row.state.rng.peek(row.offset)] for row in rows])  # [R, 1], in [0, 1)
    # Not below what float32 divides by: the best is 0 then, and everything else minus infinity.
    temperature = np.array([[max(params.temperature, 1e-30)] for params in wanted], np.float32)
    # Shifted before dividing: a tiny temperature then gives exp(-huge) = 0 and not inf - inf.
    probabilities = logits - logits.max(-1, keepdims=True)
    with np.errstate(over="ignore", under="ignore"):
        probabilities = np.exp(probabilities / temperature)  # [R, V]
    probabilities /= probabilities.sum(-1, keepdims=True)
    if all(params.top_k == 0 and params.top_p == 1 and params.min_p == 0 for params in wanted):
        return [int(token) for token in _invert(probabilities, uniform)]
    size = logits.shape[1]
    limits = Restriction(
        top_k=np.array([[params.top_k or size] for params in wanted]),
        top_p=np.array([[params.top_p] for params in wanted], np.float64),
        min_p=np.array([[params.min_p] for params in wanted], np.float64),
    )
    for width in (*(head for head in HEADS if head < size), size):
        order = top_indices(probabilities, width)  # [R, W]
        within, whole = _restrict(np.take_along_axis(probabilities, order, -1), limits)
        if whole or width == size:
            break
    return [
        int(token)
        for token in np.take_along_axis(order, _invert(within, uniform)[:, None], -1)[:, 0]
    ]


def top_indices(numbers: Numbers, width: int) -> Places:
    """Where the `width` largest of each row stand, the largest first and of equals the first:
    [R, V] -> [R, W].
    """
    rows, size = numbers.shape
    chunks = size // CHUNK
    if width * 4 > chunks:
        return np.argsort(-numbers, -1, kind="stable")[:, :width]
    # The largest `width` lie in the `width` chunks with the largest tops, or in the rest behind the
    # last whole chunk.
    tops = numbers[:, : chunks * CHUNK].reshape(rows, chunks, CHUNK).max(-1)
    # [R, W] chunks, in the order of their tokens
    found = np.sort(np.argsort(-tops, -1, kind="stable")[:, :width], -1)
    places = (found[:, :, None] * CHUNK + np.arange(CHUNK)).reshape(rows, -1)
    places = np.concatenate([places, np.tile(np.arange(chunks * CHUNK, size), (rows, 1))], -1)
    kept = np.take_along_axis(numbers, places, -1)
    return np.take_along_axis(places, np.argsort(-kept, -1, kind="stable")[:, :width], -1)


@dataclass(frozen=True, slots=True)
class Restriction:
    """Which tokens each row may draw, each [R, 1]."""

    top_k: Places
    top_p: Exact
    min_p: Exact


def _restrict(kept: Numbers, limits: Restriction) -> tuple[Exact, bool]:
    """Zero what is left out of the descending `kept` [R, W]; the flag says whether W was wide
    enough to know.
    """
    rank = np.arange(kept.shape[1])[None]
    within_k = np.where(rank < limits.top_k, kept, np.float32(0)).astype(np.float64)
    # The whole mass of a row with top-k is what its k tokens hold; without top-k it is 1, W wide or
    # not.
    mass = np.where(limits.top_k <= kept.shape[1], within_k.sum(-1, keepdims=True), 1.0)
    # mass of the better tokens: the best one is always kept
    before = within_k.cumsum(-1) - within_k
    floor = limits.min_p * within_k[:, :1]
    within = np.where((before < limits.top_p * mass) & (within_k >= floor), within_k, 0.0)
    closed = (limits.top_k <= kept.shape[1]) | (
        within_k.sum(-1, keepdims=True) >= limits.top_p * mass
    )
    return within, bool((closed | (within_k[:, -1:] < floor)).all())


def _invert(weights: NDArray[np.floating], uniform: Exact) -> Places:
    """First index at which the cumulative weight exceeds `uniform` of the total: [R, W], [R, 1]
    -> [R].
    """
    if weights.shape[1] > 4 * CHUNK:
        return _invert_chunks(weights, uniform)
    return _find(weights, uniform * weights.sum(-1, keepdims=True, dtype=np.float64))


def _invert_chunks(weights: NDArray[np.floating], uniform: Exact) -> Places:
    """The same, by the chunk's sum first, so that the whole of a vocabulary is read once and not
    written.
    """
    size = weights.shape[1]
    starts = np.arange(0, size, CHUNK)
    sums = np.add.reduceat(weights, starts, -1, dtype=np.float64)  # [R, C]
    target = uniform * sums.sum(-1, keepdims=True)
    chunk = _find(sums, target)  # [R]
    before = np.where(np.arange(len(starts))[None] < chunk[:, None], sums, 0.0).sum(
        -1, keepdims=True
    )
    places = np.minimum(chunk[:, None] * CHUNK + np.arange(CHUNK), size - 1)
    own = np.where(
        chunk[:, None] * CHUNK + np.arange(CHUNK) < size, np.take_along_axis(weights, places, -1), 0
    )
    return chunk * CHUNK + _find(own, target - before)


def _find(weights: NDArray[np.floating], target: Exact) -> Places:
    """First index at which the cumulative weight exceeds `target` [R, 1]."""
    index: Places = (weights.cumsum(-1, dtype=np.float64) <= target).sum(-1)
    # Rounding may point past the last token with any weight; that token is then meant.
    last = np.where(weights > 0, np.arange(weights.shape[1]), -1).max(-1)
    found: Places = np.minimum(index, last)
    return found
