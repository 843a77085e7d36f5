"""Confine a plugin with bubblewrap and a system call filter.

Covered: files outside of the bundle, network but for the broker's, other processes, the terminal,
new namespaces, memory, number of processes, size of what is written, CPU time of each process; time
per call is the client's part.
Not covered: bugs of the kernel it shares with us, CPU side channels, what a plugin writes in its
own answers, and what it could read in /usr, which is shown whole.

Always: files are handed over as open descriptors holding copies, so that the bytes that were
checked are the bytes that run, and no path of the owner's has to be readable from inside.
"""

import asyncio
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...core.errors import SandboxUnavailableError
from . import bubblewrap, interpreter, policy, seccomp
from .policy import FILTER, SandboxPolicy

MAX_LINE = 1 << 20  # bytes of one line, either way; a longer answer ends the plugin


@dataclass(frozen=True, slots=True)
class Launch:
    """A command with the descriptors it reads; valid inside `prepared` only."""

    command: list[str]
    descriptors: tuple[int, ...]
    user: int | None  # become this user first; None: stay who we are
    environment: Mapping[str, str] = field(default_factory=dict)


def system_links() -> dict[str, str | None]:
    """How /bin, /lib and their like are laid out here: link target, or None for a real folder."""
    found: dict[str, str | None] = {}
    for name in policy.MERGED:
        path = Path("/") / name
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_dir():
            found[name] = None
    return found


@contextmanager
def prepared(confined: SandboxPolicy, program: Path) -> Iterator[Launch]:
    """Open what the start needs, and close it when the start is over."""
    with ExitStack() as opened:

        def holding(content: bytes) -> int:
            descriptor = os.memfd_create("quietchoir-plugin")
            opened.callback(os.close, descriptor)
            with os.fdopen(os.dup(descriptor), "wb") as file:
                file.write(content)
            os.lseek(descriptor, 0, os.SEEK_SET)
            return descriptor

        online, writes = confined.broker is not None, bool(confined.writable)
        of_plugin = seccomp.Extra(network=online, writes=writes)
        machine, content = platform.machine(), dict(confined.files)
        if online:  # the plugin's own filter comes second, once `inside.py` listens
            content[FILTER] = seccomp.compile_filter(machine, of_plugin)
        files = {path: holding(one) for path, one in content.items()}
        filter_file = holding(seccomp.compile_filter(machine, replace(of_plugin, listens=online)))
        command = policy.arguments(
            program, confined, descriptors=files, seccomp=filter_file, links=system_links()
        )
        kept = [confined.storage[0]] if confined.storage else []
        kept += [confined.broker] if confined.broker is not None else []
        yield Launch(
            command, (*files.values(), filter_file, *kept), interpreter.unprivileged_user()
        )


async def start(confined: SandboxPolicy) -> asyncio.subprocess.Process:
    """Start the plugin as the leader of a process group of its own, its three streams piped.

    Raises:
        SandboxUnavailableError: see `bubblewrap.find`; or a bwrap that this user may not run.
    """
    with prepared(confined, bubblewrap.find(interpreter.unprivileged_user()).path) as launch:
        return await spawned(launch, "bubblewrap")


async def spawned(launch: Launch, name: str) -> asyncio.subprocess.Process:
    """The process of `launch`. Raises: SandboxUnavailableError: it did not start."""
    try:
        return await asyncio.create_subprocess_exec(
            *launch.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=launch.descriptors,
            start_new_session=True,
            cwd="/",
            env=dict(launch.environment),
            limit=MAX_LINE,
            **as_user(launch.user),
        )
    except OSError as error:
        raise SandboxUnavailableError(
            f"{name} did not start ({error.strerror}); run: quietchoir doctor"
        ) from error


def as_user(user: int | None) -> dict[str, Any]:
    """Arguments of `subprocess` that drop root for good."""
    return {} if user is None else {"user": user, "group": user, "extra_groups": []}
