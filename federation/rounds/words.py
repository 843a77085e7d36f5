"""The price of privacy and of its opposite, in words.

Knows what stands in a report and in a federation file. Always: an epsilon is never shown without
its delta, unit, sampling assumption and steps.
"""

from collections.abc import Mapping
from typing import Any

from ..spec.policy import Policy


def told_privacy(spent: Mapping[str, Any]) -> str:
    """What a run's rounds have cost a member of all of them.

    Args:
        spent: `PrivacyAccountant.spent`.
    """
    return (
        f"epsilon {spent['epsilon']:.3g} of {spent['budget']:g} at delta {spent['delta']:g}, "
        f"{spent['steps']} steps; "
        f"unit: {spent['unit']}; sampling {spent['sampling']}; {spent['mechanism']}, "
        f"{spent['method']}"
    )


def told_buckets(policy: Policy) -> str | None:
    """What buckets cost; None where there is one sum."""
    if policy.aggregation.rule == "mean":
        return None
    least, most = policy.smallest_sum, policy.aggregation.buckets
    noisier = "; each carries noise for its own size" if policy.privacy.on else ""
    return (
        f"up to {most} sums are opened a round, each over {least} members or more, instead of one "
        f"over the whole cohort: "
        f"whoever reads them knows the change of {least} together{noisier}; of a bucket, "
        f"{policy.colluders} members may be in "
        f"league with the coordinator, and the others stay {policy.protection.min_cohort}"
    )
