"""Which protection a federation's file names.

Knows the modes that exist. Knows nothing of how they work.
"""

from dataclasses import dataclass

from ...crypto.he.encrypted_ring import Desk
from ..rounds.selection import buckets
from ..spec.policy import Policy
from ..wire.message import Place
from .base import Contributors, CoordinatorHalf, PartyContext, PartyHalf, Values
from .buckets import Buckets
from .context import Terms
from .encrypted import SealedCoordinator, SealedParty
from .experimental.threshold import JointCoordinator, JointParty
from .plain import PlainCoordinator, PlainParty
from .secagg import MaskedCoordinator, MaskedParty
from .setup import Common


@dataclass(frozen=True, slots=True)
class Sealing:
    """What the coordinator of a sealed round needs besides the cohort."""

    common: Common  # key and adapter, by name only
    desk: Desk  # with crypto.sealed.AdderService


def party_half(context: PartyContext, values: Values, tokens: int, *, counted: bool) -> PartyHalf:
    """A member's side of one attempt for its contribution `values` [length]; `counted`: its
    tokens were trained on.
    """
    if context.policy.protection.mode == "plain":
        return PlainParty(context.policy, values)
    if context.policy.protection.mode == "sealed":
        party = JointParty if context.policy.protection.key == "threshold" else SealedParty
        return party(context, values, tokens, counted)
    return MaskedParty(context, values, tokens, counted)


def coordinator_half(
    policy: Policy, place: Place, told: Contributors, length: int, *,
    counted: bool, asked: int, terms: Terms, sealing: Sealing | None = None,
) -> Buckets:  # fmt: skip
    """The coordinator's side of `place` for the members that are ready, of `asked` members;
    `sealing` in sealed mode.
    """
    halves: list[tuple[tuple[str, ...], CoordinatorHalf]] = []
    for cohort in buckets(policy, terms.adapter, told.ready, terms.shares):
        half: CoordinatorHalf
        if policy.protection.mode == "plain":
            half = PlainCoordinator(policy, cohort, length)
        elif policy.protection.mode == "sealed":
            assert sealing is not None  # our bug: nobody was mustered
            sealed = JointCoordinator if policy.protection.key == "threshold" else SealedCoordinator
            half = sealed(
                policy, place, cohort, length, counted, sealing.common, sealing.desk,
                contributors=told, asked=asked, terms=terms,
            )  # fmt: skip
        else:
            half = MaskedCoordinator(
                policy, place, cohort, length, counted, contributors=told, asked=asked, terms=terms
            )
        halves.append((cohort, half))
    return Buckets(halves)
