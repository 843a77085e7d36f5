"""Which protection a federation's file names.

Knows the modes that exist. Knows nothing of how they work.
"""

from .masked import MaskedCoordinator, MaskedParty
from .messages import Place
from .plain import PlainCoordinator, PlainParty
from .policy import Policy
from .protection import CoordinatorHalf, PartyContext, PartyHalf, Values


def party_half(context: PartyContext, values: Values, tokens: int, *, counted: bool) -> PartyHalf:
    """A member's side of one attempt for its contribution `values` [length]; `counted`: its tokens were trained on."""
    if context.policy.protection.mode == "plain":
        return PlainParty(context.policy, values)
    return MaskedParty(context, values, tokens, counted)


def coordinator_half(policy: Policy, place: Place, cohort: tuple[str, ...], length: int, *, counted: bool) -> CoordinatorHalf:
    """The coordinator's side of `place` for the members of `cohort`."""
    if policy.protection.mode == "plain":
        return PlainCoordinator(policy, cohort, length)
    return MaskedCoordinator(policy, place, cohort, length, counted)
