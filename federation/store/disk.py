"""A small database that holds what must survive a kill.

Knows SQLite, its journal and its version number. Knows nothing of what the tables mean.
Always: a step is written whole or not at all, and is on the disk before `step` returns (write-ahead
log, full synchronisation); a database of another kind, of an unknown version or with damage is
refused, never repaired by guessing; mode 0600.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...core import paths
from ...core.errors import FederationError, QuietchoirError

SMALLEST_BYTES = 512  # of a page
KIND = 0x51_43_48_4F  # "QCHO": SQLite's application id


class Disk:
    """One open database.

    Args:
        tables: what a new one is made with: SQL, of `version`.
        page_bytes: of a new one; large ones where it holds adapters, which take half the time then.

    Hazard: the file has companions (`-wal`, `-shm`) while it is open; a copy of the file alone may
    lack the last steps.
    """

    def __init__(self, path: Path, tables: str, version: int, *, page_bytes: int = 4096) -> None:
        """Open it, or make it.

        Raises:
            FederationError: damaged, of another kind, or of a version that this program does not
            know. QuietchoirError: no space or no permission.
        """
        self.path = path
        paths.private_folder(path.parent)
        try:
            if not path.exists():
                path.touch(mode=0o600)
            # SQLite would take a stump of a file for a new one. The file must not be read here:
            # closing it would drop the locks that this process holds on it through another
            # connection, and the next to leave would throw the log away.
            if 0 < path.stat().st_size < SMALLEST_BYTES:
                raise FederationError(f"{path}: damaged, no database; restore it from a copy")
            # Used by one thread at a time, though not always by the one that opened it.
            self.connection = sqlite3.connect(
                path, isolation_level=None, check_same_thread=False, timeout=10.0
            )
            # heeded in an empty file alone
            self.connection.execute(f"PRAGMA page_size = {int(page_bytes)}")
        except (OSError, sqlite3.Error) as error:
            raise QuietchoirError(
                f"{path}: cannot open ({error}); free the disk or choose another folder"
            ) from error
        try:
            self.check(tables, version)
        except BaseException:
            self.connection.close()
            raise

    def check(self, tables: str, version: int) -> None:
        """Require what `tables` describes; make it in an empty file."""
        try:
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.execute("PRAGMA synchronous = FULL")
            kind, found = (self.number(name) for name in ("application_id", "user_version"))
            empty = not self.number("schema_version")
            sound = self.connection.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
        except sqlite3.OperationalError as error:
            raise self.refused(error) from error
        except sqlite3.DatabaseError as error:
            raise FederationError(
                f"{self.path}: damaged ({error}); restore it from a copy"
            ) from error
        if not sound:
            raise FederationError(f"{self.path}: damaged; restore it from a copy")
        if empty:
            with self.step() as connection:
                for sentence in filter(str.strip, tables.split(";")):
                    connection.execute(sentence)
                connection.execute(f"PRAGMA application_id = {KIND}")
                connection.execute(f"PRAGMA user_version = {version}")
        elif (kind, found) != (KIND, version):
            raise FederationError(
                f"{self.path}: a database of kind {kind:#x}, version {found}; expected {KIND:#x}, "
                f"version {version}: "
                "it was written by another version of quietchoir, use that one"
            )

    def number(self, name: str) -> int:
        """One of SQLite's own numbers."""
        return int(self.connection.execute(f"PRAGMA {name}").fetchone()[0])

    @contextmanager
    def step(self) -> Iterator[sqlite3.Connection]:
        """All of what is done inside, or nothing.

        Raises:
            QuietchoirError: the disk refuses; nothing was changed.
        """
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            yield self.connection
            self.connection.execute("COMMIT")
        except sqlite3.Error as error:
            self.undo()
            raise self.refused(error) from error
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """As before the step; SQLite may have done it already."""
        with suppress(sqlite3.Error):
            self.connection.execute("ROLLBACK")

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

    def close(self) -> None:
        """Fold the log into the file and let it go."""
        with suppress(sqlite3.Error):
            self.connection.close()
