"""Which device does which job: the one that measured fastest here.

Knows devices by name, what each took for jobs of each size, memory and power. Knows nothing of what
a job is or how a device does it.
Always: a device is believed by what it did on this machine under the conditions of now; one that
fails is out, and its job is done by another; there is no answer only if no device is left.
"""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from .. import log
from ..errors import DeviceLostError, EngineError
from .discovery import memory_sizes
from .power import PowerState, read_state

T = TypeVar("T")
TRIES = 2  # of a job's size on a device before it is judged: a first one may compile
BEATEN = 3.0  # times the best: who takes so much longer is not measured again
KEPT = 5  # latest times of a job's size on a device; the best of them counts
LOOK_S = 30.0  # memory and power are looked at so often
HOT = 90.0  # degrees Celsius, from which on a processor slows itself down
SHORT = 1 / 16  # of the memory: with less of it free, it is short
MOVED = 1 / 4  # of the memory: when so much more or less of it is free, things have changed

logger = log.get("hardware")


@dataclass(frozen=True, slots=True)
class PlannedDevice:
    """One way to compute."""

    name: str
    jobs: frozenset[str]  # that it can do
    memory_bytes: int = 0  # that it takes besides, from its first job on


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a measured time holds for."""

    on_battery: bool | None
    hot: bool
    free_bytes: int  # of memory
    total_bytes: int

    @classmethod
    def now(
        cls,
        state: Callable[[], PowerState] = read_state,
        memory: Callable[[], tuple[int, int]] = memory_sizes,
    ) -> "Conditions":
        """Look at this machine."""
        power, (total, free) = state(), memory()
        hot = power.celsius is not None and power.celsius >= HOT
        return cls(power.on_battery, hot, free, total)

    @property
    def short(self) -> bool:
        """Is memory short? Then nothing is held that another device does without."""
        return self.free_bytes < self.total_bytes * SHORT

    def changed(self, before: "Conditions") -> bool:
        """Do times that were measured under `before` not hold any more?"""
        alike = (self.on_battery, self.hot, self.short) == (
            before.on_battery,
            before.hot,
            before.short,
        )
        moved = abs(self.free_bytes - before.free_bytes) >= self.total_bytes * MOVED
        return not alike or moved


@dataclass(frozen=True, slots=True)
class Assignment:
    """One line of a plan."""

    job: str
    size: int  # rows, texts or answers, a power of two
    device: str
    seconds: float  # of one job of this size; 0.0: not measured yet
    others: Mapping[str, float]  # the same of the devices that were not chosen


class Planner:
    """Sends jobs to devices, and learns from each how long it took."""

    def __init__(
        self,
        devices: Sequence[PlannedDevice],
        *,
        conditions: Callable[[], Conditions] = Conditions.now,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Args: devices: the first is what is fallen back on, and asked first."""
        self.devices = {device.name: device for device in devices}
        self._conditions, self._clock = conditions, clock
        self.conditions = conditions()
        self._looked = clock()
        self.lost: dict[str, str] = {}  # device → why
        self.held = set[str]()  # that have taken their memory
        self.replanned = 0
        self._times: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(dict)
        self._tries: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)

    def run(self, job: str, size: int, work: Mapping[str, Callable[[], T]]) -> T:
        """Have one job done.

        Args:
            work: of the devices that can do this one, by name.

        Raises:
            EngineError: none of them is left.
        """
        self.look()
        while True:
            name = self.choose(job, size, tuple(work))
            begun = self._clock()
            try:
                found = work[name]()
            except DeviceLostError as error:
                self.lose(name, str(error))
                continue
            self.note(job, size, name, self._clock() - begun)
            return found

    def measure(
        self, job: str, size: int, work: Mapping[str, Callable[[], object]], repeats: int
    ) -> None:
        """Have each device do the same job, in turns; a first time of each does not count. Who is
        beaten by far at the second is asked no more.
        """
        for name in self.available(job, tuple(work)):
            self._timed(name, work[name])
            self._tries[job, bucket(size)][name] += 1
        times = self._times[job, bucket(size)]
        for _ in range(repeats):
            for name in self.available(job, tuple(work)):
                if name in times and min(times[name]) > BEATEN * min(map(min, times.values())):
                    continue
                if (seconds := self._timed(name, work[name])) is not None:
                    self.note(job, size, name, seconds)

    def _timed(self, name: str, work: Callable[[], object]) -> float | None:
        begun = self._clock()
        try:
            work()
        except DeviceLostError as error:
            self.lose(name, str(error))
            return None
        return self._clock() - begun

    def choose(self, job: str, size: int, among: Sequence[str]) -> str:
        """The device for a job: one that was not tried enough, else the fastest.

        Raises:
            EngineError: none is left.
        """
        there = self.available(job, among)
        if not there:
            gone = "; ".join(f"{name}: {why}" for name, why in self.lost.items())
            raise EngineError(f"no device is left for {job} ({gone or 'none can do it'})")
        times, tries = self._times[job, bucket(size)], self._tries[job, bucket(size)]
        tried = [name for name in there if name in times and tries[name] >= TRIES]
        untried = [name for name in there if name not in tried]
        return untried[0] if untried else min(tried, key=lambda name: min(times[name]))

    def available(self, job: str, among: Sequence[str]) -> list[str]:
        """Devices that can do a job now, in their order: there, able, and with room in memory."""
        return [
            name
            for name, device in self.devices.items()
            if name in among
            and name not in self.lost
            and job in device.jobs
            and self._has_room(device)
        ]

    def _has_room(self, device: PlannedDevice) -> bool:
        if not device.memory_bytes or device.name in self.held:
            return not (device.memory_bytes and self.conditions.short)
        unknown = not self.conditions.total_bytes
        return unknown or device.memory_bytes <= self.conditions.free_bytes

    def note(self, job: str, size: int, name: str, seconds: float) -> None:
        """A device did a job of this size in so many seconds."""
        self.held.add(name)
        whole = bucket(size)
        self._tries[job, whole][name] += 1
        kept = self._times[job, whole].setdefault(name, [])
        kept.append(seconds * whole / size)
        del kept[:-KEPT]

    def lose(self, name: str, why: str) -> None:
        """A device is gone; what it did is done by others from now on."""
        self.lost[name] = why
        logger.log(logging.WARNING, "%s is not used any more: %s", name, why)

    def look(self) -> None:
        """Where memory or power changed, forget what was measured before: it is measured anew by
        the next jobs.
        """
        now = self._clock()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        if (found := self._conditions()).changed(self.conditions):
            self.conditions = found
            self._times.clear()
            self._tries.clear()
            self.replanned += 1
            logger.info("memory or power changed, devices are measured anew: %s", found)

    def plan(self) -> list[Assignment]:
        """What would be chosen now, by job and size, of all that was measured."""
        found = []
        for (job, size), times in sorted(self._times.items()):
            known = {name: min(kept) for name, kept in times.items() if kept}
            there = [name for name in self.available(job, tuple(known)) if name in known]
            if there:
                best = min(there, key=lambda name: known[name])
                others = {name: known[name] for name in known if name != best}
                found.append(Assignment(job, size, best, known[best], others))
        return found


def bucket(size: int) -> int:
    """The power of two at or above a size; jobs within one are alike."""
    return 1 << max(0, size - 1).bit_length()
