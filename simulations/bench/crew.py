"""Members spread over the processors of this machine.

Knows child processes and pipes between them, all ours. Knows nothing of what members answer.
Always: answers come back one by one, so that nobody holds all of them; children end with the crew.
"""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ...core.errors import CryptoError
from ...crypto.identity.keys import PublicIdentity
from ...crypto.secagg import SecAggConfig
from .members import Members, Meter, Setting

END = None  # after the last part of a reply


class Crew:
    """The same members, in as many processes as there are processors."""

    def __init__(self, setting: Setting, processes: int = 0) -> None:
        context = multiprocessing.get_context("spawn")
        count = processes or os.cpu_count() or 1
        self._places = {name: number % count for number, name in enumerate(setting.names)}
        self._pipes: list[Connection] = []
        self._children = []
        for place in range(count):
            ours, theirs = context.Pipe()
            child = context.Process(
                target=_serve, args=(theirs, setting, place, count), daemon=True
            )
            child.start()
            theirs.close()
            self._pipes.append(ours)
            self._children.append(child)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pipe in self._pipes:
            pipe.close()  # a child that waits ends by itself
        for child in self._children:
            child.join(10)
            child.kill()
            child.join()

    def public(self) -> dict[str, PublicIdentity]:
        """As `Members.public`."""
        return {
            name: key
            for part in self._ask("public", *[()] * len(self._pipes))
            for name, key in part.items()
        }

    def begin(self, config: SecAggConfig) -> None:
        """As `Members.begin`."""
        list(self._ask("begin", *[(config,)] * len(self._pipes)))

    def answers(self, stage: str, inbox: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
        """As `Members.answers`, in the order in which they are ready."""
        shares: list[dict[str, bytes]] = [{} for _ in self._pipes]
        for name, message in inbox.items():
            shares[self._places[name]][name] = message
        return self._ask("answers", *((stage, share) for share in shares))

    def accounts(self) -> tuple[dict[str, Meter], NDArray[np.int64]]:
        """As `Members.accounts`."""
        parts = list(self._ask("accounts", *[()] * len(self._pipes)))
        return {name: meter for meters, _ in parts for name, meter in meters.items()}, sum(
            total for _, total in parts
        )

    def _ask(self, method: str, *arguments: tuple[object, ...]) -> Iterator[Any]:
        for pipe, words in zip(self._pipes, arguments, strict=True):
            pipe.send((method, words))
        pending = list(self._pipes)
        while pending:
            for ready in wait(pending):
                assert isinstance(ready, Connection)
                try:
                    part = ready.recv()
                except EOFError:
                    raise CryptoError(
                        f"{method}: a process of the crew ended; its message is above, run again"
                    ) from None
                if part is END:
                    pending.remove(ready)
                else:
                    yield part


def _serve(pipe: Connection, setting: Setting, place: int, count: int) -> None:
    """A child: answer until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    members = Members(setting, range(place, setting.parties, count))
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            method, words = pipe.recv()
            found = getattr(members, method)(*words)
            for part in found if isinstance(found, Iterator) else [found]:
                if part is not END:
                    pipe.send(part)
            pipe.send(END)
