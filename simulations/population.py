"""The parties' examples: made up, read from folders, or dealt out of one file.

Knows examples and how a pool of them becomes parties. Knows nothing of models, keys or rounds.
Always: parties in a fixed order by name; the same scenario gives the same examples; every example
of a pool is at one party, and every party has one at least to train on.

Source of label skew by Dirichlet: Hsu et al. 2019, arXiv 1909.06335, section 3; of skewed sizes:
Li et al. 2022, "Federated learning on non-IID data silos", section 3.3.
"""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..core.errors import ConfigError, DataError
from ..core.toolcall import parse_all
from ..core.training.dataset import TEST, TRAIN, list_datasets, make_homes
from ..core.training.examples import Example, read_jsonl, read_rows
from .scenario import Population, Scenario

CSV_ENDS = (".csv", ".tsv")
NAMED = 8  # at most, of whatever is told by name
Shares = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PartyData:
    """What one party has."""

    name: str
    train: tuple[Example, ...]
    test: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class Labelled:
    """An example of a pool. Args: key: by which "key" divides."""

    example: Example
    label: str
    key: str = ""


def populate(scenario: Scenario) -> list[PartyData]:
    """Everybody's examples.

    Raises:
        ConfigError: a folder without parties, or a pool that cannot be dealt as it says.
        DataError: unreadable examples, or a population that cannot be made up.
    """
    population = scenario.population
    if population.kind == "rehearsal":
        return [PartyData(name, (), ()) for name in numbered("household", population.households)]
    if population.kind == "folder":
        assert population.folder is not None
        return from_folder(population.folder)
    if population.partition == "own":
        return homes(scenario)
    train, test = pool(scenario)
    if population.partition == "key":
        return by_key(train, test, population)
    names = numbered("party", population.parties)
    return deal(train, test, names, population, np.random.default_rng([scenario.seed, 17]))


def numbered(word: str, count: int) -> list[str]:
    """Names whose order is that of their numbers."""
    digits = len(str(count - 1))
    return [f"{word}-{index:0{digits}}" for index in range(count)]


def homes(scenario: Scenario) -> list[PartyData]:
    """Made-up households, each with its own requests."""
    population = scenario.population
    made = make_homes(
        households=population.households,
        train=population.train,
        test=population.test,
        seed=scenario.seed,
    )
    return [
        PartyData(
            home.household.name,
            tuple(request.example() for request in home.train),
            tuple(request.example() for request in home.test),
        )
        for home in made
    ]


def from_folder(folder: Path) -> list[PartyData]:
    """One sub-folder a party.

    Raises:
        ConfigError: none. DataError: unreadable, or without held-out examples.
    """
    found = list_datasets(folder)
    if not found:
        raise ConfigError(
            f"{folder}: no parties here; make some with `quietchoir data build jsonl`"
        )
    empty = [info.name for info in found if not info.test]
    if empty:
        raise DataError(
            f"{folder}: {', '.join(empty[:NAMED])} has no {TEST}; every party needs held-out "
            f"examples"
        )
    return [
        PartyData(
            info.name, tuple(read_jsonl(info.folder / TRAIN)), tuple(read_jsonl(info.folder / TEST))
        )
        for info in found
    ]


def pool(scenario: Scenario) -> tuple[list[Labelled], list[Labelled]]:
    """Everybody's examples in one: to train on, and held out."""
    population = scenario.population
    if population.kind == "home":
        people = homes(scenario)
        return (
            [Labelled(one, label_of(one)) for person in people for one in person.train],
            [Labelled(one, label_of(one)) for person in people for one in person.test],
        )
    assert population.file is not None
    rows = read_pool(population.file, population)
    order = np.random.default_rng([scenario.seed, 16]).permutation(len(rows))
    held = set(order[: max(1, round(population.held_out * len(rows)))].tolist())
    if len(held) >= len(rows):
        raise DataError(
            f"{population.file}: {len(rows)} examples, {len(held)} of them held out; nothing is "
            f"left to train on"
        )
    return (
        [row for place, row in enumerate(rows) if place not in held],
        [row for place, row in enumerate(rows) if place in held],
    )


def read_pool(file: Path, population: Population) -> list[Labelled]:
    """All examples of a file.

    Raises:
        DataError: unreadable, or rows without the key or the columns that the scenario names.
    """
    if file.suffix.lower() in CSV_ENDS:
        return read_csv(file, population)
    found, lacking = list[Labelled](), list[int]()
    for row in read_rows(file):
        key = row.record.get(population.key, "") if population.key else ""
        if population.key and not (isinstance(key, str | int) and str(key)):
            lacking.append(row.number)
        found += [Labelled(one, label_of(one), str(key)) for one in row.examples]
    if lacking:
        shown = ", ".join(map(str, lacking[:NAMED])) + (", …" if len(lacking) > NAMED else "")
        raise DataError(
            f"{file}: {len(lacking)} rows have no text or whole number under {population.key!r} "
            f"(lines {shown})"
        )
    return found


