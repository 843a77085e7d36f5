"""Differential privacy's part of an update: clip it, make it whole numbers, add this party's share
of the noise.

Knows clipping, rotation, rounding, how much noise each party adds, and two distributions as exact
tables (discrete Gaussian; Poisson for Skellam) that AES-CTR draws from. Knows nothing of masks,
rounds or budgets.
Always: with uniform bits, a drawn value is closer than 2^-100 (total variation) to the exact
distribution; no update's whole numbers are longer than `sensitivity`, checked on the integers
themselves; with `honest` parties or more in an opened sum, its noise has at least the deviation
multiplier * sensitivity, whoever else dropped out; and a number never leaves its bits, but with a
probability that is stated and below 2^-40.

Noise comes before the mask, so nobody but the sum's reader ever meets it, and no party needs to be
trusted for more than its own share. Not covered: counters that travel beside the update are not
noised; a party that leaves its noise out. The time of a table look-up depends on the value drawn;
somebody who measures this machine's caches may learn something of the noise.
"""

import functools
import hashlib
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Context, Decimal
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...core.errors import ConfigError, DataError
from .. import ring
from ..ring import expand, stream

CUT_BITS = 128  # a draw compares 128 uniform bits with the table's cuts
FIXED_BITS = 384  # of the integers that weights are computed in; their error stays far below 2^-200
TAIL_BITS = 130  # values less likely than 2^-130 of the likeliest are left out
LARGEST_DEVIATION = 4096.0  # a table has about 27 entries for each unit of deviation
CHUNK = 1 << 15  # values drawn at a time
ZEROS = bytes(8 * CHUNK)

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A distribution over first, first + 1, …: value i is drawn where as many cuts are at most
    the uniform number.
    """

    first: int
    # of 128 bits, ascending: the distribution function but for its last value
    cuts: tuple[int, ...] = field(repr=False)
    high: NDArray[np.uint64] = field(repr=False)  # the cuts' upper halves

    @property
    def distance(self) -> float:
        """Bound on the total variation distance to the exact distribution: rounded cuts, and
        both tails.
        """
        return len(self.high) * 2.0**-CUT_BITS + 4 * len(self.high) * 2.0**-TAIL_BITS

    def look_up(self, upper: NDArray[np.uint64], lower: Callable[[], int]) -> Integers:
        """Values for uniform numbers whose upper halves are given; `lower` draws the lower half
        of one, when it decides.
        """
        # cuts whose upper half is not above
        below = np.searchsorted(self.high, upper, side="right")
        # once in about 2^50 draws
        for at in np.flatnonzero((below > 0) & (self.high[below - 1] == upper)):
            number = int(upper[at]) << 64 | lower()
            low, top = int(np.searchsorted(self.high, upper[at])), int(below[at])
            below[at] = low + sum(cut <= number for cut in self.cuts[low:top])
        return below.astype(np.int64) + self.first


def table_of(first: int, weights: list[int]) -> Table:
    """The table of a distribution that is proportional to `weights`."""
    whole, running, cuts = sum(weights), 0, []
    for weight in weights[:-1]:
        running += weight
        cuts.append((running << CUT_BITS) // whole)
    return Table(first, tuple(cuts), np.array([cut >> 64 for cut in cuts], np.uint64))


@functools.lru_cache(maxsize=8)
def gaussian_table(variance: float) -> Table:
    """The discrete Gaussian, P(k) proportional to exp(-k^2 / (2 variance)).

    Raises:
        ConfigError: a deviation below 1/2 or above `LARGEST_DEVIATION`.

    Source: Canonne, Kamath, Steinke 2020, definition 1.
    """
    check_deviation(variance)
    one, smallest = 1 << FIXED_BITS, 1 << (FIXED_BITS - TAIL_BITS)
    context = Context(prec=140)
    ratio, shrink = (
        int(context.multiply(context.exp(-Decimal(1) / (Decimal(variance) * by)), one))
        for by in (2, 1)
    )
    half, weight = [], one
    while weight > smallest:
        half.append(weight)
        weight, ratio = weight * ratio >> FIXED_BITS, ratio * shrink >> FIXED_BITS
    return table_of(1 - len(half), half[:0:-1] + half)


@functools.lru_cache(maxsize=8)
def poisson_table(mean: float) -> Table:
    """The Poisson distribution.

    Raises:
        ConfigError: a difference of two would have a deviation below 1/2 or above
        `LARGEST_DEVIATION`.
    """
    check_deviation(2 * mean)
    rate, mode = Fraction(mean), int(mean)
    one, smallest = 1 << FIXED_BITS, 1 << (FIXED_BITS - TAIL_BITS)
    upper, weight, k = list[int](), one, mode
    while weight > smallest:
        upper.append(weight)
        k += 1
        weight = weight * rate.numerator // (rate.denominator * k)
    lower, weight, k = list[int](), one * mode * rate.denominator // rate.numerator, mode
    while weight > smallest and k > 0:
        lower.append(weight)
        k -= 1
        weight = weight * k * rate.denominator // rate.numerator
    return table_of(mode - len(lower), lower[::-1] + upper)


def check_deviation(variance: float) -> None:
    """Raises ConfigError unless 1/2 <= deviation <= LARGEST_DEVIATION."""
    if not 0.25 <= variance <= LARGEST_DEVIATION**2:
        raise ConfigError(
            f"noise of variance {variance:g} cannot be drawn, 0.25 to {LARGEST_DEVIATION:g}^2 "
            f"expected; change the bits"
        )


class Dice:
    """One stream of draws.

    Args:
        key: 32 bytes for reproducible experiments; by default fresh from the operating system.

    Hazard: who knows the key takes the noise off again. Leave it out except in experiments.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._cipher = stream(key or secrets.token_bytes(32))

    def __repr__(self) -> str:
        return "Dice(…)"

    def draw(self, table: Table, count: int) -> Integers:
        """`count` independent values of the table's distribution, int64 [count]."""
        out = np.empty(count, np.int64)
        for start in range(0, count, CHUNK):
            part = out[start : start + CHUNK]
            words = np.frombuffer(self._cipher.update(memoryview(ZEROS)[: part.nbytes]), "<u8")
            part[:] = table.look_up(words, self._word)
        return out

    def discrete_gaussian(self, deviation: float, count: int) -> Integers:
        """Noise [count]; sums of several parties' stay within 2^-100 of a discrete Gaussian if
        deviation is at least 2.9.

        Source: Kairouz, Liu, Steinke 2021, "The distributed discrete Gaussian mechanism", theorem
        3.
        """
        return self.draw(gaussian_table(deviation * deviation), count)

    def skellam(self, deviation: float, count: int) -> Integers:
        """Noise [count], the difference of two Poisson numbers; sums of several parties' are
        Skellam again, exactly.

        Source: Agarwal, Kairouz, Liu 2021, "The Skellam mechanism for differentially private
        federated learning", section 2.
        """
        table = poisson_table(deviation * deviation / 2)
        return self.draw(table, count) - self.draw(table, count)

    def _word(self) -> int:
        return int.from_bytes(self._cipher.update(bytes(8)), "little")


