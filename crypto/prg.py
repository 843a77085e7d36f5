"""Mask streams: a 32-byte key becomes as many pseudo-random words as an array has.

Knows AES-256-CTR and arrays of uint16 or uint32. Knows nothing of who shares the key.
Always: all 256 bits of the key matter; the array is changed in place and no mask is ever held whole
in memory.
"""

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

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
