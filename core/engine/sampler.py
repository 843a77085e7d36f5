"""Which token comes next.

Knows logits and how each request wants to be sampled. Knows nothing of text or of who asks.
Always: a request's token depends on its own logits, settings and random numbers, never on who shares its batch.
"""

from collections.abc import Sequence as Items

import torch
from torch import Tensor

from .sequence import Sequence

HEAD = 1024  # candidates sorted first; sorting a whole vocabulary costs thirty times as much and is rarely needed


def sample(logits: Tensor, sequences: Items[Sequence]) -> list[int | None]:
    """Choose one token a row; None where the best logit is no finite number, so that no token can be chosen.

    Args:
        logits: [S, V].
        sequences: whose rows these are; each row with a temperature takes one of its random numbers.
    """
    best, index = logits.max(-1)
    sound = torch.isfinite(best).tolist()
    chosen: list[int | None] = [token if ok else None for token, ok in zip(index.tolist(), sound, strict=True)]
    rows = [row for row, sequence in enumerate(sequences) if sequence.request.temperature > 0 and sound[row]]
    if rows:
        tokens = draw(logits[rows], [sequences[row] for row in rows])
        for row, token in zip(rows, tokens, strict=True):
            chosen[row] = token
    return chosen


def draw(logits: Tensor, sequences: Items[Sequence]) -> list[int]:
    """Sample rows by temperature, then top-k, then top-p of what top-k left, by inverting the cumulative distribution."""
    requests = [sequence.request for sequence in sequences]
    uniform = torch.tensor([[sequence.draws.random()] for sequence in sequences], dtype=torch.float64)  # [S, 1], in [0, 1)
    temperature = torch.tensor([[request.temperature] for request in requests])
    # Shifted before dividing: a tiny temperature then gives exp(-huge) = 0 and not inf - inf.
    probabilities = torch.softmax((logits.float() - logits.float().amax(-1, keepdim=True)) / temperature, -1)  # [S, V]
    if all(request.top_k == 0 and request.top_p == 1 for request in requests):
        return _invert(probabilities, uniform).tolist()
    size = logits.shape[1]
    top_k = torch.tensor([[request.top_k or size] for request in requests])
    top_p = torch.tensor([[request.top_p] for request in requests], dtype=torch.float64)
    for width in (min(HEAD, size), size):
        kept, order = probabilities.topk(width)  # [S, W], descending
        within, whole = _restrict(kept, top_k, top_p)
        if whole or width == size:
            break
    return order.gather(1, _invert(within, uniform)[:, None])[:, 0].tolist()


def _restrict(kept: Tensor, top_k: Tensor, top_p: Tensor) -> tuple[Tensor, bool]:
    """Zero what top-k and top-p leave out of the descending `kept` [S, W]; the flag says whether W was wide enough to know."""
    rank = torch.arange(kept.shape[1])[None]
    within_k = torch.where(rank < top_k, kept, 0.0).double()
    # The whole mass of a row with top-k is what its k tokens hold; without top-k it is 1, W wide or not.
    mass = torch.where(top_k <= kept.shape[1], within_k.sum(-1, keepdim=True), 1.0)
    before = within_k.cumsum(-1) - within_k  # mass of the better tokens: the best one is always kept
    within = torch.where(before < top_p * mass, within_k, 0.0)
    closed = (top_k <= kept.shape[1]) | (within_k.sum(-1, keepdim=True) >= top_p * mass)
    return within, bool(closed.all())


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """First index at which the cumulative weight exceeds `uniform` of the total: [S, W], [S, 1] -> [S]."""
    cumulative = weights.double().cumsum(-1)
    total = cumulative[:, -1:]
    index = torch.searchsorted(cumulative, uniform * total, right=True)[:, 0]
    # Rounding may point past the last token with any weight; that token is then meant.
    last = (weights > 0).long().mul(torch.arange(1, weights.shape[1] + 1)).amax(-1) - 1
    return torch.minimum(index, last)
