"""One mask on one vector: ours, Flower's, and the cipher alone.

Knows AES-256-CTR's own speed and Flower's SecAgg+ functions. Knows no protocol.
Always: the same number of values in every arm; keys are agreed before the clock starts; ours is
timed as a member adds masks, those of all its peers in one pass, and divided by their number.
"""

import secrets

import numpy as np

from ...crypto.prg import CHUNK_BYTES, stream
from ...crypto.ring import BitRing
from .stopwatch import Arm, Sample, interleaved

FLOWER_MODULUS = 1 << 32  # the default of flwr's SecAggPlusWorkflow
INNER = 40  # masks in one repeat: one takes a third of a millisecond


class Keystream:
    """AES-256-CTR into a buffer that stays in the cache: the bound under every mask made of this
    cipher.
    """

    def __init__(self) -> None:
        self._zeros, self._buffer = memoryview(bytes(CHUNK_BYTES)), bytearray(CHUNK_BYTES + 15)

    def write(self, size: int) -> None:
        """`size` bytes, a chunk over the other."""
        cipher = stream(bytes(32))
        for start in range(0, size, CHUNK_BYTES):
            cipher.update_into(self._zeros[: min(CHUNK_BYTES, size - start)], self._buffer)


def measure(length: int, *, bits: int, parties: int, seed: int, repeats: int) -> dict[str, Sample]:
    """Seconds of one mask, made and added, of those that one of `parties` adds.

    Args:
        length: values.

    Returns: "own", "aes" (the stream alone, as many bytes as our words have), "flower".
    """
    from flwr.common.secure_aggregation.ndarrays_arithmetic import parameters_addition
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

    values = np.random.default_rng(seed).integers(0, 1 << bits, length, dtype=np.uint32)
    ring, key = BitRing(length=length, bits=bits, parties=parties), secrets.token_bytes(32)
    streams = [(secrets.token_bytes(32), bool(peer % 2)) for peer in range(parties - 1)]
    words, theirs, bound = ring.lift(values), [values.astype(np.int64)], Keystream()
    arms = {
        "own": Arm(lambda: ring.mask(words, streams), max(1, INNER // len(streams))),
        "aes": Arm(lambda: bound.write(words.nbytes), INNER),
        "flower": Arm(
            lambda: parameters_addition(theirs, pseudo_rand_gen(key, FLOWER_MODULUS, [(length,)]))
        ),
    }
    found = interleaved(arms, repeats)
    return {
        **found,
        "own": Sample(tuple(seconds / len(streams) for seconds in found["own"].seconds)),
    }
