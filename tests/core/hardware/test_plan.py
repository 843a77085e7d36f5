"""Who does which job, by a clock that nobody waits for."""

import dataclasses
from collections.abc import Callable

import pytest

from quietchoir.core.errors import DeviceLostError, EngineError
from quietchoir.core.hardware.plan import LOOK_S, TRIES, Conditions, PlannedDevice, Planner
from quietchoir.core.hardware.power import PowerState

CALM = Conditions(on_battery=False, hot=False, free_bytes=8 << 30, total_bytes=16 << 30)
NEED = 2 << 30  # of the second device


class Machine:
    """Two devices, the time that each takes a row, and what the machine is like."""

    def __init__(self) -> None:
        self.seconds, self.conditions = 0.0, CALM
        self.takes = {"own": 1.0, "other": 0.5}
        self.fails: dict[str, bool] = {}
        self.done: list[str] = []
        jobs = frozenset({"prefill"})
        self.planner = Planner(
            [PlannedDevice("own", jobs), PlannedDevice("other", jobs, NEED)],
            conditions=lambda: self.conditions,
            clock=lambda: self.seconds,
        )

    def job(self, name: str, size: int) -> Callable[[], str]:
        def work() -> str:
            if self.fails.get(name):
                raise DeviceLostError("it was pulled out")
            self.seconds += self.takes[name] * size
            self.done.append(name)
            return name

        return work

    def run(self, size: int = 16, times: int = 1) -> str:
        for _ in range(times):
            said = self.planner.run(
                "prefill", size, {name: self.job(name, size) for name in self.takes}
            )
        return said


def test_each_device_is_tried_and_then_the_fastest_does_the_job() -> None:
    machine = Machine()
    machine.run(times=2 * TRIES)
    assert sorted(machine.done) == ["other"] * TRIES + ["own"] * TRIES
    assert machine.run() == "other"
    machine.takes["other"] = 3.0  # the best of the last times counts: slow ones in between do not
    machine.run(times=5)
    assert machine.run() == "own"
    (one,) = machine.planner.plan()
    assert (one.job, one.size, one.device, set(one.others)) == ("prefill", 16, "own", {"other"})


@pytest.mark.parametrize(("takes", "times"), [(1.0, 4), (4.0, 2)])
def test_a_device_that_is_beaten_by_far_is_not_measured_again(takes: float, times: int) -> None:
    machine = Machine()
    machine.takes["own"] = takes
    work = {name: machine.job(name, 16) for name in machine.takes}
    machine.planner.measure("prefill", 16, work, 3)
    assert (machine.done.count("own"), machine.done.count("other")) == (times, 4)
    (one,) = machine.planner.plan()
    assert (one.device, one.others) == ("other", {"own": 16 * takes})
    assert machine.run() == "other"  # who was beaten is not taken for one that was not tried


def test_a_job_moves_when_its_device_disappears() -> None:
    machine = Machine()
    machine.run(times=2 * TRIES + 1)
    machine.fails["other"] = True
    assert machine.run() == "own"
    assert machine.planner.lost == {"other": "it was pulled out"}
    machine.fails.clear()
    assert machine.run() == "own"  # who failed is not asked again
    assert [one.device for one in machine.planner.plan()] == ["own"]
    machine.fails["own"] = True
    with pytest.raises(EngineError, match="no device is left for prefill"):
        machine.run()


@pytest.mark.parametrize("change", [{"on_battery": True}, {"hot": True}, {"free_bytes": 3 << 30}])
def test_a_change_of_memory_or_power_makes_a_new_plan(change: dict[str, int]) -> None:
    machine = Machine()
    machine.run(times=2 * TRIES)
    machine.conditions = dataclasses.replace(CALM, **change)  # type: ignore[arg-type]
    machine.takes = {"own": 0.1, "other": 0.5}
    assert machine.run() == "other"  # nobody looked yet
    machine.seconds += LOOK_S
    machine.done.clear()
    machine.run(times=2 * TRIES)
    assert machine.planner.replanned == 1
    assert machine.done.count("other") == TRIES  # both were measured anew
    assert machine.run() == "own"


def test_a_little_less_memory_is_no_change() -> None:
    machine = Machine()
    machine.run(times=2 * TRIES)
    machine.conditions = dataclasses.replace(CALM, free_bytes=7 << 30)
    machine.seconds += LOOK_S
    assert machine.run() == "other"
    assert machine.planner.replanned == 0


def test_who_needs_more_memory_than_there_is_does_nothing() -> None:
    machine = Machine()
    machine.conditions = dataclasses.replace(CALM, free_bytes=NEED - 1)
    machine.planner.conditions = machine.conditions
    assert machine.run(times=9) == "own"
    assert "other" not in machine.done
    held = Machine()
    held.run(times=2 * TRIES)
    held.conditions = dataclasses.replace(CALM, free_bytes=1 << 20)  # short: nothing extra is held
    held.seconds += LOOK_S
    assert held.run(times=9) == "own"


def test_what_a_machine_does_not_tell_holds_nobody_back() -> None:
    found = Conditions.now(lambda: PowerState(), lambda: (0, 0))
    assert found == Conditions(None, False, 0, 0)
    assert not found.short
