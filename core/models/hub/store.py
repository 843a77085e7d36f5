"""The bytes of pulled models by their hash: each content once on this disk, and what of it nobody
needs any more.

Knows files, hashes and links. Knows nothing of hubs or of what a model is.
Always: a model's file and its place under its hash are one file with two names (a hard link), so
that two models, nodes or adapters of one base share its bytes on disk and, mapped, in memory; what
a model names, by a symbolic link too, what a pull is bringing and what a program has mapped is
never given up, nor what lies behind a link. Where the
file system has no hard links, files lie as they are and nothing is shared.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ... import paths
from . import fetch

BLOBS = ".blobs"  # beside the models
PULLS, LOCKS, SCRATCH = ".pull-*", ".lock-*", f"{paths.SCRATCH}*"
HASH = re.compile(r"[0-9a-f]{64}")
PROCESSES = Path("/proc")


@dataclass(frozen=True, slots=True)
class Garbage:
    """Something below the folder of models that no model needs."""

    path: Path
    bytes: int  # on disk
    why: str
    kept: str = ""  # why it stays all the same


def blob(sha256: str) -> Path:
    """Where a content lies under its hash."""
    return paths.models() / BLOBS / sha256


def share(path: Path, sha256: str) -> None:
    """Make a whole file, whose hash was checked, one with what lies under its hash already; or put
    it there.

    A stored content that is not whole any more is replaced by this file.
    """
    stored = blob(sha256)
    try:
        stored.parent.mkdir(exist_ok=True)
        if stored.exists() and not stored.samefile(path):
            if stored.stat().st_size == path.stat().st_size and fetch.sha256_of(stored) == sha256:
                link_over(stored, path)
            else:
                link_over(path, stored)
        elif not stored.exists():
            os.link(path, stored)
    except OSError:  # no hard links here, or no right to make one: the file stays as it is
        return


def link_over(source: Path, target: Path) -> None:
    """Make `target` another name of `source`, in one step."""
    beside = target.with_name(f".link-{os.getpid()}-{target.name[:100]}")
    try:
        os.link(source, beside)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def take(sha256: str, size: int, target: Path) -> bool:
    """Put a content that is here already at `target`, checked; False: it is not here."""
    stored = blob(sha256)
    try:
        if not sha256 or not stored.is_file() or stored.stat().st_size != size:
            return False
        if fetch.sha256_of(stored) != sha256:
            return False
        os.link(stored, target)
    except OSError:
        return False
    return True


def forget(sha256: str) -> None:
    """Give up a content that no model names any more."""
    stored = blob(sha256)
    with suppress(OSError):
        status = stored.stat()
        linked = linked_files(paths.models())
        if status.st_nlink == 1 and (status.st_dev, status.st_ino) not in linked:
            stored.unlink()
    with suppress(OSError):  # others are in it
        stored.parent.rmdir()


def garbage() -> list[Garbage]:
    """All that could be given up, and what of it stays because it is in use."""
    folder = paths.models()
    # seen before programs are looked at: what takes its name later is no candidate
    scratch = ours(folder, SCRATCH)
    mapped = mapped_files()
    pulling = "a pull is under way" if any(map(is_held, folder.glob(LOCKS))) else ""
    linked = linked_files(folder)
    found = []
    for stored in ours(folder / BLOBS, "*"):
        status = stored.stat()
        content = HASH.fullmatch(stored.name) and stored.is_file() and status.st_nlink == 1
        if content and (place := (status.st_dev, status.st_ino)) not in linked:
            kept = pulling or ("a program has it open" if place in mapped else "")
            found.append(Garbage(stored, status.st_size, "no model names it", kept))
    for path in ours(folder / fetch.PARTIAL, "*"):
        found.append(Garbage(path, path.stat().st_size, "a pull that was broken off", pulling))
    for path in ours(folder, PULLS):
        found.append(Garbage(path, fetch.folder_size(path), "a pull that was killed", pulling))
    for path in scratch:
        try:
            status = path.stat()
        except FileNotFoundError:  # it has its own name now
            continue
        used = (status.st_dev, status.st_ino) in mapped
        kept = "a program has it open" if used else ""
        found.append(Garbage(path, status.st_size, "a conversion that was killed", kept))
    return found


def ours(folder: Path, pattern: str) -> list[Path]:
    """Files and folders of `folder` itself. A link was not made here, nor what it leads to."""
    if folder.is_symlink():
        return []
    return [path for path in sorted(folder.glob(pattern)) if not path.is_symlink()]


def linked_files(folder: Path) -> set[tuple[int, int]]:
    """Device and inode of every file that a symbolic link below `folder` names, as its owner made
    it, in folders that are links too.
    """
    found, seen = set[tuple[int, int]](), set[tuple[int, int]]()
    for place, folders, files in os.walk(folder, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        for path in (Path(place, name) for name in files):
            if path.is_symlink():
                with suppress(OSError):  # it leads nowhere
                    status = path.stat()
                    found.add((status.st_dev, status.st_ino))
    return found


def collect() -> list[Garbage]:
    """Give up what is not in use; returns that."""
    given_up = [one for one in garbage() if not one.kept]
    for one in given_up:
        if one.path.is_dir():
            shutil.rmtree(one.path, ignore_errors=True)
        else:
            one.path.unlink(missing_ok=True)
    for emptied in (paths.models() / BLOBS, paths.models() / fetch.PARTIAL):
        with suppress(OSError):  # it is not there, or a link, or others are in it
            emptied.rmdir()
    return [one for one in given_up if not one.path.exists()]


def is_held(lock: Path) -> bool:
    """Whether another program holds a lock."""
    if os.name != "posix":
        return True  # cannot be told
    import fcntl

    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def mapped_files() -> set[tuple[int, int]]:
    """Device and inode of every file that a program of this machine has mapped or open, of those
    whose programs this user may look into.
    """
    return {place for process in PROCESSES.glob("[0-9]*") for place in places_of(process)}


def places_of(process: Path) -> Iterator[tuple[int, int]]:
    """Of one program."""
    with suppress(OSError):
        for line in (process / "maps").read_text("utf-8", errors="replace").splitlines():
            device, inode = line.split()[3:5]
            major, minor = (int(part, 16) for part in device.split(":"))
            yield os.makedev(major, minor), int(inode)
    with suppress(OSError):
        for opened in (process / "fd").iterdir():
            with suppress(OSError):
                status = opened.stat()
                yield status.st_dev, status.st_ino
