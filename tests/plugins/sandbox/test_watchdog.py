"""The watchdog sees a whole family and signals no other."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from quietchoir.plugins.sandbox import watchdog
from quietchoir.plugins.sandbox.watchdog import Bounds, Watchdog

PARENT = """
import subprocess, sys
held = b"x" * (24 << 20)
sleeper = "print('ready', flush=True); import time; time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", sleeper])
child.wait()
"""


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[bytes]]:
    """A process with a child, leading a group of its own."""
    started = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, start_new_session=True
    )
    assert started.stdout is not None
    assert started.stdout.readline() == b"ready\n"
    yield started
    watchdog.kill_group(started.pid)
    started.wait()
    started.stdout.close()


def test_both_ways_to_list_children_agree(parent: subprocess.Popen[bytes]) -> None:
    (child,) = watchdog.by_parent(parent.pid)
    assert watchdog.family(parent.pid) == [parent.pid, child]


def test_memory_is_counted_and_the_dead_hold_none(parent: subprocess.Popen[bytes]) -> None:
    assert watchdog.held_bytes(parent.pid) > 24 << 20
    assert watchdog.held_bytes(2**22 + 1) == 0
    assert watchdog.family(2**22 + 1) == [2**22 + 1]


MANY = """
import mmap, os, select
pages = [mmap.mmap(-1, 4096) for _ in range(3000)]
watching, ends = select.epoll(), os.pipe()
for number in range(100, 150):
    watching.register(os.dup2(ends[0], number))
print("ready", flush=True)
input()
"""


def test_mappings_and_watches_are_counted() -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", MANY], stdin=pipe, stdout=pipe) as many:
        assert many.stdin is not None and many.stdout is not None
        assert many.stdout.readline() == b"ready\n"
        kept = watchdog.kernel_bytes([many.pid]) - 3 * watchdog.PIPE_BYTES
        assert 3050 * watchdog.KEPT_BYTES <= kept < 4500 * watchdog.KEPT_BYTES
        many.stdin.close()


SENDING = """
import os, socket
ours, theirs = socket.socketpair()
other, end = socket.socketpair()
socket.send_fds(ours, [b"x"], [os.open("/dev/null", os.O_RDONLY)])
socket.send_fds(other, [b"x"], [theirs.fileno()])  # and the socket that it waits in
theirs.close()
print("ready", flush=True)
input()
socket.recv_fds(socket.socket(fileno=socket.recv_fds(end, 1, 1)[1][0]), 1, 1)
print("ready", flush=True)
input()
"""


def test_descriptors_that_wait_in_sockets_are_seen() -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", SENDING], stdin=pipe, stdout=pipe) as sending:
        assert sending.stdin is not None and sending.stdout is not None
        for waiting in (True, False):
            assert sending.stdout.readline() == b"ready\n"
            assert watchdog.in_flight([sending.pid]) is waiting
            sending.stdin.write(b"\n")
            sending.stdin.flush()


def test_killing_a_group_ends_the_family_and_nobody_else(parent: subprocess.Popen[bytes]) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        watchdog.kill_group(parent.pid)
        assert parent.wait(10) == -9
        assert stranger.poll() is None
        watchdog.kill_group(parent.pid)  # it is gone: nothing happens
    finally:
        stranger.kill()
        stranger.wait()
    assert not Path(f"/proc/{stranger.pid}").exists()


AWAY = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    open("/proc/self/comm", "wb").write(b"\\xff\\xfe)")
    print("ready", flush=True)
    time.sleep(60)
os.wait()
time.sleep(60)  # its child ends first, and is no reason to end of itself
"""


def gone(pid: int) -> bool:
    """Whether it ends within ten seconds; a dead one may wait for the system's init."""
    until = time.monotonic() + 10
    while watchdog.state(pid) not in "ZX" and time.monotonic() < until:
        time.sleep(0.01)
    return watchdog.state(pid) in "ZX"


