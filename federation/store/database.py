"""One side's database: all that must survive a kill, of a member or of a coordinator's run.

Knows SQLite, its log and its version number, and records: a name, some fields, a body, and a digest
of them. Knows nothing of what they mean.
Always: a step is written whole or not at all, and is on the disk before `step` returns (write-ahead
log, full synchronisation); a database of another kind, of an unknown version or with damage is
refused, never repaired by guessing; mode 0600. What is deleted is written over with zeros
(`secure_delete`), and `wipe` does so in the log as well.

Not covered: a copy of the folder that is put back later; backups; what a disk keeps of blocks that
were written over.
"""

import fcntl
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ...core import paths
from ...core.errors import FederationError, QuietchoirError
from .write_ahead_log import HEADER_BYTES

SMALLEST_BYTES = 512  # of a page
PAGE_BYTES = 1 << 15  # large ones: adapters take half the time
KIND = 0x51_43_48_4F  # "QCHO": SQLite's application id
RECORDS = """
CREATE TABLE records (
    name TEXT PRIMARY KEY, fields TEXT NOT NULL, body BLOB NOT NULL, digest BLOB NOT NULL
) STRICT;
CREATE TABLE former (name TEXT PRIMARY KEY) STRICT;
CREATE TABLE charges (
    place INTEGER PRIMARY KEY, account TEXT NOT NULL, round TEXT NOT NULL, step TEXT NOT NULL
) STRICT
"""
TakeOver = Callable[["Database", int], None]


class VersionError(FederationError):
    """A database that another version of this program wrote."""


class DamagedError(FederationError):
    """A record that is not the one that was written."""


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """What stands under one name."""

    fields: dict[str, Any]  # JSON's types
    body: bytes = field(default=b"", repr=False)


def hold(folder: Path, name: str, refusal: str) -> IO[bytes]:
    """Take `folder` for this process, until the file that comes back is closed.

    Raises:
        FederationError: another process has it; `refusal` says what to do.
    """
    held = (paths.private_folder(folder) / name).open("ab")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        held.close()
        raise FederationError(f"{folder}: {refusal}") from None
    return held


