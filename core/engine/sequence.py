"""A request on its way through the engine.

Knows its tokens, how many of them the cache holds, and in which blocks. What decides its next token
knows `sampling.state`. Knows nothing of text.
Always: `num_computed_tokens <= len(tokens)`, and a sequence without blocks has computed nothing.
"""

from .adapters import LoadedAdapter
from .prefix_cache import PrefixNode, StateSnapshot
from .request import GenerationRequest
from .sampling.grammar import LazyMatcher, Matcher
from .sampling.speculation import DraftTrust
from .sampling.state import SamplingState


class Sequence:
    """Prompt and answer so far. Two requests with the same prompt are still two."""

    def __init__(
        self,
        request: GenerationRequest,
        *,
        arrived_s: float = 0.0,
        adapter: LoadedAdapter | None = None,
        matcher: Matcher | LazyMatcher | None = None,
    ) -> None:
        """
        Args:
            arrived_s: on the engine's monotonic clock.
            adapter: the version that was loaded when the request came.
            matcher: of its grammar, at the beginning.
        """
        self.request = request
        self.arrived_s = arrived_s
        self.started_s: float | None = None  # of its first step, on the same clock
        self.first_token_s: float | None = None
        self.adapter = adapter
        self.sampling = SamplingState(request.sampling_params, request.prompt, matcher)
        self.tokens = list(request.prompt)  # prompt and answer
        self.num_computed_tokens = 0  # whose keys and values are in the cache
        self.block_table: list[int] = []  # the numbers of its blocks, in the order of its tokens
        # the last of its blocks that others can find; None while it holds no blocks
        self.prefix: PrefixNode | None = None
        self.resumes: StateSnapshot | None = None  # what its next step goes on from, if not its own
        # where the latest snapshot of it stands that its next one takes the place of
        self.passing: PrefixNode | None = None
        self.hollow_blocks = 0  # of the first ones, that all windows have left behind
        self.started = False  # it has run at least once
        self.guesses: tuple[int, ...] = ()  # a small model's, for its next step
        self.trust = DraftTrust()  # in that model

    @property
    def adapter_digest(self) -> str:
        """Which weights its keys and values come from; "" is the plain model."""
        return "" if self.adapter is None else self.adapter.digest

    @property
    def remaining(self) -> int:
        """Tokens that must still go through the model before the next one can be sampled."""
        return len(self.tokens) - self.num_computed_tokens

    def accept(self, token: int) -> None:
        """The answer goes on with `token`; `sampling.failure` says if it cannot go on after it."""
        self.tokens.append(token)
        self.sampling.accept(token)

    def propose(self, most: int, cost: float) -> tuple[int, ...]:
        """Tokens that may come next; see `SamplingState.propose`."""
        return self.sampling.propose(self.tokens, most, cost)
