"""Engines side by side: each in its own process, asked in turn.

Knows processes and orders. Knows nothing of what the engines are.
Always: within a repeat every engine is asked the same before the next question comes, so a busy
moment of the machine meets all of them; every process that was started here has ended when the
block is left. A peer that dies is out of the contest with its reason, and the others are asked on;
when our own engine dies, the contest is over.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ...core.errors import QuietchoirError
from ..processes import how
from .stopwatch import Sample

Order = Mapping[str, Any]
Found = dict[str, dict[str, Sample]]  # name of the engine → name of the order → figures


class EndedError(QuietchoirError):
    """An engine's process ended by itself; the message says by which signal or code, and its
    last words.
    """


class Contender:
    """One engine in a process of its own."""

    def __init__(
        self,
        name: str,
        model: Path,
        threads: int,
        environment: Mapping[str, str] | None = None,
        *,
        peer: bool = False,
    ) -> None:
        """Nothing starts yet.

        Args:
            peer: somebody else's engine, without which the contest goes on.
        """
        self.name = name
        self.peer = peer
        self.ended = ""  # why it is out of the contest
        self.command = [
            sys.executable,
            "-m",
            "quietchoir.simulations.bench.peers",
            name,
            str(model),
            "--threads",
            str(threads),
        ]
        # OpenMP's way to wait stays its own: told to sleep at once, llama.cpp and torch were three
        # times slower.
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **(environment or {})}
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`)
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Load the model; returns when it is ready. Raises EndedError."""
        self.process = self.spawn(self.command)
        self.read(self.process)

    def ask(self, order: Order) -> float:
        """One figure.

        Raises:
            EndedError: the process ended.
        """
        if self.process is None or self.process.stdin is None:
            raise RuntimeError(f"{self.name} was not started")
        with suppress(BrokenPipeError):  # it has ended, and `read` says how
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        return float(json.loads(self.read(self.process)))

    def cold_start_s(self) -> float:
        """Seconds from nothing to the first token of an answer, in a fresh process with the file in
        the page cache.

        Raises:
            EndedError: the process ended before that.
        """
        before = time.perf_counter()
        process = self.spawn([*self.command, "--first"])
        try:
            self.read(process)
            return time.perf_counter() - before
        finally:
            end(process)

    def spawn(self, command: Sequence[str]) -> "subprocess.Popen[str]":
        """A process that listens."""
        return subprocess.Popen(
            command,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def read(self, process: "subprocess.Popen[str]") -> str:
        """The next line it says.

        Raises:
            EndedError: it ended; the message quotes its last words.
        """
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            self.errors.seek(0)
            words = " / ".join(
                self.errors.read().decode("utf-8", "replace").strip().splitlines()[-3:]
            )
            raise EndedError(
                f"the engine {self.name} ended {how(process.wait())}{words and f': {words}'}"
            )
        return line

    def prepare(self, *arguments: str) -> None:
        """Run its process once with more arguments, to its end, for example to write a file in its
        own format.

        Raises:
            EndedError: it did not end well.
        """
        process = self.spawn([*self.command, *arguments])
        try:
            self.read(process)
        finally:
            end(process)

    @contextmanager
    def excused(self) -> Iterator[None]:
        """Around whatever asks this engine: a peer that dies notes why and is left out from then
        on.
        """
        try:
            yield
        except EndedError as error:
            if not self.peer:
                raise
            self.ended = str(error)

    def close(self) -> None:
        """End the process; the second time nothing."""
        if self.process is not None:
            end(self.process)
        self.errors.close()


def end(process: "subprocess.Popen[str]") -> None:
    """Close its ears, then wait; whoever does not end by itself is killed."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(BrokenPipeError):  # what was still to be said to one that is gone
                stream.close()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def in_turn(
    contenders: Sequence[Contender],
    orders: Mapping[str, Order],
    repeats: int,
    after: Callable[[Found], None] | None = None,
) -> Found:
    """Every order to every engine, `repeats` times after one for warmth; `after` hears what there
    is after each repeat.

    Whoever has ended, before or while he was asked, is in nothing that is found.

    Raises:
        EndedError: our own engine ended.
    """
    asked: dict[str, dict[str, list[float]]] = {
        one.name: {key: [] for key in orders} for one in contenders
    }
    found: Found = {}
    for repeat in range(repeats + 1):
        for key, order in orders.items():
            for one in contenders:
                if one.ended:
                    asked.pop(one.name, None)
                    continue
                with one.excused():
                    figure = one.ask(order)
                    if repeat:
                        asked[one.name][key].append(figure)
        if repeat:
            here = {one.name for one in contenders if not one.ended}
            found = {
                name: {key: Sample(tuple(figures)) for key, figures in keys.items()}
                for name, keys in asked.items()
                if name in here
            }
            if after is not None:
                after(found)
    return found
