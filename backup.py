"""A node's home as one file, and back.

Knows what of a home belongs into it, SQLite's own way to copy a database that is in use, and tar.
Knows nothing of what the files mean.
Always: a database is copied whole, as it stood at one moment, also while a node runs; a backup is
checked, every file by its hash, before anything of it is put in its place, and nothing is ever put
over something else.

Left out: models (they are pulled again), computed states of conversations, logs, and what a member
remembers of rounds (`member.sqlite`): put back, it would have forgotten what was answered since,
and an update could be sent twice.

Hazard: keys, token, conversations and adapters lie in a backup as they lie in the home: what was
locked with a passphrase stays locked, the rest is in clear, and the file is readable by its owner
alone. Encrypt it (age, gpg) before it leaves this machine. What is forgotten later is still in it.
A restored member's own account of privacy begins anew: where a federation has a budget, join it
with new keys instead.
"""

import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from . import __version__
from .core import paths
from .core.engine.conversations import FOLDER as CONVERSATIONS
from .core.errors import ConfigError, DataError
from .federation.store.member import FILE as MEMBER

FORMAT = 1
MANIFEST = "backup.json"
MANIFEST_BYTES = 16 << 20
SQLITE = b"SQLite format 3\0"
COMPANIONS = ("-wal", "-shm", "-journal")  # of a database; a copy needs none
LEFT_OUT = ("models", CONVERSATIONS, "service.log")  # at the top of a home
NOT_KEPT = (MEMBER, *(f"{MEMBER}{end}" for end in COMPANIONS))  # wherever it lies
BLOCK = 1 << 20


def members(home: Path) -> Iterator[Path]:
    """The files of a home that belong into a backup; links, sockets and locks do not."""
    for path in sorted(home.rglob("*")):
        inside = path.relative_to(home)
        if inside.parts[0] in LEFT_OUT or path.is_symlink() or not path.is_file():
            continue
        if path.name in NOT_KEPT or path.suffix == ".lock" or is_companion(path):
            continue
        yield path


def is_companion(path: Path) -> bool:
    """Does it lie beside the database that it belongs to?"""
    return any(
        path.name.endswith(end) and path.with_name(path.name.removesuffix(end)).exists()
        for end in COMPANIONS
    )


def back_up(home: Path, target: Path) -> int:
    """Write a home as one new file; returns how many files are in it.

    Raises:
        ConfigError: the file is there already; there is no home; a locked collection is in use, so
        that no whole copy can be made. QuietchoirError: no space or no permission; nothing stays.
    """
    if target.exists():
        raise ConfigError(f"{target}: is there already and is kept; choose another name")
    if not home.is_dir():
        raise ConfigError(f"{home}: not there; there is nothing to back up")
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"{target}: its folder is not there; make it, or choose another")
    if target.resolve().is_relative_to(home.resolve()):
        raise ConfigError(f"{target}: lies in the home that it would hold; choose another folder")
    files: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="quietchoir-backup-", dir=target.parent) as scratch:
        packed = Path(scratch) / "packed.tar.gz"
        with tarfile.open(packed, "w:gz", compresslevel=1) as archive:
            for path in members(home):
                name = path.relative_to(home).as_posix()
                copy = copied(path, Path(scratch) / "copy")
                files[name] = digest_of(copy)
                archive.add(copy, name, filter=anonymous)
                copy.unlink()
            told = {"format": FORMAT, "made": datetime.now(UTC).isoformat(timespec="seconds")}
            manifest = json.dumps({**told, "quietchoir": __version__, "files": files}).encode()
            entry = tarfile.TarInfo(MANIFEST)
            entry.size, entry.mode = len(manifest), 0o600
            archive.addfile(entry, io.BytesIO(manifest))
        packed.chmod(0o600)
        with packed.open("rb") as written:
            os.fsync(written.fileno())
        packed.rename(target)
    return len(files)


def copied(path: Path, copy: Path) -> Path:
    """One file at one moment.

    Raises:
        ConfigError: a locked database whose log is not empty: somebody writes it.
    """
    with path.open("rb") as file:
        plain = file.read(len(SQLITE)) == SQLITE
    if plain:
        with (
            closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
    elif any(written(path.with_name(f"{path.name}{end}")) for end in ("-wal", "-journal")):
        raise ConfigError(
            f"{path}: is locked and in use, so no whole copy can be made; stop the node first"
        )
    else:
        shutil.copyfile(path, copy)
    copy.chmod(path.stat().st_mode & 0o777)
    return copy


def written(path: Path) -> bool:
    """Is it there, with something in it?"""
    return path.exists() and path.stat().st_size > 0


def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without its owner's name and number."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def restore(source: Path, home: Path) -> int:
    """Put a backup in place of a home that is not there yet, or holds models alone; returns how
    many files it had.

    Raises:
        ConfigError: there is something in the home. DataError: the file is damaged or no backup.
        Nothing was put anywhere then.
    """
    here = [path for path in home.iterdir() if path.name != "models"] if home.is_dir() else []
    if here or (home.exists() and not home.is_dir()):
        raise ConfigError(
            f"{home}: holds a node already ({(here or [home])[0].name}); a backup is never put "
            f"over one: move it away, or set {paths.HOME_VARIABLE} to another folder"
        )
    paths.private_folder(home)
    with tempfile.TemporaryDirectory(prefix=".restoring-", dir=home) as scratch:
        folder = Path(scratch) / "home"
        folder.mkdir(mode=0o700)
        try:
            found = unpacked(source, folder)
        except (OSError, EOFError, tarfile.TarError, ValueError) as error:
            raise DataError(
                f"{source}: damaged, or no backup of a node ({error!s:.200}); nothing was restored"
            ) from error
        moved = list[Path]()
        try:
            for entry in sorted(folder.iterdir()):
                moved.append(entry.rename(home / entry.name))
        except BaseException:
            for entry in moved:
                entry.rename(folder / entry.name)
            raise
    return found


def unpacked(source: Path, folder: Path) -> int:
    """Every file of a backup into an empty folder, checked.

    Raises:
        ValueError, OSError, TarError: it is not what its list says, or no backup.
    """
    seen: dict[str, str] = {}
    manifest: dict[str, Any] | None = None
    with tarfile.open(source, "r:gz") as archive:
        for entry in archive:
            name = PurePosixPath(entry.name)
            if not entry.isreg() or name.is_absolute() or ".." in name.parts:
                raise ValueError(f"{entry.name!r:.80} is no file of a home")
            if entry.name == MANIFEST:
                told = archive.extractfile(entry)
                assert told is not None  # a regular file
                manifest = json.loads(told.read(MANIFEST_BYTES))
                continue
            if entry.name in seen:
                raise ValueError(f"{entry.name!r:.80} comes twice")
            archive.extract(entry, folder, filter="data")
            path = folder / name
            path.chmod(entry.mode & 0o700)  # nobody else reads a home
            seen[entry.name] = digest_of(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"it has no {MANIFEST} of format {FORMAT}")
    if manifest.get("files") != seen:
        raise ValueError("its files are not those of its list")
    for inner in folder.rglob("*"):
        if inner.is_dir():
            inner.chmod(0o700)
    return len(seen)
