"""What a sequence's layers remember of it beside the cache, one state a sequence.

Knows sequences and how far their states go. Knows nothing of what is in a state.
Always: a sequence goes on from the state after exactly the tokens before its span, its own or the
snapshot that it took over, or not at all; a state whose sequence holds no blocks any more (it has
ended, was cancelled or gave way) is handed to another. Such a state stands for one place of a text
alone: drafts would spoil it, and beginnings are shared only where a copy of it was kept
(`Backend.paged`, `snapshots`).
"""

from collections import abc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from ...errors import CacheError, EngineError
from ..prefix_cache import StateSnapshot
from ..scheduler import Span
from ..sequence import Sequence

T = TypeVar("T")


@dataclass(slots=True)
class StandingState(Generic[T]):
    """One state, and after how many tokens it stands; -1: nobody knows."""

    state: T
    tokens: int


class SequenceStates(Generic[T]):
    """The states of all sequences that run."""

    saved_bytes = 0  # of one in a saved conversation; 0: none is saved

    def __init__(
        self, make: Callable[[], T], clear: Callable[[T], None], copy: Callable[[T, T], None]
    ) -> None:
        """
        Args:
            make: a state before the first token. clear: makes one of any state. copy: from the
            first into the second.
        """
        self._make, self._clear, self._copy = make, clear, copy
        self._held: dict[Sequence, StandingState[T]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def begin(self, spans: abc.Sequence[Span]) -> list[T]:
        """The state of each span's sequence, before a step; `end` says that it ran.

        Raises:
            EngineError: one goes on from where its state does not stand (a bug); nothing changed.
        """
        for span in spans:
            held, taken = self._held.get(span.sequence), span.sequence.resumes
            stands = {one.tokens for one in (held, taken) if one is not None}
            if span.start and span.start not in stands:
                found = "nothing" if held is None else f"{held.tokens} tokens"
                raise EngineError(
                    f"a sequence goes on after {span.start} tokens, its layers remember {found}; "
                    f"this is a bug, please report it"
                )
        return [self._begun(span) for span in spans]

    def end(self, spans: Iterable[Span]) -> None:
        """The step ran: each state stands behind its span."""
        for span in spans:
            self._held[span.sequence].tokens = span.start + span.count
            span.sequence.resumes = None

    def snapshot(self, sequence: Sequence) -> StateSnapshot:
        """A copy of a sequence's state as its last step left it."""
        held, copy = self._held[sequence], self._make()
        self._copy(held.state, copy)
        return StateSnapshot(copy, held.tokens)

    def dump(self, state: T) -> bytes:  # noqa: ARG002
        """As a saved conversation holds it; empty where none is saved."""
        return b""

    def load(self, data: bytes) -> T:  # noqa: ARG002
        """What `dump` returned.

        Raises:
            CacheError: another size, or numbers that are not finite.
        """
        raise CacheError("this engine keeps no conversations of such models; let it compute anew")

    def _begun(self, span: Span) -> T:
        held = self._held.get(span.sequence)
        if held is None:
            held = self._held[span.sequence] = StandingState(self._free(), 0)
        elif not span.start:
            self._clear(held.state)
        if span.start != held.tokens and span.start and span.sequence.resumes is not None:
            self._copy(span.sequence.resumes.state, held.state)
        held.tokens = -1  # until the step has run
        return held.state

    def _free(self) -> T:
        """A state before the first token: that of a sequence that is gone, or a new one."""
        gone = [sequence for sequence in self._held if not sequence.block_table]
        states = [self._held.pop(sequence).state for sequence in gone]
        if not states:
            return self._make()
        self._clear(states[0])
        return states[0]


class FlatStates(SequenceStates[np.ndarray[Any, np.dtype[np.float32]]]):
    """States that are one row of numbers each."""

    def __init__(self, numbers: int) -> None:
        super().__init__(
            lambda: np.zeros(numbers, np.float32),
            lambda state: state.fill(0),
            lambda source, target: np.copyto(target, source),
        )
        self.saved_bytes = 4 * numbers

    def dump(self, state: np.ndarray[Any, np.dtype[np.float32]]) -> bytes:
        """As `SequenceStates.dump`."""
        return state.tobytes()

    def load(self, data: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
        """As `SequenceStates.load`."""
        if len(data) != self.saved_bytes:
            raise CacheError(
                f"a saved state has {len(data)} bytes, expected {self.saved_bytes}; delete the file"
            )
        state = np.frombuffer(data, np.float32).copy()
        if not np.isfinite(state).all():
            raise CacheError("a saved state holds numbers that are not finite; delete the file")
        return state