@pytest.fixture
def away() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process whose child has a session of its own, and a name that is no text."""
    started = subprocess.Popen(
        [sys.executable, "-c", AWAY], stdout=subprocess.PIPE, start_new_session=True
    )
    assert started.stdout is not None
    assert started.stdout.readline() == b"ready\n"
    (child,) = watchdog.children(started.pid)
    yield started, child
    started.kill()
    started.wait()
    watchdog.send(child, signal.SIGKILL)
    started.stdout.close()


def test_killing_the_group_alone_leaves_it_and_the_end_does_not(
    away: tuple[subprocess.Popen[bytes], int],
) -> None:
    """The instance: a plugin whose kernel no longer ends it with its parent went on for ever."""
    leader, child = away
    watched = Watchdog(leader.pid, Bounds(1 << 30), print)
    assert watched._excess() is None
    watchdog.kill_group(leader.pid)
    leader.wait()
    assert watchdog.state(child) == "S"
    assert watchdog.status(child)[1] != str(leader.pid)  # another is its parent now
    watched.end(collected=True)
    assert gone(child)
    watched.end(collected=True)  # nothing happens


def test_the_end_reaches_another_session(away: tuple[subprocess.Popen[bytes], int]) -> None:
    leader, child = away
    Watchdog(leader.pid, Bounds(1 << 30), print).end(collected=False)
    assert leader.wait(10) == -9
    assert gone(child)


async def test_a_name_that_is_no_text_stops_like_any_other(
    away: tuple[subprocess.Popen[bytes], int],
) -> None:
    leader, child = away
    watched = Watchdog(leader.pid, Bounds(1 << 30), print)
    await watched.freeze()
    assert watched.frozen == (child,)
    assert watchdog.by_parent(leader.pid) == [child]
    assert watchdog.state(child) == "T"


@pytest.mark.parametrize("frozen", [False, True])
async def test_an_error_while_looking_ends_the_family(
    away: tuple[subprocess.Popen[bytes], int], monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    heard: list[str] = []
    watched = Watchdog(away[0].pid, Bounds(1 << 30), heard.append)
    if frozen:
        await watched.freeze()
    monkeypatch.setattr(watchdog, "run_times", lambda pids: 1 / 0)
    monkeypatch.setattr(watchdog, "family", lambda leader: 1 / 0)
    async with asyncio.timeout(10):
        await watched.watch()
    await watched.freeze()
    assert [reason.partition(" (")[0] for reason in heard] == [
        "it cannot be watched",
        "it cannot be stopped for a while",
    ]


async def test_one_that_runs_on_while_it_is_stopped_is_noticed(
    away: tuple[subprocess.Popen[bytes], int],
) -> None:
    heard: list[str] = []
    watched = Watchdog(away[0].pid, Bounds(1 << 30), heard.append)
    await watched.freeze()
    os.kill(away[1], signal.SIGCONT)  # the kernel may, where a process group is orphaned
    async with asyncio.timeout(10):
        await watched.watch()
    assert heard == ["1 of its processes ran on after they were stopped"]


async def test_a_family_that_is_stopped_is_not_read_through_until_one_ran(
    away: tuple[subprocess.Popen[bytes], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, asked = 0, 0
    family, run_times = watchdog.family, watchdog.run_times

    def counted_family(leader: int) -> list[int]:
        nonlocal looked
        looked += 1
        return family(leader)

    def counted_times(pids: Iterable[int]) -> list[bytes] | None:
        nonlocal asked
        asked += 1
        return run_times(pids)

    watched = Watchdog(away[0].pid, Bounds(1 << 30), lambda reason: None)
    assert watched._excess() is None  # it holds on to the first inside from now on
    await watched.freeze()
    times = run_times(watched.frozen)
    assert times is not None
    monkeypatch.setattr(watchdog, "family", counted_family)
    monkeypatch.setattr(watchdog, "run_times", counted_times)
    monkeypatch.setattr(watchdog, "RESTING_S", 0.001)
    task = asyncio.create_task(watched.watch())
    async with asyncio.timeout(10):
        while asked < 20:
            await asyncio.sleep(0)
        assert looked == 0
        os.kill(away[1], signal.SIGCONT)
        while run_times(watched.frozen) == times:
            await asyncio.sleep(0)
        os.kill(away[1], signal.SIGSTOP)  # stopped again: it could have had a child meanwhile
        while looked == 0:
            await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


HALF = """
import ctypes, threading, time
def on():
    held = b"x" * (24 << 20)
    print("ready", flush=True)
    time.sleep(60)
threading.Thread(target=on).start()
time.sleep(0.1)
ctypes.CDLL(None).syscall({exit}, 0)
"""


def test_a_process_whose_main_thread_ended_is_counted_and_stopped() -> None:
    number = 93 if os.uname().machine == "aarch64" else 60
    half = HALF.format(exit=number)
    started = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import subprocess; subprocess.run([{sys.executable!r}, '-c', {half!r}])",
        ],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert started.stdout is not None
    try:
        assert started.stdout.readline() == b"ready\n"
        (child,) = watchdog.children(started.pid)
        while watchdog.state(child) != "Z":
            time.sleep(0.01)
        (seen,) = watchdog.family(started.pid)[1:]
        assert seen != child
        assert watchdog.held_bytes(child) < watchdog.held_bytes(seen)
        assert watchdog.held_bytes(seen) > 24 << 20
        assert watchdog.stop(started.pid) == (seen,)
        assert watchdog.state(seen) == "T"
    finally:
        Watchdog(started.pid, Bounds(1 << 30), print).end(collected=False)
        assert started.wait(10) == -9
        started.stdout.close()


VFORK = """
import ctypes, os
libc = ctypes.CDLL(None)
if os.fork() == 0:
    if libc.vfork() == 0:
        print("ready", flush=True)
        while True:
            libc.pause()
os.wait()
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="vfork by its own number")
def test_one_that_waits_for_its_vforks_child_does_not_keep_us_busy() -> None:
    started = subprocess.Popen(
        [sys.executable, "-c", VFORK], stdout=subprocess.PIPE, start_new_session=True
    )
    assert started.stdout is not None
    try:
        assert started.stdout.readline() == b"ready\n"
        stopped = watchdog.stop(started.pid)
        assert sorted(map(watchdog.state, stopped)) == ["D", "T"]
    finally:
        Watchdog(started.pid, Bounds(1 << 30), print).end(collected=False)
        assert started.wait(10) == -9
        started.stdout.close()
