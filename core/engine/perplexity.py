"""How surprised a model is by a text: one number that shows what a faster path costs.

Knows logits and tokens. Knows nothing of how they came about: any `Backend` can be asked, so
that two paths over the same weights can be compared.
"""

import math
from collections import abc

import torch

from .backends.backend import Backend
from .block_pool import BLOCK_TOKENS
from .request import GenerationRequest
from .scheduler import Batch, Span
from .sequence import Sequence

CHUNK = 128  # rows whose logits are held at a time


def perplexity(backend: Backend, tokens: abc.Sequence[int], window: int = 512) -> float:
    """exp of the mean negative log-likelihood of each token after those before it.

    Args:
        backend: with a cache of at least `window` tokens; its first blocks are overwritten, so not
        one that serves. tokens: at least two; cut into windows that know nothing of each other, the
        first token of each is not counted. window: tokens; a last window of one token is left out.

    Raises:
        ValueError: fewer than two tokens, or a window of fewer.
    """
    if len(tokens) < 2 or window < 2:
        raise ValueError(
            f"perplexity needs two tokens and a window of two, got {len(tokens)} and {window}"
        )
    total, counted = 0.0, 0
    for start in range(0, len(tokens) - 1, window):
        part = list(tokens[start : start + window])
        total += _surprise(backend, part)
        counted += len(part) - 1
    return math.exp(total / counted)


def _surprise(backend: Backend, tokens: list[int]) -> float:
    """Sum of the negative log-likelihoods of tokens[1:], in nats."""
    sequence = Sequence(GenerationRequest(prompt=tuple(tokens)))
    sequence.block_table = list(range(-(-len(tokens) // BLOCK_TOKENS)))
    total = 0.0
    for start in range(0, len(tokens) - 1, CHUNK):
        count = min(CHUNK, len(tokens) - 1 - start)
        # [count, V]
        logits = torch.as_tensor(backend.forward(Batch((Span(sequence, start, count, count),))))
        wanted = torch.tensor(tokens[start + 1 : start + 1 + count])
        total += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
    return total
