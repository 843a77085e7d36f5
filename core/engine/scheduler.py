"""Which requests run next.

Knows token counts and free blocks; is told the time. Knows nothing of tensors or text.
Always: a sequence is in exactly one of waiting, running, finished; only running ones hold blocks; who came first is
never held up by who came later, so the oldest always goes on and every request ends.
"""

from collections import deque
from collections.abc import Sequence as Items
from dataclasses import dataclass

from ..errors import OverloadedError
from .blockpool import BlockPool
from .sequence import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one step and one queue may hold."""

    max_running: int = 16
    max_waiting: int = 64
    queue_timeout_s: float = 30.0
    step_rows: int = 512  # prompt tokens of one step while nobody is answering
    shared_rows: int = 128  # prompt tokens of one step beside running answers: the longest pause between their tokens


@dataclass(frozen=True, slots=True)
class Span:
    """The tokens [start, start + count) of one sequence, to go through the model in this step."""

    sequence: Sequence
    start: int
    count: int
    sampled: bool  # it reaches the last known token, so that the next one can be sampled


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's work."""

    spans: tuple[Span, ...]

    @property
    def sampled(self) -> list[Sequence]:
        """The sequences that get a token in this step, in the order of the logits."""
        return [span.sequence for span in self.spans if span.sampled]

    @property
    def rows(self) -> int:
        """Tokens that go through the model."""
        return sum(span.count for span in self.spans)


class Scheduler:
    """First come, first served, as far as blocks go; preempted sequences are recomputed."""

    def __init__(self, pool: BlockPool, limits: Limits) -> None:
        self.pool = pool
        self.limits = limits
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of arrival
        self.preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """Put a new sequence at the end of the queue.

        Raises:
            OverloadedError: the queue is full.
        """
        if len(self.waiting) >= self.limits.max_waiting:
            raise OverloadedError(
                f"{len(self.waiting)} requests are waiting, the limit is {self.limits.max_waiting}; try again later"
            )
        self.waiting.append(sequence)

    def expire(self, now_s: float) -> list[Sequence]:
        """Take out the sequences that have waited too long; one that had already started never expires."""
        late = [s for s in self.waiting if not s.started and now_s - s.arrived_s > self.limits.queue_timeout_s]
        for sequence in late:
            self.waiting.remove(sequence)
        return late

    def plan(self) -> Batch:
        """Choose the next step's spans: running answers first, then prompts in chunks, then whom there is room for."""
        preemptions = self.preemptions
        spans = self._next_tokens()
        budget = self.limits.shared_rows if spans else self.limits.step_rows
        for sequence in self.running:
            if sequence.remaining > 1 and budget:
                spans.append(self._chunk(sequence, budget))
                budget -= spans[-1].count
        if self.preemptions == preemptions:  # else the blocks just freed would go to the one they were taken from
            while budget and self._fits_next():
                spans.append(self._chunk(self._admit(), budget))
                budget -= spans[-1].count
        return Batch(tuple(spans))

    def commit(self, batch: Batch, tokens: Items[int | None]) -> None:
        """Write down that `batch` ran: its keys and values are cached, and each sampled sequence has one more token.

        A sequence whose token is None has none and must be finished.
        """
        for span in batch.spans:
            span.sequence.computed += span.count
        for sequence, token in zip(batch.sampled, tokens, strict=True):
            if token is not None:
                sequence.tokens.append(token)

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, whatever state it is in, and free its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._release(sequence)

    def check_integrity(self) -> None:
        """Compare every count with every other.

        Raises:
            RuntimeError: the module's promise is broken (a bug).
        """
        if set(self.waiting) & set(self.running):
            raise RuntimeError("a sequence is waiting and running")
        if any(s.blocks or s.computed for s in self.waiting):
            raise RuntimeError("a waiting sequence holds blocks")
        if any(self.pool.needed(s.computed) > len(s.blocks) or s.remaining < 0 for s in self.running):
            raise RuntimeError("a running sequence has computed more than its blocks hold or its tokens are")
        if len(self.running) > self.limits.max_running:
            raise RuntimeError(f"{len(self.running)} sequences run, the limit is {self.limits.max_running}")
        self.pool.check_integrity(block for s in self.running for block in s.blocks)

    def _next_tokens(self) -> list[Span]:
        """One row for every running sequence that only lacks its last token; the youngest give way when blocks run out."""
        spans: list[Span] = []
        for sequence in list(self.running):
            if sequence.remaining != 1 or not sequence.blocks:  # still reading its prompt, or preempted a moment ago
                continue
            if self._grow(sequence):
                spans.append(self._chunk(sequence, 1))
        return spans

    def _grow(self, sequence: Sequence) -> bool:
        """Make room for the sequence's last token; False if the sequence itself had to give way."""
        while self.pool.needed(len(sequence.tokens)) > len(sequence.blocks):
            if self.pool.free:
                sequence.blocks += self.pool.allocate(1)
                continue
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the head of the queue, to be computed anew; its tokens so far stay."""
        self.running.remove(sequence)
        self._release(sequence)
        self.waiting.appendleft(sequence)
        self.preemptions += 1

    def _fits_next(self) -> bool:
        """Whether the first in the queue can start: its whole prompt has room, and so has a next block for all who run."""
        if not self.waiting or len(self.running) >= self.limits.max_running:
            return False
        return self.pool.needed(len(self.waiting[0].tokens)) + len(self.running) <= self.pool.free

    def _admit(self) -> Sequence:
        sequence = self.waiting.popleft()
        sequence.blocks = self.pool.allocate(self.pool.needed(len(sequence.tokens)))
        sequence.started = True
        self.running.append(sequence)
        return sequence

    def _chunk(self, sequence: Sequence, budget: int) -> Span:
        count = min(sequence.remaining, budget)
        return Span(sequence, sequence.computed, count, sampled=count == sequence.remaining)

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = 0
