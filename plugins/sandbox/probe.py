"""Can this machine confine a plugin? Asked by trying it, not by looking at version numbers.

Knows the refusals of kernels and distributions, and what their owner can do about them.
Always: available means that a program was confined a moment ago, and failed to open a socket from
in there, and without namespaces also to read a file, to signal another process and to have one that
leaves its group.
Bubblewrap comes first; where it cannot run, Landlock is tried, and the report says why.
"""

import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...core.errors import QuietchoirError, SandboxUnavailableError
from . import bubblewrap, interpreter, landlock, seccomp
from .linux import Launch, as_user, prepared
from .policy import BUNDLE, START, SandboxPolicy

TRIAL = b"""
import os, socket
try:
    socket.socket()
    print("a socket opened")
except PermissionError:
    seen = [name for name in os.listdir("/proc") if name.isdigit()]
    print("confined" if len(seen) < 4 else "other processes are visible")
"""
# without namespaces
TRIAL_SHARED = b"""
import os, socket
def left():
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
        except PermissionError:
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        raise PermissionError
attempts = {
    "a socket opened": socket.socket,
    "/etc/passwd can be read": lambda: open("/etc/passwd"),
    "other processes are visible": lambda: os.listdir("/proc"),
    "a process left its group": left,
    "others can be signalled": lambda: os.kill(os.getppid(), 0),
}
found = []
for name, attempt in attempts.items():
    try:
        attempt()
        found.append(name)
    except PermissionError:
        pass
print(found[0] if found else "confined")
"""
Launcher = Literal["bubblewrap", "landlock"]
Wanted = Literal["auto", Launcher]
INSIDE = Path(__file__).with_name("inside.py")
PROFILE = (
    "install the AppArmor profile bwrap-userns-restrict (Ubuntu: package apparmor-profiles) "
    "and reload AppArmor"
)
SWITCHES = (
    "set kernel.unprivileged_userns_clone to 1 and user.max_user_namespaces above 0 with sysctl"
)
CONTAINER = (
    "start the container with a seccomp profile that allows user namespaces (unshare, clone, mount)"
)
ADVICE = (  # what bubblewrap says → what helps
    ("setting up uid map", PROFILE),
    ("RTM_NEWADDR", PROFILE),
    (
        "No permissions to create",
        f"user namespaces are switched off: {SWITCHES}; in a container, {CONTAINER}",
    ),
    ("Creating new namespace failed", SWITCHES),
    ("Operation not permitted", CONTAINER),
)


@dataclass(frozen=True, slots=True)
class SandboxReport:
    """What `doctor` shows."""

    available: bool
    reason: str
    advice: str = ""
    launcher: Launcher = "bubblewrap"


def inside_source() -> bytes:
    """The bootstrap that runs first in every sandbox."""
    return INSIDE.read_bytes()


def probe(wanted: Wanted = "auto") -> SandboxReport:
    """Confine a tiny program once (some 50 milliseconds) and say how it went. Never raises.

    Args:
        wanted: "auto": bubblewrap, and Landlock alone only where that cannot confine.
    """
    if wanted == "landlock":
        return by_landlock()
    first = by_bubblewrap()
    if first.available or wanted == "bubblewrap":
        return first
    second = by_landlock()
    if not second.available:
        return SandboxReport(False, f"{first.reason}; nor Landlock: {second.reason}", first.advice)
    return SandboxReport(
        True,
        f"{second.reason}, because {first.reason}; plugins that ask for the network or for folders "
        f"to write to do not run",
        f"for all of it: {first.advice}",
        "landlock",
    )


def by_landlock() -> SandboxReport:
    """The same without namespaces."""
    try:
        version, user = landlock.level(), interpreter.unprivileged_user()
        trial = trial_of(TRIAL_SHARED)
        stage = landlock.staged(trial, version, user)
        try:
            asked = run(landlock.launch(trial, stage, user))
        finally:
            landlock.remove(stage)
    except (QuietchoirError, OSError, subprocess.SubprocessError) as error:
        return SandboxReport(False, str(error), launcher="landlock")
    if asked.stdout.strip() == "confined":
        runs_on = trial.interpreter.executable
        reason = f"Landlock (version {version}) and a filter, Python {runs_on}"
        if not landlock.begins_programs(version):
            reason += "; no plugin begins programs, which Landlock holds from Linux 6.12 on"
        return SandboxReport(True, reason, launcher="landlock")
    said = (asked.stderr or asked.stdout).strip().splitlines()[-1:]
    reason = said[0] if said else f"exit status {asked.returncode}"
    return SandboxReport(False, f"a trial program was not confined: {reason}", launcher="landlock")


def trial_of(program: bytes) -> SandboxPolicy:
    """A policy that grants nothing. Raises: SandboxUnavailableError: no filter, or no Python."""
    seccomp.compile_filter(platform.machine())
    return SandboxPolicy(
        interpreter=interpreter.find(interpreter.unprivileged_user()),
        files={START: inside_source(), f"{BUNDLE}/trial.py": program},
        module="bundle.trial",
    )


def run(launch: Launch) -> subprocess.CompletedProcess[str]:
    """What a trial comes to."""
    return subprocess.run(
        launch.command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        pass_fds=launch.descriptors,
        cwd="/",
        env=dict(launch.environment),
        **as_user(launch.user),
    )


def by_bubblewrap() -> SandboxReport:
    """What bubblewrap does here."""
    try:
        program = bubblewrap.find(interpreter.unprivileged_user())
        trial = trial_of(TRIAL)
        runs_on = trial.interpreter
        with prepared(trial, program.path) as launch:
            asked = run(launch)
    except SandboxUnavailableError as error:
        reason, _, advice = str(error).partition("; ")
        return SandboxReport(False, reason, advice)
    except (OSError, subprocess.SubprocessError) as error:
        return SandboxReport(
            False,
            f"the trial run failed: {error}",
            "reinstall bubblewrap and run: quietchoir doctor",
        )
    if asked.stdout.strip() == "confined":
        return SandboxReport(
            True, f"bubblewrap {program.origin} ({program.path}), Python {runs_on.executable}"
        )
    said = (asked.stderr or asked.stdout).strip().splitlines()[-1:] or [
        f"exit status {asked.returncode}"
    ]
    advice = next(
        (advice for sign, advice in ADVICE if sign in asked.stderr),
        "see what bwrap says to: bwrap --unshare-all --unshare-user --disable-userns --ro-bind / / "
        "true",
    )
    return SandboxReport(False, f"bubblewrap could not confine a trial program: {said[0]}", advice)
