"""How a student is trained: numbers, their defaults and their ranges.

Knows nothing else, so that the command line can say them without loading torch.
"""

import math
from dataclasses import dataclass

from ...errors import ConfigError

MAX_VALUES = 1 << 20  # a public set's items times answers: what travels in each round


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationSettings:
    """How a student is trained."""

    temperature: float = 2.0
    top_k: int = 64  # of the teacher's likelihoods that are kept; all others are one event
    # share of the loss that is the right answer's cross-entropy
    hard: float = 0.1
    hidden: float = 0.0  # weight of the distance of hidden states; 0: they are not computed
    lr: float = 5e-4
    weight_decay: float = 0.01
    batch: int = 16  # examples of one step
    epochs: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = (self.temperature, self.lr, self.hidden, self.hard, self.weight_decay)
        good = (
            all(map(math.isfinite, numbers))
            and 0 < self.temperature <= 100
            and self.lr > 0
            and self.hidden >= 0
            and 0 <= self.hard <= 1
            and 0 <= self.weight_decay < 1
        )
        counts = min(self.top_k, self.batch, self.epochs) >= 1 and self.seed >= 0
        if not (good and counts):
            raise ConfigError(
                f"temperature {self.temperature} (above 0 to 100), top_k {self.top_k}, batch "
                f"{self.batch}, epochs {self.epochs} (1 at least), hard {self.hard} (0 to 1), "
                f"hidden {self.hidden} (0 at least), lr {self.lr} (above 0): out of range"
            )
