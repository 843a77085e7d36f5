"""A sum under encryption: our packed integers beside TenSEAL's tutorial setting.

Knows both libraries' objects, in this process. Knows no protocol, no masks.
Always: the same values and the same three steps in both arms: one party encrypts, the coordinator
adds two uploads, a member opens the sum; whatever travels is serialised and read again; one thread.
"""

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...crypto.he.bfv import Adder, BfvMember, Packing
from .stopwatch import Arm, Sample, interleaved

# TenSEAL's own tutorials
TUTORIAL = {"poly_modulus_degree": 8192, "coeff_mod_bit_sizes": [60, 40, 40, 60]}
TUTORIAL_SCALE = 2.0**40
STEPS = ("encrypt", "add", "decrypt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """One arm: three steps, each from what the one before left."""

    encrypt: Callable[[], list[bytes]]
    add: Callable[[list[bytes], list[bytes]], list[bytes]]
    decrypt: Callable[[list[bytes]], NDArray[np.float64] | NDArray[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedCost:
    """What one arm takes."""

    seconds: dict[str, Sample]  # by step
    up: int  # bytes that one party sends
    down: int  # bytes of the sum
    error: float  # largest difference from the sum in clear

    @property
    def total(self) -> Sample:
        """Seconds of all three steps, repeat by repeat."""
        return Sample(
            tuple(
                sum(parts)
                for parts in zip(*(self.seconds[step].seconds for step in STEPS), strict=True)
            )
        )


def own(values: NDArray[np.uint32], *, bits: int, parties: int) -> Scheme:
    """Packed BFV of `crypto.he.bfv`."""
    packing = Packing(length=len(values), bits=bits, parties=parties)
    member, adder = (
        BfvMember(packing.parameters.name, secrets.token_bytes(32)),
        Adder(packing.parameters.name),
    )

    def encrypt() -> list[bytes]:
        return member.encrypt(*(row.tobytes() for row in packing.pack(values)))

    def add(one: list[bytes], other: list[bytes]) -> list[bytes]:
        return [adder.add(b"", *rows)[0] for rows in zip(one, other, strict=True)]

    def decrypt(total: list[bytes]) -> NDArray[np.int64]:
        return packing.unpack(
            np.stack([np.frombuffer(row, np.uint64) for row in member.decrypt(*total)])
        )

    return Scheme(encrypt=encrypt, add=add, decrypt=decrypt)


def tutorial(values: NDArray[np.uint32]) -> Scheme:
    """TenSEAL's CKKSVector as its tutorials set it up."""
    import tenseal

    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, **TUTORIAL, n_threads=1)
    context.global_scale = TUTORIAL_SCALE
    plain = values.astype(np.float64).tolist()

    def encrypt() -> list[bytes]:
        return [tenseal.ckks_vector(context, plain).serialize()]

    def add(one: list[bytes], other: list[bytes]) -> list[bytes]:
        first, second = (tenseal.ckks_vector_from(context, part[0]) for part in (one, other))
        return [(first + second).serialize()]

    def decrypt(total: list[bytes]) -> NDArray[np.float64]:
        return np.array(tenseal.ckks_vector_from(context, total[0]).decrypt())

    return Scheme(encrypt=encrypt, add=add, decrypt=decrypt)


def measure(
    length: int, *, bits: int, parties: int, seed: int, repeats: int
) -> dict[str, SealedCost]:
    """Both arms on the same values, step by step in turn. Returns "own" and "tutorial"."""
    with silence():
        return _measure(
            np.random.default_rng(seed).integers(0, 1 << bits, length, dtype=np.uint32),
            bits,
            parties,
            repeats,
        )


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Standard output is closed to libraries: TenSEAL warns there, from C++, of vectors longer
    than a ciphertext.
    """
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _measure(
    values: NDArray[np.uint32], bits: int, parties: int, repeats: int
) -> dict[str, SealedCost]:
    schemes = {"own": own(values, bits=bits, parties=parties), "tutorial": tutorial(values)}
    sent = {name: scheme.encrypt() for name, scheme in schemes.items()}
    sums = {name: scheme.add(sent[name], sent[name]) for name, scheme in schemes.items()}
    seconds = {
        "encrypt": interleaved(
            {name: Arm(scheme.encrypt) for name, scheme in schemes.items()}, repeats
        ),
        "add": interleaved(
            {name: Arm(_adding(scheme, sent[name])) for name, scheme in schemes.items()}, repeats
        ),
        "decrypt": interleaved(
            {name: Arm(_opening(scheme, sums[name])) for name, scheme in schemes.items()}, repeats
        ),
    }
    return {
        name: SealedCost(
            seconds={step: seconds[step][name] for step in STEPS},
            up=sum(map(len, sent[name])),
            down=sum(map(len, sums[name])),
            error=float(np.abs(scheme.decrypt(sums[name]) - 2.0 * values).max()),
        )
        for name, scheme in schemes.items()
    }


def _adding(scheme: Scheme, sent: list[bytes]) -> Callable[[], object]:
    return lambda: scheme.add(sent, sent)


def _opening(scheme: Scheme, total: list[bytes]) -> Callable[[], object]:
    return lambda: scheme.decrypt(total)
