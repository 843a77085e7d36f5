"""What one round costs a member on the wire, told before it joins.

Knows which mode's cost it is (`aggregation/registry`), how the adapter comes (`rounds`), and words.
Knows nothing of links. An estimate: payloads exactly, messages around them about.
Always: at least what a round that goes well really takes (a test counts), for the largest cohort
the roster allows; a round that is tried again costs again.
"""

from .aggregation.base import WireCost
from .aggregation.registry import AGGREGATIONS
from .rounds.server import held_by
from .spec.policy import Policy


def round_cost(policy: Policy, size: int) -> WireCost:
    """What a round costs.

    Args:
        size: values that rounds carry (`Policy.carried` of the adapter's).
    """
    cohort = max(policy.recipe.cohort or len(policy.members), policy.protection.min_cohort)
    sums = AGGREGATIONS[policy.protection.kind].wire_cost(policy, size, cohort)
    return sums + held_by(policy).wire_cost(policy, size, cohort)


def cost_sentence(cost: WireCost) -> str:
    """For people."""
    once = (
        (f"; the first one {megabytes(cost.once_up)} up and {megabytes(cost.once_down)} down more")
        if cost.once_up
        else ""
    )
    late = (
        (f"; up to {megabytes(cost.late_down)} down besides for who missed rounds")
        if cost.late_down
        else ""
    )
    return f"about {megabytes(cost.up)} up and {megabytes(cost.down)} down in a round{once}{late}"


def megabytes(count: int) -> str:
    """Bytes in megabytes of 1000 × 1000."""
    return f"{count / 1e6:.2f} MB"


def privacy_bound_sentence(policy: Policy) -> str:
    """The privacy budget, for people."""
    privacy = policy.privacy
    if not privacy.on:
        return "no differential privacy: what the adapter memorises is not bounded"
    readers = f"the coordinator and {max(1, privacy.colluders)} of the other members together"
    if policy.protection.mode == "plain":
        readers = "readers of the sums (the coordinator sees each update)"
    return (
        f"epsilon at most {privacy.epsilon:g} at delta {privacy.delta:g} for one member's updates "
        f"of all rounds, against {readers}"
    )
