"""Folders of examples on disk: made-up households, or anybody's own conversations divided among
parties.

Knows the layout `FOLDER/PARTY/{train.jsonl,test.jsonl[,home.json]}`. Knows nothing of tokens or
training.
Always: the same seed gives the same bytes; all parties are made in memory and written together, or
nothing is.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import log, paths
from ..errors import DataError
from ..prompt import HOUSEHOLD
from .conversations import HALF, beside
from .examples import Example, ExampleRow, encode_jsonl, read_rows
from .household.dialogue import dialogues, doubles, split_wordings
from .household.home import HomeRequest, Household, furnish, requests
from .household.talk import CANNOT, TalkRequest, talk_requests
from .household.templates import grammar, split

DEFAULT_SEED = 1
HELD_OUT = 0.25  # of the wordings of every (intent, arguments)
# Of as many commands, what else a household says by default.
USUAL = {"talk": 0.3, "follow_ups": 0.12, "doubles": 0.08}
TRAIN, TEST, HOME = "train.jsonl", "test.jsonl", "home.json"
NAMED_KEYS = 8  # of those that nothing is read from
NAME_LETTERS, NAME_BYTES = 64, 200  # of a party's folder; disks take 255 bytes
MARK = 12  # hex digits that tell parties of one name apart
RESERVED = re.compile("con|prn|aux|nul|com[0-9]|lpt[0-9]")  # names that Windows gives to devices
logger = log.get("training")


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
    train: list[HomeRequest]
    test: list[HomeRequest]


def make_homes(*, households: int, train: int, test: int, seed: int) -> list[HomeData]:
    """Make up households and their requests.

    No household trains on a template that any household is tested on, nor on a sentence that any is
    tested on; within a household all sentences differ.

    Raises:
        DataError: a count below one, or more requests than a home can make.
    """
    if min(households, train, test) < 1:
        raise DataError(
            f"households={households}, train={train}, test={test}: each must be at least 1"
        )
    spoken = grammar()
    seen, unseen = split(spoken.templates, HELD_OUT, np.random.default_rng([seed]))
    intents = sorted({template.intent for template in spoken.templates})
    streams = [np.random.default_rng([seed, 1 + index]) for index in range(households)]
    homes = [furnish(f"household-{index}", intents, rng) for index, rng in enumerate(streams)]
    learned = [
        requests(home, spoken, seen, train, rng) for home, rng in zip(homes, streams, strict=True)
    ]
    avoid = {request.text for several in learned for request in several}
    asked = [
        requests(home, spoken, unseen, test, rng, avoid=avoid)
        for home, rng in zip(homes, streams, strict=True)
    ]
    return [HomeData(*one) for one in zip(homes, learned, asked, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What a household says beside single commands."""

    talk: int = 0  # requests that no tool can serve, a third of them beyond the home
    follow_ups: int = 0  # second requests that lean on a first
    doubles: int = 0  # two wishes in one sentence
    # the model's own answers to requests, by a seed; "" where it has none
    answers: Callable[[Sequence[str], int], list[str]] | None = None

    @classmethod
    def usual(cls, train: int, **given: Any) -> "Beside":
        """As much as goes with so many commands, but for what is given."""
        return cls(**{name: round(share * train) for name, share in USUAL.items()} | given)


def build_homes(
    folder: Path,
    *,
    households: int = 4,
    train: int = 150,
    test: int = 100,
    seed: int = DEFAULT_SEED,
    beside: Beside | None = None,
) -> list[HomeInfo]:
    """Write `folder/household-N/{train.jsonl,test.jsonl,home.json}` for every household.

    Args:
        beside: more to learn from. What is held out are commands alone: no text is the one right
            answer to talk.

    Raises:
        DataError: as `make_homes`; nothing was written.
        QuietchoirError: the disk refused.
    """
    homes = make_homes(households=households, train=train, test=test, seed=seed)
    files: dict[Path, bytes] = {}
    counts: list[int] = []
    for index, data in enumerate(homes):
        place = folder / data.household.name
        learned = household_examples(data, beside or Beside(), [seed, 1 << 20, index])
        files |= party_files(place, learned, [request.example() for request in data.test])
        counts.append(len(learned))
        files[place / HOME] = (
            json.dumps(data.household.describe(), indent=1, ensure_ascii=False) + "\n"
        ).encode()
    paths.write_together(files)
    return [
        HomeInfo(
            home.name,
            folder / home.name,
            count,
            len(data.test),
            True,
            len(home.floors),
            len(home.devices),
        )
        for data, count in zip(homes, counts, strict=True)
        for home in (data.household,)
    ]


