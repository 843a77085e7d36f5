"""How likely the model found the tokens that were chosen, and which it found likelier.

Knows logits as the model gave them. Knows nothing of penalties, grammars or temperature: they
change the choice and not what is told of the model.
"""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..request import Chance, Likely
from .sampler import best

if TYPE_CHECKING:
    from ..sequence import Row


@dataclass(frozen=True, slots=True)
class Telling:
    """Logits of the rows that want to be told, put aside before anything changes them."""

    places: Mapping[int, int]  # row of the step -> row of `logits`
    logits: NDArray[np.float32]  # [T, V]


def put_aside(logits: NDArray[np.float32], rows: "Items[Row]") -> Telling:
    """Copy the rows whose requests want log-probabilities."""
    wanted = [place for place, row in enumerate(rows) if row.sequence.request.logprobs is not None]
    return Telling({place: index for index, place in enumerate(wanted)}, logits[wanted])


def tell(
    telling: Telling, rows: "Items[Row]", chosen: Items[int | None], spell: Callable[[int], bytes]
) -> list[Likely | None]:
    """For each row what its request wants to know of the chosen token; None where it asks
    nothing or nothing was chosen.
    """
    told: list[Likely | None] = [None] * len(rows)
    if not telling.places:
        return told
    logprobs = telling.logits - telling.logits.max(-1, keepdims=True)
    logprobs -= np.log(np.exp(logprobs).sum(-1, keepdims=True))
    most = max(rows[place].sequence.request.logprobs or 0 for place in telling.places)
    order = best(logprobs, min(most, logprobs.shape[1]))
    values, tokens = np.take_along_axis(logprobs, order, -1).tolist(), order.tolist()
    for place, index in telling.places.items():
        token = chosen[place]
        if token is None:
            continue
        count = rows[place].sequence.request.logprobs or 0
        likeliest = zip(tokens[index][:count], values[index][:count], strict=True)
        told[place] = Likely(
            Chance(token, spell(token), float(logprobs[index, token])),
            tuple(Chance(other, spell(other), value) for other, value in likeliest),
        )
    return told
