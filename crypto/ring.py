"""The numbers that are summed in the dark: real updates as small unsigned integers, Z modulo 2^k in
words of 16 or 32 bits, packed to k bits on the wire, and the mask streams that hide them there.

Knows AES-256-CTR, clipping, ranges, stochastic rounding, arithmetic, headroom and packing. Knows
nothing of keys' owners, rounds or parties' names.
Always: the sum of the whole cohort fits, or the ring is not built; a packed array has exactly one
form. All 256 bits of a mask's key matter; masks are added in place and none is ever held whole in
memory. Rounding is unbiased and its randomness comes from a cipher under a fresh key; what is
decoded differs from the true sum of the clipped updates by less than one step a party and value.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import ArrayLike, NDArray

from ..core.errors import ConfigError, DataError, ProtocolError
from .identity.keys import bind

SPELLED_BITS = 256  # of the digits of a number that is known modulo 2^41 at most

Lifted: TypeAlias = Any  # values in a ring's own form; nobody but the ring looks inside

# stays in the second-level cache together with the part of the array it changes
CHUNK_BYTES = 1 << 17
ZERO_COUNTER = bytes(16)
ZEROS = bytes(CHUNK_BYTES)
AT_ONCE = 64  # streams that are open together

Words = NDArray[np.uint16] | NDArray[np.uint32]
Stream = tuple[bytes, bool]  # key; subtract?


def stream(key: bytes) -> CipherContext:
    """The key's stream: `update` on zeros yields it.

    Hazard: the counter starts at zero, so a key makes ONE stream. Derive another key for another
    purpose.
    Source: NIST SP 800-38A, section 6.5 (CTR), AES-256.
    """
    if len(key) != 32:
        raise ValueError(f"a mask key has {len(key)} bytes, 32 expected")  # our bug
    return Cipher(algorithms.AES(key), modes.CTR(ZERO_COUNTER)).encryptor()


def expand(key: bytes, size: int) -> bytes:
    """The first `size` bytes of the key's stream."""
    return stream(key).update(bytes(size))


def add_streams(words: Words, streams: Sequence[Stream]) -> None:
    """Add or subtract each stream, modulo 2**16 or 2**32, in place.

    All streams are added to one chunk before the next chunk is touched, so that it is in the cache
    for all but the first.

    Args:
        words: contiguous array [n] of little-endian uint16 or uint32.
        streams: key, and whether its stream is subtracted.
    """
    if (
        words.dtype not in (np.dtype("<u2"), np.dtype("<u4"))
        or not words.flags.c_contiguous
        or words.ndim != 1
    ):
        raise ValueError(
            "masks are added to contiguous one-dimensional uint16 or uint32 arrays"
        )  # our bug
    step, zeros = CHUNK_BYTES // words.itemsize, memoryview(ZEROS)
    buffer = bytearray(CHUNK_BYTES + 15)  # update_into asks for one block less a byte of room
    mask = np.frombuffer(buffer, words.dtype, step)
    for first in range(0, len(streams), AT_ONCE):
        ciphers = [
            (stream(key), np.subtract if take else np.add)
            for key, take in streams[first : first + AT_ONCE]
        ]
        for start in range(0, len(words), step):
            part = words[start : start + step]
            nothing, added = zeros[: part.nbytes], mask[: len(part)]
            for cipher, combine in ciphers:
                cipher.update_into(nothing, buffer)
                combine(part, added, out=part)


class Ring(Protocol):
    """What secure aggregation needs of numbers. `BitRing` is the masked mode's;
    `sealed.SealedRing` works modulo t.
    """

    @property
    def name(self) -> bytes:
        """Everything that two parties must agree on (modulus, length, packing); part of the
        round's hash.
        """

    @property
    def wire_bytes(self) -> int:
        """Largest size of `close`'s result; `Tally.add` refuses what is not exactly a payload."""

    def lift(self, values: NDArray[np.unsignedinteger]) -> Lifted:
        """A fresh array in the ring. Raises ValueError if a value is out of the agreed range."""

    def mask(self, words: Lifted, streams: Sequence[Stream]) -> None:
        """Add or subtract the mask of each key, in place. One call with many is faster than many
        with one.
        """

    def close(self, words: Lifted) -> bytes:
        """What one party sends. Raises CryptoError, and nothing is sent, if it cannot be made as
        it must be.
        """

    def tally(self) -> "Tally":
        """An empty sum for the coordinator."""