Mechanism = Literal["discrete-gaussian", "skellam"]
Floats = NDArray[np.float64]

HEADROOM = 12.0  # deviations of one party's noise that its bits leave room for
# deviations of a rotated coordinate that its bits leave room for; what is beyond is cut (a bias,
# not a leak)
SPREAD = 6.0
LARGEST_OVERFLOW = 2.0**-40  # chance that one contribution does not fit
LARGEST_INFLATION = 1.5  # rounding may lengthen an update by so much at most: noise grows with it
# deviation of a share; below it sums of discrete Gaussians are not one
SMALLEST_GAUSSIAN = 2.0 * math.sqrt(2.0)
TRIES = 64  # roundings; each passes with a probability above 0.39


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """What the members agree on before the first round; the same numbers on every machine.

    Raises:
        ConfigError: the update and its noise do not fit the bits, or there is no sense in the
        numbers.

    Source: Kairouz, Liu, Steinke 2021, algorithm 1 and theorem 1 (clip, rotate, round, noise);
    Agarwal et al. 2021.
    """

    length: int  # values of one update, n
    clip: float  # largest L2 norm of one update, in its own unit
    multiplier: float  # deviation of the sum's noise over the integers' L2 sensitivity
    honest: int  # fewest parties of any opened sum whose noise its reader does not know
    bits: int  # of one value with noise, 2 to 24
    mechanism: Mechanism = "discrete-gaussian"
    # a coordinate is cut to +-reach, in the update's unit; 0: rotate instead, and cut where it is
    # rare
    reach: float = 0.0

    def __post_init__(self) -> None:
        sane = all(
            0 < number < math.inf
            for number in (self.length, self.clip, self.multiplier, self.honest)
        )
        if not sane or not 2 <= self.bits <= 24 or not 0 <= self.reach < math.inf:
            raise ConfigError(
                f"clip {self.clip}, noise {self.multiplier} of {self.honest} honest parties, "
                f"{self.length} values of "
                f"{self.bits} bits, reach {self.reach}: expected positive finite numbers, 2 to 24 "
                f"bits; mend [privacy]"
            )
        if self.mechanism not in ("discrete-gaussian", "skellam"):
            raise ConfigError(
                f"mechanism {self.mechanism!r} is unknown; choose discrete-gaussian or skellam"
            )
        if self.scale == 0.0 or self.overflow > LARGEST_OVERFLOW:
            raise ConfigError(
                f"{self.length} values of {self.bits} bits have no room for noise "
                f"{self.multiplier:g} over {self.honest} honest parties of a round (chance to "
                f"overflow {self.overflow:.1g}, 2^-40 allowed); use more bits (protection.bits), a "
                f"larger min_cohort or fewer values"
            )

    @property
    def limit(self) -> float:
        """Largest absolute coordinate that is kept, in the update's unit."""
        if self.reach:
            return self.reach
        return min(self.clip, SPREAD * self.clip / math.sqrt(window(self.length)))

    @property
    def scale(self) -> float:
        """Integers per unit of the update: as many as fit beside the noise; 0 if rounding would
        cost too much.
        """
        return scale_of(self)

    @property
    def sensitivity(self) -> float:
        """Largest L2 norm of one update's integers."""
        return math.sqrt(self.bound(self.scale))

    @property
    def deviation(self) -> float:
        """Of one party's noise, in integers: `honest` of them together have multiplier *
        sensitivity.
        """
        return self.share(self.scale)

    @property
    def overflow(self) -> float:
        """Bound on the chance that one contribution's value with noise does not fit its bits
        (Chernoff, union over values).
        """
        if self.scale == 0.0:
            return 1.0
        room = ring.middle(self.bits) - math.ceil(self.scale * self.limit)
        variance = self.deviation**2
        ratio = room / variance
        exponent = room * room / (2 * variance)  # subgaussian: Canonne et al. 2020, corollary 17
        if self.mechanism == "skellam":
            exponent = variance * (ratio * math.asinh(ratio) - math.sqrt(1 + ratio * ratio) + 1)
        return min(1.0, 2 * self.length * math.exp(-exponent))

    @property
    def distance(self) -> float:
        """Bound on how far one opened sum's noise is from the ideal one's (total variation),
        overflow included.

        Discrete Gaussian, with r = 2: each of `honest` additions, and the step to a continuous
        Gaussian, changes any probability by a factor within 1 +- 4 exp(-2 pi^2 r^2) a value.
        Source: Micciancio, Peikert 2013, theorem 3.3; Peikert 2010, theorem 3.1.
        """
        variance = self.deviation**2
        table = (
            2 * poisson_table(variance / 2).distance
            if self.mechanism == "skellam"
            else gaussian_table(variance).distance
        )
        lattice = 0.0 if self.mechanism == "skellam" else 4 * math.exp(-2 * math.pi**2 * 4)
        return self.honest * (self.length * (table + lattice) + self.overflow)

    def mean_deviation(self, parties: int) -> float:
        """Deviation of the noise in each value of the decoded mean over `parties`, in the
        update's unit.
        """
        return self.deviation / (self.scale * math.sqrt(parties))

    def farthest(self, parties: int) -> float:
        """Largest L2 norm that the decoded mean of at least `parties` contributions has, but with a
        chance below 2^-40.

        The mean of updates is no longer than one of them after rounding, and their noise, n values
        of deviation s = `mean_deviation`, is longer than s (sqrt(n) + 8) with a chance below
        exp(-32) where it is Gaussian; twice that is allowed, for Skellam noise has heavier tails.

        Source: Boucheron, Lugosi, Massart 2013, theorem 5.6 (the norm of a Gaussian vector).
        """
        return LARGEST_INFLATION * self.clip + 2 * self.mean_deviation(parties) * (
            math.sqrt(self.length) + 8
        )

    def encode(self, update: ArrayLike, seed: bytes) -> NDArray[np.unsignedinteger]:
        """This party's contribution: clipped, rotated, rounded, noised; unsigned, [n], each below
        2^bits.

        Args:
            update: real values [n].
            seed: public, the same for all parties of a round, another for each round; used where
            the update is rotated.

        Raises:
            DataError: values that are not finite or another length; or, with a chance below 2^-40,
            noise that does not fit.

        Hazard: an update encoded twice has two independent noises, so two opened sums cost privacy
        twice: charge both.
        """
        whole = self.whole(update, seed)
        dice = Dice()
        draw = dice.skellam if self.mechanism == "skellam" else dice.discrete_gaussian
        return self.fit(whole + draw(self.deviation, self.length))

    def whole(self, update: ArrayLike, seed: bytes) -> Integers:
        """The update as whole numbers without noise, [n], never longer than `sensitivity`.

        Raises:
            DataError: values that are not finite, or another length.

        Hazard: not private yet.
        """
        values = np.array(update, np.float64)
        if values.shape != (self.length,) or not np.isfinite(values).all():
            raise DataError(
                f"an update of shape {values.shape} with {np.count_nonzero(~np.isfinite(values))} "
                f"values that are not finite, "
                f"expected ({self.length},) and none; nothing is sent"
            )
        values *= clip_factor(values, self.clip)
        if not self.reach:
            rotate(values, seed)
        np.clip(values, -self.limit, self.limit, out=values)
        return round_within(values * self.scale, self.bound(self.scale))

    def fit(self, noised: Integers) -> NDArray[np.unsignedinteger]:
        """Shift into 0 .. 2 * middle. Raises DataError if a number does not fit."""
        middle = ring.middle(self.bits)
        if int(np.abs(noised).max()) > middle:
            raise DataError(
                "noise did not fit its bits, which is nearly impossible; nothing is "
                "sent, try the round again"
            )
        return (noised + middle).astype(np.dtype("<u2" if self.bits <= 16 else "<u4"))

    def decode_sum(self, total: ArrayLike, parties: int, seed: bytes) -> Floats:
        """The real, noised sum [n] behind `parties` contributions; divide by `parties` for the
        mean.

        Raises:
            DataError: a sum that so many contributions cannot have.
        """
        middle = ring.middle(self.bits)
        whole = [ring.Range(0, self.length, middle / self.scale)]
        values = ring.decode_sum(total, parties, whole, self.bits)
        if not self.reach:
            rotate(values, seed, back=True)
        return values

    def bound(self, scale: float) -> float:
        """Square of the sensitivity at a scale. Source: Kairouz et al. 2021, proposition 26 with
        beta = exp(-1/2).
        """
        norm, root = scale * self.clip, math.sqrt(self.length)
        return min((norm + root) ** 2, norm * norm + self.length / 4 + norm + root / 2)

    def share(self, scale: float) -> float:
        """One party's deviation at a scale."""
        return self.multiplier * math.sqrt(self.bound(scale) / self.honest)


