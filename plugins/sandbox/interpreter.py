"""Which Python a plugin runs on, and as which user.

Knows folders, versions and permission bits. Starts nothing but `python --version`'s equivalent,
once.
Always: as root the plugin belongs to an ordinary user, because the kernel counts no processes of
root's.
"""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

from ...core.errors import SandboxUnavailableError
from .policy import Interpreter

NOBODY = 65534
LEAST = (3, 11)
ASK = "import sys; print(sys.version_info >= (3, 11), sys.base_prefix)"


def unprivileged_user() -> int | None:
    """The user to become before anything of a plugin's runs; None if we are an ordinary user
    already.
    """
    return NOBODY if os.geteuid() == 0 else None


def reachable(path: Path, user: int | None) -> bool:
    """Whether `user` (None: ourselves) may pass through every folder on the way to `path`, and
    read it.
    """
    if user is None:
        return os.access(path, os.R_OK | os.X_OK)
    try:
        return all(
            folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.resolve().parents)
        )
    except OSError:
        return False


def find(user: int | None) -> Interpreter:
    """Our own interpreter's installation if `user` may read it, else the system's.

    Raises:
        SandboxUnavailableError: neither can be used; the message names both.
    """
    prefix = Path(sys.base_prefix).resolve()
    own = prefix / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    if own.exists() and reachable(prefix, user) and reachable(own, user):
        return Interpreter(own, prefix)
    for name in ("python3", "python3.11", "python3.12", "python3.13", "python3.14"):
        found = shutil.which(name, path="/usr/bin:/usr/local/bin")
        if found and reachable(Path(found), user) and (system := version_of(Path(found))):
            return Interpreter(Path(found), system)
    least = ".".join(map(str, LEAST))
    raise SandboxUnavailableError(
        f"{own} lies where an unprivileged user may not read, and /usr/bin has no Python {least} "
        f"or newer; "
        f"install the system's python3 (version {least} or newer), or run quietchoir as an "
        f"ordinary user"
    )


def minor_version(found: Interpreter) -> str:
    """For example "3.11": compiled packages are for one of them.

    Raises:
        SandboxUnavailableError: it does not say.
    """
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        asked = subprocess.run(
            [found.executable, "-I", "-S", "-c", ask],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise SandboxUnavailableError(f"{found.executable} does not run ({error})") from error
    return asked.stdout.strip()


def version_of(executable: Path) -> Path | None:
    """The installation folder of `executable`, None if it is older than plugins need."""
    try:
        asked = subprocess.run(
            [executable, "-I", "-S", "-c", ASK],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    fits, _, prefix = asked.stdout.strip().partition(" ")
    return Path(prefix).resolve() if fits == "True" else None
