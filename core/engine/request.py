"""What a caller asks of the engine, and the handle on its answer.

Knows tokens, limits and pieces of text. Knows nothing of batches, caches or models.
Always: a generation ends with exactly one piece whose `finished` is set, and nothing follows it.
"""

import asyncio
import math
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from ..errors import EngineError, RequestError

Finished = Literal["stop", "length", "cancelled", "error"]
MAX_LOGPROBS = 20  # likeliest tokens that a request may ask for


@dataclass(frozen=True, slots=True)
class Constraint:
    """The answer's form. What is chosen among the texts of that form is still the model's word."""

    kind: Literal["json", "json_schema", "regex", "lark"]
    text: str = ""  # schema, expression or grammar; "json" needs none


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One prompt and how to go on from it.

    Raises:
        RequestError: a value that no engine could serve.
    """

    prompt: tuple[int, ...]  # token ids
    max_tokens: int = 256
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0  # 1: all of the probability mass
    top_k: int = 0  # 0: all tokens
    seed: int | None = None  # None: a fresh one
    stop: tuple[str, ...] = ()  # text that ends the answer and is not part of it
    adapter: str | None = None
    min_p: float = 0.0  # leaves out tokens less likely than this times the likeliest
    presence_penalty: float = 0.0  # taken from the logit of each token the answer holds
    frequency_penalty: float = 0.0  # the same, times how often
    # divides the logits of tokens that prompt or answer hold; 1: off
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # token id and what is added to its logit
    # likeliest tokens told beside each; 0: the token's own alone, None: nothing
    logprobs: int | None = None
    constraint: Constraint | None = None
    # tokens may be guessed and checked; None: unless a seed forbids what may change digits
    speculate: bool | None = None

    @property
    def repeatable(self) -> bool:
        """Somebody wants the same text again. What others left in the cache, and guesses, change no
        distribution; but they change how many rows a step has, and on the torch path that changes
        the last digits of logits."""
        return self.seed is not None

    def __post_init__(self) -> None:
        if not self.prompt:
            raise RequestError("the prompt has no tokens; send at least one")
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens is {self.max_tokens}; it must be 1 or more")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise RequestError(
                f"temperature is {self.temperature}; it must be 0 (greedy) or a positive number"
            )
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.top_k < 0:
            raise RequestError(f"top_k is {self.top_k}; it must be 0 (all tokens) or more")
        if not 0 <= self.min_p <= 1:
            raise RequestError(f"min_p is {self.min_p}; it must be 0 (off) to 1")
        if not (math.isfinite(self.presence_penalty) and math.isfinite(self.frequency_penalty)):
            raise RequestError(
                "presence_penalty and frequency_penalty must be finite numbers; 0 turns them off"
            )
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise RequestError(
                f"repetition_penalty is {self.repetition_penalty}; it must be a "
                f"positive number, 1 turns it off"
            )
        if not all(math.isfinite(value) for _, value in self.logit_bias):
            raise RequestError(
                "logit_bias holds a value that is not finite; use -100 to forbid a token"
            )
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise RequestError(f"logprobs is {self.logprobs}; it must be 0 to {MAX_LOGPROBS}")
        if "" in self.stop:
            raise RequestError(
                "stop holds an empty text, which would end every answer at once; leave it out"
            )


@dataclass(frozen=True, slots=True)
class Chance:
    """A token and the logarithm of its probability."""

    token: int
    text: bytes  # may be part of a character
    logprob: float


@dataclass(frozen=True, slots=True)
class Likely:
    """How likely the model itself found a token, whatever temperature, penalties or grammar made
    of it.
    """

    chosen: Chance
    best: tuple[Chance, ...]  # the likeliest tokens, as many as were asked for


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token added to an answer."""

    text: str  # whole characters; may be empty while a character or a stop text is incomplete
    token: int | None  # None where no token stands behind the piece (cancelled, error)
    finished: Finished | None = None
    likely: Likely | None = None  # where the request asked for logprobs


class Generation:
    """An answer as it grows: iterate it, from one thread or one task.

    Leaving a `with generation:` block cancels what is not finished. So does `cancel`, from
    anywhere; a consumer that goes away must do one of the two, since an answer that nobody reads
    would otherwise be written to its end. Iteration never raises on failure: the last piece says
    `error`, and `error` holds what happened.
    """

    def __init__(self, prompt_tokens: int, on_cancel: Callable[[], None] = lambda: None) -> None:
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = 0
        self.finished: Finished | None = None
        self.error: EngineError | None = None
        self.cancel_requested = False
        self._on_cancel = on_cancel
        self._pieces: deque[Piece] = deque()
        self._arrived = threading.Condition()
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    # The caller's half.

    def cancel(self) -> None:
        """Ask the engine to stop here and free the cache; harmless when already finished."""
        if self.finished is None:
            self.cancel_requested = True
            self._on_cancel()

    def text(self) -> str:
        """Wait for the whole answer.

        Raises:
            EngineError: generation failed, with its cause.
        """
        text = "".join(piece.text for piece in self)
        if self.error is not None:
            raise self.error
        return text

    def __enter__(self) -> "Generation":
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        with self._arrived:
            while not self._pieces:
                if self.finished is not None:
                    raise StopIteration
                self._arrived.wait()
            return self._pieces.popleft()

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        while True:
            with self._arrived:
                if self._pieces:
                    return self._pieces.popleft()
                if self.finished is not None:
                    raise StopAsyncIteration
                loop = asyncio.get_running_loop()
                arrival = loop.create_future()
                self._waiter = (loop, arrival)
            await arrival

    # The engine's half.

    def deliver(self, piece: Piece, error: EngineError | None = None) -> None:
        """Hand over the next piece, from the engine's thread.

        Raises:
            RuntimeError: the generation had already finished (a bug in the engine).
        """
        with self._arrived:
            if self.finished is not None:
                raise RuntimeError(
                    f"a piece came after the generation finished with {self.finished!r}"
                )
            self.completion_tokens += piece.token is not None
            self.finished, self.error = piece.finished, error
            self._pieces.append(piece)
            self._arrived.notify_all()
            waiter, self._waiter = self._waiter, None
        if waiter is None:
            return
        loop, arrival = waiter
        try:
            loop.call_soon_threadsafe(_wake, arrival)
        except RuntimeError:  # the loop is closed, so the reader is gone for good
            self.cancel()


def _wake(arrival: "asyncio.Future[None]") -> None:
    if not arrival.done():
        arrival.set_result(None)
