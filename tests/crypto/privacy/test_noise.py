"""Noise: drawn from the right distribution, enough of it whoever drops out, and never more than
its bits hold.
"""

import math
from typing import Any

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from quietchoir.core.errors import ConfigError, DataError
from quietchoir.crypto import ring
from quietchoir.crypto.privacy.noise import (
    LARGEST_OVERFLOW,
    TRIES,
    Dice,
    Noise,
    clip_factor,
    gaussian_table,
    poisson_table,
    rotate,
    round_within,
    table_of,
    window,
)
from quietchoir.crypto.ring import BitRing
from quietchoir.tests.fakes.secagg import Cohort, Round

KEY = bytes(range(32))
SEED = b"round 1"


def noise(**other: Any) -> Noise:
    agreed: dict[str, Any] = {
        "length": 5000,
        "clip": 1.0,
        "multiplier": 1.0,
        "honest": 10,
        "bits": 14,
    }
    return Noise(**{**agreed, **other})


def update(length: int = 5000, norm: float = 1.0) -> np.ndarray:
    values = np.random.default_rng(length).normal(size=length)
    return values * norm / float(np.linalg.norm(values))


def chi_square(values: np.ndarray, chances: dict[int, float]) -> float:
    """p-value of `values` against a distribution; its rare values are taken together."""
    often = [k for k, chance in chances.items() if chance * len(values) > 20]
    seen = [int(np.count_nonzero(values == k)) for k in often]
    expected = [chances[k] * len(values) for k in often]
    rest = len(values) - sum(seen)
    return float(stats.chisquare([*seen, rest], [*expected, len(values) - sum(expected)]).pvalue)


@pytest.mark.parametrize("deviation", [0.6, 2.0, 9.5])
def test_a_discrete_gaussian_has_its_own_probabilities(deviation: float) -> None:
    weights = {k: math.exp(-k * k / (2 * deviation**2)) for k in range(-150, 151)}
    whole = sum(weights.values())
    drawn = Dice(KEY).discrete_gaussian(deviation, 200_000)
    assert chi_square(drawn, {k: weight / whole for k, weight in weights.items()}) > 1e-3
    # the test can fail
    assert chi_square(drawn + 1, {k: weight / whole for k, weight in weights.items()}) < 1e-9


@pytest.mark.parametrize("deviation", [0.6, 2.0, 9.5])
def test_skellam_noise_has_its_own_probabilities(deviation: float) -> None:
    rate = deviation**2 / 2
    drawn = Dice(KEY).skellam(deviation, 200_000)
    assert (
        chi_square(drawn, {k: float(stats.skellam.pmf(k, rate, rate)) for k in range(-150, 151)})
        > 1e-3
    )


@pytest.mark.parametrize("deviation", [0.5, 3.3, 100.0, 4096.0])
def test_tables_are_exact_to_a_hundred_bits(deviation: float) -> None:
    gaussian, poisson = gaussian_table(deviation**2), poisson_table(deviation**2 / 2)
    assert max(gaussian.distance, poisson.distance) < 2.0**-100
    one = 1 << 128
    # P(X <= k) = 1 - P(X <= -k-1)
    for left, right in zip(gaussian.cuts, reversed(gaussian.cuts), strict=True):
        assert abs(left + right - one) <= 2
    with mpmath.workdps(60):  # scipy's own distribution function is off by 1e-7 at the largest mean
        for at in np.linspace(0, len(poisson.cuts) - 1, 4).astype(int).tolist():
            exact = mpmath.gammainc(
                poisson.first + at + 1, deviation**2 / 2, mpmath.inf, regularized=True
            )
            assert abs(exact - mpmath.mpf(poisson.cuts[at]) / one) < 2.0**-100


def test_a_gaussian_table_has_the_fractions_of_its_definition() -> None:
    table, spans = gaussian_table(2.25), []
    for before, cut in zip((0, *table.cuts), table.cuts, strict=False):
        spans.append((cut - before) / 2**128)
    exact = [math.exp(-((k + table.first) ** 2) / 4.5) for k in range(len(spans))]
    whole = sum(math.exp(-(k**2) / 4.5) for k in range(-100, 101))
    assert np.allclose(spans, np.array(exact) / whole, rtol=1e-13, atol=1e-38)


