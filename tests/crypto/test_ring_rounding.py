"""Stochastic rounding: unbiased, bounded, per range."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietchoir.core.errors import ConfigError, DataError
from quietchoir.crypto.ring import CHUNK, Range, decode_sum, encode, middle


@settings(deadline=None)
@given(st.integers(2, 16), st.integers(1, 20), st.floats(1e-6, 1e6), st.integers(0, 2**32))
def test_a_sum_is_within_one_step_a_party_of_the_true_sum(
    bits: int, parties: int, scale: float, seed: int
) -> None:
    ranges = [Range(0, 50, scale), Range(50, 80, scale / 7)]
    rng = np.random.default_rng(seed)
    bound = np.concatenate([np.full(50, scale), np.full(30, scale / 7)])
    updates = rng.uniform(-1, 1, (parties, 80)) * bound
    total = sum(encode(update, ranges, bits).astype(np.int64) for update in updates)
    error = np.abs(decode_sum(total, parties, ranges, bits) - updates.sum(0))
    assert (error < parties * bound / middle(bits) * (1 + 1e-6)).all()


def test_rounding_is_unbiased_for_every_value() -> None:
    repeats, ranges = 4000, [Range(0, 41, 1.0)]
    values = np.linspace(-1, 1, 41)
    mean = (
        sum(decode_sum(encode(values, ranges, 4), 1, ranges, 4) for _ in range(repeats)) / repeats
    )
    deviation = ranges[0].step(4) / 2 / repeats**0.5  # the stated bound of one rounding, averaged
    assert (np.abs(mean - values) < 6 * deviation).all()
    # what rounding to nearest would give
    nearest = np.round(values / ranges[0].step(4)) * ranges[0].step(4)
    assert np.abs(nearest - values).max() > 6 * deviation


def test_the_standard_deviation_of_a_sum_is_as_stated() -> None:
    ranges, parties = [Range(0, 20_000, 1.0)], 9
    # the worst case: half-way between two integers
    values = np.full(20_000, ranges[0].step(8) * 0.5)
    total = sum(encode(values, ranges, 8).astype(np.int64) for _ in range(parties))
    error = decode_sum(total, parties, ranges, 8) - parties * values
    assert np.std(error) == pytest.approx(parties**0.5 * ranges[0].step(8) / 2, rel=0.05)


def test_ends_and_zero_are_exact_and_beyond_is_cut() -> None:
    ranges = [Range(0, 5, 2.0)]
    coded = encode(np.array([-2.0, 2.0, 0.0, -9.0, 9.0]), ranges, 8)
    assert coded.tolist() == [0, 2 * middle(8), middle(8), 0, 2 * middle(8)]
    assert coded.max() < 2**8


def test_a_long_update_keeps_its_direction_and_loses_its_length() -> None:
    update = np.array([3.0, 4.0, 0.0])
    ranges = [Range(0, 3, 1.0)]
    decoded = decode_sum(encode(update, ranges, 16, clip=1.0), 1, ranges, 16)
    assert decoded == pytest.approx(update / 5, abs=ranges[0].step(16))
    short = decode_sum(encode(update / 10, ranges, 16, clip=1.0), 1, ranges, 16)
    assert short == pytest.approx(update / 10, abs=ranges[0].step(16))


def test_each_rounding_is_fresh_unless_a_key_is_given() -> None:
    values, ranges = (
        np.full(CHUNK * 2 + 5, 0.3),
        [Range(0, CHUNK + 1, 1.0), Range(CHUNK + 1, CHUNK * 2 + 5, 1.0)],
    )
    assert not np.array_equal(encode(values, ranges, 4), encode(values, ranges, 4))
    first = encode(values, ranges, 4, key=bytes(32))
    assert np.array_equal(first, encode(values, ranges, 4, key=bytes(32)))
    # one chunk's dice are not another's
    assert not np.array_equal(first[:CHUNK], first[CHUNK + 1 : 2 * CHUNK + 1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(DataError, match="not finite"):
        encode(np.array([0.0, bad]), [Range(0, 2, 1.0)], 8)


@pytest.mark.parametrize(
    "ranges",
    [
        [],
        [Range(0, 3, 1.0)],
        [Range(0, 2, 1.0), Range(3, 4, 1.0)],
        [Range(1, 4, 1.0)],
        [Range(0, 4, 0.0)],
        [Range(0, 4, np.nan)],
    ],
)
def test_ranges_that_do_not_cover_the_update_are_refused(ranges: list[Range]) -> None:
    with pytest.raises(ConfigError):
        encode(np.zeros(4), ranges, 8)
    with pytest.raises(ConfigError):
        decode_sum(np.zeros(4, np.int64), 1, ranges, 8)


@pytest.mark.parametrize("bits", [0, 1, 25])
def test_bits_out_of_range_are_refused(bits: int) -> None:
    with pytest.raises(ConfigError):
        encode(np.zeros(4), [Range(0, 4, 1.0)], bits)


def test_an_impossible_sum_is_refused() -> None:
    with pytest.raises(DataError):
        decode_sum(np.array([3 * 2 * middle(8) + 1]), 3, [Range(0, 1, 1.0)], 8)
    with pytest.raises(DataError):
        decode_sum(np.array([-1]), 3, [Range(0, 1, 1.0)], 8)
