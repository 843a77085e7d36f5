"""Polynomials as residues modulo each prime, and Shamir's sharing of them.

Knows arrays uint64 [limbs, N], one limb a prime of `plan.PRIMES`, and nothing of what they mean.
Linear algebra alone: products of polynomials are SEAL's, uniform numbers come from AES-CTR by
rejection (`bfv.uniform`) under keys of the operating system.
Always: a residue is below its prime; bytes that say otherwise are refused before anything is
computed with them.
"""

import secrets
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ....core.errors import ProtocolError
from ...he.bfv import uniform
from ...he.parameters import JOINT
from ...identity.keys import hkdf
from ...ring import expand
from .plan import PRIMES, RESIDUE_BYTES

Residues = NDArray[np.uint64]  # [..., limbs, N]

MODULI = np.array(PRIMES, np.uint64)[:, None]


def _moduli(limbs: int) -> NDArray[np.uint64]:
    return MODULI[:limbs]


def add(left: Residues, right: Residues) -> Residues:
    """left + right."""
    return (left + right) % _moduli(left.shape[-2])


def subtract(left: Residues, right: Residues) -> Residues:
    """left - right."""
    moduli = _moduli(left.shape[-2])
    return (left + (moduli - right)) % moduli


def product(left: Residues, right: Residues | Sequence[int]) -> Residues:
    """left * right, number by number, or limb by limb with one number each.

    Horner over the bytes of `right`: with primes below 2^55, 256 * total + 255 * left stays below
    2^64.
    """
    moduli, other = _moduli(left.shape[-2]), np.asarray(right, np.uint64)
    other = other if other.ndim > 1 else other[:, None]
    total = np.zeros_like(left)
    for shift in range(8 * (RESIDUE_BYTES - 1), -1, -8):
        total = (
            total * np.uint64(256) + left * (other >> np.uint64(shift) & np.uint64(255))
        ) % moduli
    return total


def random(key: bytes, limbs: int) -> Residues:
    """One uniform polynomial [limbs, N], the same for the same key.

    Args:
        key: 32 bytes that serve this one polynomial.
    """
    return np.stack(
        [
            uniform(hkdf(key, b"quietchoir residues 1" + bytes((at,))), JOINT.degree, prime)
            for at, prime in enumerate(PRIMES[:limbs])
        ]
    )


def smudging(bits: int, limbs: int) -> Residues:
    """One polynomial [limbs, N] whose coefficients are uniform integers in [-2^bits, 2^bits).

    The range is a power of two, so random bits are the sample: nothing is rejected or rounded.
    """
    width = bits // 8 + 1  # bytes of bits + 1 random bits
    raw = np.frombuffer(expand(secrets.token_bytes(32), width * JOINT.degree), np.uint8).reshape(
        width, JOINT.degree
    )
    moduli, value = _moduli(limbs), np.zeros((limbs, JOINT.degree), np.uint64)
    top = np.uint8((2 << bits % 8) - 1 & 0xFF)
    for row in (raw[0] & top, *raw[1:]):
        value = (value * np.uint64(256) + row) % moduli  # below 2^63
    lowest = np.array([(1 << bits) % prime for prime in PRIMES[:limbs]], np.uint64)[:, None]
    return (value + (moduli - lowest)) % moduli


def split(secret: Residues, threshold: int, points: Sequence[int]) -> list[Residues]:
    """Shamir's shares of every residue, one for each point.

    Args:
        secret: [limbs, N], in whatever basis: sharing is linear.
        points: distinct numbers from 1 to 255.

    Source: Shamir 1979. `threshold` - 1 shares are uniform, whatever the secret.
    """
    limbs = secret.shape[-2]
    coefficients = [random(secrets.token_bytes(32), limbs) for _ in range(threshold - 1)]
    shares = []
    for point in points:
        value = np.zeros_like(secret)
        for coefficient in coefficients:
            # 2^55 * 2^8
            value = (value + coefficient) % _moduli(limbs) * np.uint64(point) % _moduli(limbs)
        shares.append(add(value, secret))
    return shares


def weights(points: Sequence[int], point: int, limbs: int, at: int = 0) -> list[int]:
    """Lagrange's weight of `point` among `points` for the value at `at`, modulo each prime."""
    out = []
    for prime in PRIMES[:limbs]:
        top = bottom = 1
        for other in points:
            if other != point:
                top, bottom = top * (at - other) % prime, bottom * (point - other) % prime
        out.append(top * pow(bottom, -1, prime) % prime)
    return out


def to_bytes(residues: Residues) -> bytes:
    """7 bytes a residue, little-endian."""
    words = np.ascontiguousarray(residues, "<u8").view(np.uint8).reshape(-1, 8)
    return words[:, :RESIDUE_BYTES].tobytes()


def from_bytes(raw: bytes, rows: int, limbs: int) -> Residues:
    """Polynomials [rows, limbs, N].

    Raises:
        ProtocolError: another length, or a residue that is not below its prime.
    """
    count = rows * limbs * JOINT.degree
    if len(raw) != count * RESIDUE_BYTES:
        raise ProtocolError(
            f"polynomials of {len(raw)} bytes, {count * RESIDUE_BYTES} expected; they are refused"
        )
    words = np.zeros((count, 8), np.uint8)
    words[:, :RESIDUE_BYTES] = np.frombuffer(raw, np.uint8).reshape(count, RESIDUE_BYTES)
    out = words.view("<u8").astype(np.uint64).reshape(rows, limbs, JOINT.degree)
    if (out >= _moduli(limbs)).any():
        raise ProtocolError(
            "a residue that is not below its prime; the polynomials were changed "
            "or are of another ring"
        )
    return out
