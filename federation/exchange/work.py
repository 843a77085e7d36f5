"""What the coordinator asks a member to do before, or instead of, a sum.

Knows three kinds of work and one vector, or in sealed mode the tag of the vector that members hold. Knows nothing of
signatures or protection.
Always: `decode` checks the vector's length and that it is finite before anybody computes with it.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core.errors import MessageError
from ..learning.aggregate import Vector
from ..membership.policy import canonical

TRAIN = "train"  # train from the vector, then contribute the change
SCORE = "score"  # score the vector on held-out examples, contribute the counts
ADOPT = "adopt"  # keep the vector as a finished adapter
STAGES = (TRAIN, SCORE, ADOPT)
MAX_HEADER_BYTES = 1 << 16
FIELDS = {"evaluate": bool, "card": str, "state": str}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One adapter and what to do with it."""

    flat: Vector  # [n]; [0] in sealed mode, where members have it and the coordinator does not
    evaluate: bool = False  # while training: score `flat` first
    card: str = ""  # of a finished adapter: its signed card; in sealed mode its evaluation, as JSON
    state: str = ""  # sealed mode: tag of the adapter that is meant, hex


def encode(work: Work) -> bytes:
    """Header length, header JSON, little-endian floats."""
    header = canonical({"evaluate": work.evaluate, "card": work.card, "state": work.state})
    return len(header).to_bytes(4, "big") + header + work.flat.astype("<f4").tobytes()


def decode(payload: bytes, size: int) -> Work:
    """Read what `encode` wrote.

    Raises:
        MessageError: malformed, of another length, or not finite.
    """
    length = int.from_bytes(payload[:4], "big")
    fields: Any = None
    if length <= MAX_HEADER_BYTES:
        try:
            fields = json.loads(payload[4 : 4 + length])
        except ValueError:
            fields = None
    if not isinstance(fields, dict) or {key: type(value) for key, value in fields.items()} != FIELDS:
        raise MessageError("the work's header is malformed; refused")
    if len(payload) != 4 + length + 4 * size:
        raise MessageError(f"an adapter of {len(payload) - 4 - length} bytes, expected {4 * size}; refused")
    flat = np.frombuffer(payload, "<f4", offset=4 + length).astype(np.float32)
    if not np.isfinite(flat).all():
        raise MessageError("the adapter holds values that are not finite; refused")
    return Work(flat=flat, evaluate=fields["evaluate"], card=fields["card"], state=fields["state"])
