"""Keys of masks: which stream each pair and each member adds, and how it is taken away again.

Knows the derivation of every mask key and its sign. Knows nothing of messages.
Always: the lower number of a pair adds its stream and the higher one subtracts it; values and
tokens have separate keys.
"""

from typing import Protocol

from ..identity.keys import Ephemeral, digest, hkdf
from .session import Session

QUANTITIES = ("values", "tokens")


class Maskable(Protocol):
    """A party's vector or the coordinator's sum: whatever masks are added to."""

    def mask(self, quantity: str, key: bytes, *, subtract: bool) -> None:
        """Add or take away one stream for one quantity."""


def commit(session: Session, sender: int, seed: bytes) -> bytes:
    """Commitment to a self-mask seed; hiding because the seed has 256 random bits."""
    return digest(session.id, "self-mask commitment", sender, seed)


def mask_self(target: Maskable, session: Session, seed: bytes, *, subtract: bool) -> None:
    """The mask that only its owner adds: what keeps a late upload unreadable."""
    for quantity in QUANTITIES:
        target.mask(
            quantity, hkdf(seed, session.mask_key_context("self", quantity)), subtract=subtract
        )


def mask_pair(
    target: Maskable, session: Session, own: Ephemeral, owner: int, peer: int, peer_key: bytes
) -> None:
    """The mask that `owner` and `peer` share, with the owner's sign.

    The coordinator calls it in a dropped owner's name: adding what the owner would have added
    cancels what the peer did.

    Raises:
        AuthenticationError: the peer's key gives no secret.
    """
    secret = own.agree(peer_key, session.pair("pair mask", owner, peer))
    for quantity in QUANTITIES:
        key = hkdf(secret, session.mask_key_context("pair", quantity))
        target.mask(quantity, key, subtract=owner > peer)
