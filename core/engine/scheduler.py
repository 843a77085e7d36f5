"""Which requests run next.

Knows tokens, free blocks and blocks that already hold what a sequence begins with; is told the
time. Knows nothing of tensors or text.
Always: a sequence is in exactly one of waiting, running, finished; only running ones hold blocks;
who came first is never held up by who came later, so the oldest always goes on and every request
ends.
"""

from collections import abc, deque
from dataclasses import dataclass

from ..errors import OverloadedError
from .block_pool import BlockPool
from .prefix_cache import PrefixCache, PrefixNode
from .sampling.speculation import SpeculationCost
from .sampling.state import LogitRow
from .sequence import Sequence
from .snapshots import StateSnapshots

KEPT_WINDOWS = 2  # so that whoever goes on from a place within them finds one window whole
ANSWER_BLOCKS = 4  # of an answer, between two places whose state is kept
PROMPT_BLOCKS = 2  # fewer before a prompt's end are not worth a step of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """What one step and one queue may hold."""

    max_running: int = 16
    max_waiting: int = 64
    queue_timeout_s: float = 30.0
    step_rows: int = 512  # prompt tokens of one step while nobody is answering
    # prompt tokens of one step beside running answers: the longest pause between their tokens
    shared_rows: int = 128
    share_prefixes: bool = True  # requests that begin alike use the same blocks
    drafts: int = 8  # tokens guessed after the last one of a sequence, at most


@dataclass(frozen=True, slots=True)
class Span:
    """The tokens [start, start + count) of one sequence, to go through the model in this step."""

    sequence: Sequence
    start: int
    count: int  # known tokens and drafts
    # trailing rows whose logits are wanted: 0 inside a prompt, else 1 and one more for each draft
    sampled: int
    # guessed tokens after the last known one; not part of the sequence until accepted
    drafts: tuple[int, ...] = ()

    @property
    def tokens(self) -> list[int]:
        """The token of each row, [count]."""
        return [*self.sequence.tokens[self.start : self.start + self.count], *self.drafts]


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's work."""

    spans: tuple[Span, ...]

    @property
    def sampled(self) -> list[Sequence]:
        """The sequences that get tokens in this step, in the order of the logits."""
        return [span.sequence for span in self.spans if span.sampled]

    @property
    def rows(self) -> int:
        """Tokens that go through the model."""
        return sum(span.count for span in self.spans)

    @property
    def logit_rows(self) -> int:
        """Rows of logits that the model returns."""
        return sum(span.sampled for span in self.spans)

    @property
    def rows_of_logits(self) -> list[LogitRow]:
        """What each row of logits is for, [logit_rows]."""
        return [
            LogitRow(span.sequence.sampling, span.drafts, offset)
            for span in self.spans
            for offset in range(span.sampled)
        ]

    @property
    def drafts(self) -> int:
        """Drafts in this step."""
        return sum(len(span.drafts) for span in self.spans)


