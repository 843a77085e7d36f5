"""What one member's privacy has cost so far, and whether another round can be paid.

Knows steps and composition (by dp-accounting). Knows nothing of updates, rounds' contents,
networks or files.
Always: a round is charged in its book before it may run, every time it runs, and a refused one
changes neither memory nor book; every epsilon comes with its delta, unit, sampling assumption,
steps and method; an unreadable history is an error, never a fresh start.

    mechanism           composed by
    gaussian            PLD of the Gaussian mechanism
    discrete-gaussian   the same, for a slightly smaller noise: see `PrivacyStep.of`
    skellam             RDP, since dp-accounting has no PLD of it; one such step turns the whole
                        account to RDP, which costs about a tenth more without sampling, and with it
                        a general bound that costs two fifths more

Not covered: who may see more than opened sums (plain mode hides nothing from the coordinator),
counters that travel without noise beside an update, two programs that charge one book at the same
moment, somebody who deletes the book.
"""

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ...core.errors import BudgetError, ConfigError
from .noise import Noise

UNIT = "one member: its whole update of a round replaced by zeros"
# whole numbers: Skellam's bound is for these
ORDERS = np.array([*range(2, 65), *range(72, 257, 8), 320, 384, 512])
# r, in integers: deviation that a discrete Gaussian gives up to become a rounded continuous one
SMOOTHING = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyStep:
    """What one opened sum tells about one member, at most.

    Args:
        multiplier: deviation of the sum's noise over the L2 sensitivity of one member.
        sampling: chance with which each member takes part, drawn independently and hidden from
            whoever reads the sum (Poisson sampling). 1: no such assumption. Hazard: below 1 holds
            only against readers who do not learn the cohort, hence neither for the coordinator nor
            for members; and only if the noise does not depend on who was drawn.
        sensitivity: L2, in integers; Skellam's bound needs it, and so does `length`, its number of
        values. distance: total variation of the noise to the ideal one.

    Raises:
        ConfigError: numbers without sense.
    """

    mechanism: Literal["gaussian", "discrete-gaussian", "skellam"] = "gaussian"
    multiplier: float
    sampling: float = 1.0
    sensitivity: float = 1.0
    length: int = 1
    distance: float = 0.0

    def __post_init__(self) -> None:
        numbers = (self.multiplier, self.sampling, self.sensitivity, self.length, self.distance)
        sane = all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers)
        known = self.mechanism in ("gaussian", "discrete-gaussian", "skellam")
        if not (
            sane
            and known
            and min(numbers[:4]) > 0
            and self.sampling <= 1
            and 0 <= self.distance < 1
        ):
            raise ConfigError(
                f"{self} is not a step; expected a known mechanism, positive numbers "
                f"and sampling up to 1"
            )

    @classmethod
    def of(cls, noise: Noise, *, sampling: float = 1.0) -> "PrivacyStep":
        """The step of one sum over parties that add `noise`.

        A discrete Gaussian of variance s^2 is, up to `noise.distance`, a continuous one of variance
        s^2 - r^2 whose result is rounded at random (by a discrete Gaussian of deviation r = 2
        around it): post-processing, in any number of dimensions. So the continuous mechanism with
        the smaller noise bounds it, with or without sampling.

        Source: Peikert 2010, "An efficient and parallel Gaussian sampler for lattices", theorem
        3.1.
        """
        variance, gaussian = (
            noise.honest * noise.deviation**2,
            noise.mechanism == "discrete-gaussian",
        )
        multiplier = math.sqrt(variance - (SMOOTHING**2 if gaussian else 0.0)) / noise.sensitivity
        return cls(
            mechanism=noise.mechanism,
            multiplier=multiplier,
            sampling=sampling,
            sensitivity=noise.sensitivity,
            length=noise.length,
            distance=noise.distance,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """An epsilon, and everything without which it means nothing."""

    epsilon: float
    delta: float
    steps: int
    unit: str
    sampling: str
    mechanism: str
    method: str

    def __str__(self) -> str:
        return (
            f"epsilon {self.epsilon:.3g} at delta {self.delta:g} after {self.steps} steps for "
            f"{self.unit}; "
            f"sampling {self.sampling}; {self.mechanism}, {self.method}"
        )

    def record(self) -> dict[str, object]:
        """For reports, as JSON's types."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The most that may be spent."""

    epsilon: float
    delta: float = 1e-5

    def __post_init__(self) -> None:
        """Raises ConfigError for a budget without sense."""
        if not (0 < self.epsilon < math.inf and 0 < self.delta < 1):
            raise ConfigError(
                f"a budget of epsilon {self.epsilon} at delta {self.delta}; expected positive "
                f"numbers, delta below 1"
            )


class Book(Protocol):
    """Where histories lie, so that they outlive this process."""

    def read(self, scope: str) -> list[tuple[str, PrivacyStep]]:
        """One account's history, as it is now.

        Raises:
            ConfigError: it is not whole and readable, or of somebody else.
        """
        ...

    def append(self, scope: str, round_: str, step: PrivacyStep) -> None:
        """One more charge. Raises QuietchoirError: the disk refuses; nothing was changed."""
        ...


class Account:
    """One member's privacy in one federation, or the federation's own view of any member.

    Args:
        scope: what is accounted (federation and member); a book of another scope is refused.
        book: where the history lies; None keeps it in memory (simulations).
    """

    def __init__(self, budget: Budget, *, scope: str, book: Book | None = None) -> None:
        """Take up the history where its book left it.

        Raises:
            ConfigError: a book that does not hold this account's history, whole and readable.
        """
        self.budget, self.scope, self.book = budget, scope, book
        self._history: list[tuple[str, PrivacyStep]] = [] if book is None else book.read(scope)

    @property
    def history(self) -> tuple[tuple[str, PrivacyStep], ...]:
        """(round, step), in the order of charging; a round that was run twice stands twice."""
        return tuple(self._history)

    def charge(self, round_: str, step: PrivacyStep) -> Spent:
        """Pay for a round BEFORE it runs; a round that fails afterwards stays paid.

        Each call is one more look at the member's data, whatever the round is called: who runs a
        round twice (a replay after the record of what was answered was lost, say) pays twice.

        Args:
            round_: names the sum that may be opened, for whoever reads the history:
            "RUN/ROUND/ATTEMPT".

        Returns: what is spent, this round included.

        Raises:
            BudgetError: the round would go past the budget; nothing was changed, do not run it.
            QuietchoirError: the disk refused; nothing was changed, do not run the round.
        """
        history = [*self._history, (round_, step)]
        spent = compose([each for _, each in history], self.budget.delta)
        if not spent.epsilon <= self.budget.epsilon:
            raise BudgetError(
                f"round {round_} would bring {spent}; the budget is {self.budget.epsilon:g}. It is "
                f"not run: stop here, or "
                "found a federation with more noise, fewer rounds or more members"
            )
        if self.book is not None:
            self.book.append(self.scope, round_, step)
        self._history = history
        return spent

    def reread(self) -> None:
        """As the book says: a charge in it was undone."""
        if self.book is not None:
            self._history = self.book.read(self.scope)

    def epsilon(self, delta: float | None = None) -> Spent:
        """What is spent so far, at the budget's delta or another."""
        return compose(
            [step for _, step in self._history], self.budget.delta if delta is None else delta
        )


def compose(steps: Sequence[PrivacyStep], delta: float) -> Spent:
    """Epsilon of all steps together.

    Source: Koskela, Jälkö, Honkela 2020 and Doroshenko et al. 2022 (PLD, in dp-accounting); Mironov
    2017 (RDP).
    """
    counts = Counter(steps)
    by_rdp = any(step.mechanism == "skellam" for step in counts)
    ideal = functools.partial(rdp_epsilon if by_rdp else pld_epsilon, counts)
    rates = sorted({step.sampling for step in counts})
    drawn = ", ".join(
        f"Poisson at rate {rate:g}, cohort hidden" if rate < 1 else "not assumed" for rate in rates
    )
    return Spent(
        epsilon=with_distance(
            ideal, delta, sum(step.distance * count for step, count in counts.items())
        )
        if counts
        else 0.0,
        delta=delta,
        steps=len(steps),
        unit=UNIT,
        sampling=drawn or "not assumed",
        mechanism=" and ".join(sorted({step.mechanism for step in counts})) or "no step yet",
        method=f"{'RDP' if by_rdp else 'PLD'} by dp-accounting {library_version()}",
    )


@functools.cache
def library_version() -> str:
    """Of what composes."""
    from importlib import metadata

    return metadata.version("dp-accounting")


def multiplier_for(budget: Budget, *, steps: int, sampling: float = 1.0) -> float:
    """About the smallest noise multiplier (within 1 %) with which `steps` rounds of Gaussian noise
    stay within a budget.

    For whoever founds a federation; what is charged, `Account` decides. Takes a second or two, with
    sampling half a minute.
    """

    def enough(multiplier: float) -> bool:
        return (
            compose(
                [PrivacyStep(multiplier=multiplier, sampling=sampling)] * steps, budget.delta
            ).epsilon
            <= budget.epsilon
        )

    if sampling == 1.0:  # known in closed form, which PLD only confirms
        high = 1.003 * gaussian_multiplier(budget, steps)
        while not enough(high):
            high *= 1.003
        return high
    high = 1.0
    while not enough(high):
        high *= 2
    low = high / 2
    while enough(low):
        high, low = low, low / 2
    while high > 1.01 * low:
        half = math.sqrt(low * high)
        low, high = (low, half) if enough(half) else (half, high)
    return high


def gaussian_multiplier(budget: Budget, steps: int) -> float:
    """The multiplier with which `steps` rounds of Gaussian noise, without sampling, spend a budget
    exactly.

    Together they are one Gaussian mechanism with `multiplier / sqrt(steps)`.
    Source: Balle, Wang 2018, theorem 8; Dong, Roth, Su 2022, corollary 3.3 (composition).
    """
    from scipy.special import log_ndtr, ndtr

    low, high = 1e-3, 1e9
    for _ in range(100):
        half = math.sqrt(low * high)
        mu = math.sqrt(steps) / half
        lost = ndtr(mu / 2 - budget.epsilon / mu) - math.exp(
            min(budget.epsilon + log_ndtr(-mu / 2 - budget.epsilon / mu), 0.0)
        )
        low, high = (low, half) if lost <= budget.delta else (half, high)
    return high


def with_distance(ideal: functools.partial[float], delta: float, distance: float) -> float:
    """Epsilon of a mechanism whose outputs are `distance` (total variation) from the `ideal` one's;
    inf if that is too far.

    If the ideal one is (e, d), the real one is (e, d + (1 + exp(e)) * distance).
    """
    epsilon = ideal(delta)
    if distance == 0.0 or not math.isfinite(epsilon):
        return epsilon
    for margin in (1e-3, 1.0):  # a guess at the larger epsilon, then checked
        left = delta - (1 + math.exp(min(epsilon + margin, 700.0))) * distance
        if left > 0 and (found := ideal(left)) <= epsilon + margin:
            return found
    return math.inf


def pld_epsilon(counts: Counter[PrivacyStep], delta: float) -> float:
    """By privacy loss distributions: tight."""
    return composed_pld(frozenset(counts.items()), delta)


@functools.lru_cache(maxsize=256)
def composed_pld(counts: frozenset[tuple[PrivacyStep, int]], delta: float) -> float:
    """Remembered: it takes a second, and a simulation's members all pay for the same steps."""
    import dp_accounting  # type: ignore[import-untyped]
    from dp_accounting import pld

    account = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for step, count in counts:
        event = dp_accounting.GaussianDpEvent(step.multiplier)
        account.compose(
            dp_accounting.PoissonSampledDpEvent(step.sampling, event)
            if step.sampling < 1
            else event,
            count,
        )
    return float(account.get_epsilon(delta))


def rdp_epsilon(counts: Counter[PrivacyStep], delta: float) -> float:
    """By Rényi differential privacy: looser, and it holds for Skellam too."""
    from dp_accounting import rdp

    total = np.zeros(len(ORDERS))
    for step, count in counts.items():
        bound = (
            skellam_rdp(step) if step.mechanism == "skellam" else ORDERS / (2 * step.multiplier**2)
        )
        total += count * (sampled_rdp(bound, step.sampling) if step.sampling < 1 else bound)
    epsilon, _ = rdp.compute_epsilon(ORDERS, total, delta)
    return float(epsilon)


def skellam_rdp(step: PrivacyStep) -> NDArray[np.float64]:
    """Rényi divergence of one Skellam step, at each of `ORDERS`.

    Source: Agarwal, Kairouz, Liu 2021, corollary 3.6; L1 norms of whole numbers are at most
    min(L2^2, sqrt(n) L2).
    """
    two = step.sensitivity
    one, variance = min(two * two, math.sqrt(step.length) * two), (step.multiplier * two) ** 2
    extra = np.minimum(
        ((2 * ORDERS - 1) * two**2 + 6 * one) / (4 * variance**2), 3 * one / (2 * variance)
    )
    bound: NDArray[np.float64] = ORDERS * two**2 / (2 * variance) + extra
    return bound


def sampled_rdp(bound: NDArray[np.float64], rate: float) -> NDArray[np.float64]:
    """Amplification by Poisson sampling of any mechanism with Rényi divergence `bound` at `ORDERS`.

    Orders between those of the table take the next larger one's divergence, which is an upper
    bound.
    Source: Zhu, Wang 2019, "Poission subsampled Rényi differential privacy", theorem 5 (the general
    upper bound).
    """
    from scipy.special import gammaln, logsumexp

    every = np.arange(2, ORDERS[-1] + 1)
    filled = bound[np.searchsorted(ORDERS, every)]
    out = np.empty(len(ORDERS))
    for at, order in enumerate(ORDERS):
        j = np.arange(2, order + 1)
        choose = gammaln(order + 1) - gammaln(j + 1) - gammaln(order - j + 1)
        terms = (
            choose + (order - j) * math.log1p(-rate) + j * math.log(rate) + (j - 1) * filled[j - 2]
        )
        terms[1:] += math.log(3)  # the general bound's factor from the third moment on
        first = (order - 1) * math.log1p(-rate) + math.log(order * rate - rate + 1)
        out[at] = logsumexp([first, *terms]) / (order - 1)
    return np.minimum(out, bound)
