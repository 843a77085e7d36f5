"""What is simulated: one TOML file, checked strictly.

Knows names, limits and defaults; the tables a federation's file also has are the federation's own.
Always: a scenario that loaded can be run; a key that is not here is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..core import tables
from ..core.errors import ConfigError
from ..core.tables import above, at_least
from ..federation.spec import compatibility, flags
from ..federation.spec.policy import (
    AdapterTable,
    AggregationTable,
    GuardTable,
    PrivacyTable,
    ProtectionTable,
    Recipe,
    ScheduleTable,
    axes_of,
    check_ranks,
    require,
    require_name,
)

SHIPPED = Path(__file__).resolve().parent / "scenarios"


# Keys of [population] that mean something, by kind.
READ = {
    "home": {"kind", "households", "train", "test", "ranks", "portions"},
    "folder": {"kind", "folder", "ranks", "portions"},
    "rehearsal": {"kind", "households", "values", "ranks", "portions"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """Who takes part, and with what examples."""

    kind: Literal["home", "folder", "rehearsal"] = "home"
    households: int = 4  # of kinds "home" and "rehearsal"
    train: int = 150  # examples of each household
    test: int = 100
    # of kind "rehearsal": of an adapter that is moved towards a public vector; no model, no
    # examples
    values: int = 1000
    # of kind "folder": one sub-folder a party, as `quietchoir data build` writes them
    folder: Path | None = None
    # columns of the adapter that each trains, by name; the last for all others; none or 0: all
    ranks: tuple[int, ...] = ()
    # examples that each trains on, by name; the last for all others; none or 0: all
    portions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        at_least(
            1, households=self.households, train=self.train, test=self.test, values=self.values
        )
        at_least(0, ranks=min((0, *self.ranks)), portions=min((0, *self.portions)))
        require(
            (self.kind == "folder") == (self.folder is not None),
            'folder belongs to kind = "folder", and only there',
        )
        dealt_to = self.households if self.kind != "folder" else None
        for what, values in (("ranks", self.ranks), ("portions", self.portions)):
            require(
                dealt_to is None or len(values) <= dealt_to,
                f"{what} has {len(values)} values for {dealt_to} households",
            )


def dealt(values: tuple[int, ...], names: Sequence[str]) -> dict[str, int]:
    """One value for each name, in order; the last for all others; 0 where there is none."""
    return {
        name: values[min(place, len(values) - 1)] if values else 0
        for place, name in enumerate(sorted(names))
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One party goes silent at one stage of one round."""

    party: str
    round: int
    stage: str  # "train" or a stage of the protection, for example "mask"
    attempts: int = 1  # of that round in which it is silent

    def __post_init__(self) -> None:
        require(self.round >= 1 and self.attempts >= 1, "round and attempts count from 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Availability:
    """When parties are awake, in seconds of virtual time; lengths are exponential."""

    asleep_s: float = 0.0  # mean; 0: nobody sleeps, and nothing takes time
    awake_s: float = 600.0  # mean
    work_s: float = 240.0  # awake, that a training takes a party of middling speed
    spread: float = 0.5  # of the logarithm of the parties' speeds
    stage_s: float = 0.5  # that any other message takes
    notice_s: float = 20.0  # until a party that fell asleep is missed
    grace_s: float = 30.0  # synchronous: once the minimum is there, how long the rest is waited for

    def __post_init__(self) -> None:
        at_least(
            0,
            asleep_s=self.asleep_s,
            spread=self.spread,
            notice_s=self.notice_s,
            grace_s=self.grace_s,
        )
        above(0, awake_s=self.awake_s, work_s=self.work_s, stage_s=self.stage_s)

    @property
    def on(self) -> bool:
        """Does anybody sleep?"""
        return self.asleep_s > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One simulated federation."""

    name: str
    seed: int = 1  # of data and training; keys and masks never follow from a seed
    model: str = "smollm2-135m-instruct"
    population: Population = field(default_factory=Population)
    adapter: AdapterTable = field(default_factory=AdapterTable)
    protection: ProtectionTable = field(default_factory=ProtectionTable)
    recipe: Recipe = field(default_factory=Recipe)
    privacy: PrivacyTable = field(default_factory=PrivacyTable)
    guard: GuardTable = field(default_factory=GuardTable)
    aggregation: AggregationTable = field(default_factory=AggregationTable)
    schedule: ScheduleTable = field(default_factory=ScheduleTable)
    availability: Availability = field(default_factory=Availability)
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        require_name(self.name)
        households = 0 if self.population.kind == "folder" else self.population.households
        self.privacy.check(self.protection.min_cohort, households)
        ranks = self.population.ranks
        check_ranks(self.adapter, {f"party {at}": rank for at, rank in enumerate(ranks, start=1)})
        ranked = any(0 < rank < self.adapter.rank for rank in ranks)
        compatibility.check(axes_of(self, ranked=ranked))


def check_read(scenario: Scenario, table: dict[str, Any]) -> None:
    """Raises ConfigError: keys of the file that this scenario would not look at."""
    kind = scenario.population.kind
    if unread := set(table.get("population", {})) - READ[kind]:
        raise ConfigError(
            f"[population] {', '.join(sorted(unread))}: not read with kind = {kind!r}, which reads "
            f"{', '.join(sorted(READ[kind]))}"
        )
    idle = set(table.get("availability", {})) - {"asleep_s"}
    if idle and not scenario.availability.on:
        raise ConfigError(
            f"[availability] {', '.join(sorted(idle))}: not read while asleep_s is 0; set it to "
            "how long parties sleep"
        )


def load(name: str) -> Scenario:
    """Read a scenario: a path, or the name of a shipped one.

    Raises:
        ConfigError: no such file, an unknown or ill-typed key, or values that do not fit together.
    """
    path = Path(name)
    shipped = SHIPPED / f"{name}.toml"
    if not path.exists() and shipped.exists():
        path = shipped
    if not path.exists():
        names = ", ".join(sorted(one.stem for one in SHIPPED.glob("*.toml")))
        raise ConfigError(
            f"{path}: no such file, nor a shipped scenario; there are {names} (to copy: {SHIPPED})"
        )
    table = tables.read_toml(path)
    scenario = tables.fill(Scenario, table, f"{path}: ")
    try:
        check_read(scenario, table)
        flags.check_used(
            table,
            {name: getattr(scenario, name) for name in flags.TABLES if hasattr(scenario, name)},
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return scenario
