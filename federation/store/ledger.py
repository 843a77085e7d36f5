"""What a member has already answered and opened, so that nothing is answered or opened twice, and
no run in another's place.

Knows places, the masks' own ledger, and one small database. Knows nothing of payloads.
Always: a place is on disk before any work for it begins, and a round that is about to be opened
before its shares leave; within a run, only later attempts are new, also after a restart of the node
and also when a coordinator comes back with an older state.

One run at a time. While the coordinator of one run is heard, letters of another run are refused:
two coordinators with one identity would train on half of the members each. The other run is taken
up once the first is finished, or has been silent for `LEASE_S`; from then on the first one is
refused for good, whoever brings it back.
"""

import fcntl
import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from ...core import paths
from ...core.errors import FederationError, MessageError
from ...crypto.secagg import Ledger as SumLedger
from ..wire.message import Place
from .disk import Disk

FILE, LOCK = "answered.sqlite", "taking-part.lock"
OLD_SUFFIX = ".json"
VERSION = 1
TABLES = """
CREATE TABLE runs (
    run TEXT PRIMARY KEY, round INTEGER NOT NULL, attempt INTEGER NOT NULL, standing TEXT NOT NULL
) STRICT;
CREATE TABLE sums (one INTEGER PRIMARY KEY CHECK (one = 1), snapshot TEXT NOT NULL) STRICT;
CREATE TABLE heard (one INTEGER PRIMARY KEY CHECK (one = 1), at REAL NOT NULL) STRICT
"""
GOING, FINISHED, REPLACED = "going", "finished", "replaced"
# of silence, until a run may be replaced by another; other members may train for an hour
LEASE_S = 7200.0


def hold(folder: Path) -> IO[bytes]:
    """Take a node's folder for this process, until the file that comes back is closed.

    Raises:
        FederationError: another process of this node takes part.
    """
    held = (paths.private_folder(folder) / LOCK).open("ab")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        held.close()
        raise FederationError(
            f"{folder}: this node takes part already, in another process; stop that one first"
        ) from None
    return held


class StaleError(MessageError):
    """A place that was answered already: a replay, or a coordinator with an older state."""


class RivalError(MessageError):
    """A letter of another run than the one that this member is in."""


