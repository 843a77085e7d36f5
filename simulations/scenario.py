"""What is simulated: one TOML file, checked strictly.

Knows names, limits and defaults; the tables a federation's file also has are the federation's own.
Always: a scenario that loaded can be run; a key that is not here is refused.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..core import tables
from ..federation.membership.guard import AggregationTable, GuardTable, check_guard
from ..federation.membership.policy import AdapterTable, ProtectionTable, Recipe, require
from ..federation.membership.privacy import PrivacyTable

SHIPPED = Path(__file__).resolve().parent / "scenarios"


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """Who takes part, and with what examples."""

    kind: Literal["home", "folder", "rehearsal"] = "home"
    households: int = 4  # of kinds "home" and "rehearsal"
    train: int = 150  # examples of each household
    test: int = 100
    values: int = 1000  # of kind "rehearsal": of an adapter that is moved towards a public vector; no model, no examples
    folder: Path | None = None  # of kind "folder": one sub-folder a party, as `quietchoir data build` writes them

    def __post_init__(self) -> None:
        least = min(self.households, self.train, self.test, self.values)
        require(least >= 1, "households, train, test and values must be at least 1")
        require((self.kind == "folder") == (self.folder is not None), 'folder belongs to kind = "folder", and only there')


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
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        self.privacy.check(self.protection.min_cohort, self.protection.min_tokens)
        self.aggregation.check(self.protection.mode)
        check_guard(self.guard, self.privacy.counts)


def load(name: str) -> Scenario:
    """Read a scenario: a path, or the name of a shipped one.

    Raises:
        ConfigError: no such file, an unknown or ill-typed key, or values that do not fit together.
    """
    path = Path(name)
    shipped = SHIPPED / f"{name}.toml"
    if not path.exists() and shipped.exists():
        path = shipped
    return tables.fill(Scenario, tables.read_toml(path), f"{path}: ")
