"""Flower's own commands, so that nothing of them stays behind and several fit on one machine.

    python -m quietchoir.federation.transport.stock flower-supernode --insecure --superlink
    HOST:PORT --node-config …

Flower starts further processes, which look for their parent's end themselves and do not always see
it: one that was killed leaves some behind. Knows process groups and ports. Knows nothing of what
the commands do.
Always: when the command ends, or this process ends, also by `kill -9`, every process of the
command's group ends; a SuperNode that is given no `--port` gets a free one, because Flower's
default (9094) is good for one SuperNode a machine.

Not covered: a process that leaves the group by itself (Ray's look after themselves); Windows.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

GRACE_S = 10.0  # between a polite end and a kill
LOOK_S = 0.05
SUPERNODE, PORT = "flower-supernode", "--port"
# Reads a line or the end of it: no line means that whoever should have written it was killed.
SENTINEL = 'read line && exit 0; kill -KILL "-$1"'


def run(command: Sequence[str]) -> int:
    """Run a command to its end, and end whatever came from it; its exit code.

    SIGTERM and SIGINT to this process are passed on.
    """
    child = subprocess.Popen(with_port(command), start_new_session=True)
    with subprocess.Popen(
        ["/bin/sh", "-c", SENTINEL, "sentinel", str(child.pid)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    ) as sentinel:

        def pass_on(number: int, _: FrameType | None) -> None:
            send_signal(child.pid, signal.SIGTERM if number == signal.SIGTERM else signal.SIGINT)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, pass_on)
        code = child.wait()
        end_group(child.pid)
        sentinel.communicate(b"all is well\n")
    return code if code >= 0 else 128 - code


def with_port(command: Sequence[str]) -> list[str]:
    """The command; a SuperNode's with a port for its own processes that nobody uses now."""
    named = any(word == PORT or word.startswith(f"{PORT}=") for word in command)
    if Path(command[0]).name != SUPERNODE or named:
        return list(command)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return [*command, PORT, str(probe.getsockname()[1])]


def end_group(group: int) -> None:
    """Ask what is left of a process group to end, then insist."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + GRACE_S
        if not send_signal(group, how):
            return
        while time.monotonic() < deadline:
            if not send_signal(group, 0):
                return
            time.sleep(LOOK_S)


def send_signal(group: int, number: int) -> bool:
    """Send a signal to a process group; False if nobody is left in it."""
    # macOS refuses where all have ended
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
        return True
    return False


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit("usage: python -m quietchoir.federation.transport.stock COMMAND [ARGUMENT …]")
    try:
        sys.exit(run(sys.argv[1:]))
    except FileNotFoundError as error:
        sys.exit(f"{error.filename}: no such command; is Flower's environment active?")
