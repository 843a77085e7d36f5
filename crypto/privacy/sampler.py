"""Whole-number noise drawn from a cipher: discrete Gaussian, and Poisson for Skellam.

Knows two distributions as exact tables, and AES-CTR. Knows nothing of updates, parties or privacy
budgets.
Always: with uniform bits, a drawn value is closer than 2^-100 (total variation) to the exact
distribution.

Not covered: the time of a table look-up depends on the value drawn; somebody who measures this
machine's caches may learn something of the noise.
"""

import functools
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Context, Decimal
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from ...core.errors import ConfigError
from ..prg import stream

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
