"""Work that may crash, in processes of its own.

Knows processes, pipes and deadlines. Knows nothing of what the services compute.
Always: bytes in, bytes out; whatever a child does, the caller gets its answer or a typed error, and
the next call finds a fresh child.

Why: one flipped bit in a ciphertext can end SEAL in a segmentation fault, and a chain of three
thousand rules does the same to a grammar compiler; both would take everybody's answers along.
TenSEAL's bindings hold the interpreter's lock besides, so threads neither contain nor speed up
anything. Nothing is unpickled from a child: a child that parsed hostile bytes is not trusted more
than they are. `docs/foreign-bytes.md` says which library runs where.
"""

import contextlib
import json
import multiprocessing
import queue
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from .errors import AuthenticationError, CryptoError, ProtocolError, QuietchoirError, WorkerError
from .parts import UPDATED, updated

BLOB_BYTES = 256 << 20  # one message part; anything longer is refused on both sides
# address space of a child, where the platform can limit it: a bomb ends in the child
MEMORY_BYTES = 8 << 30
MESSAGE_CHARACTERS = 300
ERRORS = {kind.__name__: kind for kind in (AuthenticationError, CryptoError, ProtocolError)}
_starting = threading.Lock()  # guards `sys.modules["__main__"]` while a child is spawned


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLimits:
    """What a worker may use, and how its failures are told."""

    name: str = "crypto worker"
    memory_bytes: int = MEMORY_BYTES
    start_deadline_s: float = 120.0
    # the child crashed or ran past its deadline over what it was given
    lost: type[QuietchoirError] = WorkerError
    absent: type[QuietchoirError] = WorkerError  # no child could be started, or none was free


class Worker:
    """One child that holds one service object; for one caller at a time.

    Args:
        service: an importable class; its public methods take and return bytes (`(*blobs) ->
        Sequence[bytes]`). arguments: for its constructor, run in the child at every (re)start.
    """

    def __init__(
        self,
        service: Callable[..., object],
        *arguments: object,
        limits: WorkerLimits = WorkerLimits(),
    ) -> None:
        self._service, self._arguments, self._limits = service, arguments, limits
        self._child: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None
        self.starts = 0  # how often a child was started: 1 plus the crashes and deadlines so far

    def call(self, method: str, *blobs: bytes, deadline_s: float = 60.0) -> list[bytes]:
        """Run `service.method(*blobs)` in the child.

        Raises:
            WorkerError: the child crashed or ran past the deadline; it is gone, the next call
                starts another. (Or what the worker's terms name instead.)
            CryptoError: what the service itself raised, with its type if it is one of `ERRORS`.
        """
        if self._child is None or not self._child.is_alive():
            self._start()
        return self._exchange(method, blobs, deadline_s)

    def start(self) -> None:
        """Start the child now, so that the first call does not wait for it.

        Raises:
            WorkerError: the service could not be constructed in time.
        """
        if self._child is None or not self._child.is_alive():
            self._start()

    def close(self) -> None:
        """End the child, whatever it does at the moment."""
        if self._child is not None:
            self._child.kill()
            self._child.join()
            self._child.close()
        if self._pipe is not None:
            self._pipe.close()
        self._child = self._pipe = None

    def _start(self) -> None:
        self.close()
        # a fork would copy our secrets and our locked mutexes
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        limit = self._limits.memory_bytes
        self._child = context.Process(
            target=_serve, args=(theirs, self._service, self._arguments, limit), daemon=True
        )
        with _starting:  # a child that imported its parent's script would run it once more
            script, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
            try:
                self._child.start()
            finally:
                sys.modules["__main__"] = script
        theirs.close()  # so that a dead child is an end of file, not silence
        self.starts += 1
        self._exchange("", (), self._limits.start_deadline_s)

    def _exchange(self, method: str, blobs: Sequence[bytes], deadline_s: float) -> list[bytes]:
        pipe, child = self._pipe, self._child
        assert pipe is not None and child is not None
        late = threading.Event()

        def expire() -> None:
            late.set()
            child.kill()

        timer = threading.Timer(deadline_s, expire)
        timer.start()
        try:
            _send(pipe, {"method": method}, blobs)
            head, parts = _receive(pipe)
        except (EOFError, OSError, ValueError) as error:
            child.kill()
            child.join()
            code = child.exitcode
            self.close()
            why = (
                (f"took longer than {deadline_s:g} s")
                if late.is_set()
                else f"ended with code {code}"
            )
            if updated():
                why += f": {UPDATED}"
            raise (self._limits.lost if method else self._limits.absent)(
                f"{method or 'start'}: the {self._limits.name} {why}; nothing was changed, "
                f"the next call gets a fresh one"
            ) from error
        finally:
            timer.cancel()
            timer.join()
        if "error" in head:
            unknown = self._limits.lost if method else self._limits.absent
            raise ERRORS.get(str(head["error"]), unknown)(
                str(head.get("text", ""))[:MESSAGE_CHARACTERS]
            )
        return parts