def test_where_upper_halves_are_equal_the_lower_half_decides() -> None:
    third = table_of(5, [1, 1, 1])  # cuts at one and two thirds of 2^128
    at = third.high[:1]
    below, above = third.cuts[0] % 2**64 - 1, third.cuts[0] % 2**64
    assert third.look_up(at, lambda: below).tolist() == [5]
    assert third.look_up(at, lambda: above).tolist() == [6]
    assert third.look_up(np.array([0, 2**64 - 1], np.uint64), lambda: 0).tolist() == [5, 7]


def test_equal_cuts_are_values_that_are_never_drawn() -> None:
    gap = table_of(0, [1 << 200, 1, 1, (1 << 200) + 8])
    assert gap.cuts[0] == gap.cuts[1] == gap.cuts[2]
    drawn = {gap.look_up(gap.high[:1], lambda: lower)[0] for lower in (0, 2**64 - 2, 2**64 - 1)}  # noqa: B023
    assert drawn == {0, 3}


def test_noise_is_fresh_each_time_and_its_key_is_never_shown() -> None:
    assert not np.array_equal(
        Dice().discrete_gaussian(50.0, 100), Dice().discrete_gaussian(50.0, 100)
    )
    assert repr(Dice(KEY)) == "Dice(…)"


@pytest.mark.parametrize("deviation", [0.3, 5000.0, math.nan])
def test_noise_that_cannot_be_drawn_is_a_typed_error(deviation: float) -> None:
    with pytest.raises(ConfigError, match="cannot be drawn"):
        Dice(KEY).discrete_gaussian(deviation, 1)
    with pytest.raises(ConfigError, match="cannot be drawn"):
        Dice(KEY).skellam(deviation, 1)


@pytest.mark.parametrize("mechanism", ["discrete-gaussian", "skellam"])
def test_the_sum_carries_the_central_noise_after_all_tolerated_drop_outs(mechanism: str) -> None:
    agreed = noise(mechanism=mechanism, honest=7, length=20_000)  # 10 members, 3 may drop
    total = np.sum(
        [agreed.encode(np.zeros(20_000), SEED).astype(np.int64) for _ in range(7)], axis=0
    )
    total -= 7 * ring.middle(agreed.bits)
    # 10 standard errors
    assert float(total.std()) == pytest.approx(agreed.multiplier * agreed.sensitivity, rel=0.05)
    assert abs(float(total.mean())) < 10 * float(total.std()) / math.sqrt(20_000)


def test_the_decoded_sum_is_the_sum_of_the_clipped_updates_and_stated_noise() -> None:
    agreed, parties = noise(multiplier=0.01), 12
    updates = [update(norm=0.3 * number) for number in range(parties)]
    total = np.sum([agreed.encode(values, SEED).astype(np.int64) for values in updates], axis=0)
    found = agreed.decode_sum(total, parties, SEED) / parties
    true = np.mean([values * clip_factor(values, 1.0) for values in updates], axis=0)
    rounding = 1 / agreed.scale / math.sqrt(4 * parties)
    assert float((found - true).std()) < 1.2 * math.hypot(agreed.mean_deviation(parties), rounding)


@pytest.mark.parametrize("mechanism", ["discrete-gaussian", "skellam"])
def test_a_masked_round_with_drop_outs_opens_the_noised_sum_of_its_survivors(
    mechanism: str,
) -> None:
    agreed = noise(mechanism=mechanism, honest=4, length=4000, bits=14)
    cohort = Cohort(6, length=4000, bits=14, threshold=4)
    true = {name: update(4000, norm=0.2 + number / 10) for number, name in enumerate(cohort.names)}
    for name in cohort.names:
        cohort.values[name] = agreed.encode(true[name], SEED).astype(np.uint32)
    lost = cohort.names[:2]
    result = Round(cohort).play({2: lost}).result
    assert result.survivors == tuple(cohort.names[2:])
    found = agreed.decode_sum(result.total, 4, SEED)
    error = found - np.sum([true[name] for name in result.survivors], axis=0)
    assert float(error.std()) * agreed.scale == pytest.approx(
        agreed.multiplier * agreed.sensitivity, rel=0.1
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-3, 3), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.3]),
    st.floats(0.1, 10),
)
def test_no_update_is_longer_in_integers_than_its_sensitivity(
    values: list[float], reach: float, clip: float
) -> None:
    agreed = noise(length=len(values), clip=clip, reach=reach, multiplier=0.5, bits=12)
    whole = agreed.whole(values, SEED)
    assert int(whole @ whole) <= agreed.sensitivity**2 * (1 + 1e-12)


