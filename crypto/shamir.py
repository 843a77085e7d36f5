"""Split a 32-byte secret so that any `threshold` holders rebuild it and fewer learn nothing.

Knows polynomials over one prime field. Knows nothing of who holds what.
Always: points are distinct and non-zero; weights are computed once for a set of holders and used
for every secret.
Not covered: a holder that hands back a wrong share (callers compare the rebuilt secret with a
commitment), and the timing of Python's big integers, which is not constant.
"""

import math
import secrets
from collections.abc import Sequence

import numpy as np

from ..core.errors import ProtocolError, ThresholdError

PRIME = (1 << 256) + 297  # the smallest prime above 2**256: every 32-byte secret fits
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(secret: bytes, threshold: int, points: Sequence[int]) -> list[bytes]:
    """One 33-byte share for each point.

    Args:
        secret: 32 bytes.
        threshold: shares that rebuild it; one less tells nothing at all
        (information-theoretically). points: distinct numbers from 1, one a holder.

    Source: Shamir 1979, "How to share a secret".
    """
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= len(points):
        raise ValueError(
            f"{len(secret)} bytes, {threshold} of {len(points)}: cannot be shared"
        )  # our bug
    if len(set(points)) != len(points) or min(points) < 1:
        raise ValueError("points must be distinct and at least 1")  # our bug
    coefficients = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    shares = []
    for x in points:
        y = 0
        for coefficient in coefficients:
            y = (y + coefficient) * x % PRIME
        shares.append(((y + int.from_bytes(secret, "big")) % PRIME).to_bytes(SHARE_BYTES, "big"))
    return shares


def weights(points: Sequence[int]) -> list[int]:
    """Lagrange weights at zero for this set of holders, O(n^2) products and one inversion.

    The inversions are gathered into one (Montgomery's trick), which is what makes a large set
    cheap.
    """
    if len(set(points)) != len(points) or min(points, default=0) < 1:
        raise ValueError("points must be distinct and at least 1")  # our bug
    # exact products of small numbers, reduced once: cheaper than a reduction at every step
    whole = math.prod(points)
    tops = [whole // x % PRIME for x in points]
    bottoms = _differences(points)
    running = [1]
    for bottom in bottoms:
        running.append(running[-1] * bottom % PRIME)
    inverse, out = pow(running[-1], -1, PRIME), [0] * len(points)
    for i in reversed(range(len(points))):
        out[i] = tops[i] * inverse % PRIME * running[i] % PRIME
        inverse = inverse * bottoms[i] % PRIME
    return out


def _differences(points: Sequence[int]) -> list[int]:
    """For each point the product of other - point over all others, modulo the prime.

    Differences are multiplied in words of 64 bits for as long as they fit, and only then as big
    integers.
    """
    fit = max(1, 62 // max(points).bit_length())  # so many differences cannot overflow a word
    n, width = len(points), -(-len(points) // fit) * fit
    apart = np.ones((n, width), np.int64)
    apart[:, :n] = np.array(points, np.int64)[None, :] - np.array(points, np.int64)[:, None]
    np.fill_diagonal(apart, 1)
    return [math.prod(row) % PRIME for row in apart.reshape(n, -1, fit).prod(axis=2).tolist()]


def join(shares: Sequence[bytes], weighting: Sequence[int]) -> bytes:
    """The secret behind `shares`, given in the order of the points that made `weighting`.

    Raises:
        ThresholdError: the numbers of shares and weights differ.
        ProtocolError: the shares do not meet in a 32-byte secret, so one of them is wrong.
    """
    if len(shares) != len(weighting) or not shares:
        raise ThresholdError(
            f"{len(shares)} shares for {len(weighting)} weights; nothing can be rebuilt"
        )
    value = (
        sum(
            int.from_bytes(share, "big") * weight
            for share, weight in zip(shares, weighting, strict=True)
        )
        % PRIME
    )
    if value >> 256:
        raise ProtocolError(
            "the shares meet in no 32-byte secret, so one of them is wrong; abandon this attempt"
        )
    return value.to_bytes(SECRET_BYTES, "big")
