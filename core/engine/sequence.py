"""A request on its way through the engine.

Knows its tokens, how many of them the cache holds, and in which blocks. Knows nothing of text.
Always: `computed <= len(tokens)`, and a sequence without blocks has computed nothing.
"""

from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from .request import GenerationRequest

if TYPE_CHECKING:
    from .lora import LoadedAdapter


@dataclass(slots=True, eq=False)
class Sequence:
    """Prompt and answer so far. `eq=False`: two requests with the same prompt are still two."""

    request: GenerationRequest
    arrived_s: float = 0.0  # on the engine's monotonic clock
    adapter: "LoadedAdapter | None" = None  # the version that was loaded when the request came
    tokens: list[int] = field(default_factory=list)  # prompt and answer
    computed: int = 0  # tokens whose keys and values are in the cache
    blocks: list[int] = field(default_factory=list)
    started: bool = False  # it has run at least once
    draws: Random = field(default_factory=Random)  # this request's own random numbers

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt)
        if self.request.seed is not None:
            self.draws = Random(self.request.seed)

    @property
    def remaining(self) -> int:
        """Tokens that must still go through the model before the next one can be sampled."""
        return len(self.tokens) - self.computed
