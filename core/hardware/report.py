"""A machine as its owner shows it to others: what it is, what of a node runs on it, and no more.

    python -m quietchoir.core.hardware.report FOLDER    FOLDER/*.json as a table, FOLDER.md

Knows the report's fields and the table that is made of many. `quietchoir doctor --report` fills it.
Always: no name of a person, host, user, file, path or model, no address, no serial number, and the
month instead of the day; what is no report is refused whole, by its file.
"""

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import tables
from ..errors import ConfigError

FORMAT = 1
MOST_LETTERS, MOST_ITEMS = 120, 64
MONTH = re.compile(r"20\d\d-(0[1-9]|1[0-2])")
WORDS = re.compile(r"[\w .,:;()+@/%®™'&-]*")  # of makers' names; nothing that makes markup
PLACE = re.compile(r"(^|[\s(])[/~]\w|\w:\\|\w+@\w+\.")  # a path, an address of mail
HEAD = """\
# Machines that people tried

Made from [their reports](hardware/) by `python -m quietchoir.core.hardware.report docs/hardware`.
Yours: `quietchoir doctor --report FILE.json`, look at it, and send it as `docs/hardware/` with any
name. It holds what this table shows and the versions; no name, host, path, address or serial
number.

| processor | cores, memory | system | kernels | accelerators | sandbox | energy | when |
|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedAccelerator:
    """One of them."""

    kind: str
    name: str
    memory_gb: int = 0
    used: bool = False  # a library here can use it


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareReport:
    """One machine."""

    format: int
    quietchoir: str  # versions
    python: str
    month: str  # in which it was made
    system: str
    machine: str
    processor: str
    cores: int
    memory_gb: int
    features: tuple[str, ...]
    kernels: str  # instruction set in use; empty: torch's
    accelerators: tuple[ReportedAccelerator, ...] = ()
    sandbox: bool = False
    battery: bool = False
    heat: bool = False  # the processor's temperature can be read
    energy: tuple[str, ...] = ()  # what counts joules here

    def __post_init__(self) -> None:
        """Raises ValueError: a field that no machine has, or that might name somebody."""
        if self.format != FORMAT:
            raise ValueError(f"format = {self.format}, this version reads {FORMAT}")
        if not MONTH.fullmatch(self.month):
            raise ValueError(f"month = {self.month!r} must be one such as 2026-11")
        tables.at_least(1, cores=self.cores)
        tables.at_least(0, memory_gb=self.memory_gb)
        for text in texts_of(dataclasses.asdict(self)):
            if len(text) > MOST_LETTERS or not WORDS.fullmatch(text):
                raise ValueError(f"{text[:40]!r} is no name of a processor, a system or a version")
            if PLACE.search(text):
                raise ValueError(f"{text[:40]!r} looks like a path or an address; leave it out")

    def text(self) -> str:
        """As a file."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    def row(self) -> str:
        """One line of the table."""
        accelerators = ", ".join(
            one.name + ("" if one.used else " (not used)") for one in self.accelerators
        )
        cells = (
            self.processor or self.machine,
            f"{self.cores}, {self.memory_gb} GB",
            f"{self.system} {self.machine}",
            self.kernels or "torch's",
            accelerators or "none",
            "yes" if self.sandbox else "no",
            ", ".join(self.energy) or "not measurable",
            self.month,
        )
        return f"| {' | '.join(cells)} |\n"


def speakable(name: str) -> str:
    """A maker's name as a report may hold it."""
    kept = "".join(letter for letter in name if WORDS.fullmatch(letter))[:MOST_LETTERS]
    return "" if PLACE.search(kept) else kept


def texts_of(value: object) -> Sequence[str]:
    """Every text in it, at whatever depth."""
    if isinstance(value, str):
        return [value]
    items = list(value.values()) if isinstance(value, Mapping) else value
    if not isinstance(items, list | tuple):
        return []
    if len(items) > MOST_ITEMS:
        raise ValueError(f"a list of {len(items)}, expected at most {MOST_ITEMS}")
    return [text for item in items for text in texts_of(item)]


def read_report(path: Path) -> HardwareReport:
    """One file, checked.

    Raises:
        ConfigError: not a report; says what is wrong with it.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: no JSON in UTF-8 ({error!s:.100})") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: a {type(found).__name__}, expected an object")
    return tables.fill(HardwareReport, found, f"{path}: ")


def table_of(folder: Path) -> str:
    """The page: a row a report, by their files' names.

    Raises:
        ConfigError: one of them is none; nothing is made of the others.
    """
    return HEAD + "".join(read_report(path).row() for path in sorted(folder.glob("*.json")))


def main() -> int:
    """Write FOLDER.md from FOLDER."""
    parser = argparse.ArgumentParser(prog="python -m quietchoir.core.hardware.report")
    parser.add_argument("folder", type=Path, help="of the reports; the table is written beside it")
    folder = parser.parse_args().folder
    try:
        text = table_of(folder)
    except ConfigError as error:
        print(f"refused: {error}", file=sys.stderr)
        return error.exit_code
    folder.with_suffix(".md").write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