@functools.lru_cache(maxsize=64)
def scale_of(noise: Noise) -> float:
    """`Noise.scale`: many members of a simulation have the same noise."""
    low, high = 0.0, ring.middle(noise.bits) / noise.limit
    for _ in range(60):  # + - * / and square roots alone: the same bits on every machine
        half = (low + high) / 2
        fits = half * noise.limit + 1 + HEADROOM * noise.share(half) <= ring.middle(noise.bits)
        low, high = (half, high) if fits and noise.share(half) <= LARGEST_DEVIATION else (low, half)
    enough = low > 0 and math.sqrt(noise.bound(low)) <= LARGEST_INFLATION * low * noise.clip
    fine = noise.mechanism == "skellam" or noise.share(low) >= SMALLEST_GAUSSIAN
    return low if enough and fine else 0.0


def clip_factor(values: Floats, clip: float) -> float:
    """What makes `values` no longer than `clip`: 1 if they are not."""
    norm = float(np.linalg.norm(values))
    return min(1.0, clip / norm) if norm > 0 else 1.0


def round_within(values: Floats, bound: float) -> Integers:
    """Round up or down at random, again until the squared norm is at most `bound`; towards zero if
    that does not happen.

    Args:
        values: [n], squared norm at most `bound`.

    Source: Kairouz et al. 2021, algorithm 1 (conditional rounding).
    """
    bits = 24
    whole = [ring.Range(0, len(values), float(ring.middle(bits)))]  # a step of one
    for _ in range(TRIES):
        rounded = ring.encode(values, whole, bits).astype(np.int64) - ring.middle(bits)
        if int(rounded @ rounded) <= bound:
            return rounded
    return np.trunc(values).astype(np.int64)


