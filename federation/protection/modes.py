"""Which protection a federation's file names.

Knows the modes that exist. Knows nothing of how they work.
"""

from dataclasses import dataclass

from ...crypto.sealed import Desk
from ..exchange.messages import Place
from ..membership.policy import Policy
from ..sealed.halves import SealedCoordinator, SealedParty
from ..sealed.muster import Common
from .masked import MaskedCoordinator, MaskedParty
from .plain import PlainCoordinator, PlainParty
from .seam import CoordinatorHalf, PartyContext, PartyHalf, Values


@dataclass(frozen=True, slots=True)
class Sealing:
    """What the coordinator of a sealed round needs besides the cohort."""

    common: Common  # key and adapter, by name only
    desk: Desk  # with crypto.sealed.AdderService


def party_half(context: PartyContext, values: Values, tokens: int, *, counted: bool) -> PartyHalf:
    """A member's side of one attempt for its contribution `values` [length]; `counted`: its tokens were trained on."""
    if context.policy.protection.mode == "plain":
        return PlainParty(context.policy, values)
    if context.policy.protection.mode == "sealed":
        return SealedParty(context, values, tokens, counted)
    return MaskedParty(context, values, tokens, counted)


def coordinator_half(
    policy: Policy, place: Place, cohort: tuple[str, ...], length: int, *, counted: bool, sealing: Sealing | None = None
) -> CoordinatorHalf:
    """The coordinator's side of `place` for the members of `cohort`; `sealing` in sealed mode."""
    if policy.protection.mode == "plain":
        return PlainCoordinator(policy, cohort, length)
    if policy.protection.mode == "sealed":
        assert sealing is not None  # our bug: nobody was mustered
        return SealedCoordinator(policy, place, cohort, length, counted, sealing.common, sealing.desk)
    return MaskedCoordinator(policy, place, cohort, length, counted)
