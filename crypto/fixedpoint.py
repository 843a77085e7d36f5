"""Real updates become small unsigned integers that can be summed in a ring, and the sum becomes
real again.

Knows clipping, ranges and stochastic rounding. Knows nothing of masks or parties.
Always: rounding is unbiased and its randomness comes from a cipher under a fresh key; what is
decoded differs from the true sum of the clipped updates by less than one step a party and value.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core.errors import ConfigError, DataError
from .prg import stream

CHUNK = 1 << 15  # values rounded at a time, so that five passes stay in the second-level cache
ZEROS = bytes(CHUNK * 4)


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
