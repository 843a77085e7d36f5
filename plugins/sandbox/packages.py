"""Packages of this installation, as one folder that a plugin imports from.

Knows distributions and their files. Knows nothing of plugins.
Always: a plugin sees what the distributions of `manifest.PACKAGES` installed, and nothing else of
this installation; compiled parts are shown only to the Python that they are made for; a folder is
whole or not there, and made anew when a distribution is another.
"""

import hashlib
import importlib.metadata
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePath

from ...core import paths
from ...core.errors import SandboxUnavailableError
from ..manifest import EXTRAS, PACKAGES
from . import interpreter
from .policy import Interpreter
from .store import SHARED


def folder(names: Sequence[str], runs_on: Interpreter, user: int | None) -> Path:
    """A folder with these packages.

    Args:
        names: keys of `manifest.PACKAGES`; what they stand on comes along.
        user: who must be able to read it.

    Raises:
        SandboxUnavailableError: one is not installed (says how to install it), is compiled for
        another Python than plugins run on, or there is no place that `user` can read.
    """
    found = [distribution(one, name) for name in names for one in PACKAGES[name]]
    if any(file.suffix == ".so" for one in found for file in one.files or ()):
        same_python(runs_on, names)
    listed = [f"{one.name} {one.version} {one.read_text('RECORD')}" for one in found]
    mine = digest(sys.prefix, *names)  # of this installation
    place = place_for(user)
    target = place / f"{mine}-{digest(*listed)}"
    if not target.is_dir():
        with tempfile.TemporaryDirectory(dir=place, prefix="new-") as made:
            fresh = Path(made) / "packages"
            for one in found:
                copy(one, fresh)
            for path in [fresh, *fresh.rglob("*")]:
                runs = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
                path.chmod(0o755 if runs else 0o644)
            for old in place.glob(f"{mine}-*"):
                shutil.rmtree(old, ignore_errors=True)
            try:
                fresh.rename(target)
            except OSError:
                if not target.is_dir():  # else another process was faster
                    raise
    return target


def digest(*texts: str) -> str:
    """Of a list of texts, for a name."""
    return hashlib.sha256("\0".join(texts).encode(errors="replace")).hexdigest()[:16]


def place_for(user: int | None) -> Path:
    """Where these folders lie. Raises: SandboxUnavailableError: nowhere that `user` can read."""
    if user is None:
        return paths.private_folder(paths.home() / "plugins" / "store" / "packages")
    place = SHARED / "packages"  # of all nodes alike: nothing in them is a node's own
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o755)
    except OSError as error:
        raise SandboxUnavailableError(
            f"{place}: cannot be made ({error.strerror}); run quietchoir as an ordinary user"
        ) from error
    if not interpreter.reachable(place, user):
        raise SandboxUnavailableError(
            f"{place} lies where the plugin's user may not read; run quietchoir as an ordinary user"
        )
    return place


def distribution(name: str, wanted: str) -> importlib.metadata.Distribution:
    """An installed distribution. Raises: SandboxUnavailableError: it is not installed."""
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        extra = next(extra for extra, packages in EXTRAS.items() if wanted in packages)
        raise SandboxUnavailableError(
            f"the package {name} is not installed, and a plugin runs on it; install it with: pip "
            f"install 'quietchoir[{extra}]'"
        ) from None


def same_python(runs_on: Interpreter, names: Sequence[str]) -> None:
    """Raises: SandboxUnavailableError: plugins run on another Python than these are made for."""
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    own = runs_on.prefix == Path(sys.base_prefix).resolve()
    if not own and (theirs := interpreter.minor_version(runs_on)) != ours:
        raise SandboxUnavailableError(
            f"{', '.join(names)}: compiled for Python {ours}, and plugins run on {theirs} "
            f"({runs_on.executable}); run quietchoir as an ordinary user, or on that Python"
        )


def copy(source: importlib.metadata.Distribution, target: Path) -> None:
    """The files of a distribution, with their times, which compiled Python files hold; its programs
    in `bin`.
    """
    for file in source.files or ():
        inside = PurePath("bin", file.name) if file.parts[-2:-1] == ("bin",) else PurePath(file)
        origin = Path(os.fspath(file.locate()))
        if inside.is_absolute() or ".." in inside.parts or not origin.is_file():
            continue
        (target / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(origin, target / inside)
