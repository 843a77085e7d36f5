"""What one round costs a member on the wire, told before it joins.

Knows the packing of every mode. Knows nothing of links. An estimate: payloads exactly, letters around them about.
Always: at least what a round that goes well really takes (a test counts), for the largest cohort the roster allows; a round
that is tried again costs again.
"""

from dataclasses import dataclass

from ..crypto.ring import BitRing
from .membership.policy import Policy
from .protection.update import Codec

LETTER_BYTES = 2500  # headers and signatures of a round's letters
GREETING_BYTES = 3000  # in sealed mode: greetings, the sum's witnesses
PEER_BYTES = 900  # keys, shares and signatures that a member exchanges with one other
MAX_PEERS = 64  # of one member, in any cohort: above 32 members the graph is no longer complete


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes of one training round, at one member."""

    up: int
    down: int
    once_up: int = 0  # besides, in the first round under each version of the file
    once_down: int = 0


def round_cost(policy: Policy, size: int) -> Cost:
    """What a round costs.

    Args:
        size: values of the adapter.
    """
    mode, bits = policy.protection.mode, policy.protection.bits
    cohort = max(policy.recipe.cohort or len(policy.members), policy.protection.min_cohort)
    length, adapter = Codec(size, policy).length, 4 * size
    letters = LETTER_BYTES + PEER_BYTES * min(cohort, MAX_PEERS)
    again = adapter if policy.guard.on and mode != "sealed" else 0  # the new adapter comes once more, to be voted on
    if mode == "plain":
        return Cost(BitRing(length=length, bits=bits, parties=1).wire_bytes + LETTER_BYTES, adapter + again + LETTER_BYTES)
    if mode == "masked":
        return Cost(BitRing(length=length, bits=bits, parties=cohort).wire_bytes + letters, adapter + again + letters)
    if policy.protection.key == "threshold":
        return joint_cost(policy, size, cohort, letters)
    from ..crypto.bfv import Packing

    packing = Packing(length=size, bits=bits, parties=cohort)
    down = packing.rows * packing.parameters.ciphertext_bytes
    return Cost(packing.wire_bytes + letters + GREETING_BYTES, down + letters + GREETING_BYTES)


def joint_cost(policy: Policy, size: int, cohort: int, letters: int) -> Cost:
    """Sealed mode with a key in shares: for a member that is asked for its part of the sum, which not all are.

    Besides, the ceremony that makes the key: polynomials to and from every other member.
    """
    from ..crypto.threshold.plan import POLYNOMIAL_BYTES, JointPacking
    from .sealed.circle import openers

    vector = JointPacking(length=size, bits=policy.protection.bits, parties=cohort).rows * POLYNOMIAL_BYTES
    letters += GREETING_BYTES
    return Cost(
        2 * vector + letters, (1 + openers(policy, cohort)) * vector + letters,
        once_up=(cohort + 2) * POLYNOMIAL_BYTES + letters, once_down=(3 * cohort - 1) * POLYNOMIAL_BYTES + letters,
    )  # fmt: skip


def told(cost: Cost) -> str:
    """For people."""
    once = f"; the first one {megabytes(cost.once_up)} up and {megabytes(cost.once_down)} down more" if cost.once_up else ""
    return f"about {megabytes(cost.up)} up and {megabytes(cost.down)} down in a round{once}"


def megabytes(count: int) -> str:
    """Bytes in megabytes of 1000 × 1000."""
    return f"{count / 1e6:.2f} MB"


def privacy_told(policy: Policy) -> str:
    """The privacy budget, for people."""
    privacy = policy.privacy
    if not privacy.on:
        return "no differential privacy: what the adapter memorises is not bounded"
    return f"epsilon at most {privacy.epsilon:g} at delta {privacy.delta:g} for one member's updates of all rounds"
