"""What the coordinator asks a member to do before, or instead of, a sum.

Knows four kinds of work and one vector, or in sealed mode the tag of the vector that members hold.
Knows nothing of signatures or protection.
Always: `decode` checks the vector's length and that it is finite before anybody computes with it.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.errors import MessageError
from ..spec.policy import canonical

Ranges = tuple[tuple[int, float], ...]
TRAIN = "train"  # train from the vector, then contribute the change
SCORE = "score"  # score the vector on held-out examples, contribute the counts
ADOPT = "adopt"  # keep the vector as a finished adapter
UNDO = "undo"  # sealed mode: step to the adapter before the last step, with an optimizer at rest
STAGES = (TRAIN, SCORE, ADOPT, UNDO)
DONE, SPENT = b"", b"spent"  # what a member answers: it is done, or its privacy budget is used up
MAX_HEADER_BYTES = 1 << 20
FIELDS = {
    "absent": list,
    "card": str,
    "cohort": list,
    "evaluate": bool,
    "ranges": list,
    "state": str,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One adapter and what to do with it."""

    # [n]; [0] in sealed mode, where members have it and the coordinator does not, and where a way
    # leads to it
    flat: npt.NDArray[np.float32]
    evaluate: bool = False  # while training: score `flat` first
    card: str = ""  # of a finished adapter: its signed card; in sealed mode its evaluation, as JSON
    # sealed mode: tag of the adapter that is meant, hex; where adapters are told as changes: name
    # of the state
    state: str = ""
    ranges: Ranges = ()  # stop and scale of each tensor; empty: the federation's one range
    cohort: tuple[str, ...] = ()  # everybody who is asked, sorted
    # members that the draw would have given before the last of the cohort, but are not there
    absent: tuple[str, ...] = ()

    def header(self) -> dict[str, Any]:
        """Everything but the vector, as JSON's types."""
        return {name: listed(getattr(self, name)) for name in FIELDS}


# what is told is what is hashed
assert {one.name for one in dataclasses.fields(Work)} == {*FIELDS, "flat"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What a member answers when its contribution is ready: nothing of how its work went."""

    # it scored held-out answers: so many do is told to all, because few are not summed
    scores: bool
    # members that it signed for in earlier sums from the same adapter
    before: tuple[tuple[str, ...], ...] = ()


def encode_ready(ready: Ready) -> bytes:
    """One spelling of it."""
    return canonical({"before": listed(ready.before), "scores": ready.scores})


def decode_ready(payload: bytes) -> Ready | None:
    """Read what `encode_ready` wrote; None if it is something else."""
    fields: Any = None
    if len(payload) <= MAX_HEADER_BYTES:
        try:
            fields = json.loads(payload)
        except (ValueError, RecursionError):
            fields = None
    if not isinstance(fields, dict) or {key: type(value) for key, value in fields.items()} != {
        "before": list,
        "scores": bool,
    }:
        return None
    before = [
        one
        for one in fields["before"]
        if isinstance(one, list) and all(isinstance(name, str) for name in one)
    ]
    if len(before) != len(fields["before"]):
        return None
    return Ready(scores=fields["scores"], before=tuple(tuple(one) for one in before))


def listed(value: Any) -> Any:
    """Tuples as lists."""
    return [listed(one) for one in value] if isinstance(value, tuple) else value


def encode(work: Work) -> bytes:
    """Header length, header JSON, little-endian floats."""
    header = canonical(work.header())
    return len(header).to_bytes(4, "big") + header + work.flat.astype("<f4").tobytes()


def encode_told(work: Work, way: bytes) -> bytes:
    """The same without the vector: `work.state` names it, and `way` leads there
    (`..rounds.delta_chain`).
    """
    return encode(dataclasses.replace(work, flat=np.zeros(0, np.float32))) + way


def decode(payload: bytes, size: int) -> Work:
    """Read what `encode` wrote.

    Raises:
        MessageError: malformed, of another length, or not finite.
    """
    work, values = split(payload)
    if len(values) != 4 * size:
        raise MessageError(f"an adapter of {len(values)} bytes, expected {4 * size}; refused")
    flat = np.frombuffer(values, "<f4").astype(np.float32)
    if not np.isfinite(flat).all():
        raise MessageError("the adapter holds values that are not finite; refused")
    return dataclasses.replace(work, flat=flat)


def split(payload: bytes) -> tuple[Work, bytes]:
    """Work without its vector, and what follows the header.

    Raises:
        MessageError: malformed.
    """
    length = int.from_bytes(payload[:4], "big")
    fields: Any = None
    if length <= min(MAX_HEADER_BYTES, len(payload) - 4):
        try:
            fields = json.loads(payload[4 : 4 + length])
        except (ValueError, RecursionError):
            fields = None
    if (
        not isinstance(fields, dict)
        or {key: type(value) for key, value in fields.items()} != FIELDS
    ):
        raise MessageError("the work's header is malformed; refused")
    if not all(isinstance(name, str) for name in (*fields["cohort"], *fields["absent"])):
        raise MessageError("the work names members that are no names; refused")
    ranges = [
        tuple(one)
        for one in fields["ranges"]
        if isinstance(one, list) and [type(part) for part in one] == [int, float]
    ]
    if len(ranges) != len(fields["ranges"]):
        raise MessageError("the work's ranges are not pairs of a place and a scale; refused")
    fields |= {
        "ranges": tuple(ranges),
        "cohort": tuple(fields["cohort"]),
        "absent": tuple(fields["absent"]),
    }
    return Work(flat=np.zeros(0, np.float32), **fields), payload[4 + length :]
