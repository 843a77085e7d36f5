"""The table `[privacy]` of a federation file: how much one round may tell of one member, and how
much all of them together.

Knows names, limits and defaults. Knows nothing of noise itself (see crypto.noise) or of what was
spent (crypto.accountant).
Always: off unless the file says otherwise; a table that exists is consistent.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyTable:
    """Differential privacy of what is summed; the unit is one member's whole update.

    Whoever reads a sum may be a member of it, and knows its own noise: what counts is the noise of
    the others, less that of `colluders`. So the noise of a sum of `min_cohort` is dealt out among
    `honest` of them.

    Hazard: with `counters = "exact"` the sums of scores, losses, examples and tokens are opened
    without noise, and no epsilon covers them. With "none" they are not sent: then there is no
    accuracy, no loss and no guard.
    """

    mechanism: Literal["none", "discrete-gaussian", "skellam"] = "none"
    clip: float = 1.0  # largest L2 norm of one member's update
    # deviation of a sum's noise over one member's largest share of it
    noise_multiplier: float = 1.0
    epsilon: float = 8.0  # the budget: training stops before it is passed
    delta: float = 1e-5  # at most one over the number of members
    # Members of a sum that may be in league with its reader; 0 counts as 1. Their noise hides
    # nobody else, and a bucket, or what two sums from one adapter differ by, has `min_cohort`
    # members besides them (also where there is no noise).
    colluders: int = 0
    counters: Literal["none", "exact"] = "none"

    def __post_init__(self) -> None:
        if not min(self.clip, self.noise_multiplier, self.epsilon) > 0:
            raise ValueError("clip, noise_multiplier and epsilon must be above 0")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta = {self.delta} must lie between 0 and 1")
        if self.colluders < 0:
            raise ValueError(f"colluders = {self.colluders} must be at least 0")

    @property
    def on(self) -> bool:
        """Is there noise?"""
        return self.mechanism != "none"

    @property
    def counts(self) -> bool:
        """Do counters travel beside the update?"""
        return not self.on or self.counters == "exact"

    def honest(self, min_cohort: int) -> int:
        """Members of any opened sum whose noise its reader does not know."""
        return min_cohort - max(1, self.colluders)

    def check(self, min_cohort: int, min_tokens: int, members: int = 0) -> None:
        """Require that it fits the `[protection]` and the roster beside it. Raises ValueError."""
        if self.on and self.honest(min_cohort) < 1:
            raise ValueError(
                f"privacy.colluders = {self.colluders} must be below protection.min_cohort = "
                f"{min_cohort}, which must be at "
                "least 2: somebody must add noise that the reader of a sum does not know"
            )
        if self.on and (most := max(members, min_cohort)) * self.delta > 1:
            raise ValueError(
                f"privacy.delta = {self.delta:g} must be at most 1/{most}, one over the number of "
                f"members: above that, showing "
                "one member's update in clear would pass; use far less, for example 1e-5"
            )
        if not self.counts and min_tokens:
            raise ValueError(
                'privacy.counters = "none" sends no token counts; set protection.min_tokens = 0, '
                'or counters = "exact"'
            )
