"""What a sequence's layers remember of it beside the cache, one state a sequence.

Knows sequences and how far their states go. Knows nothing of what is in a state.
Always: a sequence goes on from the state after exactly the tokens before its span, or not at all;
a state whose sequence holds no blocks any more (it has ended, was cancelled or gave way) is handed
to another. Such a state stands for one place of a text alone: beginnings are not shared, guesses
not checked and conversations not kept where a model has any (`Backend.paged`).
"""

from collections import abc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ...errors import EngineError
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

    def __init__(self, make: Callable[[], T], clear: Callable[[T], None]) -> None:
        """
        Args:
            make: a state before the first token. clear: makes one of any state.
        """
        self._make, self._clear = make, clear
        self._held: dict[Sequence, StandingState[T]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def begin(self, spans: abc.Sequence[Span]) -> list[T]:
        """The state of each span's sequence, before a step; `end` says that it ran.

        Raises:
            EngineError: one goes on from where its state does not stand (a bug); nothing changed.
        """
        for span in spans:
            held = self._held.get(span.sequence)
            if span.start and (held is None or held.tokens != span.start):
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

    def _begun(self, span: Span) -> T:
        held = self._held.get(span.sequence)
        if held is None:
            held = self._held[span.sequence] = StandingState(self._free(), 0)
        elif not span.start:
            self._clear(held.state)
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
