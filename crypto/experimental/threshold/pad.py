"""Parts that the coordinator adds up without reading them, so that members get one vector and not
t.

Knows residues and the key that all members have in common. Knows nothing of shares, smudging or
requests' meaning.
Always: what is covered for one request opens under no other; a sum that opens is, to the last
residue, the sum of what its responders covered, unless somebody who has the members' key made it.

    nonce, 16 bytes | y = part + pad(key, request, member, nonce) | two checks for each prime

**Why it hides.** The pad is uniform modulo each prime, from AES-CTR under a key that the
coordinator has not, and never the same twice (a fresh nonce). So y is a stream cipher's ciphertext
in the very group in which parts are added, and the sum of ciphertexts opens with the sum of the
pads.

**Why nobody changes it.** Each check is <k, y> + f modulo a prime, k one vector for the request, f
fresh for member and nonce. The f hide k whatever is sent, so whoever changes the sum by d != 0 in
one prime must guess <k, d> twice: 2^-54 each. Checks add up as the vectors do. Source: Agrawal,
Boneh 2009, "Homomorphic MACs: MAC-based integrity for network coding", section 3.

**Against whom.** Exactly those that a box under the members' key and a signature kept out before:
everybody without that key. Who has it, a member, reads the sum anyway, and a coordinator that it
helps chooses it as responder, where it may put what it likes into its part, another for each
reader. Neither form stops that.
"""

import secrets
from collections.abc import Sequence

import numpy as np

from ....core.errors import AuthenticationError, ProtocolError
from ...identity.keys import bind, hkdf
from . import residues
from .lattice import LIMBS
from .plan import POLYNOMIAL_BYTES, PRIMES, RESIDUE_BYTES
from .residues import Residues

NONCE_BYTES = 16
COPIES = 2  # checks for each prime
CHECK_BYTES = COPIES * LIMBS * RESIDUE_BYTES
HALF = 28  # bits; sums of halves of residues stay far below 2^64
OVERHEAD = NONCE_BYTES + CHECK_BYTES  # of one covered part over its polynomials

Checks = list[list[int]]  # [copies][limbs]


