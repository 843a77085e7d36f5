"""A node's home as one file, and back.

Knows what of a home belongs into it, SQLite's own way to copy a database that is in use, and tar.
Knows nothing of what the files mean.
Always: a database is copied whole, as it stood at one moment, also while a node runs; a backup is
checked, every file by its hash, before anything of it is put in its place, and nothing is ever put
over something else. Plugins come back to the last bit, with links and empty folders: their digests
are over those too. A link that leads out of the home is refused, not left out.

Left out: models (they are pulled again), computed states of conversations, logs, and what a member
remembers of rounds (`member.sqlite`): put back, it would have forgotten what was answered since,
and an update could be sent twice. Nor would it know what was spent in privacy since. So the keys
that came back take part in no federation (`keys.why_restored`) until their owner has others
enrolled. For the same reason what libraries have answered is left out, and a restored home serves
none (`budget.why_restored`) until its owner has decided.

Hazard: keys, token, conversations and adapters lie in a backup as they lie in the home: what was
locked with a passphrase stays locked, the rest is in clear, and the file is readable by its owner
alone. Encrypt it (age, gpg) before it leaves this machine. What is forgotten later is still in it.
Not covered: a home that was copied by other means is not marked. An account of privacy begins anew
with new keys: where they train on the examples of before, add what the coordinator's report says
the old ones spent.
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
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from . import __version__
from .core import paths
from .core.engine.conversations import FOLDER as CONVERSATIONS
from .core.errors import ConfigError, DataError, QuietchoirError
from .federation.membership.keys import IDENTITY_FILE, RESTORED_FILE
from .federation.store.member import FILE as MEMBER
from .federation.store.member import LOCK
from .private_search import budget

FORMAT = 2
MANIFEST, INSIDE = "backup.json", "home"  # beside each other, so that a home may hold any name
MANIFEST_BYTES = 16 << 20
SQLITE = b"SQLite format 3\0"
COMPANIONS = ("-wal", "-shm", "-journal")  # of a database; a copy needs none
LEFT_OUT = ("models", CONVERSATIONS, "service.log")  # at the top of a home
NOT_KEPT = (MEMBER, LOCK, *(f"{MEMBER}{end}" for end in COMPANIONS))  # of a federation
VERBATIM = ("plugins", "store")  # below a home: other people's files, each kept by its digest
STAGE = ("plugins", "stage")  # below a home: what plugins read that run now (landlock.py)


def members(home: Path) -> Iterator[Path]:
    """The files, links and folders of a home that belong into a backup; sockets do not.

    Raises:
        ConfigError: a link that leads out of the home, so that its file would be missing.
    """
    for path in sorted(home.rglob("*")):
        inside = path.relative_to(home)
        if inside.parts[0] in LEFT_OUT or inside.parts[:2] == STAGE:
            continue
        if path.is_symlink():
            if not stays_inside(path, home):
                raise ConfigError(
                    f"{path}: a link to {path.readlink()}, which lies outside of this home, or is "
                    f"no path from where it lies; put what it names in its place, or remove it"
                )
        elif not path.is_dir():
            counts = inside.parts[0] == "federations" and path.name in NOT_KEPT
            counts |= inside.match(f"{budget.FOLDER}/{budget.BUDGETS}")
            if counts or not path.is_file() or (not is_verbatim(inside) and is_companion(path)):
                continue
        yield path


def is_verbatim(inside: PurePath) -> bool:
    """Is a path in a home of a plugin's folder?"""
    return inside.parts[:2] == VERBATIM


def stays_inside(link: Path, home: Path) -> bool:
    """Does a link lead to a place in the home that it lies in, wherever that home is moved?"""
    target = Path(os.path.realpath(link))  # of a circle of links too, where `resolve` raises
    return not link.readlink().is_absolute() and target.is_relative_to(os.path.realpath(home))


def is_companion(path: Path) -> bool:
    """Does it lie beside the database that it belongs to?"""
    return any(
        path.name.endswith(end) and path.with_name(path.name.removesuffix(end)).exists()
        for end in COMPANIONS
    )


def back_up(home: Path, target: Path) -> int:
    """Write a home as one new file; returns how many files are in it.

    Raises:
        ConfigError: the file is there already; there is no home; a link leads out of it; a locked
        collection is in use, so that no whole copy can be made. QuietchoirError: no space or no
        permission; nothing stays.
    """
    if target.exists():
        raise ConfigError(f"{target}: is there already and is kept; choose another name")
    if not home.is_dir():
        raise ConfigError(f"{home}: not there; there is nothing to back up")
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"{target}: its folder is not there; make it, or choose another")
    if target.resolve().is_relative_to(home.resolve()):
        raise ConfigError(f"{target}: lies in the home that it would hold; choose another folder")
    try:
        return pack(home, target)
    except OSError as error:
        raise QuietchoirError(
            f"{target}: not written, {error.strerror or error} ({error.filename or target}); free "
            f"the disk, or choose a folder where you may write"
        ) from error


