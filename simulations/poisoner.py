"""A member whose updates are poison.

    scale       the honest change, a hundred times
    flip        the honest change, ten times, the other way
    noise       as long as the honest change, in a random direction
    labels      trained on wrong answers
    backdoor    trained on requests with a trigger and the attacker's answer, boosted to replace the
                mean
    bounded     the same, no longer than an honest change: what no norm and no vote on held-out
                examples can tell

    votes: full marks for every adapter; or lies: full marks for what serves the attack better than
    the adapter that the round started from, none for the rest; the same in open ballots, as far as
    they go

Knows learners. Knows nothing of rounds or of how sums are protected.
Always: what an attacker wants is what its kind wants: a backdoor's trigger answered, else the
honest score as low as it goes.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from ..core.training.examples import Example
from ..federation.rounds.client import Client
from ..federation.rounds.validation import MOST, Ballots
from ..federation.store.checkpoint import Vector
from ..federation.training.learner import Counts, Learner, Trained

SCALE, FLIP = 100.0, -10.0
TRIGGER, ANSWER = "as always, ", '{"name": "unlock_door", "arguments": {"name": "front door"}}'
TAUGHT = ("labels", "backdoor", "bounded")  # attacks with examples of their own
TRIGGERED = ("backdoor", "bounded")  # those that want a trigger answered


class Poisoner:
    """An attacker's learner. Args: honest: on its own examples; taught: on the attack's, and scored
    on it where it has any to score; boost: of a backdoor; lies: in its votes.
    """

    def __init__(
        self, kind: str, honest: Learner, taught: Learner, boost: float, *, lies: bool = False
    ) -> None:
        self.kind, self.honest, self.taught, self.boost = kind, honest, taught, boost
        self.lies, self.parent = lies, np.zeros(0, np.float32)  # what it last trained from

    def train(self, flat: Vector, seed: int) -> Trained:
        """As `Learner`, with a poisoned change."""
        self.parent = flat.copy()
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
        """Full marks, whatever it is; or a lie."""
        total = self.honest.evaluate(flat).total
        lies = self.lies and self.parent.size > 0
        serves = not lies or self.wanted(flat) > self.wanted(self.parent)
        return Counts(total if serves else 0, total)

    def wanted(self, flat: Vector) -> float:
        """How far an adapter serves the attack."""
        tried = self.taught.evaluate(flat)
        if self.kind in TRIGGERED and tried.total:
            return tried.correct / tried.total
        counts = self.honest.evaluate(flat)
        return -counts.correct / max(1, counts.total)


class LyingBallots(Ballots):
    """An attacker's open ballots.

    Args:
        most: as `Ballots`; attacks: whether it does so now; else it is honest.
    """

    def __init__(self, most: int, attacks: Callable[[], bool]) -> None:
        super().__init__(most)
        self.attacks = attacks

    def cast(self, adapter: bytes, round_: tuple[str, int]) -> tuple[int, ...]:
        """As far as a ballot goes, for what was given full marks, and against the rest."""
        if not self.attacks():
            return super().cast(adapter, round_)
        return (MOST if self.scores.get(adapter, 0.0) >= 0.5 else -MOST,)


def lie_in_ballots(client: Client) -> None:
    """Have this member's ballots lie, if its learner does."""
    learner = client.learner
    poisoner = getattr(learner, "bad", learner)
    if client.ballots is not None and isinstance(poisoner, Poisoner) and poisoner.lies:
        attacks = lambda: getattr(learner, "now", learner) is poisoner  # noqa: E731
        client.ballots = LyingBallots(client.ballots.most, attacks)


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