class Veil:
    """What members do with the parts of one request.

    Args:
        key: 32 bytes that all members have and the coordinator has not.
        named: 32 bytes that name the request.
        rows: polynomials of one part.
    """

    def __init__(self, key: bytes, named: bytes, rows: int) -> None:
        self._key, self._rows = hkdf(key, bind("quietchoir joint veil 1", named)), rows

    def cover(self, part: Residues, number: int) -> bytes:
        """The part [rows, 3, N] of the member with this number, for the coordinator to add."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        covered = residues.add(part, self._pad(number, nonce))
        checks = add_checks(self._dots(covered), self._offsets(number, nonce))
        return nonce + residues.to_bytes(covered) + write_checks(checks)

    def uncover(self, number: int, covered: bytes) -> Residues:
        """One member's part. The caller has checked its signature.

        Raises:
            ProtocolError: residues that are not below their prime.
        """
        nonce, body, _ = cut(covered, 1, self._rows)
        return residues.subtract(
            residues.from_bytes(body, self._rows, LIMBS), self._pad(number, nonce)
        )

    def uncover_sum(self, numbers: Sequence[int], summed: bytes) -> Residues:
        """The sum [rows, 3, N] of all responders' parts.

        Raises:
            ProtocolError: another length, or numbers that are not below their prime.
            AuthenticationError: not the sum of what these members covered for this request.
        """
        nonces, body, tail = cut(summed, len(numbers), self._rows)
        covered = residues.from_bytes(body, self._rows, LIMBS)
        expected, pads = self._dots(covered), np.zeros_like(covered)
        for at, number in enumerate(numbers):
            nonce = nonces[at * NONCE_BYTES : (at + 1) * NONCE_BYTES]
            expected = add_checks(expected, self._offsets(number, nonce))
            pads = residues.add(pads, self._pad(number, nonce))
        if expected != read_checks(tail):
            raise AuthenticationError(
                "the summed parts are not what the responders sent; ask for them again"
            )
        return residues.subtract(covered, pads)

    def _pad(self, number: int, nonce: bytes) -> Residues:
        key = hkdf(self._key, bind("pad", number, nonce))
        return np.stack(
            [residues.random(hkdf(key, bind("row", at)), LIMBS) for at in range(self._rows)]
        )

    def _offsets(self, number: int, nonce: bytes) -> Checks:
        """f, one for each check: 256 bits modulo a prime of 54, which is uniform but for 2^-200."""
        return [
            [
                int.from_bytes(hkdf(self._key, bind("offset", number, nonce, copy, limb)), "big")
                % PRIMES[limb]
                for limb in range(LIMBS)
            ]
            for copy in range(COPIES)
        ]

    def _dots(self, covered: Residues) -> Checks:
        """<k, y> modulo each prime, for each copy of k."""
        totals = [[0] * LIMBS for _ in range(COPIES)]
        low = np.uint64((1 << HALF) - 1)
        for copy in range(COPIES):
            for at, row in enumerate(covered):
                terms = residues.product(
                    row, residues.random(hkdf(self._key, bind("check", copy, at)), LIMBS)
                )
                lower, upper = (terms & low).sum(axis=-1), (terms >> np.uint64(HALF)).sum(axis=-1)
                for limb in range(LIMBS):
                    term = int(lower[limb]) + (int(upper[limb]) << HALF)
                    totals[copy][limb] = (totals[copy][limb] + term) % PRIMES[limb]
        return totals


def add_up(parts: Sequence[bytes], rows: int) -> bytes:
    """What the coordinator makes of all responders' covered parts, in the order of their numbers.
    Needs no key.

    Raises:
        ProtocolError: one of another length, or with numbers that are not below their prime.
    """
    nonces, total = (
        b"",
        np.zeros((rows, LIMBS, POLYNOMIAL_BYTES // (LIMBS * RESIDUE_BYTES)), np.uint64),
    )
    checks: Checks = [[0] * LIMBS for _ in range(COPIES)]
    for part in parts:
        nonce, body, tail = cut(part, 1, rows)
        nonces, total = nonces + nonce, residues.add(total, residues.from_bytes(body, rows, LIMBS))
        checks = add_checks(checks, read_checks(tail))
    return nonces + residues.to_bytes(total) + write_checks(checks)


def cut(covered: bytes, count: int, rows: int) -> tuple[bytes, bytes, bytes]:
    """Nonces of `count` members, polynomials, checks.

    Raises:
        ProtocolError: another length.
    """
    head = count * NONCE_BYTES
    size = head + rows * POLYNOMIAL_BYTES + CHECK_BYTES
    if len(covered) != size:
        raise ProtocolError(f"parts of {len(covered)} bytes, {size} expected; they are refused")
    return covered[:head], covered[head:-CHECK_BYTES], covered[-CHECK_BYTES:]


def add_checks(left: Checks, right: Checks) -> Checks:
    """left + right, each modulo its prime."""
    return [
        [(one + other) % prime for one, other, prime in zip(*pair, PRIMES, strict=False)]
        for pair in zip(left, right, strict=True)
    ]


def write_checks(checks: Checks) -> bytes:
    """7 bytes a check, little-endian."""
    return b"".join(value.to_bytes(RESIDUE_BYTES, "little") for copy in checks for value in copy)


def read_checks(raw: bytes) -> Checks:
    """Undo `write_checks`.

    Raises:
        ProtocolError: a check that is not below its prime.
    """
    values = [
        int.from_bytes(raw[at : at + RESIDUE_BYTES], "little")
        for at in range(0, CHECK_BYTES, RESIDUE_BYTES)
    ]
    if any(value >= PRIMES[at % LIMBS] for at, value in enumerate(values)):
        raise ProtocolError("a check that is not below its prime; the parts are refused")
    return [values[at : at + LIMBS] for at in range(0, len(values), LIMBS)]
