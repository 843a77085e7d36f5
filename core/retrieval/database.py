"""One private SQLite file: locked with a passphrase if its owner wants that, and what is deleted
from it is gone.

Knows SQLite with SQLCipher, its write-ahead log and its errors. Knows nothing of what the tables
mean.
Always: a step is written whole or not at all; a file that is damaged or of another kind is refused
and left as it is; mode 0600. Of a locked file every page is encrypted and authenticated, the log's
too: text, words of the index, vectors, names of files. What is deleted is written over with zeros,
in the log as well.

Not covered: the file's name, size and times; the memory of a running program, in which pages lie in
clear; copies and backups; what a disk that writes elsewhere (SSD, copy-on-write) keeps of blocks
that were written over.

Source: zetetic.net/sqlcipher/design (AES-256-CBC, HMAC-SHA512 a page, PBKDF2 at 256,000 steps).
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from .. import paths
from ..errors import AuthenticationError, ConfigError, RetrievalError
from ..parts import wanted

Passphrase = Callable[[Path], str]  # asked only for a file that is locked
BUSY_S = 10.0
COMPANIONS = ("", "-wal", "-shm", "-journal")
WAL_HEADER = 32  # bytes
CACHE_BYTES = 48 << 20  # of pages in memory, at most
CHECKED_BYTES = 64 << 20  # a file up to this size is read whole when it is opened
DAMAGED = (
    "damaged; your documents are not. Put back a copy, or remove it and add the documents again"
)


@runtime_checkable
class Refusable(Protocol):
    """A source of passphrases that remembers its answer, and is told where it was wrong."""

    def refused(self, path: Path) -> None:
        """The last answer does not open the file `path`."""
        ...


class PrivateDatabase:
    """One open file, for all threads of this process, one at a time."""

    def __init__(
        self,
        path: Path,
        tables: str,
        version: int,
        *,
        passphrase: Passphrase | None = None,
        locked: bool = False,
    ) -> None:
        """Open it, or make it.

        Args:
            tables: SQL that a new file is made with, of `version`.
            passphrase: asked for a locked file, and for a new one with `locked`.

        Raises:
            RetrievalError: damaged, of another kind or version, or the disk refuses.
            AuthenticationError: a wrong passphrase, or a damaged file; never told apart.
            ConfigError: it is locked, and nobody is there to ask.
        """
        self.path = path
        self._lock = threading.RLock()
        self._inside = False
        self.locked = False
        with wanted("a collection or a memory"):
            from sqlcipher3 import dbapi2
        self._errors = dbapi2
        paths.private_folder(path.parent)
        key = ""
        if not path.exists():
            key = asked(path, passphrase) if locked else ""
            self._make(tables, version, key)
        self.connection = self._connected(key, passphrase)
        self._file = inode(path)
        try:
            self._check(version)
        except BaseException:
            self.connection.close()
            raise

    def stands(self) -> bool:
        """Is the file under this name still the one that was opened? Another program may have
        removed it, and made another.
        """
        return inode(self.path) == self._file

    def _make(self, tables: str, version: int, key: str) -> None:
        """A new file; under its own name only once it is whole."""
        scratch = self.path.with_name(f"{self.path.name}.new")
        scratch.unlink(missing_ok=True)
        with self._told():
            os.close(os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            try:
                with contextlib.closing(self._open(scratch, key)) as connection:
                    connection.execute("BEGIN")
                    for statement in tables.split(";\n"):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {version}")
                    connection.execute("COMMIT")
                scratch.replace(self.path)
            finally:
                scratch.unlink(missing_ok=True)
            paths.sync_folder(self.path.parent)

    def _connected(self, key: str, passphrase: Passphrase | None) -> Any:
        with self._told():
            if not key:
                connection = self._open(self.path)
                if readable(connection):
                    return connection
                connection.close()
                if passphrase is None:
                    raise ConfigError(
                        f"{self.path}: locked, or damaged; give its passphrase, put back a copy, "
                        f"or remove it and add the documents again"
                    )
            try:
                connection = self._open(self.path, key or asked(self.path, passphrase))
            except ConfigError as error:  # nobody can be asked
                raise ConfigError(f"{error}. If it was never locked, it is {DAMAGED}") from error
            if not readable(connection):
                connection.close()
                source: object = passphrase
                if isinstance(source, Refusable):
                    source.refused(self.path)
                raise AuthenticationError(
                    f"{self.path}: does not open: a wrong passphrase, or damaged; try again, put "
                    f"back a copy, or remove it and add the documents again"
                )
        self.locked = True
        return connection

    def _open(self, path: Path, key: str = "") -> Any:
        connection = self._errors.connect(
            str(path), isolation_level=None, check_same_thread=False, timeout=BUSY_S
        )
        connection.execute("PRAGMA cipher_log_level = NONE")  # it would speak on our streams
        if key:
            connection.execute(f"PRAGMA key = {quoted(key)}")
        return connection

    def _check(self, version: int) -> None:
        with self._told():
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.execute("PRAGMA synchronous = FULL")
            self.connection.execute("PRAGMA secure_delete = ON")
            self.connection.execute("PRAGMA foreign_keys = ON")
            # SQLCipher's own 2 MB would read, and of a locked file decrypt, an index anew for each
            # question; taken as it is needed
            self.connection.execute(f"PRAGMA cache_size = -{CACHE_BYTES >> 10}")
            (found,) = self.connection.execute("PRAGMA user_version").fetchone()
        if found != version:
            raise RetrievalError(
                f"{self.path}: of version {found}, this program reads {version}; add the "
                f"documents to a new collection"
            )
        if self.path.stat().st_size <= CHECKED_BYTES:
            self.check()

    def check(self) -> None:
        """Read the whole file. Raises: RetrievalError: it is damaged."""
        if self.rows("PRAGMA quick_check(1)") != [("ok",)]:
            raise RetrievalError(f"{self.path}: {DAMAGED}")

    @contextmanager
    def step(self) -> Iterator[None]:
        """What is written inside is on the disk at the end, whole, or nothing of it is.

        Raises:
            RetrievalError: the disk refuses or the file is damaged; nothing was changed.
        """
        with self._lock, self._told():
            if self._inside:
                yield
                return
            self.connection.execute("BEGIN IMMEDIATE")
            self._inside = True
            try:
                yield
                self.connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(self._errors.Error):
                    self.connection.execute("ROLLBACK")
                raise
            finally:
                self._inside = False

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """What a SELECT finds. Raises: RetrievalError: the file is damaged."""
        with self._lock, self._told():
            found: list[tuple[Any, ...]] = self.connection.execute(query, values).fetchall()
            return found

    def write(self, query: str, *values: Any) -> int:
        """One statement, in a step; the id of the row that it made. Raises: as `step`."""
        with self.step():
            return int(self.connection.execute(query, values).lastrowid or 0)

    def write_many(self, query: str, values: Sequence[Sequence[Any]]) -> None:
        """One statement for each of `values`, in a step. Raises: as `step`."""
        with self.step():
            self.connection.executemany(query, values)

    def version(self) -> tuple[int, int]:
        """Another one after anybody has changed the file."""
        with self._lock:
            (own,) = self.connection.execute("SELECT total_changes()").fetchone()
            (others,) = self.connection.execute("PRAGMA data_version").fetchone()
        return own, others

    def compact(self) -> None:
        """Write the file anew, without the slack of its pages. Raises: as `step`."""
        with self._lock, self._told():
            self.connection.execute("VACUUM")

    def scrub_log(self) -> None:
        """Write over what the log still has of pages as they were.

        Raises:
            RetrievalError: another program reads it just now, or the disk refuses; what was
            deleted stays deleted, and may be on the disk until this succeeds.
        """
        with self._lock, self._told():
            log = self.path.with_name(f"{self.path.name}-wal")
            # All of the log is in the file from here on, and nobody reads it: it can be written
            # over. Its header first: a log with a header would be taken for one that ends there.
            if self.connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0]:
                raise RetrievalError(
                    f"{self.path}: another program reads it, so that what was deleted is still in "
                    f"its log; end that program, then delete again"
                )
            size = log.stat().st_size if log.exists() else 0
            if size:
                with log.open("r+b") as file:
                    zeros(file, min(size, WAL_HEADER))
                    zeros(file, max(0, size - WAL_HEADER))
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Fold the log into the file and let it go."""
        with self._lock, contextlib.suppress(self._errors.Error):
            self.connection.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """SQLite's errors as sentences."""
        try:
            yield
        except OSError as error:
            raise RetrievalError(
                f"{self.path}: {error.strerror}; nothing was changed, free the disk or mend it"
            ) from error
        except self._errors.Error as error:
            words = str(error)
            if "full" in words or "I/O" in words:
                advice = "the disk is full; nothing was changed, free some of it and go on"
            elif "locked" in words:
                advice = "another program writes to it; nothing was changed, try again"
            elif "malformed" in words or "not a database" in words or "corrupt" in words:
                advice = DAMAGED
            else:
                advice = f"{words}; nothing was changed"
            raise RetrievalError(f"{self.path}: {advice}") from error


