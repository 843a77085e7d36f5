"""The tables `[guard]` and `[aggregation]` of a federation file: what is done against members that
send poison.

Knows names, limits and defaults. Knows nothing of scores or sums.
Always: off unless the file says otherwise; a table that exists is consistent.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardTable:
    """After each round members score the new adapter on their held-out examples; a worse one is not
    kept.

    "vote": only where it is worse, each bucket's own change is scored too. "choose": they always
    are, and the best is kept: that costs as many more passes over held-out examples as there are
    buckets.
    """

    rule: Literal["off", "vote", "choose"] = "off"
    # an adapter whose accuracy is lower than the best one's by more than this is undone
    margin: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin = {self.margin} must lie in [0, 1)")

    @property
    def on(self) -> bool:
        """Is there a vote after each round?"""
        return self.rule != "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationTable:
    """How contributions become one change. Apart from the mean, each bucket of members is a sum of
    its own.

    Hazard: the coordinator sees the sums of buckets, each over fewer members than the cohort; no
    bucket has fewer than `protection.min_cohort` members besides those that may collude
    (`privacy.colluders`, one at least). So of a bucket it is not a third that may collude, but that
    number.
    """

    rule: Literal["mean", "median", "trimmed-mean"] = "mean"
    buckets: int = 1  # as many as the cohort fills, at most this
    # trimmed-mean: values left out at each end, of the buckets' values of one coordinate
    trim: int = 1

    def __post_init__(self) -> None:
        if (self.rule == "mean") != (self.buckets == 1):
            raise ValueError(
                f"rule = {self.rule!r} with buckets = {self.buckets}: the mean has 1 "
                f"bucket, the others more"
            )
        if self.rule != "mean" and self.buckets < 3:
            raise ValueError(
                f"buckets = {self.buckets} must be at least 3: the middle of two is their mean"
            )
        if self.trim < 1 or (self.rule == "trimmed-mean" and 2 * self.trim >= self.buckets):
            raise ValueError(
                f"trim = {self.trim} at each end must be at least 1 and leave some of "
                f"{self.buckets} buckets"
            )

    def check(self, mode: str) -> None:
        """Require that it fits the mode. Raises ValueError."""
        if self.rule != "mean" and mode == "sealed":
            raise ValueError(
                f'aggregation.rule = {self.rule!r} needs mode "plain" or "masked": a '
                f"sealed round has one sum"
            )


def check_guard(guard: GuardTable, counts: bool) -> None:
    """Require that there is something to vote with. Raises ValueError."""
    if guard.on and not counts:
        raise ValueError(
            f'guard.rule = "{guard.rule}" needs privacy.counters = "exact": votes are counters'
        )