class WorkerPool:
    """Several workers with the same service; callers from any thread share them.

    Each child holds its own copy of the service's data.
    """

    def __init__(
        self,
        service: Callable[..., object],
        *arguments: object,
        size: int = 1,
        limits: WorkerLimits = WorkerLimits(),
    ) -> None:
        self._limits = limits
        self._all = [Worker(service, *arguments, limits=limits) for _ in range(size)]
        self._free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._all:
            self._free.put(worker)

    @property
    def starts(self) -> int:
        """Children started so far, over all workers."""
        return sum(worker.starts for worker in self._all)

    def start(self) -> None:
        """Start every child now.

        Raises:
            WorkerError: a service could not be constructed in time.
        """
        for worker in self._all:
            worker.start()

    def call(self, method: str, *blobs: bytes, deadline_s: float = 60.0) -> list[bytes]:
        """As `Worker.call`, on the first worker that is free within the deadline.

        Raises:
            WorkerError: also when no worker came free in time.
        """
        with self._borrow(deadline_s) as worker:
            return worker.call(method, *blobs, deadline_s=deadline_s)

    def close(self) -> None:
        """End every child."""
        for worker in self._all:
            worker.close()

    @contextlib.contextmanager
    def _borrow(self, deadline_s: float) -> Iterator[Worker]:
        try:
            worker = self._free.get(timeout=deadline_s)
        except queue.Empty:
            raise self._limits.absent(
                f"no {self._limits.name} was free within {deadline_s:g} s; ask again later"
            ) from None
        try:
            yield worker
        finally:
            self._free.put(worker)


def _send(pipe: Connection, head: dict[str, Any], blobs: Sequence[bytes]) -> None:
    pipe.send_bytes(json.dumps({**head, "parts": len(blobs)}).encode())
    for blob in blobs:
        pipe.send_bytes(blob)


def _receive(pipe: Connection) -> tuple[dict[str, Any], list[bytes]]:
    head = json.loads(pipe.recv_bytes(1 << 16))
    if (
        not isinstance(head, dict)
        or not isinstance(head.get("parts"), int)
        or not 0 <= head["parts"] <= 1 << 16
    ):
        raise ValueError("a malformed frame")
    return head, [pipe.recv_bytes(BLOB_BYTES) for _ in range(head["parts"])]


def _serve(
    pipe: Connection, service: Callable[..., object], arguments: Sequence[object], memory_bytes: int
) -> None:
    """The child: construct once, then answer until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _confine(memory_bytes)
    instance: object = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            head, blobs = _receive(pipe)
            try:
                if head["method"]:
                    answer = [bytes(part) for part in getattr(instance, head["method"])(*blobs)]
                else:
                    instance, answer = service(*arguments), []
            except Exception as error:  # a library's own error is an answer; only a crash is not
                _send(
                    pipe,
                    {"error": type(error).__name__, "text": f"{error}"[:MESSAGE_CHARACTERS]},
                    (),
                )
            else:
                _send(pipe, {}, answer)


def _confine(memory_bytes: int) -> None:
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the secret key
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