def inode(path: Path) -> int:
    """The file's number on its disk; 0: there is none."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def asked(path: Path, passphrase: Passphrase | None) -> str:
    """Raises: ConfigError: nobody to ask, or nothing answered."""
    key = passphrase(path) if passphrase is not None else ""
    if not key:
        raise ConfigError(f"{path}: an empty passphrase protects nothing; give one")
    return key


def obliterate(file: Path) -> None:
    """Write zeros over a closed database's file and all that belongs to it, and remove it; what is
    locked or damaged goes too.

    Raises:
        RetrievalError: the disk refuses; says which file is left.
    """
    for ending in COMPANIONS:
        path = file.with_name(f"{file.name}{ending}")
        try:
            if path.exists():
                with path.open("r+b") as opened:
                    zeros(opened, path.stat().st_size)
                path.unlink()
        except OSError as error:
            raise RetrievalError(
                f"{path}: not deleted ({error.strerror}); delete it yourself"
            ) from error
    paths.sync_folder(file.parent)


def readable(connection: Any) -> bool:
    """Does this key, or none, open the file? An empty file is nobody's."""
    try:
        found: tuple[int] = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except Exception:  # SQLite: "file is not a database"
        return False
    return found[0] > 0


def quoted(text: str) -> str:
    """A text in SQL; a PRAGMA takes no parameters."""
    return "'" + text.replace("'", "''") + "'"


def zeros(file: Any, count: int) -> None:
    """`count` bytes of them from here, on the disk."""
    for start in range(0, count, 1 << 20):
        file.write(bytes(min(1 << 20, count - start)))
    file.flush()
    os.fsync(file.fileno())
