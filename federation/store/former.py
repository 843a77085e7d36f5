"""What the versions before this one wrote beside each other in a dozen files, read once into the
database.

Knows their names and formats. Knows nothing of how they are used now.
Always: all of them are read in the one step that makes the database, or none; a file that cannot be
read refuses the whole, and is left as it is; they are written over and removed once that step is on
the disk, also if a kill comes between. A former file that appears later is refused: it and the
database cannot both be right.

    a member     answered.sqlite (stays, empty, so that a former program is told), answered.json,
                 privacy.json, sealed.key, sealed.holding, sealed.opened, sealed-RUN.state,
                 contribution.kept, recall.kept, attempt.sealed, attempt.taken, personal.pending
    a run        run.sqlite of version 2, privacy.json, privacy-MEMBER.json
"""

import hashlib
import json
import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

from ...core import log, paths
from ...core.errors import ConfigError, FederationError, ProtocolError
from ...crypto.identity.keys import digest
from .database import KIND, RECORDS, Database

ANSWERED, ANSWERED_BEFORE, PRIVACY = "answered.sqlite", "answered.json", "privacy.json"
KEY, SHARE, DONE = "sealed.key", "sealed.holding", "sealed.opened"
STATES, CONTRIBUTION, MODELS = "sealed-*.state", "contribution.kept", "recall.kept"
MODEL, SUM = "recall-*.state", "recall.sum"  # of a version that was never released: told again
ASIDE, TAKEN, PERSONAL = "attempt.sealed", "attempt.taken", "personal.pending"
MEMBER = (
    ANSWERED_BEFORE, PRIVACY, KEY, SHARE, DONE, STATES, CONTRIBUTION, MODELS, MODEL, SUM,
    ASIDE, TAKEN, PERSONAL,
)  # fmt: skip
RUN = (PRIVACY, "privacy-*.json")
HASH_BYTES, LABEL_BYTES = 32, 32
EMPTY = 2  # version of an `answered.sqlite` that was taken over

logger = log.get("federation.former")


def member(folder: Path, database: Database, _version: int) -> None:
    """Take a member's files over, inside the step that makes `database`.

    Raises:
        ConfigError, FederationError: one that cannot be read; says what to do.
    """
    answered(folder, database)
    charges(folder / PRIVACY, database)
    if (path := folder / KEY).exists():
        fields = table(path, private(path))
        try:
            epoch, seed = bytes.fromhex(fields["epoch"]), bytes.fromhex(fields["seed"])
        except (LookupError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{path}: damaged ({error}); remove it, the other members hand the key over again"
            ) from error
        database.put("group key", {"epoch": epoch.hex()}, seed)
    if (path := folder / SHARE).exists():
        epoch, share = labelled(path)
        label, memory = labelled(folder / DONE) if (folder / DONE).exists() else (b"", b"")
        if label == whose(path, share):
            database.put("key share", {"epoch": epoch.hex()}, share)
            database.put("key share's memory", {}, memory)
        else:
            logger.warning("%s: what was done with it is not known, it is given up", path)
    for path in sorted(folder.glob(STATES)):
        run = path.name.removeprefix("sealed-").removesuffix(".state")
        database.put(f"model of {run}", {}, checked(path, b"QCV1"))
    if (found := headed(folder / CONTRIBUTION, b"QCK2")) is not None:
        database.put("contribution", *found)
    if (found := headed(folder / MODELS, b"QCR1")) is not None:
        (fields, body), at = found, 0
        for name, size in fields["held"]:
            database.put(f"followed model {name}", {}, body[at : at + size])
            at += size
        database.put("followed models", {**fields, "held": [name for name, _ in fields["held"]]})
    if (path := folder / ASIDE).exists():  # one that was taken is lost, as it was before
        database.put("attempt", {"taken": False}, path.read_bytes())
    if (path := folder / PERSONAL).exists():
        database.put("personal adapter", table(path, path.read_bytes()))
    note(folder, database, MEMBER)


def run(folder: Path, database: Database, version: int) -> None:
    """Bring a run's database from version 2 here, or its account into a new one, inside a step.

    Raises:
        ConfigError, FederationError: as `member`.
    """
    if version:
        for sentence in RECORDS.split(";"):
            database.connection.execute(sentence)
        for (fields,) in database.rows("SELECT fields FROM run"):
            database.put("run", json.loads(fields))
        for size, body, written in database.rows("SELECT size, body, digest FROM adapter"):
            if hashlib.sha256(body).digest() != written:
                raise FederationError(
                    f"{database.path}: damaged (the adapter is not the one that was written); "
                    "restore it from a copy, or choose another --state"
                )
            database.put("adapter", {"size": size}, body)
        for name in ("run", "adapter"):
            database.connection.execute(f"DROP TABLE {name}")
    for pattern in RUN:
        for path in sorted(folder.glob(pattern)):
            charges(path, database)
    note(folder, database, RUN)


def note(folder: Path, database: Database, patterns: tuple[str, ...]) -> None:
    """These files are in `database` now: `put_away` removes them once that is on the disk."""
    names = [(path.name,) for pattern in patterns for path in folder.glob(pattern)]
    database.connection.executemany("INSERT INTO former VALUES (?)", names)


