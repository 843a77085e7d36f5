"""Exact match, without generating anything.

Knows the upper layers and the head. Knows nothing of training.
Always: an answer counts only if every one of its tokens, the end of turn included, is the most
likely one after the right tokens before it. By induction that is when greedy decoding gives exactly
this answer and stops.
"""

from dataclasses import dataclass

import torch

from ..models.quant.tensor import QuantTensor
from .frozen_layers import Prepared
from .lora_layers import UpperLayers
from .loss import ArgmaxCheck
from .packing import fitting

BATCH = 32  # examples scored together


@dataclass(frozen=True, slots=True)
class Score:
    """Exact matches."""

    correct: int
    total: int
    right: int = 0  # answer tokens that are the likeliest, each behind the right ones before it
    tokens: int = 0  # of all answers

    @property
    def near(self) -> float:
        """Share of such tokens, 0 to 1: it tells adapters apart whose answers are all wrong."""
        return self.right / self.tokens if self.tokens else 0.0

    @property
    def accuracy(self) -> float:
        """Share of exact matches, 0 to 1; 0 if nothing was asked."""
        return self.correct / self.total if self.total else 0.0

    def __add__(self, other: "Score") -> "Score":
        return Score(
            self.correct + other.correct,
            self.total + other.total,
            self.right + other.right,
            self.tokens + other.tokens,
        )


def score(upper: UpperLayers, prepared: Prepared, head: QuantTensor) -> Score:
    """Score all prepared examples with the B that `upper` holds."""
    missed, tokens = misses(upper, prepared, head), prepared.answer_tokens
    return Score(missed.count(0), len(prepared), tokens - sum(missed), tokens)


@torch.inference_mode()
def misses(upper: UpperLayers, prepared: Prepared, head: QuantTensor) -> list[int]:
    """For each prepared example, how many of its answer's tokens are not the likeliest; 0: greedy
    decoding would give exactly its answer.
    """
    found: list[int] = []
    check = ArgmaxCheck(head, upper.head)
    for start in range(0, len(prepared), BATCH):
        indices = range(start, min(start + BATCH, len(prepared)))
        missed = torch.zeros(len(indices), dtype=torch.int64)
        for places in fitting([prepared.examples[index].rows for index in indices]):
            x, batch = prepared.batch([indices[place] for place in places])
            wrong = ~check(upper.answers(x, batch), batch.targets)
            missed.index_add_(0, torch.tensor(places)[batch.owner], wrong.long())
        found += missed.tolist()
    return found