class Ledger:
    """High-water marks, one for each run; in memory only if there is no path (simulations).

    Args:
        now: seconds of the wall clock, which survive a restart. A clock that was set back makes the
            lease longer, never shorter than `LEASE_S` of silence seen from then on.
    """

    def __init__(self, path: Path | None = None, *, now: Callable[[], float] = time.time) -> None:
        """Read the marks.

        Raises:
            MessageError: the database is damaged or of another version.
            ConfigError: the part about sums is damaged.
        """
        self.now = now
        try:
            self.disk = None if path is None else Disk(path, TABLES, VERSION)
        except FederationError as error:
            raise MessageError(f"{error}; without it old rounds could be replayed") from error
        self.marks: dict[str, tuple[int, int]] = {}
        self.standing: dict[str, str] = {}
        self.heard_at = 0.0
        self.written = ""  # the masks' ledger, as it is on disk
        self.sums = SumLedger()  # handed to every attempt under masks
        if path is None or self.disk is None:
            return
        self.read(self.disk.connection)
        if not self.marks and path.suffix != OLD_SUFFIX:
            self.inherit(path.with_suffix(OLD_SUFFIX))

    def inherit(self, old: Path) -> None:
        """Take over what the first versions of this program kept as JSON.

        Raises:
            MessageError: it is damaged.
        """
        if not old.exists():
            return
        try:
            content = json.loads(old.read_text("utf-8"))
            marks = {str(run): (int(at[0]), int(at[1])) for run, at in content["marks"].items()}
            sums = SumLedger.restore(str(content["sums"]).encode("ascii"))
        except (ValueError, RecursionError, AttributeError, LookupError, TypeError) as error:
            raise MessageError(
                f"{old}: damaged ({error}); restore it, without it old rounds could be replayed"
            ) from error
        self.sums, standing = sums, dict.fromkeys(marks, FINISHED)
        self.write(marks, standing, 0.0)
        self.marks, self.standing = marks, standing

    def read(self, connection: sqlite3.Connection) -> None:
        """Everything, from the disk."""
        for run, round_, attempt, standing in connection.execute(
            "SELECT run, round, attempt, standing FROM runs"
        ):
            self.marks[run], self.standing[run] = (round_, attempt), standing
        self.heard_at = next((at for (at,) in connection.execute("SELECT at FROM heard")), 0.0)
        self.written = next(
            (text for (text,) in connection.execute("SELECT snapshot FROM sums")), ""
        )
        if self.written:
            self.sums = SumLedger.restore(self.written.encode("ascii"))

    def check(self, place: Place) -> None:
        """Require that `place` is later than all that was answered in its run, and that no other
        run is going on.

        Raises:
            StaleError, RivalError: it is not.
        """
        mark = self.marks.get(place.run)
        if mark is not None and (place.round, place.attempt) <= mark:
            raise StaleError(
                f"round {place.round}, attempt {place.attempt} was already answered (this node is "
                f"at round {mark[0]}, "
                f"attempt {mark[1]}); a replay, or a coordinator with an older state; refused"
            )
        if self.standing.get(place.run) == REPLACED:
            raise RivalError(
                f"run {place.run[:8]} was given up for a later one; its coordinator "
                f"must stop; refused"
            )
        going = self.going()
        if going is not None and going != place.run and self.silence() < LEASE_S:
            raise RivalError(
                f"found run {place.run[:8]}, but this node is in run {going[:8]}, heard "
                f"{self.silence():.0f} s ago: two "
                "coordinators with one identity, or one that lost its state; stop one of them. "
                "Another run is taken up "
                f"after {LEASE_S / 60:.0f} minutes of silence; refused"
            )

    def going(self) -> str | None:
        """The run that this member is in, if it is in one."""
        return next((run for run, standing in self.standing.items() if standing == GOING), None)

    def silence(self) -> float:
        """Seconds since that run's coordinator was last heard."""
        return max(0.0, self.now() - self.heard_at)

    def record(self, place: Place) -> None:
        """Write down that work for `place` begins, and that its run is the one that this member is
        in.

        Raises:
            MessageError: as `check`.
            QuietchoirError: the disk refuses; then nothing is recorded.
        """
        self.check(place)
        standing = {
            run: REPLACED if old == GOING else old for run, old in self.standing.items()
        } | {place.run: GOING}
        marks, now = {**self.marks, place.run: (place.round, place.attempt)}, self.now()
        self.write(marks, standing, now)
        self.marks, self.standing, self.heard_at = marks, standing, now

    def release(self) -> None:
        """The run is finished: another one may begin at once.

        Raises:
            QuietchoirError: the disk refuses; then nothing is recorded.
        """
        standing = {run: FINISHED if old == GOING else old for run, old in self.standing.items()}
        self.write(self.marks, standing, self.heard_at)
        self.standing = standing

    def save(self) -> None:
        """Write down what the masks' ledger has noted; call it before an answer leaves.

        Raises:
            QuietchoirError: the disk refuses; then the answer must not leave.
        """
        if self.sums.snapshot().decode("ascii") != self.written:
            self.write(self.marks, self.standing, self.heard_at)

    def write(
        self, marks: dict[str, tuple[int, int]], standing: dict[str, str], heard_at: float
    ) -> None:
        """All of it, in one step."""
        if self.disk is None:
            return
        snapshot = self.sums.snapshot().decode("ascii")
        with self.disk.step() as connection:
            rows = [(run, *mark, standing[run]) for run, mark in marks.items()]
            connection.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?)", rows)
            connection.execute("INSERT OR REPLACE INTO heard VALUES (1, ?)", (heard_at,))
            connection.execute("INSERT OR REPLACE INTO sums VALUES (1, ?)", (snapshot,))
        self.written = snapshot

    def close(self) -> None:
        """Let the database go."""
        if self.disk is not None:
            self.disk.close()
