"""A learner without a model or data: for trying keys, network and protection before anybody trains.

Knows arithmetic. Always: the adapter moves towards a fixed public vector, a little differently in
each party, so that a run's curve shows whether sums arrive.
"""

import functools
import hashlib

import numpy as np

from ..store.checkpoint import Vector
from .learner import Counts, Trained

# What a federation that was founded for rehearsals alone names as its model; no file has this hash.
REHEARSAL_MODEL = "rehearsal"
REHEARSAL_DIGEST = hashlib.sha256(b"quietchoir rehearsal, no model").hexdigest()
EXAMPLES = 10
TOKENS_EACH = 20
STEP = 0.3  # of the way in one round
SMALL_STEP = 0.03  # of the way in one step of a learner that counts its steps


@functools.lru_cache(maxsize=8)
def target(size: int) -> Vector:
    """The vector [n] that every party moves towards; values in [-0.1, 0.1]. One for all of a
    process, so nobody writes to it.
    """
    found = (0.1 * np.cos(np.arange(size, dtype=np.float64))).astype(np.float32)
    found.flags.writeable = False
    return found


class SyntheticLearner:
    """As `Learner`, in milliseconds."""

    def __init__(self, size: int, name: str = "") -> None:
        seed = int.from_bytes(
            hashlib.sha256(f"quietchoir rehearsal {name}".encode()).digest()[:8], "big"
        )
        self.size, self.noise = size, np.random.default_rng(seed)
        self.target = target(size)

    def train(self, flat: Vector, seed: int) -> Trained:
        """A step towards the target plus this party's own noise."""
        del seed
        distance = self.target - flat
        noise = 0.01 * self.noise.standard_normal(self.size).astype(np.float32)
        loss = float(np.sqrt(np.mean(distance**2)))
        return Trained(
            flat=flat + np.float32(STEP) * distance + noise,
            examples=EXAMPLES,
            tokens=EXAMPLES * TOKENS_EACH,
            loss=loss,
        )

    def evaluate(self, flat: Vector) -> Counts:
        """Coordinates that lie within 0.05 of the target's, out of 100 evenly spread ones."""
        places = np.linspace(0, self.size - 1, min(100, self.size)).astype(np.int64)
        return Counts(int(np.sum(np.abs(flat[places] - self.target[places]) < 0.05)), places.size)


class StatelessSyntheticLearner(SyntheticLearner):
    """The same, its noise from its name alone, in every round the same.

    For processes that do not live as long as a run, and to compare runs: seeds follow from the
    run and the adapter's last bit, which rounding makes different each time.
    """

    def __init__(self, size: int, name: str = "") -> None:
        super().__init__(size, name)
        self.name = name

    def train(self, flat: Vector, seed: int) -> Trained:
        """As `Learner`; the same adapter gives the same result in every process."""
        return SyntheticLearner(self.size, self.name).train(flat, seed)


class PacedSyntheticLearner(SyntheticLearner):
    """The same, as far in one round as its examples take it: members of different speeds.

    Args:
        examples: it trains on; batch: of them in one step.
    """

    def __init__(self, size: int, name: str, examples: int, batch: int) -> None:
        super().__init__(size, name)
        self.examples, self.steps = examples, -(-examples // batch)

    def train(self, flat: Vector, seed: int) -> Trained:
        """So many small steps towards the target, each with this party's own noise."""
        del seed
        after = flat.astype(np.float32)
        for _ in range(self.steps):
            noise = 0.001 * self.noise.standard_normal(self.size).astype(np.float32)
            after = after + np.float32(SMALL_STEP) * (self.target - after) + noise
        loss = float(np.sqrt(np.mean((self.target - flat) ** 2)))
        tokens = self.examples * TOKENS_EACH
        return Trained(
            flat=after, examples=self.examples, tokens=tokens, loss=loss, steps=self.steps
        )
