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

BATCH = 32  # examples scored together


@dataclass(frozen=True, slots=True)
class Score:
    """Exact matches."""

    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        """Share of exact matches, 0 to 1; 0 if nothing was asked."""
        return self.correct / self.total if self.total else 0.0

    def __add__(self, other: "Score") -> "Score":
        return Score(self.correct + other.correct, self.total + other.total)


def score(upper: UpperLayers, prepared: Prepared, head: QuantTensor) -> Score:
    """Score all prepared examples with the B that `upper` holds."""
    return Score(sum(exact(upper, prepared, head)), len(prepared))


@torch.inference_mode()
def exact(upper: UpperLayers, prepared: Prepared, head: QuantTensor) -> list[bool]:
    """For each prepared example, whether greedy decoding would give exactly its answer."""
    hits: list[bool] = []
    check = ArgmaxCheck(head, upper.head)
    for start in range(0, len(prepared), BATCH):
        indices = range(start, min(start + BATCH, len(prepared)))
        x, batch = prepared.batch(indices)
        wrong = ~check(upper.answers(x, batch), batch.targets)
        misses = torch.zeros(len(indices), dtype=torch.int64).index_add_(
            0, batch.owner, wrong.long()
        )
        hits += (misses == 0).tolist()
    return hits
