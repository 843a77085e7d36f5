"""Which ways to protect a sum there are: one line each.

Knows their names, as `spec.compatibility` lists what each can do. Knows nothing of how they work.
"""

from collections.abc import Callable
from dataclasses import dataclass

from .base import CoordinatorHalf, PartyContext, PartyHalf, ServerContext, Values
from .buckets import Buckets
from .encrypted import SealedBuckets, SealedCoordinator, SealedParty
from .experimental.threshold import JointCoordinator, JointParty
from .plain import PlainCoordinator, PlainParty
from .secagg import MaskedCoordinator, MaskedParty


@dataclass(frozen=True, slots=True)
class Aggregation:
    """One of them: a member's side, and the server's side of one bucket."""

    client: Callable[[PartyContext, Values, int, bool], PartyHalf]
    server: Callable[[ServerContext, tuple[str, ...]], CoordinatorHalf]
    together: Callable[..., CoordinatorHalf] = Buckets  # the server's side of several


AGGREGATIONS = {
    "plain": Aggregation(PlainParty, PlainCoordinator),
    "masked": Aggregation(MaskedParty, MaskedCoordinator),
    "sealed": Aggregation(SealedParty, SealedCoordinator, SealedBuckets),
    "threshold": Aggregation(JointParty, JointCoordinator),
}