class Database:
    """One open database.

    Args:
        tables: what a new one is made with, beside `RECORDS`: SQL, of `version`.
        take_over: called in the step that makes the tables, with the version that is there (0:
            none), to read what an earlier version of this program wrote.

    Hazard: the file has companions (`-wal`, `-shm`) while it is open; a copy of the file alone may
    lack the last steps.
    """

    def __init__(
        self, path: Path, tables: str, version: int, take_over: TakeOver | None = None
    ) -> None:
        """Open it, or make it.

        Raises:
            FederationError: damaged, of another kind, or of a version that this program does not
            know. QuietchoirError: no space or no permission.
        """
        self.path = path
        # called when a step is undone: what is remembered of the disk is read again
        self.forget: list[Callable[[], None]] = []
        self._lock, self._inside = threading.RLock(), False
        self._scrub = False  # something was wiped in this step
        paths.private_folder(path.parent)
        try:
            if not path.exists():
                begin(path)
            # SQLite would take a stump of a file, or nothing, for a new one. The file must not be
            # read here: closing it would drop the locks that this process holds on it through
            # another connection, and the next to leave would throw the log away.
            if path.stat().st_size < SMALLEST_BYTES:
                raise FederationError(f"{path}: damaged, no database; restore it from a copy")
            # Used by one thread at a time, though not always by the one that opened it.
            self.connection = sqlite3.connect(
                path, isolation_level=None, check_same_thread=False, timeout=10.0
            )
        except (OSError, sqlite3.Error) as error:
            raise QuietchoirError(
                f"{path}: cannot open ({error}); free the disk or choose another folder"
            ) from error
        try:
            self.check(tables, version, take_over)
        except BaseException:
            self.connection.close()
            raise

    def check(self, tables: str, version: int, take_over: TakeOver | None) -> None:
        """Require what `tables` describes; make it in an empty file."""
        try:
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.execute("PRAGMA synchronous = FULL")
            self.connection.execute("PRAGMA secure_delete = ON")
            kind, found = (self.number(name) for name in ("application_id", "user_version"))
            sound = self.connection.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
        except sqlite3.OperationalError as error:
            raise self.refused(error) from error
        except sqlite3.DatabaseError as error:
            raise FederationError(
                f"{self.path}: damaged ({error}); restore it from a copy"
            ) from error
        if not sound:
            raise FederationError(f"{self.path}: damaged; restore it from a copy")
        if (kind, found) == (KIND, 0):  # as `begin` left it
            with self.step() as connection:
                for sentence in filter(str.strip, f"{RECORDS};{tables}".split(";")):
                    connection.execute(sentence)
                if take_over is not None:
                    take_over(self, 0)
                connection.execute(f"PRAGMA user_version = {version}")
        elif kind == KIND and found == version - 1 and take_over is not None:
            with self.step() as connection:
                take_over(self, found)
                connection.execute(f"PRAGMA user_version = {version}")
        elif (kind, found) != (KIND, version):
            raise VersionError(
                f"{self.path}: a database of kind {kind:#x}, version {found}; expected {KIND:#x}, "
                f"version {version}: "
                "it was written by another version of quietchoir, use that one"
            )

    def number(self, name: str) -> int:
        """One of SQLite's own numbers."""
        return int(self.connection.execute(f"PRAGMA {name}").fetchone()[0])

    @contextmanager
    def step(self) -> Iterator[sqlite3.Connection]:
        """All of what is done inside, or nothing; steps inside belong to the outermost.

        Raises:
            QuietchoirError: the disk refuses; nothing was changed.
        """
        with self._lock:
            if self._inside:
                yield self.connection
                return
            self._inside = True
            try:
                self.connection.execute("BEGIN IMMEDIATE")
                yield self.connection
                self.connection.execute("COMMIT")
                if self._scrub:
                    self.scrub()
            except sqlite3.Error as error:
                self.undo()
                raise self.refused(error) from error
            except BaseException:
                self.undo()
                raise
            finally:
                self._inside = False

    @contextmanager
    def moment(self) -> Iterator[None]:
        """What is read inside is of one moment, whoever writes meanwhile."""
        with self._lock:
            self.connection.execute("BEGIN")
            try:
                yield
            finally:
                self.connection.execute("COMMIT")

    def undo(self) -> None:
        """As before the step; SQLite may have done it already."""
        with suppress(sqlite3.Error):
            self.connection.execute("ROLLBACK")
        for forget in self.forget:
            forget()

    def refused(self, error: sqlite3.Error) -> QuietchoirError:
        """What to do about an error of SQLite's."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extended part
        reason = (
            ("the disk is full")
            if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
            else str(error)
        )
        return QuietchoirError(
            f"{self.path}: not written, {reason}; nothing was changed. Free the "
            f"disk, then start again"
        )

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """What a SELECT finds.

        Raises:
            FederationError: the file is damaged.
        """
        try:
            with self._lock:
                return self.connection.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise FederationError(
                f"{self.path}: damaged ({error}); restore it from a copy"
            ) from error

    def put(self, name: str, fields: Mapping[str, Any], body: bytes = b"") -> None:
        """Write a record in place of the one of this name.

        Raises:
            QuietchoirError: the disk refuses; nothing was changed.
        """
        text = json.dumps(fields, sort_keys=True)
        with self.step() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?)",
                (name, text, body, digest_of(text, body)),
            )

    def get(self, name: str) -> StoredRecord | None:
        """The record of this name.

        Raises:
            DamagedError: it is not what was written. FederationError: the file is damaged.
        """
        for text, body, digest in self.rows(
            "SELECT fields, body, digest FROM records WHERE name = ?", name
        ):
            if digest_of(text, body) != digest:
                raise DamagedError(f"{self.path}: damaged ({name} is not what was written)")
            return StoredRecord(json.loads(text), body)
        return None

    def drop(self, *names: str) -> None:
        """Take records away. Raises: QuietchoirError: the disk refuses; nothing was changed."""
        with self.step() as connection:
            connection.executemany("DELETE FROM records WHERE name = ?", [(one,) for one in names])

    def wipe(self, *names: str) -> None:
        """Take records away, and with the end of the step what the log still has of them.

        Raises:
            QuietchoirError: the disk refuses; the records may be gone, of the log nothing is.
        """
        with self.step():
            self.drop(*names)
            self._scrub = True

    def scrub(self) -> None:
        """Write the log over, and cut it."""
        log = self.path.with_name(f"{self.path.name}-wal")
        try:
            # All of the log is in the file from here on, and nobody reads it: so it can be
            # written over, and is empty for whoever opens it after a kill.
            if self.connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0]:
                raise QuietchoirError(f"{self.path}: not wiped, another program reads it")
            if log.exists() and log.stat().st_size:
                with log.open("r+b") as file:
                    # Its header first, and to the disk: a log with a header, of which some is
                    # zeros, would be taken for one that ends there, and put in the file's place.
                    for part in (bytes(HEADER_BYTES), bytes(log.stat().st_size - HEADER_BYTES)):
                        file.write(part)
                        file.flush()
                        os.fsync(file.fileno())
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except (OSError, sqlite3.Error) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise QuietchoirError(f"{self.path}: not wiped ({reason}); free the disk") from error
        self._scrub = False

    def close(self) -> None:
        """Fold the log into the file and let it go."""
        with suppress(sqlite3.Error):
            self.connection.close()


def begin(path: Path) -> None:
    """An empty database; under its own name only once it is on the disk, so that a file without
    anything in it is a damaged one.
    """
    new = path.with_name(f"{path.name}-new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    with closing(sqlite3.connect(new, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA application_id = {KIND}")
    new.replace(path)
    paths.sync_folder(path.parent)


def digest_of(text: str, body: bytes) -> bytes:
    """Of a record."""
    return hashlib.sha256(hashlib.sha256(text.encode()).digest() + body).digest()
