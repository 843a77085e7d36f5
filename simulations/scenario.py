"""What is simulated: one TOML file, one question, checked strictly.

Knows names, limits and defaults; the tables a federation's file also has are the federation's own.
Always: a scenario that loaded can be run; a key that is not here is refused; a file with a table
`[sweep]` is several scenarios, one for each choice of the values that it lists.
"""

import copy
import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomli_w

from ..core import tables
from ..core.errors import ConfigError
from ..core.tables import above, at_least
from ..federation.spec import compatibility, flags, privacy_budget
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


LINEAR = "linear"  # `model` of a bag-of-words classifier (`linear`): real learning in milliseconds
# Keys of [population] that mean something, by kind, and by partition.
ALWAYS = {"kind", "ranks", "portions"}
READ = {
    "home": {*ALWAYS, "households", "train", "test", "partition"},
    "folder": {*ALWAYS, "folder"},
    "file": {*ALWAYS, "file", "held_out", "text", "label", "partition"},
    "rehearsal": {*ALWAYS, "households", "values"},
}
DEALT = {
    "own": set[str](),
    "iid": {"parties"},
    "dirichlet": {"parties", "alpha"},
    "quantity": {"parties", "alpha"},
    "labels": {"parties"},
    "key": {"key"},
}
POOLED = ("iid", "dirichlet", "quantity", "labels")  # partitions that deal to a number of parties
Partition = Literal["own", "iid", "dirichlet", "key", "quantity", "labels"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """Who takes part, and with what examples."""

    kind: Literal["home", "folder", "file", "rehearsal"] = "home"
    households: int = 4  # of kinds "home" and "rehearsal"
    train: int = 150  # examples of each household
    test: int = 100
    # of kind "rehearsal": of an adapter that is moved towards a public vector; no model, no
    # examples
    values: int = 1000
    # of kind "folder": one sub-folder a party, as `quietchoir data build` writes them
    folder: Path | None = None
    # of kind "file": chat-format JSONL, or CSV with a text and its class a line
    file: Path | None = None
    held_out: float = 0.2  # of the file's examples
    text: str = "text"  # columns of a CSV file
    label: str = "label"
    # How examples become parties: "own", as they come (households, folders); or all are one pool:
    # "iid"        dealt out evenly at random
    # "dirichlet"  each label over the parties by Dirichlet(alpha)
    # "quantity"   labels alike, sizes by Dirichlet(alpha)
    # "labels"     each label at one party alone
    # "key"        by a key beside the conversation, or a column of a CSV file
    partition: Partition = "own"
    parties: int = 10  # to whom a pool is dealt
    alpha: float = 0.5
    key: str = ""
    # columns of the adapter that each trains, by name; the last for all others; none or 0: all
    ranks: tuple[int, ...] = ()
    # examples that each trains on, by name; the last for all others; none or 0: all
    portions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        at_least(
            1,
            households=self.households,
            train=self.train,
            test=self.test,
            values=self.values,
            parties=self.parties,
        )
        above(0, alpha=self.alpha, held_out=self.held_out)
        at_least(0, ranks=min((0, *self.ranks)), portions=min((0, *self.portions)))
        require(self.held_out < 1, f"held_out = {self.held_out} must be below 1")
        for name in ("folder", "file"):
            require(
                (self.kind == name) == (getattr(self, name) is not None),
                f'{name} belongs to kind = "{name}", and only there',
            )
        require(
            self.kind != "file" or self.partition != "own",
            "a file is one pool: name a partition, one of "
            + ", ".join(sorted(set(DEALT) - {"own"})),
        )
        require(
            (self.partition == "key") == bool(self.key),
            'key belongs to partition = "key", and only there',
        )
        require(
            self.partition != "key" or self.kind == "file",
            'partition = "key" needs kind = "file": made-up examples have no other keys',
        )
        for what, values in (("ranks", self.ranks), ("portions", self.portions)):
            require(
                self.count == 0 or len(values) <= self.count,
                f"{what} has {len(values)} values for {self.count} parties",
            )

    @property
    def count(self) -> int:
        """Parties; 0: known when the examples are read."""
        if self.partition in POOLED:
            return self.parties
        return self.households if self.kind in ("home", "rehearsal") else 0


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
class Dropouts:
    """Parties that go silent by chance: each in each attempt, by itself."""

    share: float = 0.0  # of them
    stages: tuple[str, ...] = ("train",)  # as `Fault`; each as likely

    def __post_init__(self) -> None:
        require(0 <= self.share < 1, f"share = {self.share} must lie between 0 and 1")
        require(bool(self.stages), "stages must name one at least")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoisonAttack:
    """Members that send poison (`poisoner`)."""

    kind: Literal["scale", "flip", "noise", "labels", "backdoor", "bounded"]
    count: int = 1  # members, the first by name that no attack before this one took
    from_round: int = 1  # until then they are honest
    every: int = 1  # from then on, in one of so many rounds; in the others they are honest
    votes: Literal["full", "lies"] = "full"  # how they vote meanwhile

    def __post_init__(self) -> None:
        at_least(1, count=self.count, from_round=self.from_round, every=self.every)


@dataclass(frozen=True, slots=True, kw_only=True)
class Personal:
    """After the last round each party goes on by itself (only measured: it is told to nobody)."""

    rounds: int = 0  # of its own training; 0: nobody does


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """A federation too large to run here: its costs are computed (`protocol_costs`)."""

    parties: int = 0  # of it; 0: nothing is computed
    cohort: int = 1000  # drawn for a round
    dropouts: float = 0.05  # of a cohort, in a round

    def __post_init__(self) -> None:
        at_least(3, cohort=self.cohort)
        require(
            self.parties == 0 or self.parties >= self.cohort,
            f"parties = {self.parties} must be at least cohort = {self.cohort}",
        )
        require(0 <= self.dropouts < 1, f"dropouts = {self.dropouts} must lie between 0 and 1")


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
    model: str = "smollm2-135m-instruct"  # or "linear"
    # "modelled": masks and signatures are left out of masked rounds (`modelled`): the same members
    # and the same integers in every sum, in a fraction of the time
    protection_cost: Literal["run", "modelled"] = "run"
    population: Population = field(default_factory=Population)
    adapter: AdapterTable = field(default_factory=AdapterTable)
    protection: ProtectionTable = field(default_factory=ProtectionTable)
    recipe: Recipe = field(default_factory=Recipe)
    privacy: PrivacyTable = field(default_factory=PrivacyTable)
    guard: GuardTable = field(default_factory=GuardTable)
    aggregation: AggregationTable = field(default_factory=AggregationTable)
    schedule: ScheduleTable = field(default_factory=ScheduleTable)
    availability: Availability = field(default_factory=Availability)
    dropouts: Dropouts = field(default_factory=Dropouts)
    personal: Personal = field(default_factory=Personal)
    scale: Scale = field(default_factory=Scale)
    faults: tuple[Fault, ...] = ()
    attack: tuple[PoisonAttack, ...] = ()

    def __post_init__(self) -> None:
        require_name(self.name)
        self.privacy.check(self.protection.min_cohort, self.population.count)
        require(
            self.protection_cost == "run" or self.protection.kind == "masked",
            'protection_cost = "modelled" needs protection.mode = "masked": plain sums have no '
            "masks to leave out, and sealed members step by the ciphertexts",
        )
        require(
            self.model != LINEAR
            or (self.population.kind != "rehearsal" and not self.population.ranks),
            'model = "linear" needs examples, which a rehearsal has not, and has no ranks',
        )
        for one in self.attack:
            require(
                one.from_round <= self.recipe.rounds,
                f"[[attack]] from_round = {one.from_round} of {self.recipe.rounds} rounds: it "
                f"would never begin",
            )
        ranks = self.population.ranks
        check_ranks(self.adapter, {f"party {at}": rank for at, rank in enumerate(ranks, start=1)})
        ranked = any(0 < rank < self.adapter.rank for rank in ranks)
        compatibility.check(axes_of(self, ranked=ranked))


CALLED = "called"  # of tables that change together: their word in a label
FIELDS = {one.name for one in dataclasses.fields(Scenario)}


def check_read(scenario: Scenario, table: Mapping[str, Any]) -> None:
    """Raises ConfigError: keys of the file that this scenario would not look at."""
    kind, partition = scenario.population.kind, scenario.population.partition
    read = READ[kind] | DEALT[partition]
    if unread := set(table.get("population", {})) - read:
        raise ConfigError(
            f"[population] {', '.join(sorted(unread))}: not read with kind = {kind!r} and "
            f"partition = {partition!r}, which read {', '.join(sorted(read))}"
        )
    for name, on, switch in (
        ("availability", scenario.availability.on, "asleep_s"),
        ("dropouts", scenario.dropouts.share > 0, "share"),
        ("scale", scenario.scale.parties > 0, "parties"),
    ):
        if not on and (idle := set(table.get(name, {})) - {switch}):
            raise ConfigError(
                f"[{name}] {', '.join(sorted(idle))}: not read while {switch} is 0; set it"
            )


@dataclass(frozen=True, slots=True)
class ScenarioArm:
    """One scenario of a file, and which of the swept values it has."""

    label: str  # empty: the file's only one
    scenario: Scenario


def shipped() -> list[str]:
    """Names of the scenarios that come with the program."""
    return sorted(one.stem for one in SHIPPED.glob("*.toml"))


def find(name: str) -> Path:
    """The file of a scenario: a path, or the name of a shipped one.

    Raises:
        ConfigError: neither.
    """
    path, ours = Path(name), SHIPPED / f"{name}.toml"
    if path.exists():
        return path
    if ours.exists():
        return ours
    raise ConfigError(
        f"{path}: no such file, nor a shipped scenario; there are {', '.join(shipped())} (to copy: "
        f"{SHIPPED})"
    )


def load(name: str) -> Scenario:
    """The one scenario of a file: a path, or the name of a shipped one.

    Raises:
        ConfigError: no such file, an unknown or ill-typed key, values that do not fit together, or
        a file of several.
    """
    found = arms(name)
    if len(found) > 1:
        raise ConfigError(f"{name}: [sweep] makes {len(found)} scenarios of it; one is expected")
    return found[0].scenario


def arms(name: str, changes: Mapping[str, Sequence[Any]] | None = None) -> list[ScenarioArm]:
    """All scenarios of a file: one for each choice of one value of every swept key.

    A swept word that is no key of a scenario stands for tables that change together, which may
    say what they are `called`.

    Args:
        changes: dotted key → values, besides or instead of the file's `[sweep]`. Each is in the
            label, so that its result lies beside that of the file as it stands.

    Raises:
        ConfigError: as `load`.
    """
    path = find(name)
    table = tables.read_toml(path)
    swept = table.pop("sweep", {})
    if not isinstance(swept, dict) or not all(
        isinstance(one, list) and one for one in swept.values()
    ):
        raise ConfigError(
            f'{path}: [sweep] lists values by dotted key, for example "recipe.lr" = [0.01, 0.02]'
        )
    chosen: dict[str, Sequence[Any]] = {**swept, **(changes or {})}
    found = []
    for values in itertools.product(*chosen.values()):
        arm, words = copy.deepcopy(table), []
        for key, value in zip(chosen, values, strict=True):
            if isinstance(value, dict) and key not in FIELDS:  # some tables under one word
                for name, inner in leaves(value):
                    if name != CALLED:
                        put(arm, name, inner, path)
            else:
                put(arm, key, value, path)
            if len(chosen[key]) > 1 or key in (changes or {}):
                words.append(label_of(key, value))
        found.append(ScenarioArm(" ".join(words), read(arm, path)))
    return found


def label_of(key: str, value: Any) -> str:
    """What an arm is called for one of its values."""
    if isinstance(value, dict) and CALLED in value:
        return str(value[CALLED])
    return f"{key.rpartition('.')[2]}={words_of(value)}"


def words_of(value: Any) -> str:
    """A swept value in a label."""
    if isinstance(value, dict):
        return "/".join(words_of(one) for one in value.values())
    if isinstance(value, list):
        return "+".join(words_of(one) for one in value) or "none"
    return str(value)


def count(path: Path) -> int:
    """How many scenarios a file is, without looking at any of them."""
    swept = tables.read_toml(path).get("sweep", {})
    return math.prod(len(values) for values in swept.values())


def leaves(table: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Dotted key and value of all that tables hold."""
    found = list[tuple[str, Any]]()
    for key, value in table.items():
        inner = leaves(value) if isinstance(value, dict) else [("", value)]
        found += [(f"{key}.{name}".rstrip("."), one) for name, one in inner]
    return found


def put(table: dict[str, Any], key: str, value: Any, path: Path) -> None:
    """Set a dotted key. Raises ConfigError: part of it is no table."""
    *outer, inner = key.split(".")
    for part in outer:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {key} leads through {part}, which is no table")
    table[inner] = value


def read(table: Mapping[str, Any], path: Path) -> Scenario:
    """One table as a scenario.

    Raises:
        ConfigError: as `load`.
    """
    scenario = tables.fill(Scenario, with_privacy(table), f"{path}: ")
    try:
        scenario = with_noise(scenario, table)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    population = scenario.population
    for name in ("folder", "file"):
        place = getattr(population, name)
        if place is not None and not place.exists() and (path.parent / place).exists():
            # as the file's own writer sees it
            beside: dict[str, Any] = {name: path.parent / place}
            population = dataclasses.replace(population, **beside)
    scenario = dataclasses.replace(scenario, population=population)
    try:
        check_read(scenario, table)
        flags.check_used(
            table,
            {name: getattr(scenario, name) for name in flags.TABLES if hasattr(scenario, name)},
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return scenario


def with_privacy(table: Mapping[str, Any]) -> dict[str, Any]:
    """The same; an epsilon alone asks for noise, and for a clip that follows members' lengths,
    where rounds are synchronous.
    """
    privacy = table.get("privacy")
    if not isinstance(privacy, dict) or "epsilon" not in privacy or "mechanism" in privacy:
        return dict(table)
    schedule = table.get("schedule")
    buffered = isinstance(schedule, dict) and schedule.get("rounds") == "buffered"
    follows = {"mechanism": "discrete-gaussian", "clipping": "fixed" if buffered else "quantile"}
    return {**table, "privacy": {**follows, **privacy}}


def with_noise(scenario: Scenario, table: Mapping[str, Any]) -> Scenario:
    """The same; where its file asks for noise and does not say how much, with as much as keeps all
    rounds within its epsilon.

    Raises:
        ConfigError: there is none, or none that is known before the model is.
    """
    privacy = scenario.privacy
    if not privacy.on or "noise_multiplier" in table.get("privacy", {}):
        return scenario
    if privacy.mechanism != "discrete-gaussian":
        raise ConfigError(
            f"privacy.noise_multiplier is missing: how much {privacy.mechanism} noise a budget "
            f"needs depends on the model's size; name it, or take discrete-gaussian"
        )
    found = privacy_budget.search(privacy, scenario.protection, scenario.recipe, None)
    return dataclasses.replace(scenario, privacy=found.privacy)


def resolved(scenario: Scenario) -> dict[str, Any]:
    """Every key with the value that it has, as JSON's types."""
    found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(scenario), default=str))
    return found


def as_toml(table: Mapping[str, Any]) -> str:
    """A table of JSON's types; what is nothing is left out, TOML has no word for it."""
    return tomli_w.dumps(with_something(table))


def with_something(table: Mapping[str, Any]) -> dict[str, Any]:
    """The same without what is nothing."""
    return {
        key: with_something(value) if isinstance(value, Mapping) else value
        for key, value in table.items()
        if value is not None
    }


def digest(scenario: Scenario) -> str:
    """Equal for scenarios that are resolved alike, hex."""
    return hashlib.sha256(json.dumps(resolved(scenario), sort_keys=True).encode()).hexdigest()


def question(path: Path) -> str:
    """What a file says that it shows: the comment that it begins with."""
    lines = itertools.takewhile(
        lambda line: line.startswith("#"), path.read_text("utf-8").splitlines()
    )
    return " ".join(line.lstrip("# ") for line in lines)
