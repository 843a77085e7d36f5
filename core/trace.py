"""Where the time of a node goes, as a file that browsers' tracing pages open (Perfetto, Chrome).

Knows names, times and counts; one file, Chrome's JSON array. Knows nothing of what is traced.
Always: no word of a prompt or an answer: callers give names of stages and tools, and counts. A
file that is broken off in the middle opens all the same: the format lets the closing bracket be
left out.

Source: "Trace Event Format" of Chromium's project (complete events, metadata).
"""

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from .errors import ConfigError

MICRO = 1e6
FLUSH_S = 1.0  # how much of the end a process that is killed may lose


class Trace:
    """One file that is being written; spans may come from any thread."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            ConfigError: it is there already, or cannot be written.
        """
        try:
            # private: it tells when its owner talked, and which tools were called
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise ConfigError(
                f"{path}: no trace can be written there ({error.strerror}); name a file that is "
                f"not there yet"
            ) from error
        self._file = os.fdopen(handle, "w", encoding="utf-8")
        self._file.write("[\n")
        self._lock, self._flushed_s = threading.Lock(), time.monotonic()
        self._named = set[int]()

    def span(
        self, name: str, start_s: float, end_s: float, counts: Mapping[str, int] | None = None
    ) -> None:
        """One stage of the calling thread, on the clock of `time.monotonic`."""
        thread = threading.get_ident()
        event = {
            "name": name,
            "ph": "X",
            "pid": os.getpid(),
            "tid": thread,
            "ts": start_s * MICRO,
            "dur": (end_s - start_s) * MICRO,
            "args": dict(counts or {}),
        }
        with self._lock:
            if self._file.closed:
                return
            if thread not in self._named:
                self._named.add(thread)
                called = {"name": threading.current_thread().name}
                self._write({"name": "thread_name", "ph": "M", "tid": thread, "args": called})
            self._write(event)
            if end_s - self._flushed_s > FLUSH_S:
                self._file.flush()
                self._flushed_s = end_s

    @contextmanager
    def around(self, name: str) -> Iterator[None]:
        """A stage that is the block, also one that fails."""
        start_s = time.monotonic()
        try:
            yield
        finally:
            self.span(name, start_s, time.monotonic())

    def close(self) -> None:
        """End the file; spans that come later are lost."""
        with self._lock:
            if not self._file.closed:
                self._file.write("{}]\n")
                self._file.close()

    def _write(self, event: Mapping[str, object]) -> None:
        self._file.write(json.dumps({"pid": os.getpid(), **event}) + ",\n")
