"""What a node reads of power and heat, on trees like those of sysfs, and what follows from it."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quietchoir.core.config import Hours, PowerConfig
from quietchoir.core.hardware.power import EnergyMeter, OtherLoad, Power, PowerState, read_state

MAINS, BATTERY = "sys/class/power_supply/AC", "sys/class/power_supply/BAT0"
CELL = {"type": "Battery", "status": "Discharging", "capacity": "64"}
LAPTOP = {
    **{f"{BATTERY}/{name}": value for name, value in CELL.items()},
    f"{MAINS}/type": "Mains",
    f"{MAINS}/online": "0",
}
HWMON = "sys/class/hwmon/hwmon0"
Grow = Callable[[Mapping[str, str]], Path]


@pytest.fixture
def grow(tmp_path: Path) -> Grow:
    """Makes files below one root, as the kernel shows them; again, and they change."""

    def made(files: Mapping[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return tmp_path

    return made


def test_a_machine_that_tells_nothing_is_neither_on_battery_nor_hot(tmp_path: Path) -> None:
    assert read_state(tmp_path) == PowerState()
    power = Power(PowerConfig(), root=tmp_path)
    assert power.allowance().share == 1 and power.why_not_train() == ""


@pytest.mark.parametrize(
    ("changed", "on_battery"),
    [
        ({}, True),
        ({f"{BATTERY}/status": "Charging", f"{MAINS}/online": "1"}, False),
        # a dock that gives less than the machine takes
        ({f"{MAINS}/online": "1"}, False),
        ({f"{BATTERY}/status": "Full"}, False),
        ({f"{BATTERY}/scope": "Device"}, None),  # a mouse's
    ],
)
def test_a_battery_runs_the_machine_if_it_is_its_own_and_empties(
    grow: Grow, changed: Mapping[str, str], on_battery: bool | None
) -> None:
    state = read_state(grow({**LAPTOP, **changed}))
    assert state.on_battery is on_battery
    assert state.battery_percent == (None if on_battery is None else 64)


def test_the_warmest_sensor_of_the_processor_counts_and_no_other(grow: Grow) -> None:
    root = grow(
        {
            f"{HWMON}/name": "k10temp", f"{HWMON}/temp1_input": "61250",
            f"{HWMON}/temp2_input": "58000",
            "sys/class/hwmon/hwmon1/name": "nvme", "sys/class/hwmon/hwmon1/temp1_input": "99000",
            "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp",
            "sys/class/thermal/thermal_zone0/temp": "64000",
            "sys/class/thermal/thermal_zone1/type": "cpu",
            "sys/class/thermal/thermal_zone1/temp": "not a number",
        }
    )  # fmt: skip
    assert read_state(root).celsius == 64


@pytest.mark.parametrize(
    ("profile", "on_ac", "on_battery", "hot"),
    [("full", 4, 4, 2), ("balanced", 4, 2, 2), ("quiet", 2, 1, 1)],
)
def test_cores_batch_and_work_ahead_of_need_shrink_by_the_profile(
    grow: Grow, profile: Any, on_ac: int, on_battery: int, hot: int
) -> None:
    power = Power(PowerConfig(profile=profile), root=grow(LAPTOP | {f"{MAINS}/online": "1"}))

    def found() -> int:
        allowed = power.allowance()
        whole = allowed.share == 1
        assert allowed.prefetch is whole and (allowed.why == "") is whole
        return allowed.of(4)

    assert found() == on_ac
    grow({f"{MAINS}/online": "0"})
    assert found() == on_battery
    grow({f"{HWMON}/name": "coretemp", f"{HWMON}/temp1_input": "95000", f"{MAINS}/online": "1"})
    assert found() == hot
    grow({f"{HWMON}/temp1_input": "87000"})  # cooler, and not yet cool
    assert found() == hot
    grow({f"{HWMON}/temp1_input": "84000"})
    assert found() == on_ac


def test_training_waits_for_ac_coolness_its_hours_and_an_idle_machine(grow: Grow) -> None:
    now, others = [datetime(2026, 11, 30, 3, 0)], [0.0]
    config = PowerConfig(train_hours="22:00-06:00", train_when_idle=True)
    root = grow(LAPTOP)
    power = Power(config, root=root, others=lambda: others[0], now=lambda: now[0])
    assert "on battery" in power.why_not_train()
    grow({f"{MAINS}/online": "1"})
    assert power.why_not_train() == ""
    others[0] = 0.6
    assert "others use 60 %" in power.why_not_train()
    now[0] = datetime(2026, 11, 30, 6, 0)
    assert "22:00-06:00" in power.why_not_train()
    grow({f"{HWMON}/name": "coretemp", f"{HWMON}/temp1_input": "91000"})
    assert "hot (91 °C" in power.why_not_train()


@pytest.mark.parametrize(
    "text",
    ["2-6", "02:00", "02:00-02:00", "25:00-06:00", "night", "02:00Z-06:00Z", "02:00-06:00+01:00"],
)
def test_hours_that_are_none_are_refused_with_how_to_write_them(text: str) -> None:
    with pytest.raises(ValueError, match=r"02:00-06:00|whole day"):
        Hours.read(text)


def test_others_are_who_computes_beside_this_process_and_its_children() -> None:
    counts = iter([(10.0, 100.0, 4.0), (16.0, 120.0, 9.0)])
    clock = iter([0.0, 5.0, 11.0, 11.0])
    load = OtherLoad(lambda: next(counts), lambda: next(clock))
    assert load.share() == 0  # nothing is known yet
    assert load.share() == pytest.approx(1 / 20)


def test_this_machines_own_counts_are_read() -> None:
    load = OtherLoad(clock=iter([0.0, 20.0, 20.0]).__next__)
    assert 0 <= load.share() <= 1


def test_energy_is_counted_from_rapl_over_its_end_and_not_twice(grow: Grow) -> None:
    zone, inner = "sys/class/powercap/intel-rapl:0", "sys/class/powercap/intel-rapl:0:0"
    root = grow(
        {f"{zone}/energy_uj": "900000000", f"{zone}/max_energy_range_uj": "1000000000",
         f"{inner}/energy_uj": "1", f"{inner}/max_energy_range_uj": "1000000000"}
    )  # fmt: skip
    meter = EnergyMeter(root)
    assert meter.sources == ("rapl",) and meter.joules() == 0
    grow({f"{zone}/energy_uj": "950000000", f"{inner}/energy_uj": "500000000"})
    assert meter.joules() == pytest.approx(50)
    grow({f"{zone}/energy_uj": "10000000"})
    assert meter.joules() == pytest.approx(110)


def test_energy_comes_from_the_battery_while_it_empties_and_from_nowhere_else(grow: Grow) -> None:
    assert EnergyMeter(grow({})).joules() is None
    meter = EnergyMeter(grow({f"{BATTERY}/type": "Battery", f"{BATTERY}/energy_now": "50000000"}))
    grow({f"{BATTERY}/energy_now": "49000000"})
    assert meter.joules() == pytest.approx(3600)  # a watt-hour
    grow({f"{BATTERY}/energy_now": "60000000"})
    assert meter.joules() == pytest.approx(3600)


def test_energy_of_gpus_is_their_own_counter(tmp_path: Path) -> None:
    used = [5000]
    nvml = SimpleNamespace(
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=lambda _: used[0],
    )
    meter = EnergyMeter(tmp_path, nvml)
    used[0] += 7000
    assert meter.sources == ("nvml",) and meter.joules() == pytest.approx(7)


KEEPING = """
import os, threading
from quietchoir.core.hardware.power import keep_to
cores, held = sorted(os.sched_getaffinity(0)), threading.Event()
threading.Thread(target=held.wait).start()
def cores_of_threads():
    return [len(os.sched_getaffinity(int(one))) for one in os.listdir("/proc/self/task")]
assert keep_to(1, cores) and set(cores_of_threads()) == {1} and len(cores_of_threads()) >= 2
keep_to(len(cores), cores)
assert set(cores_of_threads()) == {len(cores)}
held.set()
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads choose no cores here")
def test_threads_that_run_already_are_kept_to_fewer_cores_and_let_go() -> None:
    subprocess.run([sys.executable, "-c", KEEPING], check=True)  # apart: pytest's must not shrink
