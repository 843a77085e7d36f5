"""The vetted encryption parameters: one table, no others.

Knows ring degrees, prime sizes, scales, their security level and where that level comes from. Knows
no library.
Always: a set above the ceiling of its ring degree cannot be constructed, and a message names its
set by `digest`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Literal

from ...core.errors import ConfigError

SECURITY_BITS = 128  # classical, ternary secret
SOURCE = (
    "Homomorphic Encryption Security Standard (HomomorphicEncryption.org, November 2018), table 1, "
    "ternary secret, "
    "classical attacks, 128 bits; the same figures as seal/util/globals.cpp, "
    "seal_he_std_parms_128_tc"
)
# Ring degree -> largest total size of all primes, the key-switching prime included, in bits.
# Source: `SOURCE`.
CEILING_BITS: Mapping[int, int] = MappingProxyType(
    {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881}
)
PLAIN_CEILING_BITS = 60  # SEAL's largest plaintext modulus
# largest noise of one ciphertext: 21 (SEAL's centred binomial of 42 bits), and the rounding of a
# plaintext
NOISE_CLIP = 22
# An answer keeps so many bits of every coefficient. Dropping b bits of the second polynomial moves
# a slot by a normal deviate of about 2^b N sqrt(1/18): 2^-19 of SEARCH's scale, a thousandth of
# the noise that answers are flooded with, for half of the bytes.
ANSWER_WORD_BITS = 32
# CKKS: encryptions of zero in a public key, and bytes of the seed of their second polynomials. A
# sum of so many, times Gaussian polynomials whose coefficients deviate by 2^18.5, is uniform modulo
# q: for SEARCH, 2^18.5 sqrt(2 pi N) = 2^25.8 is above 2 N q^(1/6 + 2/(6 N)) = 2^22 (Lyubashevsky,
# Peikert and Regev 2013, corollary 7.5; `ckks.Multiplier` says what for).
ZEROS = 6
SEED_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class RingParameters:
    """One set. Sizes in bits; scales are powers of two.

    Raises:
        ConfigError: not 128 bits secure, or a shape that SEAL computes wrongly without saying so.
    """

    name: str
    scheme: Literal["ckks", "bfv"]
    degree: int  # N: coefficients of a polynomial
    prime_bits: tuple[int, ...]  # the last one is the key-switching prime
    plain_bits: int = 0  # BFV: size of the plaintext prime t
    matrix_scale_bits: int = 0  # CKKS: scale of the host's plaintexts
    query_scale_bits: int = 0  # CKKS: scale of the asker's ciphertext
    purpose: str = ""

    def __post_init__(self) -> None:
        if self.degree not in CEILING_BITS:
            raise ConfigError(
                f"{self.name}: ring degree {self.degree} is not in the table "
                f"{sorted(CEILING_BITS)}; take one of these"
            )
        total, ceiling = sum(self.prime_bits), CEILING_BITS[self.degree]
        if total > ceiling:
            raise ConfigError(
                f"{self.name}: {total} bits of modulus at degree {self.degree}, at most {ceiling} "
                f"for {SECURITY_BITS} bits "
                "of security; use smaller primes or a larger ring"
            )
        if len(self.prime_bits) > 1 and self.prime_bits[-1] < max(self.prime_bits):
            # Measured: [60,49] and [45,27,37] rotate into garbage without an error.
            raise ConfigError(
                f"{self.name}: the last prime must be the largest, found "
                f"{self.prime_bits}; reorder them"
            )
        if self.scheme == "ckks" and self.answer_scale_bits > self.data_bits - 2:
            raise ConfigError(
                f"{self.name}: the scales leave no room for scores of size 1 in "
                f"{self.data_bits} bits; lower one"
            )
        if self.scheme == "bfv" and not 0 < self.plain_bits <= PLAIN_CEILING_BITS:
            raise ConfigError(
                f"{self.name}: plaintext modulus of {self.plain_bits} bits, must be "
                f"1 to {PLAIN_CEILING_BITS}"
            )

    @property
    def data_bits(self) -> int:
        """Bits of modulus that a fresh ciphertext has."""
        return sum(self.prime_bits[:-1]) if len(self.prime_bits) > 1 else self.prime_bits[0]

    @property
    def answer_scale_bits(self) -> int:
        """CKKS: scale of an answer, with a bit more of question or matrix (`ckks`)."""
        return self.matrix_scale_bits + self.query_scale_bits + 1

    @property
    def slots(self) -> int:
        """Numbers that one plaintext holds."""
        return self.degree // 2 if self.scheme == "ckks" else self.degree

    @property
    def largest_sum(self) -> int:
        """BFV: ciphertexts that can be added so that the sum opens exactly, in the worst case."""
        return (1 << max(0, self.data_bits - self.plain_bits - 1)) // NOISE_CLIP

    @property
    def fresh_budget(self) -> int:
        """BFV: bits of noise budget that a ciphertext has left at least, before anything is
        added to it.
        """
        return self.largest_sum.bit_length() - 1

    @property
    def digest(self) -> bytes:
        """8 bytes that name this set on the wire: another table gives another digest."""
        return hashlib.sha256(repr(sorted(asdict(self).items())).encode()).digest()[:8]

    @property
    def seeded_bytes(self) -> int:
        """Size on the wire, padded, of a fresh symmetric ciphertext: one polynomial and a seed."""
        return self._padded(1, self.prime_bits[:-1] or self.prime_bits)

    @property
    def ciphertext_bytes(self) -> int:
        """Size on the wire, padded, of a computed ciphertext: two polynomials."""
        return self._padded(2, self.prime_bits[:-1] or self.prime_bits)

    @property
    def dropped_bits(self) -> int:
        """CKKS: low bits of every coefficient that an answer leaves behind."""
        return max(0, self.data_bits - ANSWER_WORD_BITS)

    @property
    def answer_bytes(self) -> int:
        """CKKS: size on the wire of an answer: the top of every coefficient of two polynomials."""
        return 2 * self.degree * ANSWER_WORD_BITS // 8

    @property
    def public_key_bytes(self) -> int:
        """CKKS: size on the wire of a public key: a seed, and one polynomial an encryption of
        zero, in whole bytes a coefficient.
        """
        return SEED_BYTES + ZEROS * self.degree * self.word_bytes

    @property
    def word_bytes(self) -> int:
        """Bytes that hold one coefficient of a fresh ciphertext."""
        return -(-self.data_bits // 8)

    def rotation_keys_bytes(self, rotations: int) -> int:
        """Size on the wire, padded, of seeded rotation keys."""
        return self._padded(rotations * max(1, len(self.prime_bits) - 1), self.prime_bits)

    def _padded(self, polynomials: int, primes: tuple[int, ...]) -> int:
        # SEAL's zstd leaves a 54-bit number in 7.56 bytes and a 36-bit one in 5.76 (measured):
        # whole bytes and 0.8, at most 8.
        exact = (
            polynomials
            * self.degree
            * sum(min(80, -(-bits // 8) * 10 + 8) for bits in primes)
            // 10
        )
        return -(-(exact + 512) // 1024) * 1024


SEARCH = RingParameters(
    name="search-4096",
    scheme="ckks",
    degree=4096,
    prime_bits=(54, 55),
    matrix_scale_bits=18,
    query_scale_bits=32,
    purpose="one encrypted vector times a plaintext matrix, one multiplication deep",
)
# One prime and no key switching: sums need neither. SEAL's noise is at most 21 (centred binomial;
# 19 where it is a clipped Gaussian); with the rounding of a plaintext below 22, so a sum of q / (2
# t) / 22 ciphertexts opens exactly, always.
SEALED = RingParameters(
    name="sealed-49",
    scheme="bfv",
    degree=4096,
    prime_bits=(60,),
    plain_bits=49,
    purpose="exact sums of packed integers, up to 46 parties",
)
SEALED_LARGE = RingParameters(
    name="sealed-46",
    scheme="bfv",
    degree=4096,
    prime_bits=(60,),
    plain_bits=46,
    purpose="exact sums of packed integers, up to 372 parties",
)
# Three primes of ciphertext: 102 bits between a summed plaintext and the modulus are what smudging
# needs (threshold/plan.py).
JOINT = RingParameters(
    name="joint-8192",
    scheme="bfv",
    degree=8192,
    prime_bits=(54, 54, 54, 55),
    plain_bits=60,
    purpose="sums under a joint key that t of n members open together",
)
TABLE: Mapping[str, RingParameters] = MappingProxyType(
    {each.name: each for each in (SEARCH, SEALED, SEALED_LARGE, JOINT)}
)


def named(name: str) -> RingParameters:
    """The set called `name`.

    Raises:
        ConfigError: no such set; parameters are chosen from the table, never made up by a message.
    """
    if name not in TABLE:
        raise ConfigError(
            f"encryption parameters {name!r} are unknown; known: {', '.join(sorted(TABLE))}"
        )
    return TABLE[name]