def read_csv(file: Path, population: Population) -> list[Labelled]:
    """Texts and their classes, as questions and answers.

    Raises:
        DataError: unreadable, without these columns, or rows that lack one of their cells.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    head = text.partition("\n")[0]
    separated = ";" if ";" in head and "," not in head else ","  # Excel's, where "," is in numbers
    delimiter = "\t" if file.suffix.lower() == ".tsv" else separated
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns = [population.text, population.label, *([population.key] if population.key else [])]
    found, lacking = list[Labelled](), list[int]()
    try:
        if missing := [one for one in columns if one not in (table.fieldnames or ())]:
            raise DataError(
                f"{file}: no column {', '.join(map(repr, missing))}; there are "
                f"{', '.join(table.fieldnames or ['none'])}: name them by population.text and "
                f"population.label"
            )
        for row in table:
            cells = [(row[one] or "").strip() for one in columns]
            if not all(cells):
                lacking.append(table.line_num)
                continue
            example = Example(
                ({"role": "user", "content": cells[0]}, {"role": "assistant", "content": cells[1]})
            )
            found.append(Labelled(example, cells[1], cells[-1] if population.key else ""))
    except csv.Error as error:
        raise DataError(f"{file}: line {table.line_num} is no CSV: {error}") from error
    if lacking:
        shown = ", ".join(map(str, lacking[:NAMED])) + (", …" if len(lacking) > NAMED else "")
        raise DataError(
            f"{file}: {len(lacking)} rows have an empty cell where {', '.join(columns)} stand "
            f"(lines {shown})"
        )
    if len(found) < 2:
        raise DataError(f"{file}: {len(found)} examples; at least two are needed")
    return found


def label_of(example: Example) -> str:
    """What an answer is called: of a tool call its tool; else the text itself."""
    calls = parse_all(example.answer)
    return calls[0].name if calls else example.answer


def by_key(
    train: Sequence[Labelled], test: Sequence[Labelled], population: Population
) -> list[PartyData]:
    """A party for each value of the key; those that would have nothing to train on are told.

    Raises:
        ConfigError: a single party, or one without examples to train on.
    """
    keys = sorted({one.key for one in (*train, *test)})
    learned = Counter(one.key for one in train)
    if bare := [key for key in keys if not learned[key]]:
        raise ConfigError(
            f"{population.file}: {', '.join(bare[:NAMED])} would have held-out examples alone; "
            f"take rows with so rare a {population.key!r} away, or lower population.held_out"
        )
    if len(keys) < 2:
        raise ConfigError(
            f"{population.file}: {population.key!r} has one value; nobody to learn with"
        )
    names = dict(zip(keys, numbered("party", len(keys)), strict=True))
    return [
        PartyData(
            names[key],
            tuple(one.example for one in train if one.key == key),
            tuple(one.example for one in test if one.key == key),
        )
        for key in keys
    ]


def deal(
    train: Sequence[Labelled],
    test: Sequence[Labelled],
    names: Sequence[str],
    population: Population,
    rng: np.random.Generator,
) -> list[PartyData]:
    """A pool dealt out to so many parties; held-out examples in the same proportions.

    Raises:
        ConfigError: fewer examples, or fewer labels, than parties.
    """
    if len(train) < len(names):
        raise ConfigError(
            f"{len(train)} examples to train on for {len(names)} parties; each needs one at least"
        )
    labels = sorted({one.label for one in (*train, *test)})
    places = {label: place for place, label in enumerate(labels)}
    shares = shares_of(population, len(labels), len(names), rng)
    learned = owners([places[one.label] for one in train], len(names), shares, rng)
    feed_the_empty(learned, len(names))
    held = owners([places[one.label] for one in test], len(names), shares, rng)
    return [
        PartyData(
            name,
            tuple(train[at].example for at in np.flatnonzero(learned == number).tolist()),
            tuple(test[at].example for at in np.flatnonzero(held == number).tolist()),
        )
        for number, name in enumerate(names)
    ]


def shares_of(
    population: Population, labels: int, parties: int, rng: np.random.Generator
) -> Shares | None:
    """How much of each label is at each party [labels, parties]; None: all alike.

    Raises:
        ConfigError: fewer labels than parties, where each label is at one alone.
    """
    match population.partition:
        case "dirichlet":
            return rng.dirichlet(np.full(parties, population.alpha), labels)
        case "quantity":
            return np.tile(rng.dirichlet(np.full(parties, population.alpha)), (labels, 1))
        case "labels":
            if labels < parties:
                raise ConfigError(
                    f"{labels} labels for {parties} parties: not each can have one of its own; "
                    f'lower population.parties, or take partition = "dirichlet"'
                )
            alone = np.zeros((labels, parties))
            alone[rng.permutation(labels), np.arange(labels) % parties] = 1.0
            return alone
    return None


def owners(
    labels: Sequence[int], parties: int, shares: Shares | None, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Whose each example is [n]."""
    if shares is None:
        return rng.permutation(np.arange(len(labels)) % parties)
    found, of = np.zeros(len(labels), np.int64), np.asarray(labels, np.int64)
    for label in np.unique(of):
        places = np.flatnonzero(of == label)
        found[places] = rng.choice(parties, len(places), p=shares[label])
    return found


def feed_the_empty(owner: npt.NDArray[np.int64], parties: int) -> None:
    """Give each party without an example one of whoever has most, in place."""
    counts = np.bincount(owner, minlength=parties)
    for party in np.flatnonzero(counts == 0):
        richest = int(counts.argmax())
        owner[np.flatnonzero(owner == richest)[0]] = party
        counts[richest], counts[party] = counts[richest] - 1, 1


def data_digest(population: Population) -> str:
    """Of the files behind a population, hex; empty where it is made up."""
    if population.file is not None:
        return digest_of([population.file])
    if population.folder is not None:
        folders = (info.folder for info in list_datasets(population.folder))
        return digest_of(folder / name for folder in folders for name in (TRAIN, TEST))
    return ""


def digest_of(files: Iterable[Path]) -> str:
    """Of their bytes, in this order."""
    found = hashlib.sha256()
    for file in files:
        if file.is_file():
            found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()
