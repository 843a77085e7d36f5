"""The table `[schedule]` of a federation file: whether a round waits for its cohort, or sums
members as they become ready.

Knows names, limits and defaults, and how much a late contribution counts. Knows nothing of letters
or sums.
Always: synchronous unless the file says otherwise; a table that exists is consistent, and fits the
tables beside it.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from .guard import AggregationTable
    from .policy import ProtectionTable, Recipe


class Tables(Protocol):
    """The tables that must fit each other: a federation file's, or a scenario's."""

    @property
    def schedule(self) -> "ScheduleTable": ...
    @property
    def protection(self) -> "ProtectionTable": ...
    @property
    def recipe(self) -> "Recipe": ...
    @property
    def aggregation(self) -> "AggregationTable": ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleTable:
    """When contributions are summed."""

    rounds: Literal["synchronous", "buffered"] = "synchronous"
    buffer: int = 0  # buffered: contributions that a group waits for; 0: protection.min_cohort
    # buffered: a contribution from an adapter more steps ago than this is dropped, and trained anew
    max_staleness: int = 10
    # buffered: a run to which nobody has contributed for so long gives up
    patience_s: float = 7 * 86400.0

    def __post_init__(self) -> None:
        if self.buffer < 0 or self.max_staleness < 0:
            raise ValueError(
                f"buffer = {self.buffer} and max_staleness = {self.max_staleness} "
                f"must be at least 0"
            )
        if not self.patience_s > 0:
            raise ValueError(f"patience_s = {self.patience_s} must be above 0 seconds")

    @property
    def buffered(self) -> bool:
        """Are members summed as they become ready?"""
        return self.rounds == "buffered"

    def group(self, min_cohort: int) -> int:
        """Contributions that a group waits for: never fewer than any sum may have."""
        return max(self.buffer, min_cohort)


def weight(staleness: int) -> float:
    """How much a contribution counts whose adapter was `staleness` steps ago when it is summed; 1
    if it was the newest.

    Source: s(τ) = 1/√(1 + τ): Nguyen et al. 2022, "Federated learning with buffered asynchronous
    aggregation", arXiv 2106.06639; the polynomial of Xie et al. 2019, arXiv 1903.03934, with
    exponent 1/2.
    """
    if staleness < 0:
        raise ValueError(
            f"staleness = {staleness} must be at least 0"
        )  # our bug: whoever reads letters has checked
    return 1.0 / math.sqrt(1 + staleness)


def check_schedule(tables: Tables) -> None:
    """Require that buffered rounds fit the tables beside them. Raises ValueError."""
    if not tables.schedule.buffered:
        return
    if tables.protection.mode == "sealed":
        raise ValueError(
            'schedule.rounds = "buffered" needs protection.mode "plain" or "masked": in sealed '
            "mode all members step together"
        )
    if tables.aggregation.rule != "mean":
        raise ValueError(
            f'schedule.rounds = "buffered" needs aggregation.rule = "mean", found '
            f"{tables.aggregation.rule!r}: "
            "a group is one sum"
        )
    if tables.recipe.cohort:
        raise ValueError(
            f'schedule.rounds = "buffered" draws nobody: set recipe.cohort = 0, found '
            f"{tables.recipe.cohort}; "
            "schedule.buffer says how many are summed"
        )
