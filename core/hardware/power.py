"""How this machine is powered, how warm it is and who else uses it; what a node then allows itself.

Knows Linux's sysfs below an injectable root, and psutil where there is no sysfs. Changes nothing
but which cores this process runs on (`keep_to`). Knows nothing of engines or federations.
Always: what cannot be read is None, and holds nobody back: a machine without a battery is on AC,
one without a sensor is cool.
"""

import importlib
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from ..config import PowerConfig
from .discovery import read

ROOT = Path("/")
# Sensors of the processor, as Linux's drivers and firmware name them.
PROCESSOR = re.compile(r"coretemp|k10temp|zenpower|cpu|x86_pkg|soc|package|acpitz", re.IGNORECASE)
COOLER = 5.0  # degrees below the limit before a hot processor counts as cool again
OTHERS = 0.25  # of all cores: whoever takes more than this, beside this process, wants the machine
WINDOW_S = 10.0  # over which that is looked at
# Of cores and of the batch: on AC, on battery, hot.
SHARES = {"full": (1.0, 1.0, 0.5), "balanced": (1.0, 0.5, 0.5), "quiet": (0.5, 0.25, 0.25)}
MICRO = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerState:
    """How it stands now; None: this machine does not tell."""

    on_battery: bool | None = None
    battery_percent: float | None = None
    celsius: float | None = None  # the warmest sensor of the processor


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What a node takes of its machine."""

    share: float = 1.0  # of its cores, and of the answers in one batch
    prefetch: bool = True  # work ahead of need: notes of long conversations, documents that changed
    why: str = ""  # "" if nothing holds it back

    def of(self, whole: int) -> int:
        """That share of so many, at least one."""
        return max(1, math.ceil(self.share * whole))


def read_state(root: Path = ROOT) -> PowerState:
    """Look now."""
    supplies = sorted((root / "sys/class/power_supply").glob("*"))
    if root == ROOT and not supplies:  # macOS, Windows, and machines that have no battery
        battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
        on_battery = None if battery is None else battery.power_plugged is False
        percent = None if battery is None else float(battery.percent)
    else:
        on_battery, percent = _supplies(supplies)
    return PowerState(
        on_battery=on_battery,
        battery_percent=percent,
        celsius=max(_temperatures(root), default=None),
    )


def _supplies(folders: Sequence[Path]) -> tuple[bool | None, float | None]:
    """Of a machine's supplies: does its own battery run it, and how full is that? Batteries of mice
    and pens (scope `Device`) run nothing here.
    """
    mains, discharging, percents = list[bool](), list[bool](), list[float]()
    for folder in folders:
        kind = read(folder / "type").strip()
        if read(folder / "scope").strip() == "Device":
            continue
        if kind == "Battery":
            discharging.append(read(folder / "status").strip() == "Discharging")
            percents += _numbers(folder / "capacity")
        elif kind and (online := read(folder / "online").strip()):
            mains.append(online != "0")
    if not discharging:
        return None, None
    percent = sum(percents) / len(percents) if percents else None
    return any(discharging) and not any(mains), percent


def _temperatures(root: Path) -> Iterator[float]:
    """Of every sensor of the processor, degrees Celsius."""
    for zone in (root / "sys/class/thermal").glob("thermal_zone*"):
        if PROCESSOR.search(read(zone / "type")):
            yield from (value / 1000 for value in _numbers(zone / "temp"))
    for chip in (root / "sys/class/hwmon").glob("hwmon*"):
        if PROCESSOR.search(read(chip / "name")):
            for sensor in chip.glob("temp*_input"):
                yield from (value / 1000 for value in _numbers(sensor))


def _numbers(path: Path) -> list[float]:
    """The number in a file, if there is one."""
    try:
        return [float(read(path).strip())]
    except ValueError:
        return []


class OtherLoad:
    """How much of this machine others use.

    Args:
        count: seconds of all cores that were busy, all that there were, and this process's own.
    """

    def __init__(
        self,
        count: Callable[[], tuple[float, float, float]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._count, self._clock = count or _processor_times, clock
        self._before, self._since, self._share = self._count(), clock(), 0.0

    def share(self) -> float:
        """Of all cores, over the last ten seconds or so; 0 before they are over."""
        if self._clock() - self._since >= WINDOW_S:
            now = self._count()
            busy, whole, own = (
                after - before for after, before in zip(now, self._before, strict=True)
            )
            self._share = max(0.0, busy - own) / whole if whole > 0 else 0.0
            self._before, self._since = now, self._clock()
        return self._share


def _processor_times() -> tuple[float, float, float]:
    machine, mine = psutil.cpu_times(), psutil.Process()
    own = sum(
        sum(one.cpu_times()[:2])
        for one in (mine, *mine.children(recursive=True))
        if one.is_running()
    )
    whole = sum(machine) - getattr(machine, "guest", 0) - getattr(machine, "guest_nice", 0)
    return whole - machine.idle - getattr(machine, "iowait", 0), whole, own


class Power:
    """One node's bearing towards its machine, by its owner's `[power]`."""

    def __init__(
        self,
        config: PowerConfig,
        *,
        root: Path = ROOT,
        others: Callable[[], float] | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.config, self._root, self._now = config, root, now
        self._others = others
        self._hot = False

    def state(self) -> PowerState:
        """How it stands now."""
        return read_state(self._root)

    def allowance(self) -> Allowance:
        """What may be taken now."""
        state = self.state()
        on_ac, on_battery, hot = SHARES[self.config.profile]
        if self._is_hot(state):
            share, why = hot, f"the processor is hot ({state.celsius:.0f} °C)"
        elif state.on_battery:
            share, why = on_battery, "this machine is on battery"
        else:
            share, why = on_ac, f"the profile is {self.config.profile}"
        whole = share == 1.0
        return Allowance(share=share, prefetch=whole, why="" if whole else why)

    def why_not_train(self) -> str:
        """Why no training may run now; "": it may."""
        config, state = self.config, self.state()
        if state.on_battery and not config.train_on_battery:
            return "this machine is on battery (power.train_on_battery)"
        if self._is_hot(state):
            return f"the processor is hot ({state.celsius:.0f} °C, power.max_celsius)"
        if config.hours and not config.hours.hold(self._now().time()):
            return f"training has its hours, {config.train_hours} (power.train_hours)"
        if config.train_when_idle:
            self._others = self._others or OtherLoad().share
            if (share := self._others()) > OTHERS:
                return f"others use {100 * share:.0f} % of this machine (power.train_when_idle)"
        return ""

    def _is_hot(self, state: PowerState) -> bool:
        if state.celsius is None:
            return False
        limit = self.config.max_celsius - (COOLER if self._hot else 0)
        self._hot = state.celsius >= limit
        return self._hot


def keep_to(cores: int, of: Sequence[int]) -> bool:
    """Let every thread of this process run on the first `cores` of these alone; those that come
    later inherit it. False where the system has no such thing (not Linux).
    """
    if not hasattr(os, "sched_setaffinity"):
        return False
    chosen = set(sorted(of)[:cores])
    for thread in Path("/proc/self/task").iterdir():
        try:
            os.sched_setaffinity(int(thread.name), chosen)
        except ProcessLookupError:  # it has ended meanwhile
            continue
    return True


class EnergyMeter:
    """Joules that this machine has used, from whichever counter it has: the processor's (RAPL), the
    GPUs' (NVML), or else the battery's, while that runs it.

    Hazard: RAPL tells what neighbours compute too; kernels since 2020 let root alone read it.
    """

    def __init__(self, root: Path = ROOT, nvml: Any = None) -> None:
        """`nvml`: the module pynvml, if it is installed."""
        self._root = root
        self._nvml = nvml if nvml is not None else _nvml() if root == ROOT else None
        self._zones = [
            zone
            for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
            if zone.name.count(":") == 1 and _numbers(zone / "energy_uj")
        ]
        self._last: dict[str, float] = {}
        self._joules = dict.fromkeys(self.sources, 0.0)
        self.joules()

    @property
    def sources(self) -> tuple[str, ...]:
        """What is read; empty: nothing here can be."""
        found: tuple[str, ...] = ("rapl",) if self._zones else ()
        found += ("nvml",) if self._nvml is not None else ()
        if not found and self._batteries():
            found = ("battery",)
        return found

    def joules(self) -> float | None:
        """Since the start; None: not measurable here."""
        if not self._joules:
            return None
        if self._zones:
            for zone in self._zones:
                for now in _numbers(zone / "energy_uj"):
                    whole = (_numbers(zone / "max_energy_range_uj") or [0.0])[0]
                    self._count("rapl", zone.name, now * MICRO, whole * MICRO)
        if self._nvml is not None:
            for index in range(self._nvml.nvmlDeviceGetCount()):
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                used = self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
                self._count("nvml", str(index), used, 0.0)
        if "battery" in self._joules:
            for battery in self._batteries():
                if left := _numbers(battery / "energy_now"):  # µWh, falling
                    self._count("battery", battery.name, -left[0] * MICRO * 3600, 0.0)
        return sum(self._joules.values())

    def _batteries(self) -> list[Path]:
        folders = (self._root / "sys/class/power_supply").glob("*")
        return [
            folder
            for folder in sorted(folders)
            if read(folder / "type").strip() == "Battery" and _numbers(folder / "energy_now")
        ]

    def _count(self, source: str, counter: str, now: float, whole: float) -> None:
        """One counter more; `whole` is where it begins anew, 0 if it does not. A battery that is
        charged takes nothing back.
        """
        name = f"{source} {counter}"
        used = now - self._last.get(name, now)
        if used < 0 and whole:
            used += whole
        self._last[name] = now
        self._joules[source] += max(used, 0.0)


def _nvml() -> Any:
    """pynvml, started; None where it is not installed or finds no GPU."""
    try:
        pynvml = importlib.import_module("pynvml")
        pynvml.nvmlInit()
        return pynvml if pynvml.nvmlDeviceGetCount() else None
    except Exception:  # whatever its driver's library says; then there is nothing to read
        return None
