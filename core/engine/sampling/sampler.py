"""Which token comes next.

Knows logits and how each request wants to be sampled. Knows nothing of text or of who asks.
Always: a request's token depends on its own logits, settings and random numbers, never on who shares its batch. A row after
guessed tokens is sampled as if they had been said; whether they were is for `scheduler.commit` to find: a guess stands if it
is the very token that its place would have got anyway, so guessing changes no distribution.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..sequence import Row
from . import grammar, tally

# Candidates sorted first: 64 hold what top-k and top-p leave in most steps at a quarter of the cost of 1,024; sorting a whole
# vocabulary costs thirty times as much and is rarely needed.
HEADS = (64, 1024)
CHUNK = 64  # tokens that are first looked at as one when a whole vocabulary is drawn from


@torch.inference_mode()
def sample(logits: Tensor, rows: Items[Row]) -> list[int | None]:
    """Choose one token a row; None where the best logit is no finite number or the sequence failed: no token can be chosen.

    Args:
        logits: [R, V]; biases, penalties and grammars are applied in place.
        rows: whose rows these are. No random number is used up: `Sequence.accept` does that for the tokens that stand.
    """
    sound = torch.isfinite(logits.amax(-1)).tolist()  # before a grammar writes minus infinity everywhere
    tally.adjust(logits, rows)
    grammar.forbid(logits, rows)
    sound = [ok and row.sequence.failure is None for ok, row in zip(sound, rows, strict=True)]
    chosen: list[int | None] = [token if ok else None for token, ok in zip(_best(logits), sound, strict=True)]
    drawn = [place for place, row in enumerate(rows) if row.sequence.request.temperature > 0 and sound[place]]
    if drawn:
        for place, token in zip(drawn, draw(logits[drawn], [rows[place] for place in drawn]), strict=True):
            chosen[place] = token
    return chosen


def _best(logits: Tensor) -> list[int]:
    """The likeliest token of each row; numpy finds it six times as fast as torch does on a CPU."""
    found: list[int] = (logits.numpy() if logits.device.type == "cpu" else logits).argmax(-1).tolist()
    return found


def draw(logits: Tensor, rows: Items[Row]) -> list[int]:
    """Sample rows by temperature, then top-k, then top-p of what top-k left, then min-p, by inverting the cumulative sum."""
    requests = [row.sequence.request for row in rows]
    logits = logits.cpu().float()  # a few rows: the CPU sorts them in no time, and float64 is everywhere
    uniform = torch.tensor([[row.sequence.draws.peek(row.place)] for row in rows], dtype=torch.float64)  # [R, 1], in [0, 1)
    temperature = torch.tensor([[request.temperature] for request in requests])
    # Shifted before dividing: a tiny temperature then gives exp(-huge) = 0 and not inf - inf.
    probabilities = torch.softmax((logits - logits.amax(-1, keepdim=True)) / temperature, -1)  # [R, V]
    if all(request.top_k == 0 and request.top_p == 1 and request.min_p == 0 for request in requests):
        return _invert(probabilities, uniform).tolist()
    size = logits.shape[1]
    limits = Restriction(
        top_k=torch.tensor([[request.top_k or size] for request in requests]),
        top_p=torch.tensor([[request.top_p] for request in requests], dtype=torch.float64),
        min_p=torch.tensor([[request.min_p] for request in requests], dtype=torch.float64),
    )
    for width in (*(head for head in HEADS if head < size), size):
        kept, order = probabilities.topk(width)  # [R, W], descending
        within, whole = _restrict(kept, limits)
        if whole or width == size:
            break
    return order.gather(1, _invert(within, uniform)[:, None])[:, 0].tolist()


@dataclass(frozen=True, slots=True)
class Restriction:
    """Which tokens each row may draw, each [R, 1]."""

    top_k: Tensor
    top_p: Tensor
    min_p: Tensor


def _restrict(kept: Tensor, limits: Restriction) -> tuple[Tensor, bool]:
    """Zero what is left out of the descending `kept` [R, W]; the flag says whether W was wide enough to know."""
    rank = torch.arange(kept.shape[1])[None]
    within_k = torch.where(rank < limits.top_k, kept, 0.0).double()
    # The whole mass of a row with top-k is what its k tokens hold; without top-k it is 1, W wide or not.
    mass = torch.where(limits.top_k <= kept.shape[1], within_k.sum(-1, keepdim=True), 1.0)
    before = within_k.cumsum(-1) - within_k  # mass of the better tokens: the best one is always kept
    floor = limits.min_p * within_k[:, :1]
    within = torch.where((before < limits.top_p * mass) & (within_k >= floor), within_k, 0.0)
    closed = (limits.top_k <= kept.shape[1]) | (within_k.sum(-1, keepdim=True) >= limits.top_p * mass)
    return within, bool((closed | (within_k[:, -1:] < floor)).all())


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """First index at which the cumulative weight exceeds `uniform` of the total: [R, W], [R, 1] -> [R]."""
    if weights.shape[1] > 4 * CHUNK:
        return _invert_chunks(weights, uniform)
    return _find(weights, uniform * weights.sum(-1, keepdim=True, dtype=torch.float64))


def _invert_chunks(weights: Tensor, uniform: Tensor) -> Tensor:
    """The same, by the chunk's sum first, so that the whole of a vocabulary is read once and not written."""
    chunks = nn.functional.pad(weights, (0, -weights.shape[1] % CHUNK)).view(len(weights), -1, CHUNK)  # [R, C, 64]
    sums = chunks.sum(-1, dtype=torch.float64)  # [R, C]
    target = uniform * sums.sum(-1, keepdim=True)
    chunk = _find(sums, target)  # [R]
    row = torch.arange(len(weights))
    before = torch.where(torch.arange(sums.shape[1])[None] < chunk[:, None], sums, 0.0).sum(-1, keepdim=True)
    return chunk * CHUNK + _find(chunks[row, chunk], target - before)


def _find(weights: Tensor, target: Tensor) -> Tensor:
    """First index at which the cumulative weight exceeds `target` [R, 1]."""
    index = torch.searchsorted(weights.double().cumsum(-1), target, right=True)[:, 0]
    # Rounding may point past the last token with any weight; that token is then meant.
    last = (weights > 0).long().mul(torch.arange(1, weights.shape[1] + 1)).amax(-1) - 1
    return torch.minimum(index, last)
