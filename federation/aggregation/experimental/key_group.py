"""Who made a joint key, and what follows from it for everybody: the circle of a sealed federation
without a shared key.

Knows names, the signed federation file and `crypto.experimental.threshold.Plan`. Knows no secret.
Always: thresholds, minima and identities come from the reader's own copy of the signed file; from
somebody else it takes the names of a circle alone, and those must be in the roster.
"""

import json
from dataclasses import dataclass
from typing import Any

from ....core.errors import ConfigError, MessageError
from ....crypto.experimental.threshold import ThresholdPlan
from ....crypto.identity.keys import PublicIdentity, digest
from ...spec.policy import Policy, canonical
from ...wire.messages import RoundId

PROTOCOL = "quietchoir circle 1"
MAX_BYTES = 1 << 14


def openers(policy: Policy, members: int) -> int:
    """t: how many of a circle open a sum. The file's `open_with`, and always more than half.

    Without one in the file more than two thirds, as for masks: then two sums over different members
    of one round need a third of the circle as accomplices. Source:
    `crypto.experimental.threshold.partial`.
    """
    wanted = policy.protection.open_with
    return max(wanted, members // 2 + 1) if wanted else 2 * members // 3 + 1


def needed(policy: Policy, members: int) -> int:
    """Members of a circle without whom no round can end: also those that any sum of the
    federation needs.
    """
    return max(openers(policy, members), policy.needed())


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyGroup:
    """Members that make, or made, a joint key together."""

    attempt: int  # names the ceremony: below 2^56
    names: tuple[str, ...]  # sorted

    @staticmethod
    def at(round_id: RoundId, number: int, names: tuple[str, ...]) -> "KeyGroup":
        """The circle of a ceremony: the `number`th of the attempt at `round_id`."""
        named = digest(PROTOCOL, "ceremony", round_id.run, round_id.round, round_id.attempt, number)
        return KeyGroup(attempt=int.from_bytes(named[:7], "big"), names=tuple(sorted(names)))

    @staticmethod
    def of(plan: ThresholdPlan) -> "KeyGroup":
        """The circle that a holding's plan is of."""
        return KeyGroup(attempt=plan.attempt, names=plan.names)

    def encode(self) -> bytes:
        """Canonical JSON."""
        return canonical({"attempt": self.attempt, "names": list(self.names)})

    @staticmethod
    def decode(data: bytes) -> "KeyGroup":
        """Read what `encode` wrote.

        Raises:
            MessageError: malformed.
        """
        try:
            fields: Any = json.loads(data) if len(data) <= MAX_BYTES else None
            key_group = KeyGroup(attempt=fields["attempt"], names=tuple(fields["names"]))
            good = (
                key_group.encode() == data
                and type(key_group.attempt) is int
                and 0 <= key_group.attempt < 1 << 56
            )
            good = (
                good
                and all(type(name) is str for name in key_group.names)
                and list(key_group.names) == sorted(set(key_group.names))
            )
        except (ValueError, LookupError, TypeError, RecursionError):
            good = False
        if not good:
            raise MessageError("who made the joint key is malformed; refused")
        return key_group

    def plan(self, policy: Policy, size: int) -> ThresholdPlan:
        """Everything that the circle's members must agree on, for adapters of `size` values.

        Raises:
            MessageError: strangers in it, too few members for the file's floors, or more than one
            key can serve.
        """
        members = {}
        for name in self.names:
            found = policy.member(name)
            if found is None:
                raise MessageError(f"{name!r} is not in the roster; its circle is refused")
            members[name] = PublicIdentity(bytes.fromhex(found.key))
        n, floor = len(members), policy.needed(len(members))
        if n < floor:  # the member's own floors, never the coordinator's word
            raise MessageError(
                f"a circle of {n} members, the federation's file asks for {floor}; refused"
            )
        try:
            return ThresholdPlan(
                federation=digest(PROTOCOL, policy.federation, policy.digest),
                epoch=policy.version,
                attempt=self.attempt,
                members=members,
                threshold=openers(policy, n),
                min_parties=policy.protection.min_cohort,
                length=size,
                bits=policy.protection.bits,
            )
        except ConfigError as error:
            raise MessageError(f"no joint key for this circle: {error}") from error


def round_number(round_id: RoundId) -> int:
    """How contributions to the joint key number the attempt at `round_id`; never 0, which is the
    rehearsal's.

    Two places share a number once in 2^63; the holding's memory then refuses the second.
    """
    named = digest(PROTOCOL, "round", round_id.run, round_id.round, round_id.attempt)
    return int.from_bytes(named[:8], "big") | 1
