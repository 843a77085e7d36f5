"""The watchdog sees a whole family and signals no other."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from quietchoir.plugins.sandbox import watchdog

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
