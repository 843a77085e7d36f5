"""Folders of examples on disk: made-up households, or anybody's own conversations divided among parties.

Knows the layout `FOLDER/PARTY/{train.jsonl,test.jsonl[,home.json]}`. Knows nothing of tokens or training.
Always: the same seed gives the same bytes; everything is made in memory first, so that bad input writes nothing.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import paths
from ..errors import DataError
from .examples import Example, encode_jsonl, read_records
from .home import Household, Request, furnish, requests
from .templates import grammar, split

DEFAULT_SEED = 1
HELD_OUT = 0.25  # of the wordings of every (intent, arguments)
TRAIN, TEST, HOME = "train.jsonl", "test.jsonl", "home.json"


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """One party's folder."""

    name: str
    folder: Path
    train: int  # examples
    test: int
    home: bool  # whether a household is described beside them


@dataclass(frozen=True, slots=True)
class HomeInfo(DatasetInfo):
    """One made-up household."""

    areas: int = 0
    devices: int = 0


@dataclass(frozen=True, slots=True)
class HomeData:
    """A household with what it says, before anything is written."""

    household: Household
    train: list[Request]
    test: list[Request]


def make_homes(*, households: int, train: int, test: int, seed: int) -> list[HomeData]:
    """Make up households and their requests.

    No household trains on a template that any household is tested on, nor on a sentence that any is tested on;
    within a household all sentences differ.

    Raises:
        DataError: a count below one, or more requests than a home can make.
    """
    if min(households, train, test) < 1:
        raise DataError(f"households={households}, train={train}, test={test}: each must be at least 1")
    spoken = grammar()
    seen, unseen = split(spoken.templates, HELD_OUT, np.random.default_rng([seed]))
    intents = sorted({template.intent for template in spoken.templates})
    streams = [np.random.default_rng([seed, 1 + index]) for index in range(households)]
    homes = [furnish(f"household-{index}", intents, rng) for index, rng in enumerate(streams)]
    learned = [requests(home, spoken, seen, train, rng) for home, rng in zip(homes, streams, strict=True)]
    avoid = {request.text for several in learned for request in several}
    asked = [requests(home, spoken, unseen, test, rng, avoid=avoid) for home, rng in zip(homes, streams, strict=True)]
    return [HomeData(*one) for one in zip(homes, learned, asked, strict=True)]


def build_homes(
    folder: Path, *, households: int = 4, train: int = 150, test: int = 100, seed: int = DEFAULT_SEED
) -> list[HomeInfo]:
    """Write `folder/household-N/{train.jsonl,test.jsonl,home.json}` for every household.

    Raises:
        DataError: as `make_homes`; nothing was written.
        QuietchoirError: the disk refused.
    """
    built = []
    for data in make_homes(households=households, train=train, test=test, seed=seed):
        home = data.household
        place = folder / home.name
        write_party(place, [r.example() for r in data.train], [r.example() for r in data.test])
        description = json.dumps(home.describe(), indent=1, ensure_ascii=False) + "\n"
        paths.write_atomically(place / HOME, description.encode())
        built.append(HomeInfo(home.name, place, len(data.train), len(data.test), True, len(home.floors), len(home.devices)))
    return built


def build_jsonl(
    file: Path, folder: Path, *, partition_by: str | None = None, test_share: float = 0.2, seed: int = DEFAULT_SEED
) -> list[DatasetInfo]:
    """Divide a chat-format file among parties and each party's part into train and test.

    Args:
        partition_by: a key beside "messages"; each of its values becomes a party. None: one party, the file's name.
        test_share: of each party's examples, at least one, never all.

    Raises:
        DataError: bad lines (each with its number), lines without the key, a party with a single example, two
            values that give one folder name; nothing was written.
        QuietchoirError: the disk refused.
    """
    if not 0 < test_share < 1:
        raise DataError(f"test share {test_share} must lie between 0 and 1")
    records = read_records(file)
    parties = partition(records, partition_by, file)
    small = sorted(name for name, examples in parties.items() if len(examples) < 2)
    if small:
        raise DataError(f"{file}: {', '.join(small[:8])} has one example; at least two are needed, to train and to test")
    divided = {name: divide(examples, test_share, seed, name) for name, examples in sorted(parties.items())}
    for name, (train, test) in divided.items():
        write_party(folder / name, train, test)
    return [DatasetInfo(name, folder / name, len(train), len(test), False) for name, (train, test) in divided.items()]


def partition(records: Sequence[tuple[Example, Mapping[str, Any]]], key: str | None, file: Path) -> dict[str, list[Example]]:
    """Examples by party.

    Raises:
        DataError: records without a usable `key` (counted from 1), or values that give the same folder name.
    """
    if key is None:
        return {folder_name(file.stem): [example for example, _ in records]}
    missing = [number for number, (_, record) in enumerate(records, 1) if not isinstance(record.get(key), (str, int))]
    if missing:
        shown = ", ".join(map(str, missing[:8]))
        raise DataError(
            f"{file}: {len(missing)} examples have no text or whole number under {key!r} (examples {shown}); nothing written"
        )
    parties: dict[str, list[Example]] = {}
    origin: dict[str, str] = {}
    for example, record in records:
        value = str(record[key])
        name = folder_name(value)
        if origin.setdefault(name, value) != value:
            raise DataError(f"{file}: {key} {origin[name]!r} and {value!r} give the same folder name {name!r}; rename one")
        parties.setdefault(name, []).append(example)
    return parties


def folder_name(value: str) -> str:
    """`value` as a name that is a plain folder on every platform and never leads out of its parent."""
    return re.sub(r"[^a-z0-9]+", "-", value.lower()).strip("-")[:64] or "party"


def divide(examples: Sequence[Example], share: float, seed: int, name: str) -> tuple[list[Example], list[Example]]:
    """Train and test parts, by a shuffle that follows from seed and party name. Equal conversations stay together."""
    unique: dict[tuple[tuple[str, str], ...], list[Example]] = {}
    for example in examples:
        unique.setdefault(tuple((m["role"], m["content"]) for m in example.messages[:-1]), []).append(example)
    digest = hashlib.sha256(name.encode()).digest()
    order = np.random.default_rng([seed, int.from_bytes(digest[:8], "big")]).permutation(len(unique))
    groups = list(unique.values())
    count = min(max(1, round(share * len(groups))), len(groups) - 1)
    held = set(order[:count].tolist())
    train = [example for index, several in enumerate(groups) if index not in held for example in several]
    test = [example for index, several in enumerate(groups) if index in held for example in several]
    return train, test


def write_party(folder: Path, train: Sequence[Example], test: Sequence[Example]) -> None:
    """Write both files of one party."""
    paths.write_atomically(folder / TRAIN, encode_jsonl(train))
    paths.write_atomically(folder / TEST, encode_jsonl(test))


def list_datasets(folder: Path) -> list[DatasetInfo]:
    """Every party under `folder`, by name; an absent folder holds none."""
    if not folder.is_dir():
        return []
    found = []
    for place in sorted(path for path in folder.iterdir() if (path / TRAIN).is_file()):
        test = count_lines(place / TEST) if (place / TEST).is_file() else 0
        found.append(DatasetInfo(place.name, place, count_lines(place / TRAIN), test, (place / HOME).is_file()))
    return found


def count_lines(path: Path) -> int:
    """Lines that hold something."""
    return sum(1 for line in path.read_bytes().splitlines() if line.strip())