def household_examples(data: HomeData, beside: Beside, seed: Sequence[int]) -> list[Example]:
    """What a household learns from: its commands, and what it says beside them.

    Raises:
        DataError: more than the templates give.
    """
    # the same wordings are held out for all households, as those of commands are
    wordings, _ = split_wordings(HELD_OUT, np.random.default_rng(list(seed[:2])))
    rng = np.random.default_rng(list(seed))
    home, commands = data.household, data.train
    system = HOUSEHOLD.system
    return [
        *(request.example() for request in commands),
        *talk_examples(talk_requests(beside.talk, rng), commands, beside, rng),
        *(
            one.example(system)
            for one in dialogues(home, commands, wordings, beside.follow_ups, rng)
        ),
        *(one.example(system) for one in doubles(home, commands, wordings, beside.doubles, rng)),
    ]


def talk_examples(
    requests: Sequence[TalkRequest],
    commands: Sequence[HomeRequest],
    beside: Beside,
    rng: np.random.Generator,
) -> list[Example]:
    """Talk with the model's own answers, and what is beyond the home with one that says so, every
    second of them right after a command; what the model has no answer to is left out.
    """
    prompts = [request.text for request in requests if request.kind == "talk"]
    own = beside.answers(prompts, int(rng.integers(1 << 31))) if beside.answers and prompts else []
    answers = dict(zip(prompts, own, strict=False))
    found = []
    for place, request in enumerate(requests):
        answer = CANNOT if request.kind == "unserved" else answers.get(request.text, "")
        before = commands[int(rng.integers(len(commands)))] if place % 2 else None
        if answer:
            found.append(request.example(HOUSEHOLD.system, answer, before))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """How a file becomes parties, and their train and test parts.

    Raises:
        DataError: a share or a number that leaves nothing.
    """

    # a key beside the conversation, each of its values a party; None: the file is one
    partition_by: str | None = None
    test_share: float = 0.2  # of each party's rows, at least one, never all
    seed: int = DEFAULT_SEED  # of the shuffle
    limit: int | None = None  # rows of each party, chosen by the shuffle; None: all

    def __post_init__(self) -> None:
        if not 0 < self.test_share < 1:
            raise DataError(f"test share {self.test_share} must lie between 0 and 1")
        if self.seed < 0:
            raise DataError(f"seed {self.seed} must be at least 0")
        if self.limit is not None and self.limit < 2:
            raise DataError(
                f"a limit of {self.limit} rows; at least 2 are needed, to train and to test"
            )


def build_jsonl(
    file: Path, folder: Path, division: Division | None = None, kind: str = "chat"
) -> list[DatasetInfo]:
    """Divide a file of conversations among parties and each party's part into train and test. A
    party whose rows all ask the same has an empty test, and is told so.

    Args:
        kind: of its rows, one of `conversations.FORMATS`.

    Raises:
        DataError: bad lines (each with its number), lines without the key; nothing was written.
        QuietchoirError: the disk refused; nothing was written.
    """
    by = division or Division()
    rows = read_rows(file, kind)
    parties = partition(rows, by.partition_by, file)
    names = folder_names(parties)
    found: list[DatasetInfo] = []
    files: dict[Path, bytes] = {}
    for value, own in sorted(parties.items(), key=lambda party: names[party[0]]):
        name = names[value]
        chosen = limited(own, by.limit, by.seed, name)
        train, test = divide(chosen, by.test_share, by.seed, name)
        if not test:
            what = (
                "one example"
                if len(chosen) == 1
                else (f"{len(chosen)} examples that all ask the same")
            )
            logger.warning(
                "%s: %s has %s, which trains and leaves none to test: its %s is empty, and it has "
                "no part in votes; two that ask different things would do",
                file,
                name,
                what,
                TEST,
            )
        files |= party_files(folder / name, train, test)
        found.append(DatasetInfo(name, folder / name, len(train), len(test), False))
    if tools := sum(row.record.get("tools") is not None for row in rows):
        logger.warning(
            "%s: %d rows list tools; they decide which calls are right, the model is "
            "not shown them",
            file,
            tools,
        )
    keys = Counter(
        key for row in rows for key in beside(row.record, kind) if key != by.partition_by
    )
    if keys:
        others = ", ".join(f"{key} ({count} rows)" for key, count in keys.most_common(NAMED_KEYS))
        more = f" and {len(keys) - NAMED_KEYS} more keys" if len(keys) > NAMED_KEYS else ""
        logger.warning("%s: beside the conversations, and not trained on: %s%s", file, others, more)
    paths.write_together(files)
    return found


def partition(
    rows: Sequence[ExampleRow], key: str | None, file: Path
) -> dict[str, list[ExampleRow]]:
    """Rows by the value of their key.

    Raises:
        DataError: rows without a usable `key`, by their lines.
    """
    if key is None:
        return {file.stem: list(rows)}
    missing = [row.number for row in rows if not usable(row.record.get(key))]
    if missing:
        shown = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
        raise DataError(
            f"{file}: {len(missing)} rows have no text or whole number under {key!r} (lines "
            f"{shown}); nothing written"
        )
    parties: dict[str, list[ExampleRow]] = {}
    for row in rows:
        parties.setdefault(str(row.record[key]), []).append(row)
    return parties


