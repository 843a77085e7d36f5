"""Where things lie on this disk, and how a file is written so that no half of it stays.

Knows the platform's conventions. Knows nothing of what the files hold.
Always: `write_atomically` leaves the old file or the whole new one, never a mixture.
"""

import contextlib
import errno
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from .errors import ConfigError, QuietchoirError

HOME_VARIABLE = "QUIETCHOIR_HOME"
# Begins the name of a `scratch_file`: what a killed process left is found by it.
SCRATCH = ".gguf-"
MODELS_VARIABLE = "QUIETCHOIR_MODELS"  # several nodes on one machine may share one model cache


def home() -> Path:
    """Folder of everything that belongs to this node; `QUIETCHOIR_HOME` overrides the platform's
    default.

    Raises:
        ConfigError: `QUIETCHOIR_HOME` names something else than a folder.
    """
    if given := os.environ.get(HOME_VARIABLE):
        return _folder(HOME_VARIABLE, given)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "quietchoir"
    if sys.platform == "win32":
        return (
            Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "quietchoir"
        )
    return Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local" / "share")) / "quietchoir"


def models() -> Path:
    """Folder of pulled models; `QUIETCHOIR_MODELS` lets several nodes share one.

    Raises:
        ConfigError: `QUIETCHOIR_MODELS` names something else than a folder.
    """
    given = os.environ.get(MODELS_VARIABLE)
    return _folder(MODELS_VARIABLE, given) if given else home() / "models"


def _folder(variable: str, given: str) -> Path:
    try:
        path = Path(given).expanduser().absolute()
    except RuntimeError:
        raise ConfigError(f"{variable} = {given}: there is no such user; name a folder") from None
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{variable} = {path} is a file; name a folder, there or not there yet")
    return path


def private_folder(path: Path) -> Path:
    """Create `path`, and the folders on the way to it, readable by their owner alone; return it.

    Raises:
        ConfigError: a file stands in its place or on its way, or this user may not write there.
    """
    try:
        return make_folder(path, mode=0o700)
    except OSError as error:
        raise ConfigError(
            f"{path}: no folder can be made there ({error.strerror}); name another place"
        ) from error


def make_folder(path: Path, *, mode: int = 0o777) -> Path:
    """Create `path` and what is missing on the way to it; return it. The node's home is only ever
    made private.

    Args:
        mode: of folders outside of the home, less the umask.

    Raises:
        OSError: a file stands in its place or on its way, no room, or no permission.
    """
    own = home()
    for folder in (*reversed(path.parents), path):
        if not folder.is_dir():
            folder.mkdir(
                exist_ok=True, mode=0o700 if folder == own or own in folder.parents else mode
            )
    return path


def write_atomically(
    path: Path, content: bytes, *, mode: int = 0o644, durable: bool = True
) -> None:
    """Write beside `path`, flush to disk, then rename over it.

    Args:
        durable: wait for the disk. Without it a power cut may leave any part of what was written,
            so that whoever reads it must be able to tell.

    Raises:
        QuietchoirError: no space or no permission; the old file, if any, is untouched.
    """
    try:
        make_folder(path.parent)
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise QuietchoirError(
            f"{path}: cannot write here ({error.strerror}); free the disk or choose another folder"
        ) from error
    try:
        os.fchmod(handle, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        Path(scratch).replace(path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise QuietchoirError(
            f"{path}: not written, {reason}; the old file, if any, is untouched"
        ) from error
    finally:
        Path(scratch).unlink(missing_ok=True)


@contextlib.contextmanager
def scratch_file(path: Path) -> Iterator[Path]:
    """A file to write, which takes the name `path` when the block ends well and is gone otherwise:
    where the system has files without names, also of a process that is killed.
    """
    handle, name = -1, ""
    try:
        if hasattr(os, "O_TMPFILE"):
            with contextlib.suppress(OSError):  # some file systems have none
                handle = os.open(path.parent, os.O_TMPFILE | os.O_RDWR, 0o666)
        if handle < 0:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=SCRATCH)
        yield Path(name or f"/proc/self/fd/{handle}")
        os.fsync(handle)
        if not name:
            try:
                name_file(handle, path)
            except FileExistsError:
                name = str(path.with_name(f"{SCRATCH}{secrets.token_hex(8)}"))
                name_file(handle, Path(name))
        if name:
            Path(name).replace(path)
        sync_folder(path.parent)
    finally:
        if handle >= 0:
            os.close(handle)
        if name:
            Path(name).unlink(missing_ok=True)


def name_file(handle: int, path: Path) -> None:
    """Give an open file without a name one. Raises: FileExistsError: another one has it."""
    # a folder beside the whole path makes Python follow the link in /proc
    os.link(f"/proc/self/fd/{handle}", path, src_dir_fd=handle, follow_symlinks=True)


def write_together(files: Mapping[Path, bytes], *, mode: int = 0o644) -> None:
    """Write several files beside their places, and only then rename all of them: all are there, or
    none.

    Raises:
        QuietchoirError: no space or no permission; old files are untouched and no folder that was
        missing stays.

    Not covered: a power cut between two renames.
    """
    staged: dict[Path, Path] = {}
    made: list[Path] = []
    try:
        for path, content in files.items():
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            made += [
                folder
                for folder in (*reversed(path.parent.parents), path.parent)
                if not folder.exists()
            ]
            make_folder(path.parent)
            handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            staged[path] = Path(scratch)
            os.fchmod(handle, mode)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path in files:
            staged.pop(path).replace(path)
    except BaseException as error:  # Ctrl-C too
        for waiting in staged.values():
            waiting.unlink(missing_ok=True)
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()
        if not isinstance(error, OSError):
            raise
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise QuietchoirError(
            f"{path}: nothing was written, {reason}; free the disk or choose another folder"
        ) from error
    for folder in {path.parent for path in files}:
        sync_folder(folder)


@contextlib.contextmanager
def exclusively(path: Path) -> Iterator[None]:
    """Hold a lock file, which is gone afterwards: one program at a time on this machine (not on
    systems without POSIX locks).

    Raises:
        BlockingIOError: another one holds it.
        OSError: no room or permission.
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # its last holder may have taken the file away between the two calls
        if not path.exists() or path.stat().st_ino != os.fstat(handle).st_ino:
            raise BlockingIOError
    except OSError:
        os.close(handle)
        raise
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the platform lets folders be synced."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
