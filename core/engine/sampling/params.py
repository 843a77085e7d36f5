"""How one answer's tokens are chosen, and when it ends.

Knows numbers and their ranges. Knows nothing of prompts, models or of who asks.
Always: what exists here is a value that some engine could serve.

A FURTHER PARAMETER is a field here, a line in the API's schema (`core/server/requests.py`) and its
use; what lies between hands this value on whole.
"""

import math
from dataclasses import dataclass
from typing import Literal

from ...errors import RequestError

MAX_LOGPROBS = 20  # likeliest tokens that a request may ask for


@dataclass(frozen=True, slots=True)
class Constraint:
    """The answer's form. What is chosen among the texts of that form is still the model's word."""

    kind: Literal["json", "json_schema", "regex", "lark"]
    text: str = ""  # schema, expression or grammar; "json" needs none
    # the answer is free until it has said this; then the form holds to its end, greedily and
    # without penalties, and the answer is free again
    trigger: str = ""
    # the trigger counts where the answer begins, or behind the end of a form, alone
    at_start: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Everything about an answer that is not its prompt nor the model.

    Raises:
        RequestError: a value that no engine could serve.
    """

    max_tokens: int | None = None  # None: until the answer ends or the context is full
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0  # 1: all of the probability mass
    top_k: int = 0  # 0: all tokens
    min_p: float = 0.0  # leaves out tokens less likely than this times the likeliest
    seed: int | None = None  # None: a fresh one
    stop: tuple[str, ...] = ()  # text that ends the answer and is not part of it
    presence_penalty: float = 0.0  # taken from the logit of each token the answer holds
    frequency_penalty: float = 0.0  # the same, times how often
    # divides the logits of tokens that prompt or answer hold; 1: off
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # token id and what is added to its logit
    # likeliest tokens told beside each; 0: the token's own alone, None: nothing
    logprobs: int | None = None
    constraint: Constraint | None = None
    # an answer that only repeats itself is ended (core/engine/output.py says when)
    loop_guard: bool = False
    # tokens may be guessed and checked; None: unless a seed forbids what may change digits
    speculate: bool | None = None

    @property
    def repeatable(self) -> bool:
        """Somebody wants the same text again. What others left in the cache, and guesses, change no
        distribution; but they change how many rows a step has, and on a backend that is not
        deterministic that changes the last digits of logits."""
        return self.seed is not None

    @property
    def limit(self) -> int:
        """`max_tokens`, once the engine has put what the context leaves in the place of None."""
        if self.max_tokens is None:
            raise RuntimeError("an answer without a limit is drawn")  # our bug
        return self.max_tokens

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
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
        for name in ("presence_penalty", "frequency_penalty"):
            if not math.isfinite(value := getattr(self, name)):
                raise RequestError(f"{name} is {value}; it must be a finite number, 0 turns it off")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise RequestError(
                f"repetition_penalty is {self.repetition_penalty}; it must be a positive number, 1 "
                f"turns it off"
            )
        for token, bias in self.logit_bias:
            if not math.isfinite(bias):
                raise RequestError(
                    f"logit_bias of token {token} is {bias}; it must be a finite number, -100 "
                    f"forbids a token"
                )
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise RequestError(f"logprobs is {self.logprobs}; it must be 0 to {MAX_LOGPROBS}")
        if "" in self.stop:
            raise RequestError(
                "stop holds an empty text, which would end every answer at once; leave it out"
            )