class Scheduler:
    """First come, first served, as far as blocks go; preempted sequences are recomputed."""

    def __init__(
        self,
        pool: BlockPool,
        limits: SchedulerLimits,
        *,
        deterministic: bool = False,
        window: int = 0,
        snapshots: StateSnapshots | None = None,
    ) -> None:
        """
        Args:
            deterministic: see `Backend`.
            window: see `LayerWindows.tokens`; 0: every layer sees everything.
            snapshots: of what layers remember beside blocks; None: blocks hold all of it.
        """
        self.pool, self.snapshots = pool, snapshots
        self.window = window
        self.kept_blocks = pool.needed(KEPT_WINDOWS * window)  # at a sequence's beginning
        self.prefixes = PrefixCache(pool)
        self.speculation_cost = SpeculationCost()
        self.deterministic = deterministic
        self.limits = limits
        # fewer than `limits.max_running` while the machine is to be spared; who runs goes on
        self.max_admitted = limits.max_running
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of arrival
        self.preemptions = 0
        # that did not go through the model, because a block already held them
        self.reused_tokens = 0

    def add(self, sequence: Sequence) -> None:
        """Put a new sequence at the end of the queue.

        Raises:
            OverloadedError: the queue is full.
        """
        if len(self.waiting) >= self.limits.max_waiting:
            raise OverloadedError(
                f"{len(self.waiting)} requests are waiting, the limit is "
                f"{self.limits.max_waiting}; try again later"
            )
        self.waiting.append(sequence)

    def expire(self, now_s: float) -> list[Sequence]:
        """Take out the sequences that have waited too long; one that had already started never
        expires.
        """
        late = [
            s
            for s in self.waiting
            if not s.started and now_s - s.arrived_s > self.limits.queue_timeout_s
        ]
        for sequence in late:
            self.waiting.remove(sequence)
        return late

    def plan(self) -> Batch:
        """Choose the next step's spans: running answers first, then prompts in chunks, then whom
        there is room for.
        """
        preemptions = self.preemptions
        spans = self._next_tokens()
        budget = self.limits.shared_rows if spans else self.limits.step_rows
        for sequence in self.running:
            if sequence.remaining > 1 and budget:
                spans.append(self._chunk(sequence, budget))
                budget -= spans[-1].count
        # else the blocks just freed would go to the one they were taken from
        if self.preemptions == preemptions:
            while budget and self._fits_next():
                spans.append(self._chunk(self._admit(), budget))
                budget -= spans[-1].count
        return Batch(tuple(spans))

    def commit(self, batch: Batch, tokens: abc.Sequence[int | None]) -> list[list[int | None]]:
        """Write down that `batch` ran: its keys and values are cached, and each sampled sequence
        has new tokens.

        Args:
            tokens: what was chosen after each row of logits [batch.logit_rows]. A draft that was
                not chosen ends its span's run: what stands after it was computed on a wrong guess
                and is left out, in the cache too.

        Returns:
            The new tokens of each of `batch.sampled`. One that ends with None has logits that are
            not finite: `invalidate` and `finish` it.
        """
        chosen = iter(tokens)
        runs: list[list[int | None]] = []
        for span in batch.spans:
            run = _accepted(span, [next(chosen) for _ in range(span.sampled)])
            sequence = span.sequence
            if sequence.guesses and span.drafts:
                sequence.trust.learn(len(span.drafts), len(run) - 1)
            sequence.guesses = ()
            sequence.num_computed_tokens += (
                span.count - span.sampled + len(run) if run else span.count
            )
            for token in run:
                if token is not None:
                    sequence.accept(token)
            if run:
                runs.append(run)
            if None not in run:
                self._publish(sequence)
                self._keep_state(sequence)
                self._trim(sequence)
        return runs

    def left_behind(self) -> list[int]:
        """Blocks that no windowed layer sees any more, each once: they are hollow from now on. One
        that others share stays whole, they may go on from an earlier place; so do the first two
        windows, where conversations that begin alike part.
        """
        if not self.window:
            return []
        found = []
        for sequence in self.running:
            last = max(0, sequence.num_computed_tokens - self.window) // self.pool.block_tokens
            first = max(sequence.hollow_blocks, self.kept_blocks)
            for block in sequence.block_table[first:last]:
                if self.pool.ref_count(block) == 1 and block not in self.pool.hollow:
                    self.pool.hollow.add(block)
                    found.append(block)
            sequence.hollow_blocks = max(sequence.hollow_blocks, last)
        return found

    def first_seen(self, blocks: int) -> int:
        """Of so many blocks, the first that a windowed layer still sees from their end on."""
        if not self.window:
            return blocks
        return max(0, blocks * self.pool.block_tokens - self.window) // self.pool.block_tokens

    def usable(self, found: list[PrefixNode]) -> list[PrefixNode]:
        """As many of these known blocks, one behind the other, as can be gone on from."""
        deepest, kept = 0, 0
        for place, node in enumerate(found):
            if node.block in self.pool.hollow:
                deepest = node.depth
            whole = self.snapshots is None or node.snapshot is not None
            if whole and deepest <= self.first_seen(node.depth):
                kept = place + 1
        return found[:kept]

    def invalidate(self, sequence: Sequence) -> None:
        """Let nobody else find what this sequence wrote."""
        if sequence.prefix is not None:
            self.prefixes.invalidate(sequence.prefix)
            sequence.prefix = None

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, whatever state it is in, and give its blocks back."""
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
        if any(s.block_table or s.num_computed_tokens for s in self.waiting):
            raise RuntimeError("a waiting sequence holds blocks")
        if any(
            self.pool.needed(s.num_computed_tokens) > len(s.block_table) or s.remaining < 0
            for s in self.running
        ):
            raise RuntimeError(
                "a running sequence has computed more than its blocks hold or its tokens are"
            )
        if len(self.running) > self.limits.max_running:
            raise RuntimeError(
                f"{len(self.running)} sequences run, the limit is {self.limits.max_running}"
            )
        for sequence in self.running:
            shared = (
                []
                if sequence.prefix is None
                else [prefix.block for prefix in sequence.prefix.path()]
            )
            if (
                shared != sequence.block_table[: len(shared)]
                or len(shared) * self.pool.block_tokens > sequence.num_computed_tokens
            ):
                raise RuntimeError(
                    "a running sequence shares blocks that it does not hold or has not computed"
                )
        self.pool.check_integrity(block for s in self.running for block in s.block_table)
        self.prefixes.check_integrity()

    def _next_tokens(self) -> list[Span]:
        """A row for every running sequence that only lacks its last token; the youngest give way
        when blocks run out.
        """
        answering = [sequence for sequence in self.running if sequence.remaining == 1]
        # Those preempted for an older one a moment ago hold no blocks any more.
        ready = [
            sequence for sequence in answering if sequence.block_table and self._grow(sequence)
        ]
        cost = self.speculation_cost.of_row(len(answering)) if answering else 1.0
        return [self._span_of_answer(sequence, cost) for sequence in ready if sequence.block_table]

    def _span_of_answer(self, sequence: Sequence, cost: float) -> Span:
        """The last token and what may follow it, as far as there is room that nobody else needs
        for its own last token.
        """
        drafts = sequence.guesses or self._looked_up(sequence, cost)
        known = len(sequence.tokens)
        more = self.pool.needed(known + len(drafts)) - len(sequence.block_table)
        if more > 0 and more + len(self.running) <= self.pool.free:
            sequence.block_table += self.pool.allocate(more)
        drafts = drafts[: len(sequence.block_table) * self.pool.block_tokens - known]
        return Span(
            sequence,
            sequence.num_computed_tokens,
            1 + len(drafts),
            sampled=1 + len(drafts),
            drafts=drafts,
        )

    def _looked_up(self, sequence: Sequence, cost: float) -> tuple[int, ...]:
        may = self._may_guess(sequence)
        return sequence.propose(self.limits.drafts, cost) if may else ()

    def _may_guess(self, sequence: Sequence) -> bool:
        wanted = sequence.request.sampling_params.speculate
        return not self._apart(sequence) if wanted is None else wanted

    def without_drafts(self) -> list[Sequence]:
        """Those for whom nothing is guessed from what was said: a small model may. None where
        somebody reads a prompt.
        """
        if any(sequence.remaining != 1 for sequence in self.running):
            return []
        cost = self.speculation_cost.of_row(len(self.running)) if self.running else 1.0
        return [
            sequence
            for sequence in self.running
            if self._may_guess(sequence)
            and not sequence.sampling.formed
            and not self._looked_up(sequence, cost)
        ]

    def _grow(self, sequence: Sequence) -> bool:
        """Make room for the sequence's last token; False if the sequence itself had to give way."""
        while self.pool.needed(len(sequence.tokens)) > len(sequence.block_table):
            if self.pool.free:
                sequence.block_table += self.pool.allocate(1)
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
        """Whether the first in the queue can start: its whole prompt has room, and so has a next
        block for all who run.
        """
        if not self.waiting or len(self.running) >= self.limits.max_running:
            return False
        sequence = self.waiting[0]
        found = self._cached(sequence)
        # A cached block that it takes over is no longer free, though it need not be computed.
        taken = self.pool.needed(len(sequence.tokens)) - sum(
            self.pool.ref_count(prefix.block) > 0 for prefix in found
        )
        return taken + len(self.running) <= self.pool.free

    def _admit(self) -> Sequence:
        sequence = self.waiting.popleft()
        sequence.prefix = self.prefixes.root(sequence.adapter_digest)
        found = self._cached(sequence)
        for prefix in found:  # before anything is allocated, which could give them away
            self.pool.share(prefix.block)
        sequence.block_table = [prefix.block for prefix in found]
        sequence.block_table += self.pool.allocate(
            self.pool.needed(len(sequence.tokens)) - len(found)
        )
        self._skip(sequence, found)
        sequence.started = True
        self.running.append(sequence)
        return sequence

    def _chunk(self, sequence: Sequence, budget: int) -> Span:
        if sequence.remaining > 1:
            self._reuse(sequence)
        count = min(sequence.remaining, budget)
        if self.snapshots is not None and not self._apart(sequence):
            count = self._to_border(sequence, count)
        return Span(
            sequence, sequence.num_computed_tokens, count, sampled=int(count == sequence.remaining)
        )

    def _to_border(self, sequence: Sequence, count: int) -> int:
        """No more than so many tokens, to end where a state is worth keeping: where others went
        another way, at the prompt's last whole block, else at any whole block.
        """
        size, start = self.pool.block_tokens, sequence.num_computed_tokens
        end, last = start + count, (len(sequence.tokens) - 1) // size
        root = sequence.prefix or self.prefixes.root(sequence.adapter_digest)
        known = self.prefixes.follow(root, sequence.tokens, last)
        borders = [known[-1].depth] if known else []
        borders += [last] if last * size - start >= PROMPT_BLOCKS * size else []
        for border in borders:
            if start < border * size < end:
                return border * size - start
        whole = end // size * size
        return count if end == len(sequence.tokens) or whole <= start else whole - start

    def _keep_state(self, sequence: Sequence) -> None:
        """Keep what layers remember, where a sequence stands at the end of a shared block."""
        node, size = sequence.prefix, self.pool.block_tokens
        if (
            self.snapshots is None
            or node is None
            or not node.depth
            or sequence.num_computed_tokens != node.depth * size
        ):
            return
        prompt = (len(sequence.request.prompt) - 1) // size
        if node.depth <= prompt or node.depth % ANSWER_BLOCKS == 0:
            self.snapshots.keep(sequence, passing=node.depth != prompt and not node.children)

    def _apart(self, sequence: Sequence) -> bool:
        """Whether it computes everything itself, so that its text comes out the same another
        time.
        """
        return sequence.request.sampling_params.repeatable and not self.deterministic

    def _cached(self, sequence: Sequence) -> list[PrefixNode]:
        """The next blocks of a sequence that need not be computed; its last token must be, since
        its logits are wanted.
        """
        if not self.limits.share_prefixes or self._apart(sequence):
            return []
        start = sequence.prefix or self.prefixes.root(sequence.adapter_digest)
        return self.usable(
            self.prefixes.follow(
                start, sequence.tokens, (len(sequence.tokens) - 1) // self.pool.block_tokens
            )
        )

    def _reuse(self, sequence: Sequence) -> None:
        """Take over blocks that another sequence has filled since this one began."""
        if (
            sequence.prefix is None
            or sequence.num_computed_tokens != sequence.prefix.depth * self.pool.block_tokens
        ):
            return
        found = self._cached(sequence)
        for prefix in found:
            self._exchange(sequence, prefix)
        self._skip(sequence, found)

    def _skip(self, sequence: Sequence, found: abc.Sequence[PrefixNode]) -> None:
        if found:
            sequence.prefix = found[-1]
            sequence.num_computed_tokens = found[-1].depth * self.pool.block_tokens
            if self.snapshots is not None:
                sequence.resumes = self.snapshots.find(found[-1])
            self.reused_tokens += len(found) * self.pool.block_tokens

    def _publish(self, sequence: Sequence) -> None:
        """Let others find the blocks that have become full."""
        size = self.pool.block_tokens
        while (
            self.limits.share_prefixes
            and sequence.prefix is not None
            and (sequence.prefix.depth + 1) * size <= sequence.num_computed_tokens
        ):
            at = sequence.prefix.depth
            prefix = self.prefixes.add(
                sequence.prefix,
                sequence.tokens[at * size : (at + 1) * size],
                sequence.block_table[at],
            )
            # a hollow one in the place of its own would take away what it still sees
            if prefix.block != sequence.block_table[at] and (
                self._apart(sequence) or prefix.block in self.pool.hollow
            ):
                return
            self._exchange(sequence, prefix)
            sequence.prefix = prefix

    def _exchange(self, sequence: Sequence, prefix: PrefixNode) -> None:
        """Put a known block in the place of the sequence's own: so who holds a block holds all
        before it.
        """
        own = sequence.block_table[prefix.depth - 1]
        if own != prefix.block:
            self.pool.share(prefix.block)
            self.pool.release([own])
            sequence.block_table[prefix.depth - 1] = prefix.block

    def _trim(self, sequence: Sequence) -> None:
        """Give back blocks that only rejected drafts were written to."""
        needed = self.pool.needed(len(sequence.tokens))
        self.pool.release(sequence.block_table[needed:])
        del sequence.block_table[needed:]

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.block_table)
        sequence.block_table = []
        sequence.prefix = sequence.resumes = sequence.passing = None
        sequence.num_computed_tokens = sequence.hollow_blocks = 0


def _accepted(span: Span, chosen: list[int | None]) -> list[int | None]:
    """The chosen tokens up to the first that is not the draft of its place."""
    for place, draft in enumerate(span.drafts):
        if chosen[place] != draft:
            return chosen[: place + 1]
    return chosen
