"""A process beside the node that ends its sandboxes if the node dies without doing so.

Knows handles of processes (pidfds). Knows nothing of what they are. Imports nothing but the
standard library: its own process runs this file, isolated.
Always: whoever is held is killed once the node has ended, however it ended, with the process group
that it leads; one that ends before the node leaves nobody of its group. Nobody else is killed.

A parent-death signal is not enough. The kernel does not hand it on to threads, so a plugin whose
second thread calls execve goes on without one (prctl(2), PR_SET_PDEATHSIG); so does one that
executes a file with capabilities.

Not covered: who kills this process too. The node begins another for the next sandbox; those from
before have their parent-death signal alone.
"""

import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress


class Keeper:
    """The node's end of it. The process begins with the first handle."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._line: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def hold(self, handle: int) -> None:
        """Have the process of this pidfd killed when the node is gone; the handle stays the
        caller's.

        Raises:
            OSError: nobody holds it; do not let it run.
        """
        with self._lock:
            if self._line is None or self._process is None or self._process.poll() is not None:
                self._begin()
            assert self._line is not None
            socket.send_fds(self._line, [b"\0"], [handle])

    def _begin(self) -> None:
        if self._line is not None:
            self._line.close()
        self._line, theirs = socket.socketpair()
        node = os.pidfd_open(os.getpid())
        try:
            # a session of its own: what a terminal sends to the node's is not for it
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", __file__, str(node)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[node],
                cwd="/",
                env={},
                start_new_session=True,
            )
        finally:
            theirs.close()
            os.close(node)


KEEPER = Keeper()
OF_GROUP = 4  # PIDFD_SIGNAL_PROCESS_GROUP of linux/pidfd.h, from Linux 6.9 on


def signals_groups() -> bool:
    """Whether this kernel takes `OF_GROUP`: Linux 6.9, whatever else an older one was given."""
    handle = os.pidfd_open(os.getpid())
    try:
        signal.pidfd_send_signal(handle, 0, None, OF_GROUP)
    except ProcessLookupError:
        return True  # this process leads none
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def kill_held(handle: int) -> None:
    """Kill the process of a handle, and the group that it leads or led: while anybody is in that,
    its number is nobody else's.
    """
    for flags in (0, OF_GROUP):
        with suppress(OSError):  # it has ended; an older kernel, on which a plugin begins nobody
            signal.pidfd_send_signal(handle, signal.SIGKILL, None, flags)


def keep(line: socket.socket, node: int) -> None:
    """Hold what comes over `line` until that ends, or the process of the handle `node` has."""
    held = set[int]()
    looks = select.poll()
    looks.register(line, select.POLLIN)
    looks.register(node, select.POLLIN)
    while True:
        for ready, _ in looks.poll():
            if ready in held:  # it has ended
                kill_held(ready)
                looks.unregister(ready)
                held.discard(ready)
                os.close(ready)
            elif ready == line.fileno() and (handles := received(line)) is not None:
                for handle in handles:
                    held.add(handle)
                    looks.register(handle, select.POLLIN)
            else:
                line.setblocking(False)
                while (handles := received(line)) is not None:  # what nobody has read yet
                    held.update(handles)
                for handle in held:
                    kill_held(handle)
                return


def received(line: socket.socket) -> list[int] | None:
    """Handles that came, none if there was no room for them; None: there are no more."""
    try:
        said, handles, *_ = socket.recv_fds(line, 1, 1)
    except (ConnectionError, BlockingIOError):
        return None
    return handles if said else None


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with the node, not before
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # two for each sandbox
    with socket.socket(fileno=0) as stdin:
        keep(stdin, int(sys.argv[1]))
