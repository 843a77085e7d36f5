"""Commands that start further processes leave none of them behind, however they end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quietchoir.federation.transport.stock import with_port

PATIENCE_S = 60.0
# A command whose grandchild hears no polite signal; it writes the grandchild's number, and waits.
COMMAND = """
import os, signal, subprocess, sys, time
stubborn = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (2, 15)]; "
stubborn += "print('up', flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
sys.exit(3) if sys.argv[1] == "end" else time.sleep(600)
"""


def alive(pid: int) -> bool:
    """Is it running, and not only waiting for its end to be noted?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def started() -> Iterator[Callable[[str], tuple[subprocess.Popen[str], int]]]:
    """A launcher with its command, and the number of the command's child."""
    running: list[tuple[subprocess.Popen[str], int]] = []

    def start(how: str) -> tuple[subprocess.Popen[str], int]:
        launcher = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "quietchoir.federation.transport.stock",
                sys.executable,
                "-c",
                COMMAND,
                how,
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert launcher.stdout is not None
        running.append((launcher, int(launcher.stdout.readline())))
        return running[-1]

    yield start
    for launcher, pid in running:
        launcher.kill()
        launcher.wait()
        assert launcher.stdout is not None
        launcher.stdout.close()
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
@pytest.mark.parametrize(
    "how, code", [("end", 3), ("kill", -signal.SIGKILL), ("terminate", 128 + signal.SIGTERM)]
)
def test_nothing_stays_behind(
    how: str, code: int, started: Callable[[str], tuple[subprocess.Popen[str], int]]
) -> None:
    launcher, pid = started(how)
    if how != "end":
        assert alive(pid)
        launcher.send_signal(signal.SIGKILL if how == "kill" else signal.SIGTERM)
    assert launcher.wait(PATIENCE_S) == code
    deadline = time.monotonic() + PATIENCE_S
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(pid)


def test_the_same_without_it_leaves_the_child_behind() -> None:
    """The unprotected arm: it is the launcher that ends it."""
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, "wait"], stdout=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout is not None
        pid = int(command.stdout.readline())
        command.kill()
        command.wait(PATIENCE_S)
        try:
            assert alive(pid)
        finally:
            os.kill(pid, signal.SIGKILL)


def test_a_supernode_gets_a_port_of_its_own_and_keeps_one_that_it_was_given() -> None:
    first, second = (with_port(["/venv/bin/flower-supernode", "--insecure"]) for _ in range(2))
    assert (
        first[:2] == second[:2]
        and first[2] == second[2] == "--port"
        and 1024 < int(first[3]) < 65536
    )
    for given in (
        ["flower-supernode", "--port", "9094"],
        ["flower-supernode", "--port=9094"],
        ["flower-superlink", "--insecure"],
    ):
        assert with_port(given) == given


def test_a_command_that_is_not_there_is_a_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "quietchoir.federation.transport.stock", "no-such-command"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        done.returncode == 1
        and ("no such command") in done.stderr
        and "Traceback" not in done.stderr
    )