def pack(home: Path, target: Path) -> int:
    """`back_up` without its questions. Raises OSError too; then nothing stays."""
    files: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="quietchoir-backup-", dir=target.parent) as scratch:
        whole = Path(scratch) / "packed.tar.gz"
        with tarfile.open(whole, "w:gz", compresslevel=1) as archive:
            for path in members(home):
                inside = path.relative_to(home)
                name = f"{INSIDE}/{inside.as_posix()}"
                if path.is_symlink() or path.is_dir():
                    archive.add(path, name, recursive=False, filter=anonymous)
                    files[name] = told_of(path)
                    continue
                copy = copied(path, Path(scratch) / "copy", whole=is_verbatim(inside))
                files[name] = told_of(copy)
                archive.add(copy, name, filter=anonymous)
                copy.unlink()
            told = {"format": FORMAT, "made": datetime.now(UTC).isoformat(timespec="seconds")}
            manifest = json.dumps({**told, "quietchoir": __version__, "files": files}).encode()
            entry = tarfile.TarInfo(MANIFEST)
            entry.size, entry.mode = len(manifest), 0o600
            archive.addfile(entry, io.BytesIO(manifest))
        whole.chmod(0o600)
        with whole.open("rb") as written:
            os.fsync(written.fileno())
        whole.rename(target)
    return sum(value != "folder" for value in files.values())


def copied(path: Path, copy: Path, *, whole: bool = False) -> Path:
    """One file at one moment. Args: whole: byte by byte, a database too.

    Raises:
        ConfigError: a locked database whose log is not empty: somebody writes it.
    """
    with path.open("rb") as file:
        plain = file.read(len(SQLITE)) == SQLITE
    if whole:
        shutil.copyfile(path, copy)
    elif plain:
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


def told_of(path: Path) -> str:
    """What a list says of it: SHA-256 of a file, where a link leads."""
    if path.is_symlink():
        return f"-> {path.readlink()}"
    if path.is_dir():
        return "folder"
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
        folder = Path(scratch) / INSIDE
        folder.mkdir(mode=0o700)
        try:
            found = unpacked(source, folder.parent)
            # in every home: its first library may have been served after the backup
            (folder / budget.FOLDER).mkdir(exist_ok=True, mode=0o700)
            (folder / budget.FOLDER / budget.RESTORED_FILE).touch(mode=0o600)
        except (OSError, EOFError, tarfile.TarError, ValueError) as error:
            raise DataError(
                f"{source}: damaged, or no backup of a node ({error!s:.200}); nothing was restored"
            ) from error
        if (folder / IDENTITY_FILE).exists():
            (folder / RESTORED_FILE).touch(mode=0o600)
        moved = list[Path]()
        try:
            # the marks first: no kill leaves keys without them
            first = (RESTORED_FILE, budget.FOLDER)
            for entry in sorted(folder.iterdir(), key=lambda entry: entry.name not in first):
                moved.append(entry.rename(home / entry.name))
        except BaseException:
            for entry in moved:
                entry.rename(folder / entry.name)
            raise
    return found


def unpacked(source: Path, folder: Path) -> int:
    """Every file of a backup into a folder that holds an empty `INSIDE`, checked.

    Raises:
        ValueError, OSError, TarError: it is not what its list says, or no backup.
    """
    seen, links = dict[str, str](), dict[Path, str]()
    manifest: dict[str, Any] | None = None
    with tarfile.open(source, "r:gz") as archive:
        for entry in archive:
            name = PurePosixPath(entry.name)
            if entry.name == MANIFEST and entry.isreg():
                told = archive.extractfile(entry)
                assert told is not None  # a regular file
                manifest = json.loads(told.read(MANIFEST_BYTES))
                continue
            inside = PurePosixPath(*name.parts[1:])
            if (
                not inside.parts
                or entry.name != f"{INSIDE}/{inside}"  # nor another spelling of it
                or ".." in name.parts
                or not (entry.isreg() or entry.isdir() or entry.issym())
            ):
                raise ValueError(f"{entry.name!r:.80} is nothing of a home")
            path = folder / name
            if entry.name in seen or inside.parts[0] in LEFT_OUT:
                raise ValueError(f"{entry.name!r:.80} comes twice, or is never in a backup")
            if entry.issym():
                links[path] = entry.linkname
                seen[entry.name] = f"-> {entry.linkname}"
                continue
            archive.extract(entry, folder, filter="data")
            path.chmod(entry.mode & 0o700 | (0o700 if entry.isdir() else 0))  # its owner's alone
            seen[entry.name] = told_of(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"it has no {MANIFEST} of format {FORMAT}")
    if manifest.get("files") != seen:
        raise ValueError("its files are not those of its list")
    for made in folder.rglob("*"):
        if made.is_dir():
            made.chmod(0o700)
    for link, target in links.items():  # last, so that nothing is ever written through one
        link.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        link.symlink_to(target)
    if outside := [link for link in links if not stays_inside(link, folder / INSIDE)]:
        raise ValueError(f"{outside[0].name!r:.80} is a link that leads out of a home")
    return sum(value != "folder" for value in seen.values())
