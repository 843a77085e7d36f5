"""Confine a plugin without namespaces: by Landlock, by a stricter filter, and as one process group.
For systems that let nobody make user namespaces, where bubblewrap cannot run.

Covered: contents of files outside of its bundle, of /usr and of what its owner shows to it; writing
anywhere on a disk but in one private folder that is gone with it; the network, whole; other
processes (signals, tracing, limits, memory, descriptors, environment); programs that it begins,
which end with it; memory, processes and threads, CPU time, storage, scratch space.
Not covered, besides what `linux` does not cover: whether a path that it guesses is there, how large
and how old that is, and where a link leads (stat, readlink: no right of Landlock's is asked for);
which numbers of processes are taken. Processes and scratch space are counted every 0.2 s, not held
by the kernel.

Always: a kernel whose Landlock lacks a right that is needed confines nothing; where it does not
keep signals within (ABI 6), a plugin stays one process; what a manifest asks for and this cannot
hold is refused, by `refuses`, and never granted openly.
Source: linux/landlock.h; Documentation/userspace-api/landlock.rst.
"""

import asyncio
import ctypes
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ...core import paths
from ...core.errors import SandboxUnavailableError
from ..manifest import Permissions
from . import interpreter, keeper, linux, policy, seccomp
from .linux import Launch
from .policy import FILTER, KIT, SandboxPolicy
from .store import SHARED
from .watchdog import PROC, THREADS, status

# From which version of the kernel's interface (ABI) what is handled: removing, making and reading
# (1), other folders (2), cutting short (3), TCP (4), devices' commands (5), signals and sockets
# without a path (6). From LEAST on nothing is open: of the rest the filter refuses all.
LEAST, PROGRAMS = 4, 6  # from PROGRAMS on it may begin others
CREATE_RULESET, ASK_VERSION = 444, 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
FILES_HANDLED = {4: IOCTL_DEV - 1, 5: 2 * IOCTL_DEV - 1}  # by ABI: all rights that it knows
BIND_AND_CONNECT, SOCKETS_AND_SIGNALS = 0b11, 0b11
# in its scratch space: files and folders, and neither links, pipes, sockets nor programs
SCRATCH_RIGHTS = (
    READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | MAKE_REG | MAKE_DIR | REMOVE_FILE | REMOVE_DIR
) | REFER
DEVICES = {
    "/dev/null": READ_FILE | WRITE_FILE,
    "/dev/zero": READ_FILE | WRITE_FILE,
    "/dev/full": READ_FILE | WRITE_FILE,
    "/dev/random": READ_FILE,
    "/dev/urandom": READ_FILE,
}
# what libraries find and then do not expect to be refused; everybody may read them
ETC = ("/etc/ld.so.cache", "/etc/localtime", "/etc/mime.types")
RULESET = f"{KIT}/landlock.json"
# The kernel counts all threads of a user together: so many more may its other programs begin
# before a plugin cannot begin its own. Its own are counted by the watchdog.
SPARE_THREADS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruleset:
    """What `inside.py` keeps: all else that is handled is given up."""

    handled: tuple[int, ...]  # rights to files, to ports, and scopes: `landlock_ruleset_attr`
    rules: tuple[tuple[str, int], ...]  # a file or a folder, and the rights to it
    parent: int  # who starts it
    own: int = seccomp.OWN  # what stands for its number in the filter


def abi() -> int:
    """The version of Landlock's interface here; 0 if there is none."""
    if platform.system() != "Linux":
        return 0
    call = ctypes.CDLL(None, use_errno=True).syscall
    none, flags = ctypes.c_long(0), ctypes.c_long(ASK_VERSION)
    return max(0, int(call(ctypes.c_long(CREATE_RULESET), none, none, flags)))


def level() -> int:
    """The version to be used. Raises: SandboxUnavailableError: it is none, or too old."""
    found = abi()
    if found < LEAST:
        raise SandboxUnavailableError(
            f"this kernel's Landlock has version {found}, and plugins without namespaces need "
            f"{LEAST} (Linux 6.7 with landlock among its security modules); "
            f"let bubblewrap run instead"
        )
    return found


def begins_programs(version: int) -> bool:
    """Whether a plugin may begin programs: their signals stay within, and one ends all of them."""
    return version >= PROGRAMS and keeper.signals_groups()


def refuses(asked: Permissions) -> str:
    """What of these permissions cannot be held here, in words; empty if all can."""
    wanted = [
        *(["the network"] if asked.network or asked.hosts else []),
        *(["folders to write to"] if asked.write_folders else []),
    ]
    if not wanted:
        return ""
    return (
        f"it asks for {' and '.join(wanted)}, which is granted where bubblewrap confines it and "
        f"not under Landlock alone; quietchoir doctor says what helps"
    )


