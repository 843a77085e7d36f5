"""Parties that sleep: the same nights for both schedules, and what waits for whom."""

import dataclasses
import math

import numpy as np
import pytest

from quietchoir.core.errors import ConfigError
from quietchoir.federation.spec.policy import ScheduleTable
from quietchoir.simulations import schedule_comparison
from quietchoir.simulations.availability import AvailabilityTrace
from quietchoir.simulations.scenario import Availability, Scenario, load

SHIPPED = load("stragglers-async")


def small(scenario: Scenario) -> Scenario:
    """The shipped scenario with fewer parties and steps."""
    return dataclasses.replace(
        scenario,
        population=dataclasses.replace(scenario.population, households=10, values=100),
        recipe=dataclasses.replace(scenario.recipe, rounds=6),
    )


def test_work_goes_on_where_sleep_interrupted_it_and_a_long_sleep_is_noticed() -> None:
    sleeper = AvailabilityTrace(
        Availability(asleep_s=1000.0, notice_s=20.0), np.random.default_rng(1)
    )
    sleeper.wakes, sleeper.falls = [0.0, 1010.0, 1500.0], [1000.0, 1400.0, 9000.0]
    assert sleeper.work(0.0, 900.0) == (900.0, math.inf)
    assert sleeper.work(900.0, 200.0) == (1110.0, math.inf)  # ten seconds are not missed
    assert sleeper.work(1390.0, 30.0) == (1520.0, 1420.0)  # a hundred are, after twenty
    assert (sleeper.awake(1399.0), sleeper.awake(1401.0), sleeper.awake(1500.0)) == (
        True,
        False,
        True,
    )
    assert (sleeper.missed(1410.0), sleeper.missed(1420.0), sleeper.missed(1600.0)) == (
        False,
        True,
        False,
    )


def test_buffered_rounds_step_more_often_on_the_same_nights_and_waste_less_work() -> None:
    report, (synchronous, buffered) = schedule_comparison.compare(
        small(SHIPPED), None, lambda event: None
    )
    assert report.rounds == buffered.steps == synchronous.steps == 6
    assert buffered.hours < synchronous.hours
    assert buffered.summed / buffered.trained > synchronous.summed / synchronous.trained
    assert max(buffered.staleness) > 0 == len(synchronous.staleness)
    assert buffered.accuracy is not None and buffered.summed >= 4 * 6
    assert all(
        told(lap) for told in schedule_comparison.ROWS.values() for lap in (synchronous, buffered)
    )


def test_sleeping_parties_need_a_buffered_schedule_to_be_compared() -> None:
    with pytest.raises(ConfigError, match="buffered"):
        schedule_comparison.compare(
            dataclasses.replace(SHIPPED, schedule=ScheduleTable()), None, lambda event: None
        )
