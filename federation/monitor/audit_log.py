"""What a coordinator did, line by line: each line names the hash of the one before it.

    {"at": 1700000000, "event": {…}, "number": 7, "previous": "…"}

Knows JSON lines and hashes. Knows nothing of what the events mean.
Always: a line is on the disk before `note` returns; lines are only ever added; a line that a kill
cut short is taken off at the next start and told there, because it was never whole.

Covered: a line that was changed, taken out, added in between or moved is found, and everything
after it is in doubt.
Not covered: whoever can write the folder can write the whole log anew, or cut off its end.
`federation audit` prints the last hash: whoever noted an earlier one elsewhere sees whether it
still is in the log, and rounds that the run's database has and the log lacks are told.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core import paths
from ...core.errors import FederationError, IntegrityError, QuietchoirError
from ..events import FederationEvent, RoundEvent, TornEvent
from ..spec.policy import canonical

FILE = "audit.jsonl"
MAX_LINE = 4 << 20


@dataclass(frozen=True, slots=True)
class Line:
    """One line, read."""

    number: int
    at: int  # seconds since 1970, by the coordinator's clock
    event: dict[str, Any]
    digest: str  # what the next line names


class AuditLog:
    """The log of one run's folder, open for more.

    Raises:
        FederationError: what is there is damaged; it is not added to.
        QuietchoirError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = paths.private_folder(folder) / FILE
        torn = mend(self.path)
        self.number, self.previous = 0, ""
        try:
            for line in read(self.path):
                self.number, self.previous = line.number, line.digest
        except IntegrityError as error:
            raise FederationError(
                f"{error}; it is not added to: keep it, move it away, and start again"
            ) from error
        if torn:
            self.note(TornEvent(bytes=torn))

    def note(self, event: FederationEvent) -> None:
        """Add one event, unless it is of those that say nothing later.

        Raises:
            QuietchoirError: the disk refuses.
        """
        if not event.written:
            return
        body = {
            "at": int(time.time()),
            "event": event.table(),
            "number": self.number + 1,
            "previous": self.previous,
        }
        line = canonical(body) + b"\n"
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                left = memoryview(line)
                while left:
                    left = left[os.write(handle, left) :]
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise QuietchoirError(
                f"{self.path}: not written ({error.strerror}); free the disk, then start again"
            ) from error
        self.number, self.previous = self.number + 1, hashlib.sha256(line).hexdigest()

    def catch_up(self, history: tuple[dict[str, Any], ...]) -> None:
        """Note the rounds that the run's database has and the log lacks: a kill came between the
        two.
        """
        for entry in missing(self.path, history):
            self.note(RoundEvent(entry=entry, late=True))


def missing(path: Path, history: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
    """Rounds of `history` that have no line.

    Raises:
        IntegrityError: as `read`.
    """
    logged = {
        place(line.event) for line in read(path) if line.event.get("event") in ("round", "score")
    }
    return [entry for entry in history if place(entry) not in logged]


def place(entry: dict[str, Any]) -> tuple[object, ...]:
    """Which round of a run an entry is about."""
    return entry.get("kind"), entry.get("round"), entry.get("attempt")


def mend(path: Path) -> int:
    """Take a last line off that has no end; returns its bytes."""
    if not path.exists():
        return 0
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - MAX_LINE))
        tail = file.read()
        torn = len(tail) - (tail.rfind(b"\n") + 1)
        if torn:
            file.truncate(size - torn)
        return torn


def read(path: Path) -> Iterator[Line]:
    """Every line, checked against the one before it.

    Raises:
        IntegrityError: names the first line that is not what was written.
    """
    if not path.exists():
        return
    previous, number = "", 0
    with path.open("rb") as file:
        for number, text in enumerate(iter(lambda: file.readline(MAX_LINE), b""), 1):
            fields = parse(text)
            if fields is None or (fields["number"], fields["previous"]) != (number, previous):
                raise IntegrityError(
                    f"{path}: line {number} does not follow from the line before it; it and all "
                    f"after it may have been changed"
                )
            previous = hashlib.sha256(text).hexdigest()
            yield Line(number, fields["at"], fields["event"], previous)


def parse(text: bytes) -> dict[str, Any] | None:
    """The fields of one line; None if it is none."""
    try:
        fields = json.loads(text)
        kinds = {"at": int, "event": dict, "number": int, "previous": str}
        if {key: type(value) for key, value in fields.items()} != kinds or canonical(
            fields
        ) + b"\n" != text:
            return None
    except (ValueError, AttributeError, RecursionError):
        return None
    return dict(fields)