def put_away(database: Database, patterns: tuple[str, ...]) -> None:
    """Remove what was taken over; secrets are written over first.

    Raises:
        FederationError: a former file that was not taken over.
    """
    folder = database.path.parent
    for (name,) in database.rows("SELECT name FROM former"):
        path = folder / name
        if name == ANSWERED:
            with closing(sqlite3.connect(path, isolation_level=None)) as connection:
                for rows in ("runs", "sums", "heard"):
                    connection.execute(f"DELETE FROM {rows}")
                connection.execute(f"PRAGMA user_version = {EMPTY}")
        elif path.exists():
            with path.open("r+b") as file:
                file.write(bytes(path.stat().st_size))
                file.flush()
                os.fsync(file.fileno())
            path.unlink()
    paths.sync_folder(folder)
    with database.step() as connection:
        connection.execute("DELETE FROM former")
    for pattern in patterns:
        for path in folder.glob(pattern):
            raise FederationError(
                f"{path}: written by a former version of quietchoir, beside {database.path.name}, "
                "which knows more or less than it; if that version was run here since, put the "
                "folder back as it was before this one, else move the file away"
            )


def answered(folder: Path, database: Database) -> None:
    """What was answered: first in JSON, then in a database of its own."""
    path, connection = folder / ANSWERED, database.connection
    if path.exists() and path.stat().st_size:
        try:
            with closing(sqlite3.connect(path, isolation_level=None)) as found:
                kind, version = (
                    found.execute(f"PRAGMA {name}").fetchone()[0]
                    for name in ("application_id", "user_version")
                )
                if (kind, version) != (KIND, 1):
                    raise FederationError(
                        f"{path}: of kind {kind:#x}, version {version}, without the "
                        f"{database.path.name} that belongs to it; put that back: without it old "
                        "rounds could be replayed"
                    )
                runs = found.execute("SELECT run, round, attempt, standing FROM runs").fetchall()
                heard = found.execute("SELECT at FROM heard").fetchall()
                sums = found.execute("SELECT snapshot FROM sums").fetchall()
        except sqlite3.DatabaseError as error:
            raise FederationError(
                f"{path}: damaged ({error}); restore it from a copy, without it old rounds could "
                "be replayed"
            ) from error
        connection.executemany("INSERT INTO runs VALUES (?, ?, ?, ?)", runs)
        for (at,) in heard:
            database.put("last heard", {"at": at})
        for (snapshot,) in sums:
            database.put("opened sums", {}, snapshot.encode("ascii"))
        connection.execute("INSERT INTO former VALUES (?)", (ANSWERED,))
    elif (path := folder / ANSWERED_BEFORE).exists():
        content = table(path, path.read_bytes())
        try:
            rows = [(str(run), int(at[0]), int(at[1])) for run, at in content["marks"].items()]
            database.put("opened sums", {}, str(content["sums"]).encode("ascii"))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise FederationError(
                f"{path}: damaged ({error}); restore it, without it old rounds could be replayed"
            ) from error
        connection.executemany("INSERT INTO runs VALUES (?, ?, ?, 'finished')", rows)


def charges(path: Path, database: Database) -> None:
    """One privacy account's history."""
    if not path.exists():
        return
    content = table(path, path.read_bytes())
    try:
        if content["format"] != "quietchoir privacy account 1":
            raise ValueError(f"it says {content['format']!r}")
        rows = [
            (str(content["scope"]), str(step.pop("round")), json.dumps(step, sort_keys=True))
            for step in content["steps"]
        ]
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: not a privacy history ({error}); put the right file back. Never delete it: "
            "what was spent stays spent"
        ) from error
    database.connection.executemany(
        "INSERT INTO charges (account, round, step) VALUES (?, ?, ?)", rows
    )


def table(path: Path, content: bytes) -> dict[str, Any]:
    """A JSON object. Raises ConfigError for anything else."""
    try:
        found = json.loads(content)
        if not isinstance(found, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path}: damaged ({error}); restore it from a copy, or move it away if it is lost"
        ) from error
    return found


def private(path: Path) -> bytes:
    """What nobody else may read. Raises ConfigError where others can."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name == "posix" and mode & 0o077:
        raise ConfigError(
            f"{path}: mode {mode:04o} lets others read this member's secrets; run: chmod 600 {path}"
        )
    return path.read_bytes()


def whose(path: Path, share: bytes) -> bytes:
    """What the memory of a key share is labelled with. Raises ConfigError: it is no share."""
    from ...crypto.experimental.threshold import KeyShare, ThresholdMemory

    try:
        key_share = KeyShare.decode(share, ThresholdMemory())
    except ProtocolError as error:
        raise ConfigError(f"{path}: {error}; remove it, the members make another key") from error
    return digest("quietchoir holding 1", key_share.key_id, key_share.name)


def labelled(path: Path) -> tuple[bytes, bytes]:
    """Label and content of a file of a key share."""
    private(path)
    body = checked(path, b"QCH1")
    return body[:LABEL_BYTES], body[LABEL_BYTES:]


def headed(path: Path, magic: bytes) -> tuple[dict[str, Any], bytes] | None:
    """Header and body of what is made anew, or told again by others, if it is lost."""
    if not path.exists():
        return None
    try:
        body = checked(path, magic)
    except FederationError as error:
        logger.warning("%s; this member goes on without it", error)
        return None
    length = int.from_bytes(body[:4], "big")
    return table(path, body[4 : 4 + length]), body[4 + length :]


def checked(path: Path, magic: bytes) -> bytes:
    """What lies between magic bytes and the hash of it all. Raises FederationError: damaged."""
    data = path.read_bytes()
    if (
        not data.startswith(magic)
        or hashlib.sha256(data[:-HASH_BYTES]).digest() != data[-HASH_BYTES:]
    ):
        raise FederationError(
            f"{path}: damaged; restore it from a copy, or remove it: the other members hand over "
            "what was in it"
        )
    return data[len(magic) : -HASH_BYTES]
