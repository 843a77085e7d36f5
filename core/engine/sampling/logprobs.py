"""How likely the model found the tokens that were chosen, and which it found likelier.

Knows logits as the model gave them. Knows nothing of penalties, grammars or temperature: they
change the choice and not what is told of the model.
"""

from collections import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .sampler import top_indices
from .state import LogitRow


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token and the logarithm of its probability."""

    token: int
    text: bytes  # may be part of a character
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How likely the model itself found a token, whatever temperature, penalties or grammar made
    of it.
    """

    chosen: Logprob
    top: tuple[Logprob, ...]  # the likeliest tokens, as many as were asked for


@dataclass(frozen=True, slots=True)
class CapturedLogits:
    """Logits of the rows that want log-probabilities, copied before anything changes them."""

    indices: Mapping[int, int]  # row of the step -> row of `logits`
    logits: NDArray[np.float32]  # [T, V]


def capture_logits(logits: NDArray[np.float32], rows: abc.Sequence[LogitRow]) -> CapturedLogits:
    """Copy the rows whose requests want log-probabilities."""
    wanted = [index for index, row in enumerate(rows) if row.state.params.logprobs is not None]
    return CapturedLogits({row: index for index, row in enumerate(wanted)}, logits[wanted])


def token_logprobs(
    captured: CapturedLogits,
    rows: abc.Sequence[LogitRow],
    chosen: abc.Sequence[int | None],
    spell: Callable[[int], bytes],
) -> list[TokenLogprobs | None]:
    """For each row what its request wants to know of the chosen token; None where it asks
    nothing or nothing was chosen.
    """
    found: list[TokenLogprobs | None] = [None] * len(rows)
    if not captured.indices:
        return found
    logprobs = captured.logits - captured.logits.max(-1, keepdims=True)
    logprobs -= np.log(np.exp(logprobs).sum(-1, keepdims=True))
    most = max(rows[row].state.params.logprobs or 0 for row in captured.indices)
    order = top_indices(logprobs, min(most, logprobs.shape[1]))
    values, tokens = np.take_along_axis(logprobs, order, -1).tolist(), order.tolist()
    for row, index in captured.indices.items():
        token = chosen[row]
        if token is None:
            continue
        count = rows[row].state.params.logprobs or 0
        likeliest = zip(tokens[index][:count], values[index][:count], strict=True)
        found[row] = TokenLogprobs(
            Logprob(token, spell(token), float(logprobs[index, token])),
            tuple(Logprob(other, spell(other), value) for other, value in likeliest),
        )
    return found
