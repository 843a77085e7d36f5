"""Answers that fit a grammar: which tokens may come next.

Knows JSON schemas, regular expressions and Lark grammars as matchers of llguidance. Knows nothing
of how they are compiled, of logits or of probabilities.
Always: what a constrained request has said so far can be completed to a text of its grammar.
Hazard: a grammar is a program that a caller wrote. `grammar_limits.py` and
`grammar_compiler.py` refuse what is too large, too slow or too deep; one that grows beyond its
limits later fails its own request.
"""

from collections import abc
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError, RequestError
from ...models.tokenizer.tokenizer import Tokenizer
from .grammar_compiler import Compiler
from .params import Constraint


class Grammars:
    """Compiles grammars for one tokenizer; safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._compiler = Compiler(tokenizer)

    def compile(self, constraint: Constraint) -> "Matcher | LazyMatcher":
        """A matcher at the grammar's beginning.

        Raises:
            RequestError: not a grammar, too large a one, or one that uses what is not supported.
            OverloadedError: the compiler was busy for too long.
        """
        if not self._tokenizer.stop_tokens:
            raise RequestError(
                "this model's file names no token that ends an answer, so none can "
                "be held to a form"
            )
        size = len(self._tokenizer.vocabulary.tokens)
        matcher = Matcher(self._compiler.compile(constraint), size)
        if not constraint.trigger:
            return matcher
        return LazyMatcher(matcher, constraint, self._tokenizer.spell, self._tokenizer.encode)

    def close(self) -> None:
        """End the compiler's process; the next grammar starts another."""
        self._compiler.close()


class Matcher:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: Any, size: int) -> None:
        self.inner = matcher
        self.size = size  # tokens of the vocabulary; the model's own may be padded

    @property
    def inside(self) -> "Matcher":
        """The grammar that holds now."""
        return self

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
        return EngineError(
            f"the grammar gave up ({self.inner.get_error()[:200]}); ask for a simpler one"
        )

    def forced(self, most: int) -> tuple[int, ...]:
        """Tokens that follow whatever the model thinks, in the tokenizer's usual spelling: good
        guesses.
        """
        return (
            tuple(self.inner.compute_ff_tokens()[:most]) if most > 0 and not self.complete else ()
        )

    def fitting(self, drafts: tuple[int, ...]) -> tuple[int, ...]:
        """The drafts up to the first that the grammar forbids."""
        return drafts[: self.inner.validate_tokens(list(drafts))]


class LazyMatcher:
    """An answer that is free until it says a trigger; from there a grammar holds, to its end.

    Always: outside a form nothing is masked and nothing costs; a form may be entered many times.
    """

    complete = False  # text may follow a form

    def __init__(
        self,
        grammar: Matcher,
        constraint: Constraint,
        spell: Callable[[int], bytes],
        encode: Callable[[str], list[int]],
    ) -> None:
        """
        Args:
            grammar: of what follows the trigger, at its beginning.
            spell: a token's bytes; of a control token, its name.
        """
        self.inside: Matcher | None = None
        self._grammar, self._spell, self._encode = grammar, spell, encode
        self._trigger, self._at_start = constraint.trigger.encode(), constraint.at_start
        # what was said since the answer's beginning, or since the end of a form; only as much of it
        # as can matter
        self._tail = b""

    @property
    def failure(self) -> EngineError | None:
        """The grammar became too much work."""
        return None if self.inside is None else self.inside.failure

    def accept(self, token: int) -> None:
        """The answer goes on with `token`."""
        if self.inside is not None:
            self.inside.accept(token)
            if self.inside.complete:
                self.inside, self._tail = None, b""
            return
        self._tail, rest = self._after(token)
        if rest is None:
            return
        form = Matcher(self._grammar.inner.deep_copy(), self._grammar.size)
        begun = self._encode(rest.decode("utf-8", "replace")) if rest else []
        # a token that holds the trigger and letters that no form goes on with: it is text after all
        if form.inner.try_consume_tokens(begun) == len(begun) and not form.complete:
            self.inside = form

    def forced(self, most: int) -> tuple[int, ...]:
        """As `Matcher.forced`, but never the form's end, behind which no mask would hold."""
        if self.inside is None:
            return ()
        guessed = self.inside.forced(most)
        return guessed[:-1] if guessed and self._ends(guessed) else guessed

    def fitting(self, drafts: tuple[int, ...]) -> tuple[int, ...]:
        """The drafts up to where a form begins or ends."""
        if self.inside is not None:
            fitting = self.inside.fitting(drafts)
            return fitting[:-1] if fitting and self._ends(fitting) else fitting
        tail = self._tail
        for place, token in enumerate(drafts):
            tail, rest = self._after(token, tail)
            if rest is not None:
                return drafts[:place]
        return drafts

    def _ends(self, tokens: tuple[int, ...]) -> bool:
        assert self.inside is not None
        probe = self.inside.inner.deep_copy()
        probe.consume_tokens(list(tokens))
        return bool(probe.is_stopped())

    def _after(self, token: int, tail: bytes | None = None) -> tuple[bytes, bytes | None]:
        """What is to be remembered after `token`; and what of it follows the trigger, if that is
        said now.
        """
        said = (self._tail if tail is None else tail) + self._spell(token)
        if self._at_start:
            said = said.lstrip()
            if said.startswith(self._trigger):
                return b"", said[len(self._trigger) :]
            # one letter that is no trigger's stays, so that none can begin here any more
            return (said if self._trigger.startswith(said) else b"\0"), None
        place = said.find(self._trigger)
        if place >= 0:
            return b"", said[place + len(self._trigger) :]
        return said[-(len(self._trigger) - 1) :] if len(self._trigger) > 1 else b"", None


def apply_grammar_mask(
    logits: NDArray[np.float32], spans: abc.Sequence[tuple[int, Matcher, tuple[int, ...]]]
) -> None:
    """Set the logits of tokens that a grammar forbids to minus infinity, in place.

    Args:
        logits: [R, V].
        spans: the first row of a constrained sequence, its matcher, and the drafts after that row:
            each has a row of its own, right behind.
    """
    if not spans:
        return
    indices: list[int] = []
    work: list[tuple[Any, int, list[int]]] = []
    for first, matcher, drafts in spans:
        work.append((matcher.inner, len(indices), list(drafts)))
        indices += range(first, first + 1 + len(drafts))
    size = spans[0][1].size
    # [M, tokens / 32], a bit for each token
    masks = np.zeros((len(indices), -(-size // 32)), np.uint32)
    executor = _executor()
    shape = (masks.ctypes.data, masks.shape[1] * 4, len(masks))
    if plain := [(inner, start) for inner, start, drafts in work if not drafts]:
        executor.unsafe_compute_mask_ptr(plain, *shape)
    if drafted := [entry for entry in work if entry[2]]:
        executor.unsafe_compute_mask_ptr_with_draft_token(drafted, *shape)
    # [M, tokens], 1 or 0
    allowed = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little", count=size)
    # 0 or minus infinity, by arithmetic: six times as fast as a masked fill.
    added = allowed.astype(np.float32)
    added -= 1
    with np.errstate(over="ignore"):
        added *= np.float32(3e38)
        added *= np.float32(3e38)
    # row by row: a gather would copy the logits twice
    for index, row in zip(indices, added, strict=True):
        logits[index, :size] += row
        logits[index, size:] = -np.inf


@cache
def _executor() -> Any:
    """The library's threads, shared by all engines of this program."""
    import llguidance

    return llguidance.LLExecutor()
