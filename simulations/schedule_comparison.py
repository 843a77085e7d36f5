"""Buffered rounds beside synchronous ones, where parties are awake at random times: the same
parties, examples and nights.

Knows two runs of one scenario and what they told. Knows nothing of how rounds are held.
Always: both runs have the same seeds and the same number of steps; hours are those of the link's
own clock.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ..core.errors import ConfigError, RoundAborted
from ..federation.events import AbortedEvent, FederationEvent, OnEvent, RoundEvent
from ..federation.rounds.report import RunReport
from ..federation.spec.policy import ScheduleTable
from .report import PartyTrainedEvent
from .run import simulate
from .scenario import Scenario

if TYPE_CHECKING:
    from ..core.models.weights import Weights

HOUR_S = 3600.0
GOOD = 0.9  # accuracy whose time is told


@dataclass(slots=True)
class Lap:
    """One run."""

    schedule: str
    steps: int = 0
    hours: float = 0.0  # of the last step
    trained: int = 0  # trainings, of all parties
    summed: int = 0  # contributions in sums
    abandoned: int = 0  # attempts without a sum
    staleness: list[int] = field(default_factory=list)
    # (hours, accuracy of the adapter that was there then)
    curve: list[tuple[float, float]] = field(default_factory=list)
    accuracy: float | None = None  # of the last adapter
    stopped: str = ""

    def note(self, event: FederationEvent) -> None:
        """Take one event of the run."""
        match event:
            case PartyTrainedEvent():
                self.trained += 1
            case AbortedEvent():
                self.abandoned += 1
            case RoundEvent(name="round", entry=entry, at=at):
                if entry["accuracy"] is not None:  # of the adapter that the step before has made
                    self.curve.append((self.hours, entry["accuracy"]))
                self.steps, self.hours = entry["round"], (at or 0.0) / HOUR_S
                self.summed += len(entry["parties"])
                self.staleness += entry.get("staleness", [])
            case RoundEvent(entry=entry):
                self.accuracy = entry["accuracy"]
                self.curve.append((self.hours, entry["accuracy"]))

    @property
    def good_after(self) -> float | None:
        """Hours until an adapter was there that was good."""
        return next((hours for hours, accuracy in self.curve if accuracy >= GOOD), None)


def compare(
    scenario: Scenario, weights: "Weights | None", report: OnEvent
) -> tuple[RunReport, list[Lap]]:
    """The scenario's own run, and what came out of it and of the same scenario in synchronous
    rounds.

    Raises:
        ConfigError: the scenario's rounds are synchronous already. As `simulate`.
    """
    if not scenario.schedule.buffered:
        raise ConfigError(
            f"scenario {scenario.name}: parties sleep, and its rounds are synchronous; set "
            f'schedule.rounds = "buffered": '
            "synchronous rounds are run beside it"
        )
    laps = [Lap("synchronous"), Lap("buffered")]
    try:
        simulate(
            dataclasses.replace(scenario, schedule=ScheduleTable()), weights, on_event=laps[0].note
        )
    except RoundAborted as reason:
        laps[0].stopped = str(reason)

    def both(event: FederationEvent) -> None:
        laps[1].note(event)
        report(event)

    return simulate(scenario, weights, on_event=both), laps


def show(console: Console, laps: Sequence[Lap]) -> None:
    """One column a run."""
    table = Table(title="the same parties and nights", box=None, title_justify="left")
    for column in ("", *(lap.schedule for lap in laps)):
        table.add_column(column, justify="left" if not column else "right")
    for name, cell in ROWS.items():
        table.add_row(name, *(cell(lap) for lap in laps))
    console.print(table)
    for lap in laps:
        if lap.stopped:
            console.print(f"{lap.schedule} rounds stopped: {lap.stopped}")


def shown(value: float | None, words: str) -> str:
    """A number in words; a dash if there is none."""
    return "–" if value is None else format(value, words)


ROWS: dict[str, Callable[[Lap], str]] = {
    "steps": lambda lap: str(lap.steps),
    "hours of virtual time": lambda lap: f"{lap.hours:.1f}",
    "steps an hour": lambda lap: shown(lap.steps / lap.hours if lap.hours else None, ".1f"),
    f"hours until accuracy was {GOOD:.0%}": lambda lap: shown(lap.good_after, ".1f"),
    "accuracy after the last step": lambda lap: shown(lap.accuracy, ".1%"),
    "trainings": lambda lap: str(lap.trained),
    "of them summed": lambda lap: shown(lap.summed / lap.trained if lap.trained else None, ".0%"),
    "contributions in a sum": lambda lap: shown(
        lap.summed / lap.steps if lap.steps else None, ".1f"
    ),
    "mean staleness, steps": lambda lap: shown(
        mean(lap.staleness) if lap.staleness else None, ".2f"
    ),
    "attempts without a sum": lambda lap: str(lap.abandoned),
}
