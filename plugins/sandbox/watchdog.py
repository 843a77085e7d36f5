"""How much memory a family of processes holds, and how to end it.

Knows /proc. Knows nothing of plugins or bubblewrap.
Always: only the process group that was started here is signalled, never a name and never another
group.

Not covered: between two looks a family may hold more than its limit; each process's own address
space is bounded by the kernel, so the overshoot is at most that bound times the number of
processes.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

PROC = Path("/proc")
PAGE = os.sysconf("SC_PAGE_SIZE")
INTERVAL_S = 0.2


def family(root: int) -> list[int]:
    """`root` and all its descendants, as this machine numbers them."""
    found = [root]
    for pid in found:  # grows while it is read: a breadth-first walk
        found += children(pid)
    return found


def children(pid: int) -> list[int]:
    """Direct children of all threads of `pid`; none if it has ended."""
    found: list[int] = []
    try:
        for thread in (PROC / str(pid) / "task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        if not (PROC / "self/task" / str(os.getpid()) / "children").exists():
            return by_parent(pid)
    return found


def by_parent(pid: int) -> list[int]:
    """The same on kernels that list no children: ask every process for its parent."""
    found = []
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended while we looked
            if int(after_name[1]) == pid:
                found.append(int(entry.name))
    return found


def held_bytes(pid: int) -> int:
    """Memory of one process, shared pages divided among those who share them; 0 if it has ended."""
    try:
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    except (PermissionError, FileNotFoundError, ProcessLookupError):
        pass
    try:
        pages = (PROC / str(pid) / "statm").read_text().split()
        return (int(pages[1]) - int(pages[2])) * PAGE
    except (OSError, IndexError):
        return 0


def kill_group(leader: int) -> None:
    """End the whole process group that `leader` was started to lead."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


async def watch(leader: int, limit_bytes: int, over: Callable[[str], None]) -> None:
    """Look at the family of `leader` until it ends; once it holds more than `limit_bytes`, call
    `over` with the reason.
    """
    while True:
        await asyncio.sleep(INTERVAL_S)
        held = await asyncio.to_thread(lambda: sum(held_bytes(pid) for pid in family(leader)))
        if held > limit_bytes:
            over(f"its processes held {held >> 20} MB, more than {limit_bytes >> 20} MB")
            return