def test_rounding_keeps_the_mean() -> None:
    agreed = noise(length=1, reach=1.0, bits=10)
    seen = np.array([agreed.whole([0.1234], SEED)[0] for _ in range(4000)]) / agreed.scale
    assert abs(seen.mean() - 0.1234) < 5 / agreed.scale / math.sqrt(4000)


def test_rounding_that_will_not_fit_goes_towards_zero() -> None:
    assert TRIES > 1
    assert round_within(np.full(100, 0.9), 0.0).tolist() == [0] * 100
    assert round_within(np.array([-3.7, 2.2]), 3.7**2 + 2.2**2).tolist() in ([-3, 2], [-3, 3])


@pytest.mark.parametrize("length", [1, 2, 3, 1000, 4096])
def test_rotation_keeps_the_length_and_is_undone(length: int) -> None:
    values = update(length)
    turned = values.copy()
    rotate(turned, SEED)
    assert float(np.linalg.norm(turned)) == pytest.approx(1.0)
    rotate(turned, SEED, back=True)
    assert np.allclose(turned, values, rtol=0, atol=1e-12)


def test_rotation_spreads_one_large_coordinate_over_the_window() -> None:
    spike = np.zeros(3000)
    spike[1500] = 1.0
    rotate(spike, SEED)
    assert float(np.abs(spike).max()) < 6 / math.sqrt(window(3000))
    other = np.zeros(3000)
    other[1500] = 1.0
    rotate(other, b"round 2")
    assert not np.allclose(spike, other)


@pytest.mark.parametrize("mechanism", ["discrete-gaussian", "skellam"])
@pytest.mark.parametrize(
    ("length", "bits", "honest"),
    [(10, 8, 10), (5000, 12, 5), (400_000, 16, 10), (400_000, 12, 100)],
)
def test_what_is_accepted_nearly_never_overflows(
    mechanism: str, length: int, bits: int, honest: int
) -> None:
    agreed = noise(mechanism=mechanism, length=length, bits=bits, honest=honest)
    assert agreed.overflow < LARGEST_OVERFLOW
    assert agreed.distance < 2.0**-40 * honest
    room = ring.middle(bits) - agreed.scale * agreed.limit
    assert room >= 12 * agreed.deviation


def test_the_largest_noised_value_fits_the_ring_of_the_cohort() -> None:
    agreed = noise()
    ring = BitRing(length=agreed.length, bits=agreed.bits, parties=16)
    words = ring.lift(agreed.encode(update(), SEED))
    assert (
        ring.unpack(ring.close(words)).astype(np.int64).tolist() == words.astype(np.int64).tolist()
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"length": 400_000, "bits": 8},  # rounding alone would drown the update
        {"multiplier": 100.0, "bits": 8},
        {"honest": 0},
        {"clip": 0.0},
        {"clip": math.inf},
        {"multiplier": math.nan},
        {"multiplier": 0.0},
        {"bits": 1},
        {"bits": 25},
        {"reach": -1.0},
        {"mechanism": "gauss"},
        {"length": 0},
        {"multiplier": 1e-6, "bits": 8, "length": 10},
    ],
)
def test_noise_without_room_or_sense_is_a_typed_error(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        noise(**wrong)


@pytest.mark.parametrize("bad", [np.full(5000, np.nan), np.zeros(4999), np.full(5000, np.inf)])
def test_an_update_that_is_not_one_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(DataError, match="nothing is sent"):
        noise().encode(bad, SEED)


def test_noise_beyond_the_bits_is_refused_not_wrapped() -> None:
    agreed = noise()
    top = ring.middle(agreed.bits)
    assert agreed.fit(np.array([-top, 0, top])).tolist() == [0, top, 2 * top]
    with pytest.raises(DataError, match="nothing is sent"):
        agreed.fit(np.array([0, top + 1]))


def test_everybody_computes_the_same_scale() -> None:
    agreed = noise(length=400_000, bits=16)
    # only correctly rounded operations: any IEEE machine must agree
    assert agreed.scale.hex() == SCALE


SCALE = "0x1.0ccda7996a7e6p+13"
