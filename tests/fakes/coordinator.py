"""What a curious coordinator can do with what it holds: peel masks, rebuild secrets, look for
patterns.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from quietchoir.crypto import shamir
from quietchoir.crypto.secagg.messages import shared_view
from quietchoir.tests.fakes.secagg import Peeled, Round

Numbers = NDArray[np.int64]


def masked_view(game: Round) -> bytes:
    """Digest that uploads were signed under."""
    return shared_view(
        game.session,
        game.server._keys.view(game.session),
        tuple(sorted(game.server._sealed_shares)),
    )


def peel(game: Round, victim: str, *, seed: bytes, mask_key: bytes) -> Numbers:
    """What a coordinator that knows both secrets of one member reads in its upload; all members
    sent one.
    """
    at = game.session.numbers[victim]
    peers = {peer: game.server._cards[peer].mask for peer in game.server._graph.neighbours(at)}
    return (
        Peeled(game.session, game.sent[2][victim], masked_view(game))
        .without_self(seed)
        .without_pairs(at, mask_key, peers)
        .values
    )


def rebuild(pieces: Mapping[int, bytes]) -> bytes:
    """The secret behind {holder's number: share}."""
    points = sorted(holder + 1 for holder in pieces)
    return shamir.join([pieces[point - 1] for point in points], shamir.weights(points))


def uniform(residues: Any, bits: int) -> bool:
    """Chi-square of the top six bits; a sound mask fails once in 10^9."""
    counts = np.bincount(
        np.asarray(residues).astype(np.int64) >> max(0, bits - 6), minlength=2 ** min(bits, 6)
    )
    expected = counts.sum() / len(counts)
    return bool(chi2.sf(float(((counts - expected) ** 2 / expected).sum()), len(counts) - 1) > 1e-9)
