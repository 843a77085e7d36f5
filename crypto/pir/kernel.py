"""The compiled products of `scan.cpp`: where they are, and whether they can be used.

Knows ctypes and one file beside this one. Knows nothing of queries.
Always: a library that was made of another source than the one beside it is not loaded; what it
computes is what `lwe` computes without it, slower.
"""

import ctypes
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
Numbers = npt.NDArray[Any]
SOURCE = Path(__file__).with_name("scan.cpp")
LIBRARY = Path(__file__).with_name("_scan.so")


@cache
def _library() -> ctypes.CDLL | None:
    try:
        loaded = ctypes.CDLL(str(LIBRARY))
        loaded.quietchoir_scan_source.restype = ctypes.c_char_p
        made_of = loaded.quietchoir_scan_source().decode("ascii")
        if made_of != sha256(SOURCE.read_bytes()).hexdigest()[:16]:
            return None
    except (OSError, AttributeError):  # no compiler was there, or another system's file
        return None
    for product in (loaded.quietchoir_scan, loaded.quietchoir_combine):
        product.restype = None
        product.argtypes = (
            *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t),
            *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int),
        )
    return loaded


def paths() -> int:
    """Paths that can be taken here, the best one last; 0 where nothing was compiled."""
    loaded = _library()
    return 0 if loaded is None else int(loaded.quietchoir_scan_best()) + 1


def product(table: npt.NDArray[np.int8], query: Words, path: int) -> Words:
    """Table [rows, columns] x query [columns] modulo 2^32, [rows].

    Args:
        path: below `paths`.
    """
    return _multiplied("scan", table, np.int8, query, np.uint32, path)


def combine(matrix: Words, secret: npt.NDArray[np.int8], path: int) -> Words:
    """Matrix [rows, columns] x secret [columns] modulo 2^32, [rows]; `path` as in `product`."""
    return _multiplied("combine", matrix, np.uint32, secret, np.int8, path)


def _multiplied(
    name: str, matrix: Numbers, kind: type, vector: Numbers, other: type, path: int
) -> Words:
    loaded = _library()
    assert loaded is not None and 0 <= path < paths(), "ask paths() first"
    # of the types and the order that the library reads; no copy where they are so already
    left: Numbers = np.ascontiguousarray(matrix, kind)
    right: Numbers = np.ascontiguousarray(vector, other)
    rows, columns = left.shape
    found = np.empty(rows, np.uint32)
    run = getattr(loaded, f"quietchoir_{name}")
    run(left.ctypes.data, rows, columns, right.ctypes.data, found.ctypes.data, path)
    return found