def ruleset(confined: SandboxPolicy, stage: Path, version: int) -> Ruleset:
    """What a plugin may still do. Only what is there can be named.

    Args:
        stage: the folder that holds its files.
    """
    look = READ_FILE | READ_DIR
    rules = {str(stage): look, f"{stage}{policy.TEMPORARY}": SCRATCH_RIGHTS}
    rules[str(policy.SYSTEM)] = look | EXECUTE
    for name, target in linux.system_links().items():
        if target is None:
            rules[f"/{name}"] = look | EXECUTE
    rules[str(confined.interpreter.prefix)] = look | EXECUTE
    for place, folder in confined.folders.items():
        runs = EXECUTE if place == policy.FILES else 0
        rules[str(folder.resolve())] = look | runs
    for path in ETC:
        if Path(path).is_file():
            rules[str(Path(path).resolve())] = READ_FILE
    rules |= {path: rights for path, rights in DEVICES.items() if Path(path).exists()}
    known = max(one for one in FILES_HANDLED if one <= version)
    handled = [FILES_HANDLED[known], BIND_AND_CONNECT]
    if version >= 6:
        handled.append(SOCKETS_AND_SIGNALS)
    return Ruleset(handled=tuple(handled), rules=tuple(rules.items()), parent=os.getpid())


def resource_limits(confined: SandboxPolicy, user: int | None) -> dict[str, int]:
    """As the policy's, but for processes, which are counted with all others of the user's."""
    taken = threads_of_user(os.geteuid() if user is None else user)
    most = taken + confined.limits.processes + SPARE_THREADS
    return policy.resource_limits(confined) | {"NPROC": most}


def threads_of_user(user: int) -> int:
    """How many threads this user has."""
    count = 0
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                if entry.stat().st_uid == user and (words := status(int(entry.name))):
                    count += int(words[THREADS])
            except (FileNotFoundError, ProcessLookupError):
                continue
    return count


def staged(confined: SandboxPolicy, version: int, user: int | None) -> Path:
    """A folder that holds what the plugin reads, laid out as it would see it; folders of its
    owner's, and what it runs on, are links; one folder is its own. Whoever starts the plugin
    removes it afterwards (`remove`).

    Raises:
        SandboxUnavailableError: nowhere that the plugin's user could read it.
    """
    stage = Path(tempfile.mkdtemp(dir=place_for(user), prefix=f"{os.getpid()}-"))
    try:
        files = dict(confined.files)
        scratch = stage / policy.TEMPORARY.lstrip("/")
        scratch.mkdir()
        of_plugin = seccomp.Extra(shared=True, writes=True, programs=begins_programs(version))
        files[FILTER] = seccomp.compile_filter(platform.machine(), of_plugin)
        files[RULESET] = json.dumps(asdict(ruleset(confined, stage, version))).encode()
        for path, content in files.items():
            target = stage / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        for path, folder in confined.folders.items():
            target = stage / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(folder.resolve())
        for one in (stage, *stage.rglob("*")):
            if not one.is_symlink():
                if user is not None:
                    os.chown(one, -1, user)
                one.chmod(0o750 if one.is_dir() else 0o440)
        if user is not None:
            os.chown(scratch, user, user)
        scratch.chmod(0o700)
    except BaseException:
        remove(stage)
        raise
    return stage


def remove(stage: Path) -> None:
    """Take away a stage whose plugin has ended."""
    # coreutils' own: a plugin's folders may be closed to everybody, or deeper than Python recurses
    subprocess.run(["rm", "-rf", "--", stage], stderr=subprocess.DEVNULL, check=False)


def place_for(user: int | None) -> Path:
    """Where stages lie; those of processes that are gone are removed."""
    if user is None:
        place = paths.private_folder(paths.home() / "plugins" / "stage")
    else:
        place = SHARED / "stage"
        place.mkdir(parents=True, exist_ok=True, mode=0o755)
        if not interpreter.reachable(place, user):
            raise SandboxUnavailableError(
                f"{place} lies where the plugin's user may not read; run quietchoir as an ordinary "
                f"user"
            )
    for old in left_over(place):
        remove(old)
    return place


def left_over(place: Path) -> Iterator[Path]:
    """Stages whose maker has ended without removing them."""
    for stage in place.iterdir():
        maker = stage.name.partition("-")[0]
        if maker.isdigit() and not (PROC / maker).exists():
            yield stage


def launch(confined: SandboxPolicy, stage: Path, user: int | None) -> Launch:
    """The command that starts the plugin of `stage`.

    Raises:
        SandboxUnavailableError: what was granted cannot be held here (`refuses`).
    """
    if confined.broker is not None or confined.writable:
        raise SandboxUnavailableError("neither network nor folders to write to without bubblewrap")
    limits = resource_limits(confined, user)
    return Launch(
        policy.program(confined, limits, str(stage)),
        (confined.storage[0],) if confined.storage else (),
        user,
        policy.environment(confined, str(stage)),
    )


async def start(confined: SandboxPolicy) -> tuple[asyncio.subprocess.Process, Path]:
    """Start the plugin, its three streams piped; the process, and the folder to remove when it has
    ended.

    Raises:
        SandboxUnavailableError: this kernel cannot confine it, or not with what it was granted.
    """
    user = interpreter.unprivileged_user()
    try:
        stage = await asyncio.to_thread(staged, confined, level(), user)
    except OSError as error:
        raise SandboxUnavailableError(
            f"no place for what a plugin reads ({error}); free the disk, or mend the folder"
        ) from error
    try:
        how = await asyncio.to_thread(launch, confined, stage, user)
        return await linux.spawned(how, "a plugin without namespaces"), stage
    except BaseException:
        remove(stage)
        raise
