"""Folders of other people's programs, each kept once under the digest of its content.

Knows files, links and digests. Knows nothing of what the files are.
Always: a folder in here is what its name says, to the last bit, or it is not used; whoever runs the
plugin can read it, and nobody but its owner could have written it; no link leads out of it.
"""

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ...core import paths
from ...core.errors import ManifestError, SandboxUnavailableError
from .interpreter import reachable

MAX_FILES, MAX_BYTES = 100_000, 2 << 30  # of one folder
# where root keeps them: the plugin's user, who is not root, must be able to pass
SHARED = Path("/var/lib/quietchoir-plugins")


def keep(folder: Path, user: int | None) -> str:
    """Copy `folder` in, unless it is here already; the digest to find it by.

    Raises:
        ManifestError: a link that leads out of it, a special file, or more than the limits.
        SandboxUnavailableError: nowhere that `user` could read it.
    """
    checked(folder)
    place = root_for(user)
    with tempfile.TemporaryDirectory(dir=place, prefix="new-") as made:
        copy = Path(made) / "copy"
        shutil.copytree(folder, copy, symlinks=True)  # with times: compiled Python files hold them
        for path in [copy, *copy.rglob("*")]:
            if not path.is_symlink():
                runs = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
                path.chmod(0o755 if runs else 0o644)
        digest = digest_of(copy)
        kept = place / digest
        if kept.exists() and digest_of(kept) != digest:  # half removed once, or changed
            kept.rename(Path(made) / "spoiled")
        if not kept.exists():
            copy.rename(kept)
    return digest


def find(digest: str, user: int | None) -> Path:
    """The folder of this digest, read through to be sure.

    Raises:
        ManifestError: it is not here, or was changed.
    """
    folder = root_for(user) / digest
    if not folder.is_dir():
        raise ManifestError(f"{folder}: no such folder; wrap or install the plugin again")
    if (found := digest_of(folder)) != digest:
        raise ManifestError(f"{folder}: holds {found[:12]}… now; remove it and wrap again")
    return folder


def forget(digest: str, user: int | None) -> None:
    """Remove a folder that no plugin runs on any more: all of it, or nothing yet."""
    place = root_for(user)
    if (place / digest).is_dir():
        with tempfile.TemporaryDirectory(dir=place, prefix="old-") as gone:
            (place / digest).rename(Path(gone) / digest)


def root_for(user: int | None) -> Path:
    """Where folders are kept that `user` can read.

    Raises:
        SandboxUnavailableError: nowhere.
    """
    if user is None:
        return paths.private_folder(paths.home() / "plugins" / "store")
    # one for each node: what one forgets another may run on
    place = SHARED / hashlib.sha256(os.fsencode(paths.home().resolve())).hexdigest()[:12]
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o755)
    except OSError as error:
        raise SandboxUnavailableError(
            f"{place}: cannot be made ({error.strerror}); run quietchoir as an ordinary user"
        ) from error
    if not reachable(place, user):
        raise SandboxUnavailableError(
            f"{place} lies where the plugin's user may not read; run quietchoir as an ordinary user"
        )
    return place


def digest_of(folder: Path) -> str:
    """SHA-256 over all names, kinds and contents in `folder`. Raises: ManifestError: as `keep`."""
    whole = hashlib.sha256()
    for kind, path in checked(folder):
        content = b""
        if kind == b"link":
            content = os.fsencode(path.readlink())
        elif kind != b"folder":
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
        for part in (kind, os.fsencode(path.relative_to(folder)), content):
            whole.update(len(part).to_bytes(8, "big") + part)
    return whole.hexdigest()


def checked(folder: Path) -> list[tuple[bytes, Path]]:
    """Kind and path of all that lies in `folder`. Raises: ManifestError: as `keep`."""
    found, count, size = list[tuple[bytes, Path]](), 0, 0
    for path in walk(folder):
        about = path.lstat()
        if stat.S_ISLNK(about.st_mode):
            if not path.resolve().is_relative_to(folder.resolve()):
                raise ManifestError(
                    f"{path}: a link to {path.readlink()}, which lies outside of {folder}; put a "
                    f"copy there"
                )
            found.append((b"link", path))
        elif stat.S_ISDIR(about.st_mode):
            found.append((b"folder", path))
        elif stat.S_ISREG(about.st_mode):
            count, size = count + 1, size + about.st_size
            found.append((b"program" if about.st_mode & stat.S_IXUSR else b"file", path))
        else:
            raise ManifestError(f"{path}: no file, folder or link; remove it")
        if count > MAX_FILES or size > MAX_BYTES:
            raise ManifestError(
                f"{folder}: more than {MAX_FILES} files or {MAX_BYTES} bytes; name a smaller folder"
            )
    return found


def walk(folder: Path) -> Iterator[Path]:
    """All that lies in `folder`, in an order of its own; links are not followed."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        yield Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from walk(Path(entry.path))
