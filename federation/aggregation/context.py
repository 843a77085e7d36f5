"""What the contributions to one sum have in common: their ranges or their noise, and what the
coordinator told about the round.

Knows places, ranges and how much noise the federation's file asks for. Knows nothing of masks.
Always: everything here follows from the signed file, from the place and from what was told to all
alike; members with different terms have different `told`, and masks follow from it, so their
contributions never meet in a sum.
"""

import functools
import hashlib
from dataclasses import dataclass

from ...crypto.fixedpoint import Range
from ...crypto.privacy.noise import Noise
from ..spec.policy import Policy
from ..wire.message import Place
from .rank_masks import Shares


@dataclass(frozen=True, slots=True)
class Terms:
    """Of one place."""

    ranges: tuple[Range, ...] = ()  # of the update's tensors; empty: the federation's one range
    seed: bytes = b""  # of the rotation that spreads an update before noise; public
    told: bytes = b""  # the broadcast digest of the work or the group: the masks follow from it
    start: str = ""  # name of the state that the sum makes a step from, where members follow them
    shares: Shares | None = None  # who trains which coordinates; None: everybody all of them
    # `repeats.digest_of` the one that the sum is about; nothing where members do not share one
    adapter: bytes = b""


def seed_of(policy: Policy, place: Place) -> bytes:
    """The public seed of one round's rotation: the same for all its members, another for each
    round.

    It is bound to the federation and not to a version of its file, so that a member that comes
    under a later one can still follow the steps made before.
    """
    return hashlib.sha256(
        b"quietchoir rotation seed 2" + policy.federation + f"{place.run} {place.round}".encode()
    ).digest()


@functools.lru_cache(maxsize=16)
def noise_of(policy: Policy, size: int) -> Noise | None:
    """The noise of an update of `size` values; None if the federation has none, or there is no
    update.

    Any sum that is opened holds at least `min_cohort` contributions. Its reader may be one of the
    members, which knows its own noise: the noise is dealt out among `PrivacyTable.honest` of them.

    Raises:
        ConfigError: the noise does not fit the federation's bits.
    """
    privacy, protection = policy.privacy, policy.protection
    if privacy.mechanism == "none" or not size:
        return None
    return Noise(
        length=size,
        clip=privacy.clip,
        multiplier=privacy.noise_multiplier,
        honest=privacy.honest(protection.min_cohort),
        bits=protection.bits,
        mechanism=privacy.mechanism,
    )
