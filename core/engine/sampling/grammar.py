"""Answers that fit a grammar: which tokens may come next.

Knows JSON schemas, regular expressions and Lark grammars, through llguidance, which this file alone imports. Knows nothing of
logits or probabilities.
Always: what a constrained request has said so far can be completed to a text of its grammar.
Hazard: a grammar is a program that a caller wrote. Its size and its work in each step are limited (`LIMITS`); one that exceeds
them is refused when it comes or fails its own request later.
"""

import json
import threading
from collections.abc import Sequence as Items
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError, RequestError
from ...models.tokenizer import Tokenizer
from ...models.vocabulary import CONTROL
from ..request import Constraint

if TYPE_CHECKING:
    from ..sequence import Row

# A lexer state takes up to 2 kB, so one grammar holds at most 40 MB of them. An ambiguous grammar took 17 ms for a step of
# 1,000 items, an ordinary schema takes 0.04 ms.
LIMITS: dict[str, Any] = {
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
    "step_max_items": 2_000,
    "verbose_errors": False,
}
# One line, as `toolcall.render` writes it: a grammar that lets blanks repeat is an invitation to write blanks for ever.
LAYOUT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
LONGEST = 100_000  # characters of a grammar


class Grammars:
    """Compiles grammars for one tokenizer; safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._words: Any = None  # the library's view of the vocabulary, made when it is first needed: 0.2 s

    def compile(self, constraint: Constraint) -> "Matcher":
        """A matcher at the grammar's beginning.

        Raises:
            RequestError: not a grammar, too large a one, or one that uses what is not supported.
        """
        import llguidance

        if len(constraint.text) > LONGEST:
            raise RequestError(f"the grammar has {len(constraint.text)} characters, at most {LONGEST} are taken; shorten it")
        if not self._tokenizer.stop_tokens:
            raise RequestError("this model's file names no token that ends an answer, so none can be held to a form")
        with self._lock:
            if self._words is None:
                self._words = _words(self._tokenizer)
        try:
            grammar = _grammar(constraint)
            matcher = llguidance.LLMatcher(self._words, grammar, log_level=0, limits=llguidance.LLParserLimits(**LIMITS))
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the {constraint.kind} cannot be compiled: {error}"[:500]) from None
        if matcher.is_error():
            raise RequestError(f"the {constraint.kind} cannot be compiled: {matcher.get_error()}"[:500])
        return Matcher(matcher, len(self._tokenizer.vocabulary.tokens))


class Matcher:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: Any, size: int) -> None:
        self.inner = matcher
        self.size = size  # tokens of the vocabulary; the model's own may be padded

    @property
    def complete(self) -> bool:
        """Nothing can follow any more, so the answer ends here."""
        return bool(self.inner.is_stopped())

    def accept(self, token: int) -> None:
        """The answer goes on with `token`; `failure` says if it cannot go on after it."""
        self.inner.consume_token(token)

    @property
    def failure(self) -> EngineError | None:
        """The grammar became too much work."""
        if not self.inner.is_error():
            return None
        return EngineError(f"the grammar gave up ({self.inner.get_error()[:200]}); ask for a simpler one")

    def forced(self, most: int) -> tuple[int, ...]:
        """Tokens that follow whatever the model thinks, in the tokenizer's usual spelling: good guesses."""
        return tuple(self.inner.compute_ff_tokens()[:most]) if most > 0 and not self.complete else ()

    def fitting(self, drafts: tuple[int, ...]) -> tuple[int, ...]:
        """The drafts up to the first that the grammar forbids."""
        return drafts[: self.inner.validate_tokens(list(drafts))]


def forbid(logits: NDArray[np.float32], rows: "Items[Row]") -> None:
    """Set the logits of tokens that a row's grammar forbids to minus infinity, in place, [R, V]."""
    places: list[int] = []
    work: list[tuple[Any, int, list[int]]] = []
    size = 0
    for place, row in enumerate(rows):
        matcher = row.sequence.matcher
        if matcher is not None:
            if row.place == 0:  # one entry for the row and all its drafts, which stand right behind it
                work.append((matcher.inner, len(places), list(row.drafts)))
                size = matcher.size
            places.append(place)
    if not places:
        return
    masks = np.zeros((len(places), -(-size // 32)), np.uint32)  # [M, tokens / 32], a bit for each token
    executor = _executor()
    shape = (masks.ctypes.data, masks.shape[1] * 4, len(masks))
    if plain := [(inner, start) for inner, start, drafts in work if not drafts]:
        executor.unsafe_compute_mask_ptr(plain, *shape)
    if drafted := [entry for entry in work if entry[2]]:
        executor.unsafe_compute_mask_ptr_with_draft_token(drafted, *shape)
    allowed = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little", count=size)  # [M, tokens], 1 or 0
    # 0 or minus infinity, by arithmetic: six times as fast as a masked fill.
    added = allowed.astype(np.float32)
    added -= 1
    with np.errstate(over="ignore"):
        added *= np.float32(3e38)
        added *= np.float32(3e38)
    for place, row in zip(places, added, strict=True):  # row by row: a gather would copy the logits twice
        logits[place, :size] += row
        logits[place, size:] = -np.inf


@cache
def _executor() -> Any:
    """The library's threads, shared by all engines of this program."""
    import llguidance

    return llguidance.LLExecutor()


def _grammar(constraint: Constraint) -> str:
    from llguidance import LLMatcher

    match constraint.kind:
        case "json":
            return LLMatcher.grammar_from_json_schema({"type": "object"}, overrides=LAYOUT)
        case "json_schema":
            json.loads(constraint.text)  # the library would read what is not JSON as a grammar of another kind
            return LLMatcher.grammar_from_json_schema(constraint.text, overrides=LAYOUT)
        case "regex":
            return LLMatcher.grammar_from_regex(constraint.text)
        case "lark":
            return LLMatcher.grammar_from_lark(constraint.text)


def _words(tokenizer: Tokenizer) -> Any:
    """The vocabulary as the library reads it."""
    import llguidance

    vocabulary = tokenizer.vocabulary

    class Words:
        eos_token_id = min(tokenizer.stop_tokens)
        bos_token_id = None
        special_token_ids = [number for number, kind in enumerate(vocabulary.kinds) if kind == CONTROL]  # noqa: RUF012
        # A token without bytes could never be told from nothing: its own name stands for it, marked as special.
        tokens = [piece or f"<|{number}|>".encode() for number, piece in enumerate(vocabulary.bytes_of())]  # noqa: RUF012

        def __call__(self, text: bytes) -> list[int]:
            return tokenizer.encode(text.decode("utf-8", "replace"))

    wrapper = llguidance.TokenizerWrapper(Words())
    return llguidance.LLTokenizer(wrapper, n_vocab=len(vocabulary.tokens), eos_token=sorted(tokenizer.stop_tokens))
