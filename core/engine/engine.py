"""Requests in, pieces of text out: the thread that runs the model.

Knows the order of a step and what happens when one fails. The parts know the rest: `scheduler`,
`runner`, `sampler`, `answer`. Knows nothing of HTTP, conversations or tools.
Always: a failing request takes no other request with it, unless they shared the step that failed;
the engine goes on.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Items
from concurrent.futures import Future
from typing import TypeVar

import numpy as np

from .. import log
from ..config import EngineConfig
from ..errors import ConfigError, EngineError, OverloadedError, RequestError
from ..models.weights import Weights
from .adapters import AdapterShelf
from .backends.native.runner import NativeRunner
from .backends.select import cache_block_bytes, runner_for
from .backends.torch_cpu.threads import compute_alone, compute_with
from .block_pool import BLOCK_TOKENS, BlockPool
from .cache_label import label
from .languagemodel import LanguageModel
from .output import Answer
from .prompt_cache import Keeper
from .request import Generation, GenerationRequest, Likely, Piece
from .sampling.grammar import Grammars
from .sampling.logprobs import put_aside, tell
from .sampling.sampler import sample
from .scheduler import Batch, Limits, Scheduler
from .sequence import Sequence
from .stats import EngineStats

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


class Engine:
    """Generates for many requests at once; every public method may be called from any thread."""

    def __init__(
        self,
        weights: Weights,
        config: EngineConfig,
        *,
        model: LanguageModel | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Pack the weights (seconds) unless a `model` is given.

        Raises:
            ConfigError: the cache's memory is too small for one block.
        """
        self.adapters = AdapterShelf(weights)
        # tokens of one request, answer included
        self.context = min(config.context, weights.architecture.context_length)
        self._weights, self._threads, self._clock = weights, config.threads, clock
        pool = _pool(weights, config, self.context)
        self.context = min(self.context, pool.total * BLOCK_TOKENS)
        self.scheduler = Scheduler(
            pool,
            Limits(
                max_running=config.max_running,
                max_waiting=config.max_waiting,
                queue_timeout_s=config.queue_timeout_s,
                share_prefixes=config.share_prefixes,
                drafts=config.drafts,
            ),
        )
        self.model = model or runner_for(weights, pool.total, config, self.context)
        self.scheduler.exact = isinstance(self.model, NativeRunner)
        self._grammars = Grammars(weights.tokenizer)
        self.conversations = Keeper(
            self.scheduler, self.model, weights, self.adapters, self._between_steps
        )
        self._errands: deque[Callable[[], None]] = deque()  # for the thread, between two steps
        self._answers: dict[Sequence, Answer] = {}
        self._counts = dict.fromkeys(COUNTED, 0)
        # of each token, once somebody asks for log-probabilities
        self._pieces: list[bytes] | None = None
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
        while self._errands:
            self._errands.popleft()()
        with self._changed:
            for sequence in list(self._answers):
                self._end(sequence, Piece("", None, "cancelled"))
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
        self._check(request)
        matcher = None if request.constraint is None else self._grammars.compile(request.constraint)
        sequence = Sequence(request, arrived_s=self._clock(), adapter=adapter, matcher=matcher)
        generation = Generation(len(request.prompt), self._wake)
        with self._changed:
            if self._closed is not None:
                raise EngineError(self._closed)
            self.scheduler.add(sequence)
            self._answers[sequence] = Answer(request, generation, self._weights.tokenizer)
            self._changed.notify_all()
        return generation

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
                blocks_kept=scheduler.pool.kept,
                **self._counts,
            )

    def step(self) -> None:
        """Advance every request there is room for: by a token and what was guessed after it, or
        by a chunk of its prompt.
        """
        while self._errands:
            self._errands.popleft()()
        with self._changed:
            self._sweep()
            batch = self.scheduler.plan()
        if not batch.spans:
            return
        started_s, rows = self._clock(), batch.wanted
        try:
            logits = np.asarray(self.model.forward(batch))  # [R, V], the same memory
            telling = put_aside(logits, rows)
            tokens = sample(logits, rows)  # [R]
            told = tell(telling, rows, tokens, self._spell)  # [R]
        # whatever it is, it must not end the thread that all requests share
        except Exception as error:
            self._fail([span.sequence for span in batch.spans], error)
            return
        with self._changed:
            runs = self.scheduler.commit(batch, tokens)
            self._count(batch, runs, self._clock() - started_s)
            self._answer(batch, runs, told)

    def _run(self) -> None:
        """The thread."""
        native = isinstance(self.model, NativeRunner)
        if self._threads and not native:
            compute_with(self._threads)
        alone = False
        try:
            while self._wait_for_work():
                # it has threads of its own; torch may come any time
                alone = alone or (native and compute_alone())
                self.step()
        # a bug of ours: say so to every caller instead of leaving them waiting
        except BaseException as error:
            with self._changed:
                self._closed = f"the engine broke down ({error}); restart it"
                self._fail(list(self._answers), EngineError(self._closed))
                while self._errands:
                    self._errands.popleft()()
            logger.exception("the engine broke down")

    def _wait_for_work(self) -> bool:
        """Sleep while there is nothing to do; False when the engine is to stop."""
        with self._changed:
            while self._closed is None and not self._answers and not self._errands:
                self.scheduler.check_integrity()  # nothing runs now, so it costs nothing
                self._changed.wait()
            return self._closed is None

    def _between_steps(self, work: Callable[[], T]) -> T:
        """Do `work` on the engine's thread, where nothing else touches blocks; other requests
        wait meanwhile.
        """
        done: Future[T] = Future()

        def errand() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        with self._changed:
            if self._thread is None:
                errand()
            elif self._closed is not None:
                raise EngineError(self._closed)
            else:
                self._errands.append(errand)
                self._changed.notify_all()
        return done.result()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _sweep(self) -> None:
        """Let go of requests that were cancelled or have waited too long."""
        for sequence, answer in list(self._answers.items()):
            if answer.generation.cancel_requested:
                self._end(sequence, Piece("", None, "cancelled"))
        for sequence in self.scheduler.expire(self._clock()):
            timeout_s = self.scheduler.limits.queue_timeout_s
            error = OverloadedError(
                f"the request waited longer than {timeout_s:g} s for its turn; try again later"
            )
            self._end(sequence, Piece("", None, "error"), error)

    def _count(self, batch: Batch, runs: Items[Items[int | None]], seconds: float) -> None:
        answers, guesses = len(runs), batch.guesses
        # nobody reads a prompt, so the time is what answers and guesses took
        if batch.rows == answers + guesses:
            self.scheduler.price.learn(answers, guesses, seconds)
        self._counts["steps"] += 1
        self._counts["prompt_tokens"] += batch.rows - answers - guesses
        self._counts["drafted"] += guesses
        self._counts["accepted"] += sum(map(len, runs)) - answers

    def _answer(
        self, batch: Batch, runs: Items[Items[int | None]], told: Items[Likely | None]
    ) -> None:
        """Hand each new token to its request."""
        start = 0
        for span, run in zip((span for span in batch.spans if span.sampled), runs, strict=True):
            beside, start = told[start : start + len(run)], start + span.sampled
            try:
                self._go_on(span.sequence, run, beside)
            except Exception as error:  # one request's text; the others go on
                if None in run:
                    self._clean(span.sequence)
                self._fail([span.sequence], error)

    def _go_on(
        self, sequence: Sequence, run: Items[int | None], told: Items[Likely | None]
    ) -> None:
        """Deliver a run of tokens; what comes after the end of the answer is left out."""
        answer, matcher = self._answers[sequence], sequence.matcher
        for place, (token, likely) in enumerate(zip(run, told, strict=True)):
            if token is None:
                raise sequence.failure or EngineError(NOT_FINITE)
            self._counts["completion_tokens"] += 1
            complete = matcher is not None and place == len(run) - 1 and matcher.complete
            if answer.accept(token, likely, complete=complete and sequence.failure is None):
                self._end(sequence)
                return
        if sequence.failure is not None:
            raise sequence.failure

    def _spell(self, token: int) -> bytes:
        """The bytes of a token; a control token's name."""
        if self._pieces is None:
            self._pieces = self._weights.tokenizer.vocabulary.bytes_of()
        return self._pieces[token] or self._weights.tokenizer.vocabulary.tokens[token].encode()

    def _clean(self, sequence: Sequence) -> None:
        """Let nobody find what a sequence wrote, nor meet its infinities where it writes next:
        they outlive a mask.
        """
        self.scheduler.distrust(sequence)
        own = [block for block in sequence.blocks if self.scheduler.pool.alone(block)]
        if own:
            layout, _, payload = self.model.read_cache(own).partition(b"\n")
            self.model.write_cache(own, label(layout.decode(), bytes(len(payload))))

    def _fail(self, sequences: Items[Sequence], error: BaseException) -> None:
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
                self._end(sequence, Piece("", None, "error"), cause)

    def _end(
        self, sequence: Sequence, last: Piece | None = None, error: EngineError | None = None
    ) -> None:
        """Free what a request holds; `last` is its last piece unless its answer has delivered
        one.
        """
        self.scheduler.finish(sequence)
        answer = self._answers.pop(sequence)
        if last is not None and answer.generation.finished is None:
            answer.generation.deliver(last, error)
        outcome = answer.generation.finished
        self._counts[
            "failed"
            if outcome == "error"
            else "cancelled"
            if outcome == "cancelled"
            else "finished"
        ] += 1

    def _check(self, request: GenerationRequest) -> None:
        """Raises: RequestError: see `submit`."""
        wanted = len(request.prompt) + request.max_tokens
        if wanted > self.context:
            raise RequestError(
                f"prompt of {len(request.prompt)} tokens and answer of up to {request.max_tokens} "
                f"make {wanted}, "
                f"the context holds {self.context}; shorten the prompt, lower max_tokens or raise "
                f"engine.context"
            )
        size = self._weights.architecture.vocab_size
        if not all(0 <= token < size for token, _ in request.logit_bias):
            raise RequestError(
                f"logit_bias names tokens outside 0..{size - 1}; use this model's token ids"
            )
        if not 0 <= min(request.prompt) <= max(request.prompt) < size:
            raise RequestError(
                f"the prompt holds tokens outside 0..{size - 1}; encode it with "
                f"this model's tokenizer"
            )


def _pool(weights: Weights, config: EngineConfig, context: int) -> BlockPool:
    """Blocks of the cache: what the memory allows, and no more than a full batch of full contexts
    can use.

    What nobody uses is kept within `kept_bytes`, or within one full context, which a single request
    may need anyway.
    """
    one, longest = cache_block_bytes(weights, config), -(-context // BLOCK_TOKENS)
    if config.kv_bytes < one:
        raise ConfigError(
            f"engine.kv_bytes = {config.kv_bytes} holds no block of keys and values; raise it"
        )
    blocks = min(config.kv_bytes // one, config.max_running * longest)
    return BlockPool(blocks, keep=max(config.kept_bytes // one, longest))
