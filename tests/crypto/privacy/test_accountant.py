"""The accountant: right by two independent ways of counting, and deaf to whoever wants one round
more.
"""

import math
import warnings

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld  # type: ignore[import-untyped]
from scipy import optimize, stats

from quietchoir.core.errors import BudgetError, ConfigError, QuietchoirError
from quietchoir.crypto.privacy.accountant import (
    ORDERS,
    Account,
    Budget,
    PrivacyStep,
    Spent,
    compose,
    multiplier_for,
    sampled_rdp,
    skellam_rdp,
)
from quietchoir.crypto.privacy.noise import Noise

DELTA = 1e-5
STEP = PrivacyStep(multiplier=4.0)
SCOPE = "choir/node-1"


class MemoryBook:
    """Outlives an account."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, PrivacyStep]] = []
        self.full = False

    def read(self, scope: str) -> list[tuple[str, PrivacyStep]]:
        return [(round_, step) for whose, round_, step in self.lines if whose == scope]

    def append(self, scope: str, round_: str, step: PrivacyStep) -> None:
        if self.full:
            raise QuietchoirError("the disk is full")
        self.lines.append((scope, round_, step))


def account(epsilon: float = 3.0, book: MemoryBook | None = None) -> Account:
    return Account(Budget(epsilon=epsilon, delta=DELTA), scope=SCOPE, book=book)


def spend_all(account: Account) -> int:
    """Charge rounds until one is refused; returns how many were paid."""
    for round_ in range(1, 100):
        try:
            account.charge(f"run/{round_}", STEP)
        except BudgetError:
            return round_ - 1
    raise AssertionError("never refused")


def hockey_stick(p: np.ndarray, q: np.ndarray, epsilon: float) -> float:
    return float(np.maximum(p - math.exp(epsilon) * q, 0).sum())


def analytic(multiplier: float, steps: int) -> float:
    """Epsilon of the Gaussian mechanism, composed. Source: Balle, Wang 2018, theorem 8."""
    mu = math.sqrt(steps) / multiplier

    def excess(epsilon: float) -> float:
        first, second = (
            stats.norm.cdf(mu / 2 - epsilon / mu),
            stats.norm.cdf(-mu / 2 - epsilon / mu),
        )
        return float(first - math.exp(epsilon) * second - DELTA)

    return float(optimize.brentq(excess, 1e-6, 100))


def test_the_accountant_agrees_with_opacus_within_two_percent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # opacus' own imports
        from opacus.accountants import PRVAccountant  # type: ignore[import-untyped]

        peer = PRVAccountant()
        peer.history = [(1.0, 0.1, 100)]
        theirs = peer.get_epsilon(delta=DELTA)
    ours = compose([PrivacyStep(multiplier=1.0, sampling=0.1)] * 100, DELTA).epsilon
    assert ours == pytest.approx(theirs, rel=0.02)
    assert ours == pytest.approx(7.05, abs=0.02)


@pytest.mark.parametrize(("multiplier", "steps"), [(1.0, 1), (4.0, 10), (20.0, 1)])
def test_without_sampling_epsilon_is_the_analytic_gaussian_one(
    multiplier: float, steps: int
) -> None:
    exact = analytic(multiplier, steps)
    found = compose([PrivacyStep(multiplier=multiplier)] * steps, DELTA).epsilon
    assert exact * 0.999 <= found <= exact * 1.01


def test_a_discrete_gaussian_is_never_cheaper_than_it_is() -> None:
    """Against the library's exact distribution in one dimension, and against the definition
    itself.
    """
    deviation, sensitivity, steps = 30.0, 10, 8
    shrunk = math.sqrt(deviation**2 - 4) / sensitivity
    ours = compose(
        [PrivacyStep(mechanism="discrete-gaussian", multiplier=shrunk, sensitivity=sensitivity)]
        * steps,
        DELTA,
    ).epsilon
    exact = (
        pld.from_discrete_gaussian_mechanism(deviation, sensitivity)
        .self_compose(steps)
        .get_epsilon_for_delta(DELTA)
    )
    assert exact * 0.999 <= ours <= exact * 1.02

    for narrow in (2.9, 6.0):
        k = np.arange(-200, 201)
        p, q = (np.exp(-((k - shift) ** 2) / (2 * narrow**2)) for shift in (0, 3))
        for epsilon in np.linspace(0.1, 6, 30):
            mu = 3 / math.sqrt(narrow**2 - 4)
            bound = stats.norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * stats.norm.cdf(
                -mu / 2 - epsilon / mu
            )
            assert hockey_stick(p / p.sum(), q / q.sum(), epsilon) <= bound + 1e-12
            # with sampling the same must hold: it is post-processing
            mixed = 0.9 * p / p.sum() + 0.1 * q / q.sum()
            grid = np.linspace(-60, 60, 200_001)
            x, y = (
                stats.norm.pdf(grid / (3 / mu)) / (3 / mu),
                stats.norm.pdf((grid - 3) / (3 / mu)) / (3 / mu),
            )
            sampled = hockey_stick(0.9 * x + 0.1 * y, x, epsilon) * (grid[1] - grid[0])
            assert hockey_stick(mixed, p / p.sum(), epsilon) <= sampled + 1e-7


@pytest.mark.parametrize("deviation", [3.0, 12.0])
def test_skellam_is_bounded_from_above_with_and_without_sampling(deviation: float) -> None:
    k, sensitivity = np.arange(-600, 601), 2
    rate = deviation**2 / 2
    with np.errstate(divide="ignore"):
        p, q = (np.log(stats.skellam.pmf(k - shift, rate, rate)) for shift in (sensitivity, 0))
    kept = np.isfinite(p) & np.isfinite(q)
    p, q = p[kept], q[kept]
    step = PrivacyStep(
        mechanism="skellam", multiplier=deviation / sensitivity, sensitivity=sensitivity, length=1
    )
    plain, sampled = skellam_rdp(step), sampled_rdp(skellam_rdp(step), 0.1)
    mixed = np.logaddexp(math.log(0.9) + q, math.log(0.1) + p)
    for at, order in enumerate(ORDERS[:12]):
        for bound, upper in ((plain, p), (sampled, mixed)):
            for one, other in ((upper, q), (q, upper)):
                divergence = np.log(np.exp(order * one + (1 - order) * other).sum()) / (order - 1)
                assert divergence <= bound[at] * (1 + 1e-9)
    assert (sampled <= plain).all() and sampled[0] < plain[0] / 5


def test_skellam_costs_about_what_a_gaussian_does() -> None:
    gaussian = compose([STEP] * 10, DELTA).epsilon
    skellam = compose(
        [PrivacyStep(mechanism="skellam", multiplier=4.0, sensitivity=2000.0, length=400_000)] * 10,
        DELTA,
    )
    assert gaussian < skellam.epsilon < 1.15 * gaussian
    assert skellam.method.startswith("RDP")


def test_one_skellam_step_among_others_is_counted_with_them() -> None:
    steps = [STEP, STEP, PrivacyStep(mechanism="skellam", multiplier=4.0, sensitivity=2000.0)]
    mixed = compose(steps, DELTA)
    assert (
        compose(steps[:2], DELTA).epsilon < mixed.epsilon < 1.3 * compose([STEP] * 3, DELTA).epsilon
    )
    assert mixed.mechanism == "gaussian and skellam"


@pytest.mark.parametrize("mechanism", ["discrete-gaussian", "skellam"])
def test_a_step_of_real_noise_costs_no_less_than_its_multiplier_says(mechanism: str) -> None:
    size = {"length": 50_000, "clip": 1.0, "honest": 10, "bits": 16}
    noise = Noise(multiplier=3.0, mechanism=mechanism, **size)  # type: ignore[arg-type]
    step = PrivacyStep.of(noise)
    assert 0.999 * 3.0 < step.multiplier <= 3.0 + 1e-12
    assert step.distance == noise.distance > 0
    ideal = analytic(3.0, 10)
    assert ideal * 0.999 <= compose([step] * 10, DELTA).epsilon <= 1.15 * ideal


def test_noise_too_far_from_the_ideal_one_buys_nothing() -> None:
    near, far = (
        compose([PrivacyStep(multiplier=4.0, distance=distance)], DELTA).epsilon
        for distance in (1e-8, 1e-5)
    )
    assert compose([STEP], DELTA).epsilon < near < 3
    assert far == math.inf
    with pytest.raises(BudgetError):
        account(1e6).charge("run/1", PrivacyStep(multiplier=4.0, distance=1e-5))


def test_the_multiplier_for_a_budget_pays_for_its_rounds_and_hardly_more() -> None:
    needed = multiplier_for(Budget(epsilon=4.0, delta=DELTA), steps=10)
    assert analytic(needed, 10) <= 4.0 < analytic(needed / 1.02, 10)


def test_a_round_past_the_budget_is_refused_and_changes_nothing() -> None:
    book = MemoryBook()
    ours = account(book=book)
    paid = spend_all(ours)
    assert paid == sum(analytic(4.0, steps) <= 3.0 for steps in range(1, 50)) > 3
    before, kept, spent = ours.history, list(book.lines), ours.epsilon()
    with pytest.raises(BudgetError, match=r"the budget is 3\. It is not run"):
        ours.charge(f"run/{paid + 1}", STEP)
    assert (ours.history, book.lines, ours.epsilon()) == (before, kept, spent)
    assert spent.steps == paid and spent.epsilon <= 3.0


def test_a_history_is_taken_up_where_it_was_left() -> None:
    book = MemoryBook()
    first = account(2.0, book)
    for round_ in range(1, 3):
        first.charge(f"run/{round_}", STEP)
    again = account(2.0, book)
    assert again.history == first.history and again.epsilon() == first.epsilon()
    assert 2 + spend_all(again) == spend_all(account(2.0)) > 2  # a restart is no discount


def test_where_the_disk_refuses_nothing_is_charged_and_the_round_may_not_run() -> None:
    book = MemoryBook()
    ours, book.full = account(book=book), True
    with pytest.raises(QuietchoirError, match="full"):
        ours.charge("run/1", STEP)
    assert ours.history == () and ours.epsilon().epsilon == 0.0


def test_a_round_that_is_run_twice_is_paid_twice() -> None:
    book = MemoryBook()
    ours = account(book=book)
    first = ours.charge("run/1", STEP)
    second = ours.charge("run/1", STEP)
    assert (first.steps, second.steps) == (1, 2) and second.epsilon == pytest.approx(
        analytic(4.0, 2), rel=0.01
    )
    assert ours.charge("run/1", PrivacyStep(multiplier=5.0)).steps == 3
    assert (
        account(book=book).history
        == ours.history
        == (("run/1", STEP), ("run/1", STEP), ("run/1", PrivacyStep(multiplier=5.0)))
    )


def test_a_charge_that_was_undone_is_forgotten() -> None:
    book = MemoryBook()
    ours = account(book=book)
    ours.charge("run/1", STEP)
    book.lines.clear()
    ours.reread()
    assert ours.history == () and ours.epsilon().steps == 0


def test_every_epsilon_says_what_it_means() -> None:
    ours = account(20.0)
    assert ours.epsilon() == Spent(
        epsilon=0.0,
        delta=DELTA,
        steps=0,
        unit=ours.epsilon().unit,
        sampling="not assumed",
        mechanism="no step yet",
        method=ours.epsilon().method,
    )
    ours.charge("run/1", PrivacyStep(multiplier=1.0, sampling=0.1))
    spent = ours.charge("run/2", PrivacyStep(multiplier=1.0, sampling=0.1))
    assert set(spent.record()) == {
        "epsilon",
        "delta",
        "steps",
        "unit",
        "sampling",
        "mechanism",
        "method",
    }
    for part in (
        "at delta 1e-05",
        "after 2 steps",
        "one member",
        "Poisson at rate 0.1, cohort hidden",
        "PLD by dp-accounting",
    ):
        assert part in str(spent)
    assert ours.epsilon(1e-7).epsilon > spent.epsilon


@pytest.mark.parametrize(
    "wrong",
    [
        {"multiplier": 0.0},
        {"multiplier": math.nan},
        {"sampling": 1.5},
        {"sampling": 0.0},
        {"mechanism": "laplace"},
        {"distance": -1.0},
    ],
)
def test_a_step_without_sense_is_a_typed_error(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        PrivacyStep(**{"multiplier": 1.0, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(0.0, 1e-5), (math.inf, 1e-5), (1.0, 0.0), (1.0, 1.0), (math.nan, 1e-5)]
)
def test_a_budget_without_sense_is_a_typed_error(epsilon: float, delta: float) -> None:
    with pytest.raises(ConfigError):
        Budget(epsilon=epsilon, delta=delta)
