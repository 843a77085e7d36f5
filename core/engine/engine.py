"""Requests in, pieces of text out: the thread that runs the model.

Knows the order of a step and what happens when one fails. The parts know the rest: `scheduler`,
`backends`, `sampling`, `output`. Knows nothing of HTTP, conversations or tools.
Always: a failing request takes no other request with it, unless they shared the step that failed;
the engine goes on.
"""

import threading
import time
from collections import abc, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from logging import DEBUG
from typing import TypeVar

import numpy as np

from .. import log
from ..config import EngineConfig
from ..errors import ConfigError, EngineError, OverloadedError, RequestError
from ..models.transformers_model import ServedModel
from .adapters import AdapterRegistry
from .backends.backend import Backend
from .backends.select import BackendChoice, beside_blocks, kept_states, running_at_once, select
from .backends.threads import compute_alone, compute_with
from .block_pool import BLOCK_TOKENS, BlockPool
from .draft_model import DraftModel
from .output import OutputProcessor
from .prompt_cache import PromptCache
from .request import Generation, GenerationRequest, TextDelta, Timing, Wakeups
from .sampling.grammar import Grammars
from .sampling.logprobs import TokenLogprobs, capture_logits, token_logprobs
from .sampling.sampler import sample
from .scheduler import Batch, Scheduler, SchedulerLimits
from .sequence import Sequence
from .snapshots import StateSnapshots

