"""A tag on what is summed, so that members can tell whether the sum they are shown is the one that
was opened.

Knows integers, a key that the members of one attempt share and the coordinator lacks, and names.
Knows nothing of masks or messages.
Always: the tags of members add up to the tag of their sum, so that sums alone are opened of tags
too; a key serves one attempt, and all its members have the same: each commits to what it adds
before anybody deals (under two keys a sum of tags is an equation about single members' values).

Modulo each of three primes p, a member's tag is  Σ aⱼ xⱼ + pad:  aⱼ is a stream of the key, and the
pad another one under the member's name. The sum of tags fits the sum of values exactly if nothing
was changed. Whoever lacks the key sees tags that are uniform, for each has its own pad; to change a
sum by δ ≠ 0, or the names, it must guess  Σ aⱼ δⱼ  modulo all three: a chance below 2^-90.

Not covered: a member of the attempt has the key, and makes any sum fit for whom it helps; one that
sends a wrong tag makes the true sum fit nobody's, and the attempt is lost. It must never send its
tag unmasked: its fellow members know the key, and with it one equation about its values.

Source: Carter, Wegman 1981, "New hash functions and their use in authentication and set equality";
Agrawal, Boneh 2009, "Homomorphic MACs: MAC-based integrity for network coding".
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from .. import ring
from ..identity.keys import bind, hkdf
from ..ring import stream

PRIMES = (2**32 - 5, 2**32 - 17, 2**32 - 65)  # the largest below 2^32
SEED_BYTES = 32  # of what each member adds to the key
CHUNK = 1 << 15  # values at a time; a product has 53 bits at most, so 1024 of them fit 63
ROW = 1 << 10
MOST_BITS = 21  # of a summed value: 16 bits from 32 members

Tag = tuple[int, ...]  # one number for each prime
Values = npt.NDArray[np.unsignedinteger] | npt.NDArray[np.int64]


def derive(seeds: Iterable[bytes], context: bytes) -> bytes:
    """The key of an attempt, from what each of its members added, in the order of their numbers."""
    return hkdf(bind(*seeds), context)


def make(key: bytes, values: Values, name: str) -> Tag:
    """A member's tag of its values [n]."""
    return combine(key, values, (name,))


def combine(key: bytes, total: Values, names: Sequence[str]) -> Tag:
    """The tag that the sum [n] of these members' values has."""
    pads = [hkdf(key, bind("quietchoir sum pad 1", name), 8 * len(PRIMES)) for name in names]
    keys = [hkdf(key, bind("quietchoir sum tag 1", number)) for number in range(len(PRIMES))]
    found = []
    for number, (product, prime) in enumerate(zip(inner(keys, total), PRIMES, strict=True)):
        padding = sum(int.from_bytes(pad[8 * number : 8 * number + 8], "big") for pad in pads)
        found.append((product + padding) % prime)
    return tuple(found)


def inner(keys: Sequence[bytes], values: Values) -> list[int]:
    """Σ aⱼ xⱼ modulo each prime, where a is its key's stream of 32-bit words.

    Raises:
        ValueError: a value that is negative, or needs more than `MOST_BITS` bits.
    """
    ciphers, sums = [stream(key) for key in keys], [0] * len(PRIMES)
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) < 1 << MOST_BITS:
        raise ValueError(
            f"values of {values.min()} to {values.max()} cannot be tagged, {MOST_BITS} bits at most"
        )  # our bug
    # all primes to one chunk while it is in the cache, in memory that is asked for once
    zeros, buffer = memoryview(bytes(4 * CHUNK)), bytearray(4 * CHUNK + 15)
    words, part = np.frombuffer(buffer, "<u4", CHUNK), np.zeros(CHUNK, np.uint64)
    products = np.empty(CHUNK, np.uint64)
    for start in range(0, len(values), CHUNK):
        size = min(CHUNK, len(values) - start)
        part[:size], part[size:] = values[start : start + size], 0
        for number, prime in enumerate(PRIMES):
            ciphers[number].update_into(zeros[: 4 * size], buffer)
            np.multiply(part, words, out=products)
            rows = products.reshape(-1, ROW).sum(axis=1, dtype=np.uint64)
            sums[number] += int((rows % np.uint64(prime)).sum())
    return [total % prime for total, prime in zip(sums, PRIMES, strict=True)]


def spell(tag: Tag, bits: int) -> npt.NDArray[np.uint64]:
    """A tag as random digits of `bits` bits, prime by prime (`ring.spell`)."""
    found = [ring.spell(number, prime, bits) for number, prime in zip(tag, PRIMES, strict=True)]
    return np.concatenate(found).astype(np.uint64)


def width(bits: int) -> int:
    """Digits of a tag."""
    return len(PRIMES) * ring.digits(bits)


def read(digits: npt.NDArray[np.int64], bits: int) -> Tag:
    """The tag behind sums of digits, each modulo its prime."""
    parts = np.split(digits, len(PRIMES))
    return tuple(ring.read(part, prime, bits) for part, prime in zip(parts, PRIMES, strict=True))
