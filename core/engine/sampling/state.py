"""What decides one request's next token: its parameters, random numbers, counted tokens, a grammar,
guesses.

Knows tokens. Knows nothing of blocks, batches or text.
"""

from collections import abc
from dataclasses import dataclass
from random import Random

from ...errors import EngineError
from .grammar import LazyMatcher, Matcher
from .params import SamplingParams
from .penalties import Penalties
from .speculation import PromptLookup


class RandomStream:
    """Numbers in [0, 1) that can be looked at before it is known how many of them are used.

    The n-th token of an answer is drawn with the n-th number, however many steps the answer took;
    so guessed tokens change neither the distribution nor, for a seed, the text.
    """

    def __init__(self, seed: int | None) -> None:
        """A fresh seed where `seed` is None."""
        self._source = Random() if seed is None else Random(seed)
        self._seen: list[float] = []

    def peek(self, place: int) -> float:
        """The number `place` places after the last one taken."""
        while len(self._seen) <= place:
            self._seen.append(self._source.random())
        return self._seen[place]

    def take(self, count: int) -> None:
        """Use up `count` numbers."""
        if count:
            self.peek(count - 1)
            del self._seen[:count]


class SamplingState:
    """Where one answer stands."""

    def __init__(
        self,
        params: SamplingParams,
        prompt: abc.Sequence[int],
        matcher: Matcher | LazyMatcher | None = None,
    ) -> None:
        self.params = params
        self._matcher = matcher  # where it stands in its grammar
        self.rng = RandomStream(params.seed)
        self.penalties = Penalties(params, prompt)
        self.lookup = PromptLookup()
        self._prompt_length = len(prompt)
        self._accepted = 0  # tokens of the answer

    @property
    def matcher(self) -> Matcher | None:
        """The grammar that the next token must fit; None: it is free."""
        return None if self._matcher is None else self._matcher.inside

    @property
    def left(self) -> int:
        """Tokens that the answer may still have."""
        return self.params.limit - self._accepted

    @property
    def formed(self) -> bool:
        """It has a grammar, whether it stands inside it or not."""
        return self._matcher is not None

    @property
    def complete(self) -> bool:
        """The grammar lets nothing follow."""
        return self._matcher is not None and self._matcher.complete and self.failure is None

    @property
    def in_form(self) -> bool:
        """Inside a form that the answer entered by itself: the likeliest words, unpenalised."""
        return isinstance(self._matcher, LazyMatcher) and self._matcher.inside is not None

    @property
    def temperature(self) -> float:
        """Of the next token."""
        return 0.0 if self.in_form else self.params.temperature

    @property
    def penalised(self) -> bool:
        """Whether the next token's logits are changed for what was said before."""
        return self.penalties.active and not self.in_form

    @property
    def failure(self) -> EngineError | None:
        """Why it cannot go on."""
        return None if self._matcher is None else self._matcher.failure

    def accept(self, token: int) -> None:
        """The answer goes on with `token`; `failure` says if it cannot go on after it."""
        self.penalties.add(token)
        self._accepted += 1
        if self.temperature > 0:
            self.rng.take(1)
        if self._matcher is not None:
            self._matcher.accept(token)

    def propose(self, tokens: abc.Sequence[int], most: int, cost: float) -> tuple[int, ...]:
        """Tokens that may come after `tokens` (prompt and answer), to be checked beside the last.

        Args:
            most: at most so many.
            cost: of checking one more, as a share of what a token costs.
        """
        most = min(most, self.left - 1)
        if most < 1 or cost >= 1:
            return ()
        if self._matcher is not None and (forced := self._matcher.forced(most)):
            return forced
        drafts = self.lookup.propose(tokens, self._prompt_length, most, cost)
        return self._matcher.fitting(drafts) if drafts and self._matcher is not None else drafts


@dataclass(frozen=True, slots=True)
class LogitRow:
    """One row of logits: what follows an answer's last token, or one of the guesses after it."""

    state: SamplingState
    drafts: tuple[int, ...] = ()  # of its span
    offset: int = 0  # how many of them stand before this row's token

    @property
    def ahead(self) -> tuple[int, ...]:
        """The guesses that this row takes for said."""
        return self.drafts[: self.offset]