T = TypeVar("T")
logger = log.get("engine")
NOT_FINITE = (
    "the model's logits are not finite; the weights or the adapter are damaged, get them again"
)
COUNTED = (
    "steps",
    "prompt_tokens",
    "completion_tokens",
    "finished",
    "failed",
    "cancelled",
    "drafted",
    "accepted",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Counts since the start, and what is going on now."""

    running: int
    waiting: int
    blocks_free: int
    blocks_total: int
    steps: int
    prompt_tokens: int  # that went through the model, recomputed ones included
    completion_tokens: int
    finished: int
    failed: int
    cancelled: int
    preemptions: int
    # prompt tokens that did not go through the model, because the cache already held them
    reused_tokens: int
    blocks_cached: int  # free blocks that still hold something known
    drafted: int  # guessed tokens that were checked
    accepted: int  # and were right


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """One step on the engine's clock: when each of its parts began, and when the last one ended."""

    plan_s: float
    forward_s: float
    sample_s: float
    deliver_s: float
    end_s: float
    rows: int  # that went through the model
    answers: int  # whose next token was drawn


class Engine:
    """Generates for many requests at once; every public method may be called from any thread."""

    def __init__(
        self,
        weights: ServedModel,
        config: EngineConfig,
        *,
        backend: Backend | None = None,
        clock: Callable[[], float] = time.monotonic,
        observe: Callable[[Timing], None] = lambda _: None,
        watch: Callable[[StepTimes], None] = lambda _: None,
        draft: ServedModel | DraftModel | None = None,
    ) -> None:
        """Pack the weights (seconds) unless a `backend` is given.

        Args:
            draft: a smaller model of the same vocabulary, which guesses ahead.
            observe: hears of each request that ended, watch: of each step; in the engine's thread,
                which waits for them.

        Raises:
            ConfigError: the cache's memory is too small for one block, or `draft` has another
                vocabulary.
        """
        self._weights, self._threads, self._clock = weights, config.threads, clock
        self._observe, self._watch = observe, watch
        if backend is None:
            choice = select(weights, config)
        else:
            choice = BackendChoice(backend.block_bytes, lambda blocks, context: backend)
        self.adapters = AdapterRegistry(weights, choice.projections)
        self.exactness = choice.exactness
        self.weight_bytes = choice.weight_bytes  # beside the weights' own blocks
        self.slower = choice.slower  # what its owner is told; "": these are the fastest kernels
        # tokens of one request, answer included
        pool, self.context = planned(weights, config, choice)
        self.backend = choice.build(pool.total, self.context)
        states, most = self.backend.states, kept_states(config, choice.sequence_bytes)
        snapshots = None if states is None or not most else StateSnapshots(states, most)
        self.scheduler = Scheduler(
            pool,
            SchedulerLimits(
                max_running=running_at_once(config, choice.sequence_bytes),
                max_waiting=config.max_waiting,
                queue_timeout_s=config.queue_timeout_s,
                share_prefixes=config.share_prefixes
                and (self.backend.paged or snapshots is not None),
                drafts=config.drafts if self.backend.paged else 0,
            ),
            deterministic=self.backend.deterministic,
            window=0 if self.backend.windows is None else self.backend.windows.tokens,
            snapshots=snapshots if config.share_prefixes else None,
        )
        if draft is not None and not isinstance(draft, DraftModel):
            draft = DraftModel.load(draft, weights, config, self.context, clock)
        self.draft = draft if self.scheduler.limits.drafts else None
        self._grammars = Grammars(weights.tokenizer)
        self.conversations = PromptCache(
            self.scheduler, self.backend, weights, self.adapters, self._between_steps
        )
        self._jobs: deque[Callable[[], None]] = deque()  # for the thread, between two steps
        self._outputs: dict[Sequence, OutputProcessor] = {}
        self._wakeups = Wakeups()
        self._counts = dict.fromkeys(COUNTED, 0)
        self._changed = threading.Condition()  # guards everything but the model; wakes the thread
        self._thread: threading.Thread | None = None
        self._closed: str | None = None  # why no request is taken

    def start(self) -> None:
        """Start the thread; requests submitted before are served first."""
        with self._changed:
            if self._thread is not None:
                return
            self._closed = None
            self._thread = threading.Thread(target=self._run, name="quietchoir-engine", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Cancel what runs and waits, and end the thread; returns when both are done (at most
        one step).
        """
        with self._changed:
            self._closed = "the engine was stopped; start it again"
            self._changed.notify_all()
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        while self._jobs:
            self._jobs.popleft()()
        with self._changed:
            for sequence in list(self._outputs):
                self._end(sequence, TextDelta("", None, "cancelled"))
        self._grammars.close()

    def submit(self, request: GenerationRequest) -> Generation:
        """Put a request into the queue.

        Raises:
            RequestError: it can never run: too long for the context, a token the model does not
                know, an unknown adapter, a grammar that cannot be compiled. (Compiling takes
                milliseconds to seconds; the caller waits, nobody else.)
            OverloadedError: the queue is full, or the grammars' compiler is busy.
            EngineError: the engine was stopped or has broken.
        """
        adapter = self.adapters.find(request.adapter)
        request = self._limited(request)
        self._check(request)
        constraint = request.sampling_params.constraint
        matcher = None if constraint is None else self._grammars.compile(constraint)
        sequence = Sequence(request, arrived_s=self._clock(), adapter=adapter, matcher=matcher)
        generation = Generation(len(request.prompt), self._wake, self._wakeups)
        with self._changed:
            if self._closed is not None:
                raise EngineError(self._closed)
            self.scheduler.add(sequence)
            self._outputs[sequence] = OutputProcessor(request, generation, self._weights.tokenizer)
            self._changed.notify_all()
        return generation

    def admit(self, most: int) -> None:
        """From now on begin a request only while fewer than `most` run, the configured limit at
        most; those that run go on.
        """
        with self._changed:
            limit = self.scheduler.limits.max_running
            self.scheduler.max_admitted = max(1, min(most, limit))
            self._changed.notify_all()

    def stats(self) -> EngineStats:
        """A snapshot."""
        with self._changed:
            scheduler = self.scheduler
            return EngineStats(
                running=len(scheduler.running),
                waiting=len(scheduler.waiting),
                blocks_free=scheduler.pool.free,
                blocks_total=scheduler.pool.total,
                preemptions=scheduler.preemptions,
                reused_tokens=scheduler.reused_tokens,
                blocks_cached=scheduler.pool.cached,
                **self._counts,
            )

    def step(self) -> None:
        """Advance every request there is room for: by a token and what was guessed after it, or
        by a chunk of its prompt.
        """
        while self._jobs:
            self._jobs.popleft()()
        begun_s = self._clock()
        if self.draft is not None:
            self._guess(self.draft)
        with self._changed:
            self._sweep()
            batch = self.scheduler.plan()
        if not batch.spans:
            return
        started_s, rows = self._clock(), batch.rows_of_logits
        for span in batch.spans:
            if span.sequence.started_s is None:
                span.sequence.started_s = started_s
        try:
            logits = np.asarray(self.backend.forward(batch))  # [R, V], the same memory
            computed_s = self._clock()
            captured = capture_logits(logits, rows)
            tokens = sample(logits, rows)  # [R]
            logprobs = token_logprobs(captured, rows, tokens, self._weights.tokenizer.spell)  # [R]
        # whatever it is, it must not end the thread that all requests share
        except Exception as error:
            self._fail([span.sequence for span in batch.spans], error)
            return
        drawn_s = self._clock()
        with self._wakeups.together(), self._changed:
            runs = self.scheduler.commit(batch, tokens)
            if self.backend.windows is not None and (behind := self.scheduler.left_behind()):
                self.backend.windows.release(behind)
            self._count(batch, runs, self._clock() - started_s)
            if logger.isEnabledFor(DEBUG):
                self._trace(batch, runs, self._clock() - started_s)
            self._deliver(batch, runs, logprobs)
        self._watch(
            StepTimes(
                plan_s=begun_s,
                forward_s=started_s,
                sample_s=computed_s,
                deliver_s=drawn_s,
                end_s=self._clock(),
                rows=batch.rows,
                answers=len(runs),
            )
        )

    def _guess(self, draft: DraftModel) -> None:
        """Have the small model guess where that may pay; one that fails is asked no more for these
        answers.
        """
        scheduler = self.scheduler
        answering = scheduler.without_drafts()
        try:
            draft.guess(
                answering,
                len(scheduler.running),
                scheduler.limits.drafts,
                scheduler.speculation_cost,
            )
        except Exception:
            logger.exception("engine.draft_model failed; these answers go on without its guesses")
            draft.give_up(answering)

    def _run(self) -> None:
        """The thread."""
        owns_threads = self.backend.owns_threads
        if self._threads and not owns_threads:
            compute_with(self._threads)
        alone = False
        try:
            while self._wait_for_work():
                # it has threads of its own; torch may come any time
                alone = alone or (owns_threads and compute_alone())
                self.step()
        # a bug of ours: say so to every caller instead of leaving them waiting
        except BaseException as error:
            with self._changed:
                self._closed = f"the engine broke down ({error}); restart it"
                self._fail(list(self._outputs), EngineError(self._closed))
                while self._jobs:
                    self._jobs.popleft()()
            logger.exception("the engine broke down")

    def _wait_for_work(self) -> bool:
        """Sleep while there is nothing to do; False when the engine is to stop."""
        with self._changed:
            while self._closed is None and not self._outputs and not self._jobs:
                self.scheduler.check_integrity()  # nothing runs now, so it costs nothing
                self._changed.wait()
            return self._closed is None

    def _between_steps(self, work: Callable[[], T]) -> T:
        """Do `work` on the engine's thread, where nothing else touches blocks; other requests
        wait meanwhile.
        """
        done: Future[T] = Future()

        def job() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        with self._changed:
            if self._thread is None:
                job()
            elif self._closed is not None:
                raise EngineError(self._closed)
            else:
                self._jobs.append(job)
                self._changed.notify_all()
        return done.result()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _sweep(self) -> None:
        """Let go of requests that were cancelled or have waited too long."""
        for sequence, output in list(self._outputs.items()):
            if output.generation.cancel_requested:
                self._end(sequence, TextDelta("", None, "cancelled"))
        for sequence in self.scheduler.expire(self._clock()):
            timeout_s = self.scheduler.limits.queue_timeout_s
            error = OverloadedError(
                f"the request waited longer than {timeout_s:g} s for its turn; try again later"
            )
            self._end(sequence, TextDelta("", None, "error"), error)

    def _count(
        self, batch: Batch, runs: abc.Sequence[abc.Sequence[int | None]], seconds: float
    ) -> None:
        answers, drafts = len(runs), batch.drafts
        # nobody reads a prompt, so the time is what answers and drafts took
        if batch.rows == answers + drafts:
            self.scheduler.speculation_cost.learn(answers, drafts, seconds)
        self._counts["steps"] += 1
        self._counts["prompt_tokens"] += batch.rows - answers - drafts
        self._counts["drafted"] += drafts
        self._counts["accepted"] += sum(map(len, runs)) - answers

    def _trace(
        self, batch: Batch, runs: abc.Sequence[abc.Sequence[int | None]], seconds: float
    ) -> None:
        """One line of the log about a step; only counts, nothing of what was said."""
        scheduler, answers = self.scheduler, len(runs)
        logger.debug(
            "step %d: %d rows in %.1f ms (%d prompt, %d answers, %d of %d drafts right); "
            "%d running, %d waiting, %d of %d blocks free, %d cached",
            self._counts["steps"],
            batch.rows,
            1000 * seconds,
            batch.rows - answers - batch.drafts,
            answers,
            sum(map(len, runs)) - answers,
            batch.drafts,
            len(scheduler.running),
            len(scheduler.waiting),
            scheduler.pool.free,
            scheduler.pool.total,
            scheduler.pool.cached,
        )

    def _deliver(
        self,
        batch: Batch,
        runs: abc.Sequence[abc.Sequence[int | None]],
        logprobs: abc.Sequence[TokenLogprobs | None],
    ) -> None:
        """Hand each new token to its request."""
        start = 0
        for span, run in zip((span for span in batch.spans if span.sampled), runs, strict=True):
            own, start = logprobs[start : start + len(run)], start + span.sampled
            try:
                self._go_on(span.sequence, run, own)
            except Exception as error:  # one request's text; the others go on
                if None in run:
                    self._invalidate(span.sequence)
                self._fail([span.sequence], error)

    def _go_on(
        self,
        sequence: Sequence,
        run: abc.Sequence[int | None],
        logprobs: abc.Sequence[TokenLogprobs | None],
    ) -> None:
        """Deliver a run of tokens; what comes after the end of the answer is left out."""
        output, sampling = self._outputs[sequence], sequence.sampling
        for place, (token, beside) in enumerate(zip(run, logprobs, strict=True)):
            if token is None:
                raise sampling.failure or EngineError(NOT_FINITE)
            self._counts["completion_tokens"] += 1
            if sequence.first_token_s is None:
                sequence.first_token_s = self._clock()
            complete = place == len(run) - 1 and sampling.complete
            if output.accept(token, beside, complete=complete):
                self._end(sequence)
                return
        if sampling.failure is not None:
            raise sampling.failure

    def _invalidate(self, sequence: Sequence) -> None:
        """Let nobody find what a sequence wrote, nor meet its infinities where it writes next:
        they outlive a mask.
        """
        self.scheduler.invalidate(sequence)
        pool = self.scheduler.pool
        if own := [block for block in sequence.block_table if pool.ref_count(block) == 1]:
            self.backend.clear_cache(own)

    def _fail(self, sequences: abc.Sequence[Sequence], error: BaseException) -> None:
        cause = (
            error
            if isinstance(error, EngineError)
            else EngineError(f"generation failed: {error}; see the node's log")
        )
        logger.warning(
            "%d request(s) failed: %s",
            len(sequences),
            error,
            exc_info=not isinstance(error, EngineError),
        )
        with self._changed:
            for sequence in sequences:
                self._end(sequence, TextDelta("", None, "error"), cause)

    def _end(
        self, sequence: Sequence, last: TextDelta | None = None, error: EngineError | None = None
    ) -> None:
        """Free what a request holds; `last` is delivered unless its answer has had its
        last delta.
        """
        self.scheduler.finish(sequence)
        if self.draft is not None:
            self.draft.forget(sequence)
        generation = self._outputs.pop(sequence).generation
        if last is not None and generation.finish_reason is None:
            generation.deliver(last, error)
        reason = generation.finish_reason
        self._counts[
            "failed" if reason == "error" else "cancelled" if reason == "cancelled" else "finished"
        ] += 1
        ended_s, first_s = self._clock(), sequence.first_token_s
        self._observe(
            Timing(
                queue_s=(sequence.started_s or ended_s) - sequence.arrived_s,
                first_token_s=None if first_s is None else first_s - sequence.arrived_s,
                total_s=ended_s - sequence.arrived_s,
                tokens=generation.completion_tokens,
            )
        )

    def _limited(self, request: GenerationRequest) -> GenerationRequest:
        """The request, an answer without a limit ending where the context does."""
        params, room = request.sampling_params, max(1, self.context - len(request.prompt))
        if params.max_tokens is not None:
            return request
        return replace(request, sampling_params=replace(params, max_tokens=room))

    def _check(self, request: GenerationRequest) -> None:
        """Raises: RequestError: see `submit`."""
        params = request.sampling_params
        wanted = len(request.prompt) + params.limit
        if wanted > self.context:
            raise RequestError(
                f"prompt of {len(request.prompt)} tokens and answer of up to {params.limit} "
                f"make {wanted}, the context holds {self.context}; shorten the prompt, lower "
                f"max_tokens or raise engine.context"
            )
        size = self._weights.vocab_size
        if not all(0 <= token < size for token, _ in params.logit_bias):
            raise RequestError(
                f"logit_bias names tokens outside 0..{size - 1}; use this model's token ids"
            )
        if not 0 <= min(request.prompt) <= max(request.prompt) < size:
            raise RequestError(
                f"the prompt holds tokens outside 0..{size - 1}; encode it with "
                f"this model's tokenizer"
            )


def planned(
    weights: ServedModel, config: EngineConfig, choice: BackendChoice
) -> tuple[BlockPool, int]:
    """The cache's blocks, and the tokens of one request that they allow; no memory is taken yet.

    Blocks are what the memory allows, and no more than a full batch of full contexts can use. What
    nobody uses is kept within `kept_bytes`, or within one full context, which a single request may
    need anyway.

    Raises:
        ConfigError: the cache's memory is too small for one block, or the layers do not go where
            the owner wants them.
    """
    context = min(config.context, weights.context_length)
    longest = -(-context // BLOCK_TOKENS)
    running = running_at_once(config, choice.sequence_bytes)
    room = config.kv_bytes - beside_blocks(config, choice.sequence_bytes)
    if room < choice.block_bytes:
        raise ConfigError(
            f"engine.kv_bytes = {config.kv_bytes} holds no block of keys and values, which takes "
            f"{choice.block_bytes} for this model"
            + (f" beside {choice.sequence_bytes} of a request" if choice.sequence_bytes else "")
            + "; raise it"
        )
    blocks = min(room // choice.block_bytes, running * longest)
    context = min(context, blocks * BLOCK_TOKENS)
    choice.check(blocks, context)
    cache_limit = max(config.kept_bytes // choice.block_bytes, longest)
    return BlockPool(blocks, cache_limit=cache_limit), context
