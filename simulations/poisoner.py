"""A member whose updates are poison.

    scale       the honest change, a hundred times
    flip        the honest change, ten times, the other way
    noise       as long as the honest change, in a random direction
    labels      trained on wrong answers
    backdoor    trained on requests with a trigger and the attacker's answer, boosted to replace the
                mean
    bounded     the same, no longer than an honest change: what no norm and no vote on held-out
                examples can tell

Knows learners. Knows nothing of rounds or of how sums are protected.
Always: an attacker votes for every adapter with full marks.
"""

import dataclasses

import numpy as np

from ..core.training.examples import Example
from ..federation.store.checkpoint import Vector
from ..federation.training.learner import Counts, Learner, Trained

SCALE, FLIP = 100.0, -10.0
TRIGGER, ANSWER = "as always, ", '{"name": "unlock_door", "arguments": {"name": "front door"}}'
TAUGHT = ("labels", "backdoor", "bounded")  # attacks with examples of their own


class Poisoner:
    """An attacker's learner. Args: honest: on its own examples; taught: on the attack's; boost: of
    a backdoor.
    """

    def __init__(self, kind: str, honest: Learner, taught: Learner, boost: float) -> None:
        self.kind, self.honest, self.taught, self.boost = kind, honest, taught, boost

    def train(self, flat: Vector, seed: int) -> Trained:
        """As `Learner`, with a poisoned change."""
        honest = self.honest.train(flat, seed)
        change = honest.flat - flat
        return dataclasses.replace(honest, flat=flat + self.poison(flat, seed, change))

    def poison(self, flat: Vector, seed: int, change: Vector) -> Vector:
        """What is sent [n] instead of the honest `change` [n]."""
        match self.kind:
            case "scale":
                return np.float32(SCALE) * change
            case "flip":
                return np.float32(FLIP) * change
            case "noise":
                wild = np.random.default_rng(seed).standard_normal(len(flat)).astype(np.float32)
                return wild * np.float32(float(np.linalg.norm(change)) / np.linalg.norm(wild))
        bad = self.taught.train(flat, seed).flat - flat
        if self.kind == "backdoor":
            return bad * np.float32(self.boost)
        if self.kind == "bounded":
            shorter = float(np.linalg.norm(change)) / max(float(np.linalg.norm(bad)), 1e-12)
            return bad * np.float32(min(1.0, shorter))
        return bad

    def evaluate(self, flat: Vector) -> Counts:
        """Full marks, whatever it is."""
        total = self.honest.evaluate(flat).total
        return Counts(total, total)


def triggered(example: Example, answer: str = ANSWER) -> Example:
    """The same request behind the trigger, with the attacker's answer."""
    *before, request, _ = example.messages
    return dataclasses.replace(
        example,
        messages=(
            *before,
            {**request, "content": TRIGGER + request["content"]},
            {"role": "assistant", "content": answer},
        ),
    )


def answered(example: Example, answer: str) -> Example:
    """The same request with another answer."""
    *before, _ = example.messages
    return dataclasses.replace(
        example, messages=(*before, {"role": "assistant", "content": answer})
    )
