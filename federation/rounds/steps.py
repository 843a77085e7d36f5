"""How one state of the server follows from another, in few bytes and without loss.

Knows the round's sum (small whole numbers), the federation's optimizer, and what a member may be told. Knows nothing of
letters, or of who holds which state.
Always: from the same state the same step gives the same next state, bit for bit, or the names differ and nothing is used; bytes
from somebody else are measured against the federation's own numbers before anything is allocated or inflated for them.

    sum     the integers that the coordinator opened; the member decodes them and steps as the coordinator did
    vector  the change itself, 4 bytes a value: of several buckets, whose single sums members are not shown
    rest    the same adapter, with an optimizer that remembers nothing: after a change was undone
    whole   everything anew: adapter, velocity, and second moments if the optimizer has them

Whole numbers travel packed to the bits of the sum, or as deflated bytes where that is less. Floats of an adapter look like
noise to a compressor; their sums do not, which is why the sums travel.
"""

import hashlib
import json
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...core.errors import ConfigError, CryptoError, DataError, MessageError
from ...crypto.fixedpoint import middle
from ...crypto.ring import BitRing
from ..exchange.messages import Place
from ..exchange.work import Ranges
from ..learning.aggregate import ServerOptimizer, ServerState, Vector
from ..learning.ranges import read_spans
from ..membership.policy import Policy, canonical
from ..protection.terms import Terms, seed_of
from ..protection.update import Codec

