"""Child processes of a demonstration, a measurement or a fault: started, listened to, always ended.

Knows process ids, lines, events (a JSON object a line) and deadlines. Knows nothing of what the
children do.
Always: leaving `ProcessGroup` ends every child that it started, also one that was frozen, and no
other process.
"""

import json
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
from typing import Any

from ..core.errors import QuietchoirError

PATIENCE_S = 10.0  # between a polite end and a kill


class Child:
    """One command in a process of its own; its standard output is read line by line."""

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.name, self.log = name, log
        self._errors = log.open("wb")
        self.process = subprocess.Popen(
            list(command),
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            # Ctrl-C reaches the demonstration, which then ends its children in order
            start_new_session=True,
        )
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.events: list[dict[str, Any]] = []  # those that `until` has seen
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
            QuietchoirError: the child ended or said nothing in time; the message quotes its last
            words.
        """
        try:
            text = self.lines.get(timeout=deadline_s)
        except queue.Empty:
            raise QuietchoirError(
                f"{self.name} said nothing for {deadline_s:.0f} s; its log: {self.log}"
            ) from None
        if text is None:
            raise QuietchoirError(
                f"{self.name} ended {how(self.process.wait())}: "
                f"{self.last_words()} (log: {self.log})"
            )
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

    def until(self, kind: str, deadline_s: float, /, **values: object) -> dict[str, Any]:
        """The next event of this kind with these values; lines that are no events are dropped, the
        others noted.

        Raises:
            QuietchoirError: as `next_line`; the message says what was waited for.
        """
        end = time.monotonic() + deadline_s
        while True:
            try:
                text = self.next_line(max(0.0, end - time.monotonic()))
            except QuietchoirError as error:
                raise QuietchoirError(f"waiting for {kind!r} {values or ''}: {error}") from error
            if not text.startswith("{"):
                continue
            event: dict[str, Any] = json.loads(text)
            self.events.append(event)
            if event.get("event") == kind and values.items() <= event.items():
                return event

    def forget(self) -> None:
        """Drop what it has said until now."""
        while not self.lines.empty():
            self.lines.get()

    def memory_mb(self) -> float:
        """Peak resident memory of the process and of those it started, now; 0 where the system
        does not tell (not Linux).
        """
        return sum(peak_kb(pid) for pid in family(self.process.pid)) / 1024

    def kill(self) -> None:
        """As `kill -9`; waits until it is gone."""
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """Stop it where it is: it holds its connections and answers nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def finish(self, deadline_s: float) -> None:
        """Wait until the child has ended by itself, well.

        Raises:
            QuietchoirError: it did not end in time, or ended with an error.
        """
        try:
            code = self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise QuietchoirError(
                f"{self.name} is still running after {deadline_s:.0f} s; its log: {self.log}"
            ) from None
        if code:
            raise QuietchoirError(
                f"{self.name} ended {how(code)}: {self.last_words()} (log: {self.log})"
            )

    def last_words(self) -> str:
        """The last line the child wrote to standard error."""
        self._errors.flush()
        lines = self.log.read_text("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def ask_to_end(self) -> None:
        """As Ctrl-C does; a frozen child hears it too."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.thaw()

    def end(self) -> None:
        """Ask the child to end, then insist."""
        if self.process.poll() is None:
            self.ask_to_end()
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(PATIENCE_S)
        self._errors.close()


class ProcessGroup:
    """The children of one demonstration."""

    def __init__(self, logs: Path, environment: Mapping[str, str] | None = None) -> None:
        self.logs, self.environment = logs, dict(environment or {})
        self.children: list[Child] = []

    def start(self, name: str, *arguments: str, **environment: str) -> Child:
        """Start `quietchoir ARGUMENTS` as `name`, with more environment variables."""
        return self.start_other(
            name, [sys.executable, "-m", "quietchoir.cli", *arguments], **environment
        )

    def start_other(self, name: str, command: Sequence[str], **environment: str) -> Child:
        """Start any command as `name`."""
        child = Child(name, command, {**self.environment, **environment}, self.logs / f"{name}.log")
        self.children.append(child)
        return child

    def run(self, *arguments: str, **environment: str) -> str:
        """Run one command to its end and return what it printed on standard output.

        Raises:
            QuietchoirError: it failed; the message quotes its last words.
        """
        return self.run_whole(*arguments, **environment).stdout

    def run_whole(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """The same, with what it said on standard error. Raises: as `run`."""
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
            raise QuietchoirError(
                f"quietchoir {' '.join(arguments)} ended {how(done.returncode)}: {words[0]}"
            )
        return done

    def __enter__(self) -> "ProcessGroup":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for child in self.children:
            child.ask_to_end()  # all at once: some take a moment to say goodbye
        for child in reversed(self.children):
            child.end()
        self.children.clear()


def how(code: int) -> str:
    """How a process ended, for people: `code` below zero is a signal's number."""
    if code >= 0:
        return f"with code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"by {name} ({signal.strsignal(-code) or 'unknown'})"


def family(pid: int) -> list[int]:
    """A process and those that came from it, while they run; on Linux."""
    found = [pid]
    for one in found:  # grows while it is read
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += map(int, children.read_text("ascii").split())
            except OSError:
                continue  # it has just ended
    return found


def peak_kb(pid: int) -> int:
    """Peak resident memory of one process; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
