"""Members whose updates are their own, a little different with each seed, so that a test can
find one in a sum.
"""

import numpy as np

from quietchoir.federation.rounds.client import Client
from quietchoir.federation.training.learner import Counts, Trained
from quietchoir.tests.fakes.federation import House, clients

SIZE = 300
RUN = "0a" * 16
VICTIM, ACCOMPLICES = "eve", ("ann", "ben")


class Household:
    """An update of its own, a little different with each seed; `amounts`: examples, tokens and
    held-out answers.
    """

    def __init__(
        self, number: int, *, amounts: int = 10, held_out: bool = True, shaken: float = 0.3
    ) -> None:
        self.own = np.random.default_rng(number).normal(0, 0.03, SIZE).astype(np.float32)
        self.amounts, self.held_out, self.shaken = amounts, held_out, shaken
        self.right = number % 5 + 1

    def train(self, flat: np.ndarray, seed: int) -> Trained:
        shake = np.random.default_rng(seed).normal(0, 0.03 * self.shaken, SIZE).astype(np.float32)
        after = flat + self.own + shake
        return Trained(
            flat=after, examples=self.amounts, tokens=20 * self.amounts, loss=1.0 + self.right
        )

    def evaluate(self, flat: np.ndarray) -> Counts:
        del flat
        return (
            Counts(self.right * self.amounts, 5 * self.amounts) if self.held_out else Counts(0, 0)
        )


def households(
    home: House, *, amounts: int = 10, held_out: bool = True, shaken: float = 0.3
) -> dict[str, Client]:
    """Members with a household each."""
    numbers = {name: number for number, name in enumerate(home.members)}
    return clients(
        home,
        SIZE,
        lambda name: Household(numbers[name], amounts=amounts, held_out=held_out, shaken=shaken),
    )


def own(member: Client) -> np.ndarray:
    """What its household always moves by."""
    found: np.ndarray = member.learner.own  # type: ignore[attr-defined]
    return found


def correlation(found: np.ndarray, member: Client) -> float:
    """With the member's own part of its update."""
    return float(np.corrcoef(found, own(member))[0, 1])
