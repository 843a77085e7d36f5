"""Requests in, pieces of text out: the thread that runs the model.

Knows the order of a step and what happens when one fails. The parts know the rest: `scheduler`, `runner`, `sampler`,
`answer`. Knows nothing of HTTP, conversations or tools.
Always: a failing request takes no other request with it, unless they shared the step that failed; the engine goes on.
"""

import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch

from .. import log
from ..config import EngineConfig
from ..errors import ConfigError, EngineError, OverloadedError, RequestError
from ..models.weights import Weights
from .adapters import AdapterShelf
from .answer import Answer
from .blockpool import BLOCK_TOKENS, BlockPool
from .kvcache import block_bytes
from .request import Generation, GenerationRequest, Piece
from .runner import LanguageModel, Runner, cache_dtype
from .sampler import sample
from .scheduler import Batch, Limits, Scheduler
from .sequence import Sequence

logger = log.get("engine")


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
        self.context = min(config.context, weights.architecture.context)  # tokens of one request, answer included
        self._weights, self._threads, self._clock = weights, config.threads, clock
        pool = BlockPool(_blocks(weights, config, self.context))
        self.context = min(self.context, pool.total * BLOCK_TOKENS)
        self.scheduler = Scheduler(
            pool,
            Limits(max_running=config.max_running, max_waiting=config.max_waiting, queue_timeout_s=config.queue_timeout_s),
        )
        self.model = model or Runner(weights, pool.total)
        self._answers: dict[Sequence, Answer] = {}
        self._counts = dict.fromkeys(("steps", "prompt_tokens", "completion_tokens", "finished", "failed", "cancelled"), 0)
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
        """Cancel what runs and waits, and end the thread; returns when both are done (at most one step)."""
        with self._changed:
            self._closed = "the engine was stopped; start it again"
            self._changed.notify_all()
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        with self._changed:
            for sequence in list(self._answers):
                self._end(sequence, Piece("", None, "cancelled"))

    def submit(self, request: GenerationRequest) -> Generation:
        """Put a request into the queue.

        Raises:
            RequestError: it can never run: too long for the context, a token the model does not know, an unknown adapter.
            OverloadedError: the queue is full.
            EngineError: the engine was stopped or has broken.
        """
        adapter = self.adapters.find(request.adapter)
        self._check(request)
        sequence = Sequence(request, arrived_s=self._clock(), adapter=adapter)
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
                **self._counts,
            )

    def step(self) -> None:
        """Advance every request there is room for: by one token, or by one chunk of its prompt."""
        with self._changed:
            self._sweep()
            batch = self.scheduler.plan()
        if not batch.spans:
            return
        try:
            logits = self.model.forward(batch)  # [S, V]
            tokens = sample(logits, batch.sampled)  # [S]
        except Exception as error:  # whatever it is, it must not end the thread that all requests share
            self._fail([span.sequence for span in batch.spans], error)
            return
        with self._changed:
            self.scheduler.commit(batch, tokens)
            self._answer(batch, tokens)

    def _run(self) -> None:
        """The thread."""
        if self._threads:
            torch.set_num_threads(self._threads)
        try:
            while self._wait_for_work():
                self.step()
        except BaseException as error:  # a bug of ours: say so to every caller instead of leaving them waiting
            with self._changed:
                self._closed = f"the engine broke down ({error}); restart it"
                self._fail(list(self._answers), EngineError(self._closed))
            logger.exception("the engine broke down")

    def _wait_for_work(self) -> bool:
        """Sleep while there is nothing to do; False when the engine is to stop."""
        with self._changed:
            while self._closed is None and not self._answers:
                self.scheduler.check_integrity()  # nothing runs now, so it costs nothing
                self._changed.wait()
            return self._closed is None

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
            error = OverloadedError(f"the request waited longer than {timeout_s:g} s for its turn; try again later")
            self._end(sequence, Piece("", None, "error"), error)

    def _answer(self, batch: Batch, tokens: Items[int | None]) -> None:
        """Hand each sampled token to its request."""
        sampled = batch.sampled
        self._counts["steps"] += 1
        self._counts["prompt_tokens"] += batch.rows - len(sampled)
        self._counts["completion_tokens"] += len(sampled)
        for sequence, token in zip(sampled, tokens, strict=True):
            try:
                if token is None:
                    raise EngineError(
                        "the model's logits are not finite; the weights or the adapter are damaged, get them again"
                    )
                if self._answers[sequence].accept(token):
                    self._end(sequence)
            except Exception as error:  # one request's text; the others go on
                self._fail([sequence], error)

    def _fail(self, sequences: Items[Sequence], error: BaseException) -> None:
        cause = error if isinstance(error, EngineError) else EngineError(f"generation failed: {error}; see the node's log")
        logger.warning("%d request(s) failed: %s", len(sequences), error, exc_info=not isinstance(error, EngineError))
        with self._changed:
            for sequence in sequences:
                self._end(sequence, Piece("", None, "error"), cause)

    def _end(self, sequence: Sequence, last: Piece | None = None, error: EngineError | None = None) -> None:
        """Free what a request holds; `last` is its last piece unless its answer has delivered one."""
        self.scheduler.finish(sequence)
        answer = self._answers.pop(sequence)
        if last is not None and answer.generation.finished is None:
            answer.generation.deliver(last, error)
        outcome = answer.generation.finished
        self._counts["failed" if outcome == "error" else "cancelled" if outcome == "cancelled" else "finished"] += 1

    def _check(self, request: GenerationRequest) -> None:
        """Raises: RequestError: see `submit`."""
        wanted = len(request.prompt) + request.max_tokens
        if wanted > self.context:
            raise RequestError(
                f"prompt of {len(request.prompt)} tokens and answer of up to {request.max_tokens} make {wanted}, "
                f"the context holds {self.context}; shorten the prompt, lower max_tokens or raise engine.context"
            )
        size = self._weights.architecture.vocabulary
        if not 0 <= min(request.prompt) <= max(request.prompt) < size:
            raise RequestError(f"the prompt holds tokens outside 0..{size - 1}; encode it with this model's tokenizer")


def _blocks(weights: Weights, config: EngineConfig, context: int) -> int:
    """Blocks of the cache: what the memory allows, and no more than a full batch of full contexts can use."""
    affordable = config.kv_bytes // block_bytes(weights.architecture, cache_dtype(weights, None))
    if affordable < 1:
        raise ConfigError(f"engine.kv_bytes = {config.kv_bytes} holds no block of keys and values; raise it")
    return min(affordable, config.max_running * -(-context // BLOCK_TOKENS))