class Tally(Protocol):
    """The coordinator's running sum of what parties sent."""

    def add(self, payload: bytes) -> None:
        """Add one party's payload. Raises ProtocolError, sum unchanged, if it is malformed."""

    def mask(self, key: bytes, *, subtract: bool) -> None:
        """Add or subtract the key's mask; `total` is without it or with it from now on."""

    def total(self) -> NDArray[np.int64]:
        """What its holder may read of the sum; meaningful once every mask is gone.

        Raises:
            CryptoError: the sum cannot be computed; there is none.
        """


class BitRing:
    """Z modulo 2^k for `parties` values of `bits` bits: k = bits + ceil(log2 parties), so that
    no sum wraps.
    """

    def __init__(self, *, length: int, bits: int, parties: int) -> None:
        """Prove the headroom.

        Raises:
            ConfigError: sums of so many values of so many bits need more than 32 bits.
        """
        self.length = length
        self.value_bits = bits
        self.bits = bits + (parties - 1).bit_length()
        if length < 1 or bits < 1 or parties < 1 or self.bits > 32:
            raise ConfigError(
                f"{length} values of {bits} bits from {parties} parties need {self.bits} bits a "
                f"sum, 32 at most; "
                "use fewer bits or a smaller cohort"
            )
        assert parties * ((1 << bits) - 1) < 1 << self.bits  # headroom, the whole reason for k
        self.lane = 16 if self.bits <= 16 else 32  # bits of one word
        self.dtype = np.dtype(f"<u{self.lane // 8}")
        self.columns = -(-length // self.lane)
        self.wire_bytes = self.bits * self.columns * self.dtype.itemsize

    @property
    def name(self) -> bytes:
        return bind("Z mod 2^k", self.bits, self.value_bits, self.length)

    def lift(self, values: NDArray[np.unsignedinteger]) -> Words:
        """Copy `values` [length] into words.

        Raises:
            ValueError: wrong shape, not unsigned integers, or a value that needs more than the
            agreed bits.
        """
        if values.shape != (self.length,) or values.dtype.kind != "u":
            raise ValueError(
                f"values are {values.dtype} {values.shape}, unsigned integers "
                f"[{self.length}] expected"
            )
        if int(values.max()) >> self.value_bits:
            raise ValueError(
                f"a value needs more than the agreed {self.value_bits} bits; clip before masking"
            )
        return values.astype(self.dtype)

    def mask(self, words: Words, streams: Sequence[Stream]) -> None:
        """Arithmetic is modulo the word, which 2^k divides, so one reduction at the end is
        enough.
        """
        add_streams(words, streams)

    def close(self, words: Words) -> bytes:
        return self.pack(words & self.dtype.type((1 << self.bits) - 1))

    def tally(self) -> "BitTally":
        return BitTally(self)

    def pack(self, words: Words) -> bytes:
        """k bits a value: value i of column j, i from 0 to lane-1, lies at bit i*k of that column's
        k words.

        Values are laid out [lane, columns] and words [k, columns], so that every step is one
        contiguous pass.
        """
        lanes = np.zeros((self.lane, self.columns), self.dtype)
        lanes.reshape(-1)[: self.length] = words
        out = np.zeros((self.bits, self.columns), self.dtype)
        for i in range(self.lane):
            row, offset = divmod(i * self.bits, self.lane)
            out[row] |= lanes[i] << self.dtype.type(offset)
            if offset + self.bits > self.lane:
                out[row + 1] |= lanes[i] >> self.dtype.type(self.lane - offset)
        return out.tobytes()

    def unpack(self, payload: bytes) -> Words:
        """Undo `pack`.

        Raises:
            ProtocolError: wrong size, or bits set where no value lies.
        """
        if len(payload) != self.wire_bytes:
            raise ProtocolError(
                f"a masked vector has {len(payload)} bytes, {self.wire_bytes} "
                f"expected; it is refused"
            )
        packed = np.frombuffer(payload, self.dtype).reshape(self.bits, self.columns)
        lanes = np.empty((self.lane, self.columns), self.dtype)
        for i in range(self.lane):
            row, offset = divmod(i * self.bits, self.lane)
            np.right_shift(packed[row], self.dtype.type(offset), out=lanes[i])
            if offset + self.bits > self.lane:
                lanes[i] |= packed[row + 1] << self.dtype.type(self.lane - offset)
        lanes &= self.dtype.type((1 << self.bits) - 1)
        flat = lanes.reshape(-1)
        if flat[self.length :].any():
            raise ProtocolError("a masked vector has bits set after its last value; it is refused")
        return flat[: self.length]


class BitTally:
    """Sum of packed vectors modulo 2^k."""

    def __init__(self, ring: BitRing) -> None:
        self._ring = ring
        self._words: Words = np.zeros(ring.length, ring.dtype)
        self._streams: list[Stream] = []  # noted, added all at once in `total`

    def add(self, payload: bytes) -> None:
        np.add(self._words, self._ring.unpack(payload), out=self._words)

    def mask(self, key: bytes, *, subtract: bool) -> None:
        self._streams.append((key, subtract))

    def total(self) -> NDArray[np.int64]:
        self._ring.mask(self._words, self._streams)
        self._streams = []
        total: NDArray[np.int64] = (
            self._words & self._ring.dtype.type((1 << self._ring.bits) - 1)
        ).astype(np.int64)
        return total


class TokenRing:
    """Token counts below 2^32, as two 16-bit limbs: the sum is exact for any cohort up to
    65,536.
    """

    def __init__(self, parties: int) -> None:
        self.limbs = BitRing(length=2, bits=16, parties=parties)

    def lift(self, tokens: int) -> Words:
        """Raises ValueError for a count that is negative or 2^32 and more."""
        if not 0 <= tokens < 1 << 32:
            raise ValueError(f"{tokens} tokens cannot be counted, 0 to 2^32-1 expected")
        return self.limbs.lift(np.array([tokens & 0xFFFF, tokens >> 16], np.uint32))

    @staticmethod
    def join(total: NDArray[np.int64]) -> int:
        """The count behind two summed limbs."""
        return int(total[0]) + (int(total[1]) << 16)


CHUNK = CHUNK_BYTES // 4  # values rounded at a time, so that five passes stay in that cache


@dataclass(frozen=True, slots=True)
class Range:
    """Values start:stop of an update lie in [-scale, scale]. Agreed in the round's task: LoRA's
    scales differ by layer.
    """

    start: int
    stop: int
    scale: float

    def step(self, bits: int) -> float:
        """Distance of two neighbouring integers, in the update's unit."""
        return self.scale / middle(bits)


def middle(bits: int) -> int:
    """The integer that means zero; the largest one used is twice this."""
    return (1 << (bits - 1)) - 1


def encode(
    update: ArrayLike,
    ranges: Sequence[Range],
    bits: int,
    clip: float | None = None,
    *,
    key: bytes | None = None,
) -> NDArray[np.unsignedinteger]:
    """Clip, then round each value up or down at random so that its mean is kept.

    Args:
        update: real values [n].
        ranges: cover 0:n in order without gaps.
        bits: 2 to 24; integers lie in 0 .. 2 * middle(bits).
        clip: largest L2 norm of the whole update; a longer one is scaled down (the same direction).
        None: no clipping. key: 32 bytes for reproducible rounding in experiments; by default fresh
        from the operating system.

    Returns: uint16 or uint32 [n]; uint32 above 16 bits.

    Raises:
        ConfigError: ranges that do not cover the update, or bits out of range.
        DataError: values that are not finite.

    Per value, with s = scale / middle(bits) and |value| <= scale after clipping: E[decoded] = value
    up to s * 2**-32,
    |decoded - value| < s, standard deviation <= s / 2. Values beyond the scale are cut to it, and
    that is a bias: choose scales so that it is rare, or set clip <= every scale.

    Hazard: a repeated key makes rounding predictable; leave it out except in experiments.
    Source: Connolly, Higham, Mary 2021, "Stochastic rounding and its probabilistic backward error
    analysis", section 2.
    """
    values = np.asarray(update)
    check_ranges(ranges, len(values), bits)
    norm = float(np.sqrt(np.einsum("i,i->", values, values, dtype=np.float64, casting="safe")))
    if not np.isfinite(norm):
        raise DataError(
            "the update holds values that are not finite; training went wrong, nothing is sent"
        )
    shrink = clip / norm if clip is not None and norm > clip else 1.0
    out = np.empty(len(values), np.dtype("<u2" if bits <= 16 else "<u4"))
    cipher, buffer = stream(key or secrets.token_bytes(32)), bytearray(len(ZEROS) + 15)
    dice = np.frombuffer(buffer, "<u4", CHUNK)
    scratch, chance = np.empty(CHUNK), np.empty(CHUNK)
    for span in ranges:
        top = float(2 * middle(bits))
        for start in range(span.start, span.stop, CHUNK):
            stop = min(start + CHUNK, span.stop)
            x, r = scratch[: stop - start], chance[: stop - start]
            np.multiply(values[start:stop], shrink / span.step(bits), out=x)
            x += middle(bits)
            np.clip(x, 0.0, top, out=x)
            cipher.update_into(memoryview(ZEROS)[: 4 * len(x)], buffer)
            # in [0, 1): floor(x + r) is x in the mean, never beyond top
            np.multiply(dice[: len(x)], 2.0**-32, out=r)
            x += r
            out[start:stop] = x  # the cast is the floor, since x >= 0
    return out


def decode_sum(
    total: ArrayLike, parties: int, ranges: Sequence[Range], bits: int
) -> NDArray[np.float64]:
    """The real sum behind a sum of encoded updates; divide by `parties` for the mean.

    Args:
        total: integers [n], the exact sum over `parties` encoded updates.

    Raises:
        ConfigError: ranges that do not cover the sum.
        DataError: a sum that so many encoded updates cannot have.

    Against the sum of the clipped updates: |error| < parties * step, standard deviation <=
    sqrt(parties) * step / 2.
    """
    sums = np.asarray(total)
    check_ranges(ranges, len(sums), bits)
    if len(sums) and (int(sums.min()) < 0 or int(sums.max()) > parties * 2 * middle(bits)):
        raise DataError(
            f"a sum of {parties} updates of {bits} bits lies outside its range; the "
            f"round is not used"
        )
    out = sums.astype(np.float64)
    out -= parties * middle(bits)
    for span in ranges:
        out[span.start : span.stop] *= span.step(bits)
    return out


def check_ranges(ranges: Sequence[Range], length: int, bits: int) -> None:
    """Raises ConfigError unless `ranges` cover 0:length in order, each with a positive finite
    scale, and bits is 2 to 24.
    """
    at = 0
    for span in ranges:
        if span.start != at or span.stop <= at or not 0.0 < span.scale < float("inf"):
            raise ConfigError(
                f"range {span.start}:{span.stop} with scale {span.scale} after {at}; they must "
                f"join and be positive"
            )
        at = span.stop
    if at != length or not 2 <= bits <= 24:
        raise ConfigError(
            f"ranges end at {at}, the update at {length}, {bits} bits a value (2 to "
            f"24); mend the round's task"
        )


def digits(bits: int) -> int:
    """Digits of `bits` bits that `spell` makes."""
    return -(-SPELLED_BITS // bits)


def spell(number: int, modulus: int, bits: int) -> list[int]:
    """A number below `modulus` as digits of `bits` bits, lowest first, so that sums of digits are
    the digits of the sum, modulo `modulus`.

    Of the many numbers of `SPELLED_BITS` that leave it as their remainder, a random one: sums of
    digits are opened digit by digit, and the carries between them would tell more of single numbers
    than their sum. The modulus must be odd and far below 2^SPELLED_BITS.
    """
    each = digits(bits)
    number += modulus * secrets.randbelow((1 << bits * each) // modulus)
    return [(number >> bits * place) & ((1 << bits) - 1) for place in range(each)]


def read(sums: Sequence[int] | NDArray[np.integer], modulus: int, bits: int) -> int:
    """The number behind sums of digits, modulo `modulus`."""
    return sum(int(value) << bits * place for place, value in enumerate(sums)) % modulus
