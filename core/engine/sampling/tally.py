"""Which tokens a request has read and said, and what that does to its logits.

Knows penalties and biases. Knows nothing of probabilities or of who shares the batch.
Always: rows whose requests ask for nothing come out untouched.
Source: repetition penalty: Keskar et al. 2019 (CTRL), section 4.1, over prompt and answer; presence and frequency penalties:
as OpenAI's API defines them, over the answer alone.
"""

from collections.abc import Sequence as Items
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
        self.asks = bool(request.logit_bias or request.presence_penalty or request.frequency_penalty)
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
        """What is added to which logits when the answer went on with `ahead`; a token may stand twice."""
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


def adjust(logits: Tensor, rows: "Items[Row]") -> None:
    """Apply repetition penalty, then presence and frequency penalties and biases, in place.

    Args:
        logits: [R, V], float32.
    """
    repeating = [(place, row) for place, row in enumerate(rows) if row.sequence.tally.repeats]
    if repeating:
        seen = [row.sequence.tally.seen(row.ahead) for _, row in repeating]
        where = _where([place for place, _ in repeating], seen, logits)
        strength = torch.tensor([row.sequence.request.repetition_penalty for _, row in repeating])
        strength = strength.repeat_interleave(torch.tensor([len(tokens) for tokens in seen])).to(logits)
        found = logits[where]
        logits[where] = torch.where(found > 0, found / strength, found * strength)
    asking = [(place, row) for place, row in enumerate(rows) if row.sequence.tally.asks]
    if asking:
        tokens, values = zip(*(row.sequence.tally.added(row.ahead) for _, row in asking), strict=True)
        where = _where([place for place, _ in asking], tokens, logits)
        logits.index_put_(where, torch.from_numpy(np.concatenate(values)).to(logits), accumulate=True)


def _where(places: Items[int], tokens: Items[Tokens], logits: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of each entry, on the logits' device."""
    row = np.repeat(np.array(places, np.int64), [len(some) for some in tokens])
    return torch.from_numpy(row).to(logits.device), torch.from_numpy(np.concatenate(tokens)).to(logits.device)
