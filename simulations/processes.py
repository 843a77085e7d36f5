"""Child processes of a demonstration: started, listened to, always ended.

Knows process ids, lines and deadlines. Knows nothing of what the children do.
Always: leaving `Stage` ends every child that it started, and no other process.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from ..core.errors import QuietchoirError

PATIENCE_S = 10.0  # between a polite end and a kill


class Child:
    """One command of ours in a process of its own; its standard output is read line by line."""

    def __init__(self, name: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.name, self.log = name, log
        self._errors = log.open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "quietchoir.cli", *arguments],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # Ctrl-C reaches the demonstration, which then ends its children in order
        )
        self.lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for text in stream:
                self.lines.put(text.rstrip("\n"))
        self.lines.put(None)

    def next_line(self, deadline_s: float) -> str:
        """The next line of output.

        Raises:
            QuietchoirError: the child ended or said nothing in time; the message quotes its last words.
        """
        try:
            text = self.lines.get(timeout=deadline_s)
        except queue.Empty:
            raise QuietchoirError(f"{self.name} said nothing for {deadline_s:.0f} s; its log: {self.log}") from None
        if text is None:
            raise QuietchoirError(f"{self.name} ended with code {self.process.wait()}: {self.last_words()} (log: {self.log})")
        return text

    def wait_for(self, wanted: Callable[[str], bool], deadline_s: float) -> str:
        """The first line that is wanted; the others before it are dropped.

        Raises:
            QuietchoirError: as `next_line`.
        """
        end = time.monotonic() + deadline_s
        while not wanted(text := self.next_line(max(0.0, end - time.monotonic()))):
            pass
        return text

    def finish(self, deadline_s: float) -> None:
        """Wait until the child has ended by itself, well.

        Raises:
            QuietchoirError: it did not end in time, or ended with an error.
        """
        try:
            code = self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise QuietchoirError(f"{self.name} is still running after {deadline_s:.0f} s; its log: {self.log}") from None
        if code:
            raise QuietchoirError(f"{self.name} ended with code {code}: {self.last_words()} (log: {self.log})")

    def last_words(self) -> str:
        """The last line the child wrote to standard error."""
        self._errors.flush()
        lines = self.log.read_text("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def end(self) -> None:
        """Ask the child to end, then insist."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(PATIENCE_S)
        self._errors.close()


class Stage:
    """The children of one demonstration."""

    def __init__(self, logs: Path, environment: Mapping[str, str] | None = None) -> None:
        self.logs, self.environment = logs, dict(environment or {})
        self.children: list[Child] = []

    def start(self, name: str, *arguments: str, **environment: str) -> Child:
        """Start `quietchoir ARGUMENTS` as `name`, with more environment variables."""
        child = Child(name, arguments, {**self.environment, **environment}, self.logs / f"{name}.log")
        self.children.append(child)
        return child

    def run(self, *arguments: str, **environment: str) -> str:
        """Run one command to its end and return what it printed.

        Raises:
            QuietchoirError: it failed; the message quotes its last words.
        """
        done = subprocess.run(
            [sys.executable, "-m", "quietchoir.cli", *arguments],
            env={**os.environ, **self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            words = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
            raise QuietchoirError(f"quietchoir {' '.join(arguments)} ended with code {done.returncode}: {words[0]}")
        return done.stdout

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for child in reversed(self.children):
            child.end()
