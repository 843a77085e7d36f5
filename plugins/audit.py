"""Who was called, where to a plugin connected, what it had the model write, when, and how it ended:
one line each, bound to the one before.

Knows names, sizes and outcomes. Never receives arguments or answers.
Always: lines are only added; a changed, removed or reordered line breaks the chain, and `verify`
says where.

Not covered: a power cut loses the lines of the last `SYNC_S` seconds, never more; whoever can write
the file can write a whole new chain; keep `Audit.head` elsewhere to notice.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from ..core import paths
from ..core.errors import PluginError

START = "0" * 64
SYNC_S = 5.0  # forcing every line to the disk made a call ten times slower
MAX_ROW = 4096  # bytes; names and numbers never come near it
Outcome = Literal["ok", "tool error", "refused", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call, without what was said."""

    plugin: str
    tool: str
    sent_bytes: int
    received_bytes: int
    seconds: float
    outcome: Outcome
    caller: str = ""  # the plugin that asked for it; empty: the assistant, or its owner


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyConnection:
    """One request of a plugin's to the network, without what was said."""

    plugin: str
    host: str  # empty if what it asked for is no host
    port: int
    sent_bytes: int
    received_bytes: int
    seconds: float
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """One text that a plugin had the model write, without the text."""

    plugin: str
    tokens: int  # of prompt and answer
    seconds: float
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Elicited:
    """One form that a plugin had its owner asked, without question and answer."""

    plugin: str
    fields: int
    seconds: float
    outcome: Outcome  # "refused": the owner said no; "failed": no answer in time, or none that fits


Row = Call | ProxyConnection | Sampled | Elicited


class Audit:
    """An append-only log in one file, which several of the owner's processes may write in turn.

    Raises:
        PluginError: at opening, when the file on disk does not chain.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self.head = verify(path)[1]
        self._synced = -SYNC_S

    def write(self, call: Row) -> None:
        """Add one line; the disk has it within `SYNC_S` seconds, or with `close`.

        Raises:
            PluginError: no space, no permission, or a link in the file's place.
        """
        try:
            paths.private_folder(self.path.parent)
            descriptor = os.open(
                self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600
            )
            with os.fdopen(descriptor, "r+b", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                self.head = self._append(file, call)
        except OSError as error:
            raise PluginError(
                f"{self.path}: a call cannot be logged ({error.strerror}); free the disk or mend "
                f"the file"
            ) from error

    def _append(self, file: BinaryIO, call: Row) -> str:
        whole, last = tail(file)
        file.truncate(whole)  # what a power cut left of a line
        row: dict[str, Any] = {"time": round(self._clock(), 3), **asdict(call), "before": last}
        row["hash"] = seal(row)
        file.write(json.dumps(row).encode() + b"\n")
        self._sync(file, SYNC_S)
        return str(row["hash"])

    def close(self) -> None:
        """Force what was written to the disk."""
        try:
            with self.path.open("rb") as file:
                self._sync(file, 0)
        except FileNotFoundError:
            return  # nobody was called

    def _sync(self, file: BinaryIO, age_s: float) -> None:
        if time.monotonic() - self._synced >= age_s:
            os.fdatasync(file.fileno())
            self._synced = time.monotonic()


def tail(file: BinaryIO) -> tuple[int, str]:
    """Where the last whole line ends, and its hash; the lines before it are `verify`'s business."""
    size = file.seek(0, os.SEEK_END)
    start = file.seek(max(0, size - MAX_ROW))
    held = file.read(MAX_ROW)
    whole = held.rfind(b"\n") + 1
    last = held[:whole].rstrip(b"\n").rpartition(b"\n")[2]
    return start + whole, str(json.loads(last)["hash"]) if last else START


def seal(row: Mapping[str, Any]) -> str:
    """SHA-256 of a row without its own hash."""
    kept = {name: value for name, value in row.items() if name != "hash"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def verify(path: Path) -> tuple[int, str]:
    """Number of whole lines, and hash of the last one.

    Raises:
        PluginError: the first line that does not chain, by number.
    """
    head, count = START, 0
    if not path.exists():
        return count, head
    # after the last line end: nothing, or half of a line
    for line in path.read_bytes().split(b"\n")[:-1]:
        count += 1
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or row.get("before") != head or row.get("hash") != seal(row):
            raise PluginError(
                f"{path}: line {count} does not follow from the one before: it was changed; keep "
                f"it, and move it away"
            )
        head = row["hash"]
    return count, head
