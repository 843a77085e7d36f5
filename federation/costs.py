"""What one round costs a member on the wire, told before it joins.

Knows the packing of every mode. Knows nothing of links. An estimate: payloads exactly, letters
around them about.
Always: at least what a round that goes well really takes (a test counts), for the largest cohort
the roster allows; a round that is tried again costs again.
"""

from dataclasses import dataclass

from ..crypto.identity.keys import SIGNATURE_BYTES
from ..crypto.ring import BitRing
from ..crypto.secagg import tag
from .aggregation.attested_sum import attested
from .aggregation.update import Codec
from .spec.policy import Policy

LETTER_BYTES = 2500  # headers and signatures of a round's letters
GREETING_BYTES = 3000  # in sealed mode: greetings, the sum's witnesses
PEER_BYTES = 900  # keys, shares and signatures that a member exchanges with one other
# of a step's header; of each name in it, where members train different ranks
STEP_BYTES, NAME_BYTES = 200, 24
MAX_PEERS = 64  # of one member, in any cohort: above 32 members the graph is no longer complete


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes of one training round, at one member."""

    up: int
    down: int
    once_up: int = 0  # besides, in the first round under each version of the file
    once_down: int = 0
    # at most, besides, in a round of a member that missed some before it, or lost what it held
    late_down: int = 0


def round_cost(policy: Policy, size: int) -> Cost:
    """What a round costs.

    Args:
        size: values of the adapter.
    """
    mode, bits = policy.protection.mode, policy.protection.bits
    cohort = max(policy.recipe.cohort or len(policy.members), policy.protection.min_cohort)
    length, adapter = Codec(size, policy).length, 4 * size
    letters = LETTER_BYTES + PEER_BYTES * min(cohort, MAX_PEERS)
    # the new adapter comes once more, to be voted on
    again = adapter if policy.guard.on and mode != "sealed" else 0
    if mode != "sealed":
        one = mode == "plain"
        up, letters = (
            BitRing(length=length, bits=bits, parties=1 if one else cohort),
            LETTER_BYTES if one else letters,
        )
        down, whole = told_cost(policy, size, cohort) if policy.followed else (adapter + again, 0)
        # the sum comes back to be signed, and boxes and uploads carry what it is checked with
        if attested(policy):
            shown = BitRing(length=size, bits=bits, parties=cohort).wire_bytes
            up, down = (
                BitRing(length=length + tag.width(bits), bits=bits, parties=cohort),
                down + shown,
            )
            letters += cohort * (tag.SEED_BYTES + 2 * SIGNATURE_BYTES)
        return Cost(up.wire_bytes + letters, down + letters, late_down=whole)
    if policy.protection.key == "threshold":
        return joint_cost(policy, size, cohort, letters)
    from ..crypto.he.bfv import Packing

    packing = Packing(length=size, bits=bits, parties=cohort)
    down = packing.rows * packing.parameters.ciphertext_bytes
    return Cost(packing.wire_bytes + letters + GREETING_BYTES, down + letters + GREETING_BYTES)


def told_cost(policy: Policy, size: int, cohort: int) -> tuple[int, int]:
    """Where adapters are followed: what a round takes, and at most how much more for a member that
    was away.

    A member of every round gets the newest step, with the sum of each bucket that it did not sign;
    one that missed rounds gets their steps, up to `model_broadcast.WAY` times the adapter with its
    optimizer. A vote costs nothing more, since what was voted on is what the next round starts
    from; where buckets are chosen from, each costs. What is undone or salvaged comes besides.
    """
    from .rounds.model_broadcast import SHORT_BYTES, WAY

    recipe, buckets, named = (
        policy.recipe,
        policy.aggregation.buckets,
        2 * cohort * any(one.rank for one in policy.members),
    )
    body = BitRing(length=size, bits=policy.protection.bits, parties=cohort).wire_bytes
    header, sums = STEP_BYTES + NAME_BYTES * named, buckets
    if attested(policy):  # the sum that it signed is only named
        header, sums = header + 2 * (2 * SIGNATURE_BYTES + NAME_BYTES) * cohort, buckets - 1
    change = (body * sums + header * buckets) * (
        1 + buckets if policy.guard.rule == "choose" else 1
    )
    whole = max(
        SHORT_BYTES,
        WAY * 4 * size * (3 if recipe.server_optimizer in ("fedadam", "fedyogi") else 2),
    )
    down = (
        max(change, whole) if cohort < len(policy.members) or policy.schedule.buffered else change
    )
    return down, max(0, whole - down)


def joint_cost(policy: Policy, size: int, cohort: int, letters: int) -> Cost:
    """Sealed mode with a key in shares: for a member that is asked for its part of the sum, which
    not all are. The sum comes down, and the parts as one.

    Besides, the ceremony that makes the key: polynomials to and from every other member.
    """
    from ..crypto.experimental.threshold.plan import POLYNOMIAL_BYTES, JointPacking

    vector = (
        JointPacking(length=size, bits=policy.protection.bits, parties=cohort).rows
        * POLYNOMIAL_BYTES
    )
    letters += GREETING_BYTES
    return Cost(
        2 * vector + letters,
        2 * vector + letters,
        once_up=(cohort + 2) * POLYNOMIAL_BYTES + letters,
        once_down=(3 * cohort - 1) * POLYNOMIAL_BYTES + letters,
    )


def told(cost: Cost) -> str:
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


def privacy_told(policy: Policy) -> str:
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
