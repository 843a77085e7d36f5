"""How far each tensor's coordinates may move in one round: the ranges that an update is rounded in.

Knows tensors by where they end in the flat vector. Knows nothing of messages or members.
Always: ranges join, cover the whole vector and are never wider than the federation's
`update_range`; they follow from what everybody knows or is told, so that equal states give equal
ranges, bit for bit.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...core.errors import MessageError
from ...crypto.ring import Range
from ..spec.policy import AdapterTable
from ..store.checkpoint import Vector

if TYPE_CHECKING:
    from ...core.models.weights import Weights

# times the largest coordinate of the velocity: under Adam members move as far as their mean, where
# they agree
SLACK = 1.25
# a range is at least this part of update_range: a tensor that stood still may begin to move
FLOOR = 8.0
Spans = tuple[tuple[int, float], ...]  # stop and scale of each tensor, in order


def spans(velocity: Vector, stops: Sequence[int], limit: float) -> Spans:
    """Stop and scale of each tensor, for a round that starts from this velocity [n].

    Args:
        stops: where each tensor ends, in order; the last one is n.
        limit: the federation's `update_range`, in the update's unit. A tensor without velocity gets
        it whole.
    """
    found: list[tuple[int, float]] = []
    start = 0
    for stop in stops:
        largest = float(np.abs(velocity[start:stop]).max(initial=0.0))
        found.append((stop, min(limit, max(limit / FLOOR, SLACK * largest)) if largest else limit))
        start = stop
    return tuple(found)


def read_spans(given: Spans, size: int, limit: float) -> tuple[Range, ...]:
    """The coordinator's word on ranges, checked against the federation's limit.

    Raises:
        MessageError: gaps, another length than n, or a scale outside (0, limit].
    """
    ranges = []
    start = 0
    for stop, scale in given:
        if not (start < stop <= size and 0.0 < scale <= limit):
            raise MessageError(
                f"range {start}:{stop} with scale {scale:g}: expected a later stop up to {size} "
                f"and a scale "
                f"up to {limit:g}; refused"
            )
        ranges.append(Range(start, stop, scale))
        start = stop
    if start != size:
        raise MessageError(f"ranges end at {start}, the adapter has {size} values; refused")
    return tuple(ranges)


def tensor_stops(adapter: AdapterTable, weights: "Weights | None") -> tuple[int, ...]:
    """Where each tensor of the federation's adapter ends; nothing without a model, as in a
    rehearsal: one tensor.
    """
    if weights is None:
        return ()
    from ...core.models.lora.adapter import Layout

    return tuple(stop for _, _, stop in Layout(adapter.shape(), weights.architecture).ranges())
