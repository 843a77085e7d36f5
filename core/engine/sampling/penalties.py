"""Which tokens a request has read and said, and what that does to its logits.

Knows penalties and biases. Knows nothing of probabilities or of who shares the batch.
Always: rows whose requests ask for nothing come out untouched.
Source: repetition penalty: Keskar et al. 2019 (CTRL), section 4.1, over prompt and answer; presence
and frequency penalties: as OpenAI's API defines them, over the answer alone.
"""

from collections.abc import Sequence as Items
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..request import GenerationRequest

if TYPE_CHECKING:
    from ..sequence import Row

Numbers = NDArray[np.float32]
Tokens = NDArray[np.int64]


class Tally:
    """How often each token stands in one answer."""

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.said: dict[int, int] = {}
        self.asks = bool(
            request.logit_bias or request.presence_penalty or request.frequency_penalty
        )
        self.repeats = request.repetition_penalty != 1

    def add(self, token: int) -> None:
        """The answer goes on with `token`."""
        if self.asks or self.repeats:
            self.said[token] = self.said.get(token, 0) + 1

    @cached_property
    def read(self) -> Tokens:
        """The prompt's tokens, each once."""
        return np.unique(np.array(self.request.prompt, np.int64))

    def added(self, ahead: Items[int]) -> tuple[Tokens, Numbers]:
        """What is added to which logits when the answer went on with `ahead`; a token may stand
        twice.
        """
        request, said = self.request, self._said(ahead)
        tokens = np.fromiter(said, np.int64, len(said))
        counts = np.fromiter(said.values(), np.float32, len(said))
        biased = np.array([token for token, _ in request.logit_bias], np.int64)
        bias = np.array([value for _, value in request.logit_bias], np.float32)
        penalty = -(request.frequency_penalty * counts + request.presence_penalty)
        return np.concatenate([tokens, biased]), np.concatenate([penalty, bias]).astype(np.float32)

    def seen(self, ahead: Items[int]) -> Tokens:
        """Every token of prompt and answer, once."""
        said = self._said(ahead)
        return np.union1d(self.read, np.fromiter(said, np.int64, len(said)))

    def _said(self, ahead: Items[int]) -> dict[int, int]:
        said = dict(self.said) if ahead else self.said
        for token in ahead:
            said[token] = said.get(token, 0) + 1
        return said


def adjust(logits: Numbers, rows: "Items[Row]") -> None:
    """Apply repetition penalty, then presence and frequency penalties and biases, in place.

    Args:
        logits: [R, V].
    """
    for place, row in enumerate(rows):
        count = row.sequence.tally
        if count.repeats:
            tokens, strength = (
                count.seen(row.ahead),
                np.float32(row.sequence.request.repetition_penalty),
            )
            found = logits[place, tokens]
            logits[place, tokens] = np.where(found > 0, found / strength, found * strength)
        if count.asks:
            tokens, values = count.added(row.ahead)
            np.add.at(logits[place], tokens, values)
