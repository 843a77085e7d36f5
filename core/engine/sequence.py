"""A request on its way through the engine.

Knows its tokens, how many of them the cache holds, and in which blocks; and what decides its next
token: random numbers, counted tokens, a grammar, guesses. Knows nothing of text.
Always: `computed <= len(tokens)`, and a sequence without blocks has computed nothing.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import EngineError
from .request import GenerationRequest
from .sampling.penalties import Tally
from .sampling.rng import Draws
from .sampling.speculation import Lookup

if TYPE_CHECKING:
    from .loaded import LoadedAdapter
    from .prefix_cache import Prefix
    from .sampling.grammar import Matcher


@dataclass(slots=True, eq=False)
class Sequence:
    """Prompt and answer so far. `eq=False`: two requests with the same prompt are still two."""

    request: GenerationRequest
    arrived_s: float = 0.0  # on the engine's monotonic clock
    adapter: "LoadedAdapter | None" = None  # the version that was loaded when the request came
    matcher: "Matcher | None" = None  # where it stands in its grammar
    tokens: list[int] = field(default_factory=list)  # prompt and answer
    computed: int = 0  # tokens whose keys and values are in the cache
    blocks: list[int] = field(default_factory=list)
    # the last of its blocks that others can find; None while it holds no blocks
    prefix: "Prefix | None" = None
    started: bool = False  # it has run at least once
    draws: Draws = field(init=False)
    tally: Tally = field(init=False)
    lookup: Lookup = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt)
        self.draws = Draws(self.request.seed)
        self.tally = Tally(self.request)
        self.lookup = Lookup()

    @property
    def adapter_digest(self) -> str:
        """Which weights its keys and values come from; "" is the plain model."""
        return "" if self.adapter is None else self.adapter.digest

    @property
    def remaining(self) -> int:
        """Tokens that must still go through the model before the next one can be sampled."""
        return len(self.tokens) - self.computed

    @property
    def failure(self) -> EngineError | None:
        """Why it cannot go on."""
        return None if self.matcher is None else self.matcher.failure

    def accept(self, token: int) -> None:
        """The answer goes on with `token`; `failure` says if it cannot go on after it."""
        self.tokens.append(token)
        self.tally.add(token)
        if self.request.temperature > 0:
            self.draws.take(1)
        if self.matcher is not None:
            self.matcher.accept(token)

    def guess(self, most: int, price: float) -> tuple[int, ...]:
        """Tokens that may come next, to be checked beside the last one.

        Args:
            most: at most so many.
            price: of checking one more, as a share of what a token costs.
        """
        most = min(most, len(self.request.prompt) + self.request.max_tokens - len(self.tokens) - 1)
        if most < 1 or price >= 1:
            return ()
        if self.matcher is not None and (forced := self.matcher.forced(most)):
            return forced
        drafts = self.lookup.draft(self.tokens, len(self.request.prompt), most, price)
        return self.matcher.fitting(drafts) if drafts and self.matcher is not None else drafts


@dataclass(frozen=True, slots=True)
class Row:
    """One row of logits: what follows a sequence's last token, or one of the guesses after it."""

    sequence: Sequence
    drafts: tuple[int, ...] = ()  # of its span
    place: int = 0  # how many of them stand before this row's token

    @property
    def ahead(self) -> tuple[int, ...]:
        """The guesses that this row takes for said."""
        return self.drafts[: self.place]
