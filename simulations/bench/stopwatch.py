"""How long something takes beside its peers.

Knows clocks and repeats. Knows nothing of what is measured.
Always: the arms take turns within every repeat, so that a busy moment of the machine meets all of
them; what is reported is a median, and its spread stands beside it.

Processor seconds of this whole process are counted, all threads, not seconds on the wall: on a
machine that is shared with others they are the same from run to run.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

clock = time.process_time


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to do the work."""

    work: Callable[[], object]
    inner: int = 1  # how often a repeat runs it: short work needs more than the clock's grain


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds of one run of one arm, a value a repeat."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """Fastest and slowest repeat, seconds."""
        return min(self.seconds), max(self.seconds)

    def over(self, other: "Sample") -> "Sample":
        """How many times as long as `other`, repeat by repeat."""
        return Sample(
            tuple(mine / theirs for mine, theirs in zip(self.seconds, other.seconds, strict=True))
        )


def interleaved(arms: Mapping[str, Arm], repeats: int) -> dict[str, Sample]:
    """Run every arm once for warmth, then `repeats` times in turn."""
    for arm in arms.values():
        arm.work()
    found: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, arm in arms.items():
            before = clock()
            for _ in range(arm.inner):
                arm.work()
            found[name].append((clock() - before) / arm.inner)
    return {name: Sample(tuple(seconds)) for name, seconds in found.items()}


def put(report: dict[str, Any], key: str, sample: Sample, scale: float = 1.0) -> None:
    """Median at a dotted key of a report, and fastest and slowest repeat under `spread`."""
    *outer, inner = key.split(".")
    place = report
    for part in outer:
        place = place.setdefault(part, {})
    place[inner] = sample.median * scale
    report["spread"][key] = [value * scale for value in sample.spread]