def window(length: int) -> int:
    """Values that one Hadamard transform spans: the largest power of two that fits."""
    return 1 << (length.bit_length() - 1)


def rotate(values: Floats, seed: bytes, *, back: bool = False) -> None:
    """Turn `values` [n] in place by random signs and Hadamard transforms, so that no coordinate
    stands out.

    Two transforms, over the first and over the last `window(n)` values, so that nothing is padded.
    Norms are kept.

    Args:
        seed: public; everybody of a round has the same.

    Source: Ailon, Chazelle 2006 (randomised Hadamard transform).
    """
    size, length = window(len(values)), len(values)
    parts = [slice(0, size)] if size == length else [slice(0, size), slice(length - size, length)]
    turns = [(part, signs(seed, number, size)) for number, part in enumerate(parts)]
    for part, sign in reversed(turns) if back else turns:
        if back:
            hadamard(values[part])
            values[part] *= sign
        else:
            values[part] *= sign
            hadamard(values[part])


def signs(seed: bytes, number: int, count: int) -> Floats:
    """`count` random signs."""
    key = hashlib.sha256(b"quietchoir rotation 1" + number.to_bytes(1, "big") + seed).digest()
    bits = np.unpackbits(np.frombuffer(expand(key, -(-count // 8)), np.uint8))[:count]
    return bits.astype(np.float64) * 2.0 - 1.0


def hadamard(values: Floats) -> None:
    """Orthonormal Walsh-Hadamard transform of 2^k values, in place; it is its own inverse."""
    size, half = len(values), 1
    while half < size:
        pairs = values.reshape(-1, 2, half)
        upper = pairs[:, 0] - pairs[:, 1]
        pairs[:, 0] += pairs[:, 1]
        pairs[:, 1] = upper
        half *= 2
    values *= 1 / math.sqrt(size)
