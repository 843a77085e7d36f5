"""What all must agree on before a joint key is made, and what follows from it: sizes, noise,
smudging, limits.

Knows names, identities and arithmetic. Knows no SEAL object and no secret.
Always: a plan whose smudging would be too narrow for its own limit, or whose noise would not fit,
cannot be made.

**Why the smudging is wide enough.** A responder adds to every coefficient of its part a number
uniform in [-B, B). The pair masks (see `partial`) hide all parts but their sum, so colluders see
one thing about an opened ciphertext: c0 + a s + (smudging) = round(q m / T) + e + (smudging), where
m is the sum they may read (modulo T) and e the noise of the contributions, all that depends on the
key. One honest responder is enough: (uniform in [-B, B)) + e and (uniform in [-B, B)) are |e| / 2B
apart (total variation, exact for one coefficient). With |e| <= `noise`, always, a union over N
coefficients and D opened ciphertexts gives

    distance <= N * D * noise / 2B <= 2^-40    for D <= n * `openings`.

Every opening needs an honest responder, and each `Holder` counts its own and refuses beyond
`openings`. B is as large as exact decoding allows: t * B + noise <= q / 8T, a quarter of what would
still decode (t is the threshold). For 5 of 9: B = 2^96, noise 199, B / noise above 2^88, and 2^33
openings a member.

**Why the noise bound holds.** SEAL's noise is at most 21 (centred binomial, 42 bits; clipped at 19
where it is Gaussian), and scaling a message rounds by less than 1. A member that puts more noise
into its own contribution knows that noise.

**Security of the ring.** `JOINT` is below the 128-bit ceiling for all four primes, and only three
are ever used in the open.
Source: Asharov et al. 2012 (smudging, lemma 1); Mouchet et al. 2023 (Shamir over R_q, weights
before smudging).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from ....core.errors import ConfigError, ProtocolError
from ...he.bfv import Packing
from ...he.parameters import JOINT, RingParameters
from ...identity.keys import PublicIdentity, digest

# SEAL's own choice for JOINT, checked against it when a `Lattice` is made.
PRIMES = (18014398507892737, 18014398508138497, 18014398508400641, 36028797018652673)
PLAIN_MODULUS = 1152921504606830593
# modulus of everything that is sent; the last prime is SEAL's own
Q = PRIMES[0] * PRIMES[1] * PRIMES[2]
DISTANCE_BITS = 40  # all openings of one key together are 2^-40 from telling nothing but sums
LEAST_OPENINGS = 1 << 20  # a plan that could open fewer ciphertexts is refused
LARGEST_COHORT = 128
RESIDUE_BYTES = 7  # primes have at most 55 bits
POLYNOMIAL_BYTES = JOINT.degree * (len(PRIMES) - 1) * RESIDUE_BYTES  # one on the wire
NOISE = 22  # largest noise of one contribution, rounding included


@dataclass(frozen=True, slots=True, kw_only=True)
class JointPacking(Packing):
    """`bfv.Packing` for the larger ring of joint keys; masks modulo t work as there."""

    @property
    def parameters(self) -> RingParameters:
        """The one set that joint keys have."""
        return JOINT

    @property
    def modulus(self) -> int:
        """t."""
        return PLAIN_MODULUS

    @property
    def wire_bytes(self) -> int:
        """Bytes that one party sends: one polynomial a row, since the other is public."""
        return self.rows * POLYNOMIAL_BYTES


@dataclass(frozen=True, kw_only=True)
class ThresholdPlan:
    """Taken from the signed federation file by every member for itself, never from the coordinator.

    Raises:
        ConfigError: numbers that make no sense together, or noise that does not fit.
    """

    federation: bytes  # 32 bytes
    epoch: int  # a joint key lives for one epoch
    attempt: int  # of making it; every attempt starts from fresh keys
    members: Mapping[str, PublicIdentity]
    threshold: int  # responders that open a sum
    min_parties: int  # fewest contributions in a sum that is opened
    length: int  # values of one contribution
    bits: int  # of one value

    def __post_init__(self) -> None:
        n = len(self.members)
        if (
            len(self.federation) != 32
            or min(self.epoch, self.attempt) < 0
            or len({bytes(m) for m in self.members.values()}) != n
        ):
            raise ConfigError(
                "a joint key needs a federation id of 32 bytes, and members with "
                "distinct keys; mend the roster"
            )
        if not 2 <= self.threshold <= n <= LARGEST_COHORT or not 2 <= self.min_parties <= n:
            raise ConfigError(
                f"{self.threshold} of {n} members, sums of at least {self.min_parties}: expected 2 "
                f"to {n} for both, "
                f"and at most {LARGEST_COHORT} members"
            )
        # else two disjoint sets of responders could open a round twice, with nobody's help
        if 2 * self.threshold <= n:
            raise ConfigError(
                f"a threshold of {self.threshold} for {n} members, more than half "
                f"expected; raise it"
            )
        if self.smudging_bits < 1 or self.openings < max(LEAST_OPENINGS, self.packing.rows):
            raise ConfigError(
                f"{n} members with threshold {self.threshold} leave room to open {self.openings} "
                f"ciphertexts, "
                f"{max(LEAST_OPENINGS, self.packing.rows)} expected; use fewer members or a lower "
                f"threshold"
            )
        object.__setattr__(self, "members", MappingProxyType(dict(self.members)))

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """Name to number, from 0 in the order of names; the Shamir point is one more."""
        return {name: number for number, name in enumerate(sorted(self.members))}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Number to name."""
        return tuple(sorted(self.members))

    @cached_property
    def packing(self) -> JointPacking:
        """How values stand in slots."""
        return JointPacking(length=self.length, bits=self.bits, parties=len(self.members))

    @cached_property
    def session(self) -> bytes:
        """32 bytes that any difference between two plans changes; every message is bound to it."""
        roster = [field for name in self.names for field in (name, bytes(self.members[name]))]
        numbers = (
            self.epoch,
            self.attempt,
            self.threshold,
            self.min_parties,
            self.length,
            self.bits,
        )
        return digest("quietchoir joint key 1", self.federation, *numbers, JOINT.digest, *roster)

    @property
    def noise(self) -> int:
        """Largest noise of a sum of all members' ciphertexts, in any coefficient, whatever
        chance does; masks taken off it.
        """
        return NOISE * len(self.members) + 1  # taking masks off rounds once more

    @property
    def smudging_bits(self) -> int:
        """Log2 of B."""
        return ((Q // (8 * PLAIN_MODULUS) - self.noise) // self.threshold).bit_length() - 1

    @property
    def openings(self) -> int:
        """Ciphertexts that one member may help to open under one key."""
        return (2 << self.smudging_bits) // (
            len(self.members) * JOINT.degree * self.noise << DISTANCE_BITS
        )

    def number(self, name: str) -> int:
        """The number of a member. Raises ProtocolError for a stranger."""
        if name not in self.numbers:
            raise ProtocolError(
                f"{name!r} is not among the {len(self.members)} members of this "
                f"key; its message is refused"
            )
        return self.numbers[name]

    def bitset(self, numbers: Iterable[int]) -> bytes:
        """One bit a member."""
        return sum(1 << number for number in set(numbers)).to_bytes(LARGEST_COHORT // 8, "little")

    def from_bitset(self, raw: bytes) -> tuple[int, ...]:
        """Numbers, ascending. Raises ProtocolError for bits beyond the members."""
        bits = int.from_bytes(raw, "little")
        if bits >> len(self.members):
            raise ProtocolError(
                f"a request names members beyond the {len(self.members)} of this key; it is refused"
            )
        return tuple(number for number in range(len(self.members)) if bits >> number & 1)
