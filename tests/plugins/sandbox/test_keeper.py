"""Who is held ends with the node, however that ended: real processes."""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from quietchoir.plugins.sandbox import watchdog
from quietchoir.plugins.sandbox.watchdog import Bounds, Watchdog

# A node with two processes that ask for no parent-death signal; one is watched.
NODE = """
import os, subprocess, sys, time
from quietchoir.plugins.sandbox.keeper import KEEPER
pids = [
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid for _ in range(2)
]
handle = os.pidfd_open(pids[0])
KEEPER.hold(handle)
print(*pids, flush=True)
time.sleep(600)
"""

# One that is killed while its keeper is still beginning.
HASTY = """
import os, signal, subprocess, sys
from quietchoir.plugins.sandbox.keeper import KEEPER
pids = [
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid for _ in range(6)
]
print(*pids, flush=True)
sys.stdin.readline()
for pid in pids:
    KEEPER.hold(os.pidfd_open(pid))
os.kill(os.getpid(), signal.SIGKILL)
"""

# The first thread ends; the second goes on.
HEADLESS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
print("ready", flush=True)
ctypes.CDLL(None).syscall({exit}, 0)
"""
SYS_EXIT = {"x86_64": 60, "aarch64": 93}


@pytest.fixture
def node() -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    started = subprocess.Popen([sys.executable, "-c", NODE], stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    pids = [int(pid) for pid in started.stdout.readline().split()]
    handles = [os.pidfd_open(pid) for pid in pids]
    yield started, handles
    started.kill()
    started.wait()
    started.stdout.close()
    for handle in handles:
        if not ended(handle, 0):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        os.close(handle)


def ended(handle: int, within_s: float = 60.0) -> bool:
    return bool(select.select([handle], [], [], within_s)[0])


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_who_is_held_ends_with_the_node_and_who_is_not_goes_on(
    node: tuple[subprocess.Popen[str], list[int]], by: signal.Signals
) -> None:
    """The instance: a thread of a plugin that called execve had lost its parent-death signal."""
    started, (held, other) = node
    assert not ended(held, 0)
    started.send_signal(by)
    started.wait()
    assert ended(held)
    assert not ended(other, 0)  # without it: the control


def test_what_a_killed_node_had_only_just_handed_over_ends_too() -> None:
    """The instance: of six handles that waited in the line one was read, and five lived on."""
    started = subprocess.Popen(
        [sys.executable, "-c", HASTY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert started.stdout is not None and started.stdin is not None
    handles = [os.pidfd_open(int(pid)) for pid in started.stdout.readline().split()]
    try:
        started.stdin.write("\n")
        started.stdin.close()
        started.wait()
        assert len(handles) == 6 and all(map(ended, handles))
    finally:
        started.stdout.close()
        for handle in handles:
            if not ended(handle, 0):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)


async def test_who_has_ended_its_first_thread_is_stopped_and_counted_like_any_other() -> None:
    """The instance: under Landlock its state was taken for that of the whole process."""
    code = HEADLESS.format(exit=SYS_EXIT[os.uname().machine])
    started = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
    )
    assert started.stdout is not None
    with started.stdout:
        assert started.stdout.readline() == b"ready\n"
        while watchdog.state(started.pid) != "Z":
            threading.Event().wait(0.01)
        watched = Watchdog(started.pid, Bounds(1 << 20, leads=True, threads=4), print)
        try:
            assert "MB, more than 1 MB" in (watched._excess() or "")
            await watched.freeze()
            (stopped,) = watched.frozen
            until = time.monotonic() + 60
            while watchdog.state(stopped) != "T" and time.monotonic() < until:
                threading.Event().wait(0.01)
            assert watchdog.state(stopped) == "T"
        finally:
            watched.end(collected=False)
            started.wait()