def usable(value: Any) -> bool:
    """Can it name a party? A text without half a character, or a whole number."""
    return type(value) is int or (isinstance(value, str) and not HALF.search(value))


def folder_names(values: Iterable[str]) -> dict[str, str]:
    """A folder's name for each value; no two are alike, also where a disk tells neither case nor
    composition apart.

    Raises:
        DataError: two values that cannot be told apart by a folder's name at all.
    """
    names = {value: folder_name(value) for value in values}
    alike = Counter(map(same_on_disk, names.values()))
    for value, name in names.items():
        if alike[same_on_disk(name)] > 1:
            names[value] = f"{name}-{hashlib.sha256(value.encode()).hexdigest()[:MARK]}"
    if len({same_on_disk(name) for name in names.values()}) < len(names):
        raise DataError("two parties have names that no folder can tell apart; rename one")
    return names


def same_on_disk(name: str) -> str:
    """What is equal for two names that some disk takes for one."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def folder_name(value: str) -> str:
    """`value` as a name that is a plain folder on every platform and never leads out of its parent.

    Letters, their marks and digits of every script stay, in lower case; runs of anything else
    become a hyphen.
    """
    kept = (
        letter if unicodedata.category(letter)[0] in "LMN" else "-"
        for letter in unicodedata.normalize("NFC", value.lower())
    )
    name = re.sub("-+", "-", "".join(kept)).strip("-")[:NAME_LETTERS]
    while len(name.encode()) > NAME_BYTES:
        name = name[:-1]
    return f"party-{name}" if RESERVED.fullmatch(name) else name.strip("-") or "party"


def limited(
    rows: Sequence[ExampleRow], limit: int | None, seed: int, name: str
) -> Sequence[ExampleRow]:
    """At most `limit` rows, in their order, chosen by seed and party name."""
    if limit is None or len(rows) <= limit:
        return rows
    chosen = shuffle(seed, name, "limit").permutation(len(rows))[:limit]
    return [rows[index] for index in sorted(chosen.tolist())]


def shuffle(seed: int, name: str, purpose: str = "") -> np.random.Generator:
    """The generator of one party."""
    digest = hashlib.sha256((name + purpose).encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])


def divide(
    rows: Sequence[ExampleRow], share: float, seed: int, name: str
) -> tuple[list[Example], list[Example]]:
    """Train and test parts, by a shuffle that follows from seed and party name; there is no test
    if all rows ask the same.

    Rows that ask the same, and all that one row teaches, stay together.
    """
    groups = alike(rows)
    order = shuffle(seed, name).permutation(len(groups))
    count = min(max(1, round(share * len(groups))), len(groups) - 1)
    held = set(order[:count].tolist())
    train = [
        example for index, several in enumerate(groups) if index not in held for example in several
    ]
    test = [example for index, several in enumerate(groups) if index in held for example in several]
    return train, test


def alike(rows: Sequence[ExampleRow]) -> list[list[Example]]:
    """Examples in groups that share a prompt, or a row; in the order of the first of each."""
    group_of: dict[tuple[tuple[str, str], ...], int] = {}
    groups: dict[int, list[Example]] = {}
    for number, row in enumerate(rows):
        prompts = [
            tuple((m["role"], m["content"]) for m in example.messages[:-1])
            for example in row.examples
        ]
        joined = sorted({group_of[prompt] for prompt in prompts if prompt in group_of})
        home = joined[0] if joined else number
        examples = [example for other in joined for example in groups.pop(other)]
        groups[home] = [*examples, *row.examples]
        for prompt, group in group_of.items() if len(joined) > 1 else ():
            group_of[prompt] = home if group in joined else group
        group_of |= dict.fromkeys(prompts, home)
    return [groups[home] for home in sorted(groups)]


def party_files(
    folder: Path, train: Sequence[Example], test: Sequence[Example]
) -> dict[Path, bytes]:
    """Both files of one party."""
    return {folder / TRAIN: encode_jsonl(train), folder / TEST: encode_jsonl(test)}


def list_datasets(folder: Path) -> list[DatasetInfo]:
    """Every party under `folder`, by name; an absent folder holds none."""
    if not folder.is_dir():
        return []
    found = []
    for place in sorted(path for path in folder.iterdir() if (path / TRAIN).is_file()):
        test = count_lines(place / TEST) if (place / TEST).is_file() else 0
        found.append(
            DatasetInfo(
                place.name, place, count_lines(place / TRAIN), test, (place / HOME).is_file()
            )
        )
    return found


def count_lines(path: Path) -> int:
    """Lines that hold something."""
    return sum(1 for line in path.read_bytes().splitlines() if line.strip())
