"""What the lab's measures say of games whose result is known."""

import math

import numpy as np
import pytest

from quietchoir.simulations.attacks.readers import (
    CONFIDENCE,
    area,
    few_false,
    least_epsilon,
    p_value,
)


def test_members_that_all_score_higher_are_all_told_and_alike_ones_by_chance() -> None:
    low, high = np.arange(100.0), np.arange(100.0, 200.0)
    assert (area(high, low), few_false(high, low)) == (1.0, 1.0)
    assert (area(low, high), few_false(low, high)) == (0.0, 0.0)
    assert area(low, low) == 0.5 and few_false(low, low) == pytest.approx(0.01)
    assert area(np.zeros(5), np.zeros(7)) == 0.5


def test_an_audit_finds_what_follows_from_its_guesses_and_no_more() -> None:
    # all of r guesses right: a private run does that with q^r at most, q = e^eps / (1 + e^eps)
    q = (1 - CONFIDENCE) ** (1 / 200)
    assert least_epsilon(200, 200, 200, 0.0) == pytest.approx(math.log(q / (1 - q)), abs=1e-6)
    assert least_epsilon(200, 100, 200, 0.0) == 0.0  # a coin does as well
    assert least_epsilon(200, 180, 400, 0.0) > least_epsilon(200, 160, 400, 0.0) > 0.5
    # a larger delta explains more of the same guesses
    bounds = [least_epsilon(200, 200, 400, delta) for delta in (0.0, 1e-6, 1e-4)]
    assert bounds[0] > bounds[1] > bounds[2]


def test_randomised_response_is_hardly_ever_found_to_be_worse_than_it_is() -> None:
    rng, epsilon, wrong = np.random.default_rng(2), 1.0, 0
    chance = math.exp(epsilon) / (1 + math.exp(epsilon))
    for _ in range(500):
        right = int(rng.binomial(300, chance))
        wrong += p_value(300, right, 300, epsilon, 0.0) < 0.05
    assert wrong <= 0.08 * 500
