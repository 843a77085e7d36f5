"""Which tokens a request has read and said, and what that does to its logits.

Knows penalties and biases. Knows nothing of probabilities or of who shares the batch.
Always: a row whose request asks for nothing comes out untouched.
Source: repetition penalty: Keskar et al. 2019 (CTRL), section 4.1, over prompt and answer; presence
and frequency penalties: as OpenAI's API defines them, over the answer alone.
"""

from collections import abc
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .params import SamplingParams

Numbers = NDArray[np.float32]
Tokens = NDArray[np.int64]


class Penalties:
    """How often each token stands in one answer, and what follows from it for the next."""

    def __init__(self, params: SamplingParams, prompt: abc.Sequence[int]) -> None:
        self._params, self._prompt = params, prompt
        self.counts: dict[int, int] = {}  # of the answer
        self._adds = bool(params.logit_bias or params.presence_penalty or params.frequency_penalty)
        self._scales = params.repetition_penalty != 1
        self.active = self._adds or self._scales  # else there is nothing to count nor to apply

    def add(self, token: int) -> None:
        """The answer goes on with `token`."""
        if self.active:
            self.counts[token] = self.counts.get(token, 0) + 1

    def apply(self, logits: Numbers, ahead: abc.Sequence[int]) -> None:
        """Apply the repetition penalty, then presence and frequency penalties and biases, in place.

        Args:
            logits: [V], one row's.
            ahead: tokens that the row takes for said.
        """
        counts = self._with(ahead)
        if self._scales:
            tokens, penalty = self._seen(counts), np.float32(self._params.repetition_penalty)
            found = logits[tokens]
            logits[tokens] = np.where(found > 0, found / penalty, found * penalty)
        if self._adds:
            np.add.at(logits, *self._added(counts))

    @cached_property
    def _prompt_tokens(self) -> Tokens:
        """The prompt's tokens, each once."""
        return np.unique(np.array(self._prompt, np.int64))

    def _added(self, counts: dict[int, int]) -> tuple[Tokens, Numbers]:
        """What is added to which logits; a token may stand twice."""
        params = self._params
        tokens = np.fromiter(counts, np.int64, len(counts))
        often = np.fromiter(counts.values(), np.float32, len(counts))
        biased = np.array([token for token, _ in params.logit_bias], np.int64)
        bias = np.array([value for _, value in params.logit_bias], np.float32)
        penalty = -(params.frequency_penalty * often + params.presence_penalty)
        return np.concatenate([tokens, biased]), np.concatenate([penalty, bias]).astype(np.float32)

    def _seen(self, counts: dict[int, int]) -> Tokens:
        """Every token of prompt and answer, once."""
        return np.union1d(self._prompt_tokens, np.fromiter(counts, np.int64, len(counts)))

    def _with(self, ahead: abc.Sequence[int]) -> dict[int, int]:
        counts = dict(self.counts) if ahead else self.counts
        for token in ahead:
            counts[token] = counts.get(token, 0) + 1
        return counts
