"""One matrix by itself, through one instruction set: for tests and measurements.

Knows the library's `quietchoir_probe_*` functions and numpy arrays. Knows nothing of models, steps
or threads.
Always: sizes are checked here, so the library never reads or writes beyond an array.
"""

import ctypes
from functools import cache

import numpy as np
from numpy.typing import NDArray

from .library import KINDS, library

STRIP = 16  # rows that stand together in the library's layout


class PackedMatrix:
    """A matrix of raw blocks in the library's own layout."""

    def __init__(self, kind: str, shape: tuple[int, int], raw: NDArray[np.uint8]) -> None:
        """Pack it.

        Args:
            kind: of `library.KINDS`.
            shape: rows and columns.
            raw: uint8 [rows, bytes of one row], as a model file has them.

        Raises:
            ValueError: the library knows no such matrix.
        """
        rows, columns = shape
        raw = np.ascontiguousarray(raw)
        if raw.dtype != np.uint8 or raw.ndim != 2 or raw.shape[0] != rows or kind not in KINDS:
            raise ValueError(
                f"{kind} {shape} must be uint8 [{rows}, bytes] of {', '.join(KINDS)}; "
                f"is {raw.dtype} {raw.shape}"
            )
        self.shape = shape
        self._calls = _calls()
        self._handle = self._calls.quietchoir_probe_pack(
            KINDS.index(kind), rows, columns, raw.ctypes.data, raw.shape[1]
        )
        if not self._handle:
            raise ValueError(
                f"{kind} {shape} of {raw.shape[1]} bytes a row: no such matrix, or memory is short"
            )

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._calls.quietchoir_probe_free(self._handle)

    @property
    def nbytes(self) -> int:
        """What a product reads."""
        return int(self._calls.quietchoir_probe_bytes(self._handle))

    def multiply(
        self, x: NDArray[np.float32], instruction_set: str = "", terms: int = 1
    ) -> NDArray[np.float32]:
        """x [n, columns] -> [n, rows], on one thread, without holding Python's lock.

        Args:
            instruction_set: of `library.instruction_sets()`; empty takes the best.
            terms: 1 to 3 vectors of int8 that x is taken as beside quantised weights.

        Raises:
            ValueError: x has another shape, there are no such terms, or this processor does not
            run that set.
        """
        x = np.ascontiguousarray(x, dtype=np.float32)
        if x.ndim != 2 or x.shape[1] != self.shape[1] or not len(x):
            raise ValueError(f"x must be [n, {self.shape[1]}], is {x.shape}")
        out = np.empty((len(x), -(-self.shape[0] // STRIP) * STRIP), dtype=np.float32)
        name = instruction_set.encode("ascii")
        if not self._calls.quietchoir_probe_multiply(
            self._handle, name, x.ctypes.data, len(x), terms, out.ctypes.data
        ):
            raise ValueError(
                f"this processor does not run {instruction_set!r}, {terms} terms are not 1 to 3, "
                f"or memory is short"
            )
        return out[:, : self.shape[0]]


def decoded(kind: str, columns: int, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Rows of raw blocks as numbers, [rows, columns]; as the library reads an embedding.

    Raises:
        ValueError: no such rows.
    """
    raw = np.ascontiguousarray(raw)
    out = np.empty((len(raw), columns), dtype=np.float32)
    for row, numbers in zip(raw, out, strict=True):
        if not _calls().quietchoir_probe_decode(
            KINDS.index(kind), row.ctypes.data, row.size, columns, numbers.ctypes.data
        ):
            raise ValueError(f"{kind} has no rows of {columns} columns in {row.size} bytes")
    return out


def read_all(memory: NDArray[np.uint64]) -> int:
    """Read an array once from front to back, as fast as one thread can; the sum of it, modulo
    2^64.
    """
    return int(_calls().quietchoir_probe_read(memory.ctypes.data, memory.size))


@cache
def _calls() -> ctypes.CDLL:
    """The library with these functions' types."""
    calls = library()
    whole, size, place = ctypes.c_int32, ctypes.c_size_t, ctypes.c_void_p
    calls.quietchoir_probe_pack.argtypes = (whole, whole, whole, place, size)
    calls.quietchoir_probe_pack.restype = place
    calls.quietchoir_probe_free.argtypes = (place,)
    calls.quietchoir_probe_free.restype = None
    calls.quietchoir_probe_bytes.argtypes = (place,)
    calls.quietchoir_probe_bytes.restype = size
    calls.quietchoir_probe_multiply.argtypes = (
        *(place, ctypes.c_char_p, place),
        *(whole, whole, place),
    )
    calls.quietchoir_probe_multiply.restype = ctypes.c_bool
    calls.quietchoir_probe_decode.argtypes = (whole, place, size, whole, place)
    calls.quietchoir_probe_decode.restype = ctypes.c_bool
    calls.quietchoir_probe_read.argtypes = (place, size)
    calls.quietchoir_probe_read.restype = ctypes.c_uint64
    return calls
