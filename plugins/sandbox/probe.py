"""Can this machine confine a plugin? Asked by trying it, not by looking at version numbers.

Knows the refusals of kernels and distributions, and what their owner can do about them.
Always: available means that a program was confined a moment ago, and failed to open a socket from
in there.
"""

import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import SandboxUnavailableError
from . import bubblewrap, interpreter, seccomp
from .linux import as_user, prepared
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
    ("Operation not permitted", CONTAINER),
)


@dataclass(frozen=True, slots=True)
class SandboxReport:
    """What `doctor` shows."""

    available: bool
    reason: str
    advice: str = ""


def inside_source() -> bytes:
    """The bootstrap that runs first in every sandbox."""
    return INSIDE.read_bytes()


def probe() -> SandboxReport:
    """Confine a tiny program once (some 50 milliseconds) and say how it went. Never raises."""
    try:
        program = bubblewrap.find(interpreter.unprivileged_user())
        seccomp.compile_filter(platform.machine())
        runs_on = interpreter.find(interpreter.unprivileged_user())
        trial = SandboxPolicy(
            interpreter=runs_on,
            files={START: inside_source(), f"{BUNDLE}/trial.py": TRIAL},
            module="bundle.trial",
        )
        with prepared(trial, program.path) as launch:
            asked = subprocess.run(
                launch.command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=20,
                pass_fds=launch.descriptors,
                cwd="/",
                env={},
                **as_user(launch.user),
            )
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
