"""Who trains which coordinates in one attempt: members of different ranks share the first columns
of every B.

Knows names, ranks and the order of the flat vector. Knows nothing of messages, masks or how anybody
trains.
Always: everything here follows from the signed file, the cohort that everybody checked, and the
attempt's number; no column is trained by fewer than the federation's minimum of those asked,
because its sum would be over fewer than that.

Every B is [rows, rank], so a coordinate's column is its place modulo the rank, with or without a
model. A member of rank r' trains the columns below r', and its change is zero elsewhere. So the
sets of members that train a column shrink from the first column to the last, and only the last set,
the *leaders*, needs watching: a sum with enough of them has enough of everybody.

In the first attempt of a round everybody's rank is lowered to the largest one that `min_cohort` of
the cohort reach. If it ends without a sum (a leader may have dropped out), the next attempt asks
for one leader more than that, and so on: there the columns that kept failing are left out.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..spec.policy import Policy, rank_of, reached
from ..training.learner import Learner


@runtime_checkable
class Narrowing(Protocol):
    """A learner that saves work by training the first columns alone."""

    def narrowed(self, columns: int) -> Learner:
        """The same, of so many columns."""
        ...


def narrowed(learner: Learner, columns: int, rank: int) -> Learner:
    """`learner` for the first `columns` of `rank`; as it is if it cannot do less: what it does
    beyond them is not sent.
    """
    return (
        learner.narrowed(columns) if columns < rank and isinstance(learner, Narrowing) else learner
    )


@dataclass(frozen=True, slots=True)
class RankMasks:
    """Columns of one attempt's cohort; not all train all of them."""

    rank: int  # of the adapter
    columns: tuple[tuple[str, int], ...]  # name, and how many of the first columns it trains
    floor: int  # members that train a column, in any sum that is opened

    def of(self, name: str) -> int:
        """Columns that a member of the cohort trains."""
        return dict(self.columns)[name]

    @property
    def full_rank(self) -> frozenset[str]:
        """Who trains the most columns."""
        most = max(count for _, count in self.columns)
        return frozenset(name for name, count in self.columns if count == most)

    def trained(self, name: str, size: int) -> npt.NDArray[np.bool_]:
        """Which coordinates [size] a member trains."""
        return np.arange(size) % self.rank < self.of(name)

    def behind(self, parties: Collection[str]) -> npt.NDArray[np.int64]:
        """How many of `parties` train each column [rank]."""
        counts = [count for name, count in self.columns if name in parties]
        return np.array(
            [sum(count > column for count in counts) for column in range(self.rank)], np.int64
        )

    def mean(
        self, sums: npt.NDArray[np.float64], parties: Sequence[str]
    ) -> npt.NDArray[np.float64]:
        """Sums [n] over `parties`, each divided by how many of them train its column; zero where
        none does.

        Divided by all of them, a column that half the members train would move at half the speed.
        """
        counts = self.behind(parties)
        divisors = np.maximum(counts, 1)[np.arange(sums.size) % self.rank]
        means: npt.NDArray[np.float64] = sums / divisors
        # whatever anybody sent there
        means[np.arange(sums.size) % self.rank >= int(np.count_nonzero(counts))] = 0.0
        return means

    def columns_of(self, parties: Collection[str]) -> dict[str, int]:
        """How many of `parties` train the columns below each rank, for reports."""
        ends = sorted({count for _, count in self.columns})
        behind = self.behind(parties)
        return {str(end): int(behind[end - 1]) for end in ends}

    def short(self, parties: Collection[str]) -> str:
        """Why the sum over `parties` must not be opened; empty if it may be."""
        found = len(self.full_rank.intersection(parties))
        if found >= self.floor:
            return ""
        most = max(count for _, count in self.columns)
        return (
            f"{found} of the {len(self.full_rank)} members that train {most} columns are in it, "
            f"need {self.floor}"
        )


def rank_masks_of(policy: Policy, cohort: Sequence[str], attempt: int) -> RankMasks | None:
    """Who trains what; None if everybody trains everything.

    Args:
        cohort: everybody who is asked, as the draw gave them.
        attempt: of the round, from 1. Buffered groups are formed anew after a failure, of
            whoever is ready then: there no attempt asks for fewer columns than the first.
    """
    attempt = 1 if policy.schedule.buffered else attempt
    whole, floor = policy.adapter.rank, policy.smallest_sum
    ranks = {name: rank_of(policy, name) for name in sorted(cohort)}
    most = reached(ranks.values(), floor + max(0, attempt - 1)) if ranks else whole
    columns = tuple((name, min(rank, most)) for name, rank in ranks.items())
    return RankMasks(whole, columns, floor) if any(count < whole for _, count in columns) else None