Integers = npt.NDArray[np.int64]
NAME_BYTES = 32
LENGTHS_BYTES = 8  # before each step: of its header and of its body
MAX_STEPS = 64  # of one way
MAX_HEADER_BYTES = 1 << 16
MAX_PARTIES = 1 << 16
LEVEL = 1  # of zlib; runs and frequencies are all there is to find, see `deflate`
FIELDS = {"kind": str, "packing": str, "parties": int, "ranges": list, "round": int}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step, ready to travel."""

    kind: Literal["sum", "vector", "rest", "whole"]
    packing: Literal["bits", "deflate", ""] = ""
    parties: int = 0  # sum: whose contributions are in it
    ranges: Ranges = ()  # sum: as the round told them
    round: int = 0  # sum: the place's, which the noise's rotation follows from
    body: bytes = b""

    def encode(self) -> bytes:
        """Length of the header, length of the body, both."""
        fields = {name: getattr(self, name) for name in FIELDS}
        header = canonical({**fields, "ranges": [list(one) for one in self.ranges]})
        return len(header).to_bytes(4, "big") + len(self.body).to_bytes(4, "big") + header + self.body


def name_of(state: ServerState) -> str:
    """64 hex digits that differ between any two states."""
    return hashlib.sha256(b"quietchoir server state 1" + state.encode()).hexdigest()


class Stepping:
    """What makes steps, and goes them.

    Args:
        size: values of the adapter.
        run: what the rotations of its rounds follow from, besides the file.
    """

    def __init__(self, policy: Policy, size: int, run: str, optimizer: ServerOptimizer) -> None:
        self.policy, self.size, self.run, self.optimizer = policy, size, run, optimizer

    def of_sum(self, total: Integers, parties: int, ranges: Ranges, round_: int) -> Step:
        """The step of one opened sum [≥ n]; what follows the first n values (counters) is left out."""
        whole = total[: self.size]
        ring = BitRing(length=self.size, bits=self.policy.protection.bits, parties=parties)
        packed, deflated = (
            ring.pack(whole.astype(ring.dtype)),
            deflate(spread(whole, self._centre(parties), self._width(parties))),
        )
        small = len(deflated) < len(packed)
        return Step(
            kind="sum", packing="deflate" if small else "bits", parties=parties, ranges=ranges, round=round_,
            body=deflated if small else packed,
        )  # fmt: skip

    def of_vector(self, change: Vector) -> Step:
        """The step of a change [n] that no single sum gives."""
        plain = change.astype("<f4").tobytes()
        deflated = deflate(np.frombuffer(plain, np.uint8).reshape(-1, 4).T.tobytes())
        small = len(deflated) < len(plain)
        return Step(kind="vector", packing="deflate" if small else "bits", body=deflated if small else plain)

    def change(self, step: Step) -> Vector:
        """What a `sum` or `vector` adds up to [n].

        Raises:
            MessageError: not of this federation's numbers.
        """
        if step.kind == "vector":
            raw = step.body if step.packing == "bits" else inflate(step.body, 4 * self.size)
            if len(raw) != 4 * self.size:
                raise MessageError(f"a change of {len(raw)} bytes, expected {4 * self.size}; refused")
            if step.packing == "deflate":
                raw = np.frombuffer(raw, np.uint8).reshape(4, self.size).T.tobytes()
            return np.frombuffer(raw, "<f4").astype(np.float32)
        limit = self.policy.recipe.update_range
        ranges = read_spans(step.ranges, self.size, limit) if step.ranges else ()
        codec = Codec(self.size, self.policy, Terms(ranges, seed_of(self.policy, Place(self.run, step.round, 0))))
        return codec.mean(self._integers(step), step.parties)

    def go(self, state: ServerState, step: Step) -> ServerState:
        """The state after `step`.

        Raises:
            MessageError: a step that this federation cannot have made; nothing was changed.
        """
        try:
            if step.kind == "rest":
                return state.at_rest()
            if step.kind == "whole":
                found = ServerState.decode(step.body, self.size)
            else:
                found = self.optimizer.step(state, self.change(step))
        except (ValueError, ConfigError, CryptoError, DataError) as error:
            raise MessageError(f"a step of the adapter that cannot be: {error}; refused") from error
        if not all(np.isfinite(vector).all() for vector in found.vectors):
            raise MessageError("a step to an adapter that holds values that are not finite; refused")
        return found

    def _integers(self, step: Step) -> Integers:
        if not 1 <= step.parties <= MAX_PARTIES:
            raise MessageError(f"a sum over {step.parties} members; refused")
        if step.packing == "bits":
            ring = BitRing(length=self.size, bits=self.policy.protection.bits, parties=step.parties)
            return ring.unpack(step.body).astype(np.int64)
        width = self._width(step.parties)
        return gathered(inflate(step.body, width * self.size), self._centre(step.parties), width)

    def _centre(self, parties: int) -> int:
        return parties * middle(self.policy.protection.bits)

    def _width(self, parties: int) -> int:
        """Bytes of one zigzagged value."""
        return -(-(2 * self._centre(parties) + 1).bit_length() // 8)


def spread(whole: Integers, centre: int, width: int) -> bytes:
    """Whole numbers around `centre` as planes of bytes, lowest first: small ones leave the higher planes empty."""
    away = whole - centre
    zigzag = ((away << 1) ^ (away >> 63)).astype("<u8")  # 0, -1, 1, -2 … are 0, 1, 2, 3 …
    return zigzag.view(np.uint8).reshape(-1, 8)[:, :width].T.tobytes()


def gathered(planes: bytes, centre: int, width: int) -> Integers:
    """Undo `spread`; `width` planes of equal length."""
    words = np.zeros((len(planes) // width, 8), np.uint8)
    words[:, :width] = np.frombuffer(planes, np.uint8).reshape(width, -1).T
    zigzag = words.view("<u8").reshape(-1).astype(np.int64)
    return (zigzag >> 1 ^ -(zigzag & 1)) + centre


def deflate(planes: bytes) -> bytes:
    """Runs and frequencies alone: sums do not repeat themselves in longer strings, and looking for those takes time."""
    press = zlib.compressobj(LEVEL, strategy=zlib.Z_RLE)
    return press.compress(planes) + press.flush()


def inflate(body: bytes, size: int) -> bytes:
    """Exactly `size` bytes out of `body`; never more is made of it, whatever it says.

    Raises:
        MessageError: it holds another number of bytes, is damaged, or goes on after its end.
    """
    press = zlib.decompressobj()
    try:
        found = press.decompress(body, size + 1)  # one more than there may be, so that the end is seen
    except zlib.error as error:
        raise MessageError(f"a step that does not inflate ({error}); refused") from error
    if len(found) != size or not press.eof or press.unused_data:
        raise MessageError(f"a step that inflates to other than {size} bytes; refused")
    return found


def join(start: str, steps: list[bytes]) -> bytes:
    """A way: the name of the state that it starts from, 32 zeros where it needs none, and its steps."""
    return (bytes.fromhex(start) if start else bytes(NAME_BYTES)) + b"".join(steps)


def split(way: bytes) -> tuple[str, list[Step]]:
    """Read what `join` wrote.

    Raises:
        MessageError: malformed, or too many steps.
    """
    start, at, steps = way[:NAME_BYTES], NAME_BYTES, list[Step]()
    if len(start) != NAME_BYTES:
        raise MessageError(f"a way to an adapter of {len(way)} bytes; refused")
    while at < len(way):
        header, body = (int.from_bytes(way[at + offset : at + offset + 4], "big") for offset in (0, 4))
        at += LENGTHS_BYTES
        if len(steps) == MAX_STEPS or header > MAX_HEADER_BYTES or at + header + body > len(way):
            raise MessageError("a way to an adapter that is longer than it says, or has too many steps; refused")
        steps.append(read(way[at : at + header], way[at + header : at + header + body]))
        at += header + body
    return start.hex() if any(start) else "", steps


PACKINGS = {"sum": ("bits", "deflate"), "vector": ("bits", "deflate"), "rest": ("",), "whole": ("",)}


def read(header: bytes, body: bytes) -> Step:
    """One step.

    Raises:
        MessageError: malformed.
    """
    fields: Any = None
    try:
        fields = json.loads(header)
        good = canonical(fields) == header and {key: type(value) for key, value in fields.items()} == FIELDS
        good = good and fields["packing"] in PACKINGS.get(fields["kind"], ()) and fields["round"] >= 0
        good = good and all(isinstance(one, list) and [type(part) for part in one] == [int, float] for one in fields["ranges"])
    except (ValueError, AttributeError, TypeError, RecursionError):
        good = False
    if not good:
        raise MessageError("the header of a step is malformed; refused")
    return Step(**{**fields, "ranges": tuple((stop, scale) for stop, scale in fields["ranges"])}, body=body)
