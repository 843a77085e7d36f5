"""One GGUF file, or one in parts: its metadata and its tensors, mapped and not copied.

Knows the container. Knows nothing of what a metadata key means, nor of layers.
Always: a file that is not GGUF, is cut short, contradicts itself or holds a block type we cannot
read is a `ModelFileError`; memory and time stay within what the file's own size and the limits
below allow, whatever counts it claims.

Own reading, because the `gguf` package takes every count on trust and three seconds for a
vocabulary; it is the oracle in the tests and writes our files. Source: ggml's `docs/gguf.md`.
"""

import math
import mmap
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...errors import ModelFileError, ModelNotFoundError
from ..quant.tensor import QuantTensor
from ..quant.types import NAMES, QUANT_TYPES
from .lfs_pointer import refuse_pointer

T = TypeVar("T", str, int, float, bool, list[Any])
MAGIC, VERSIONS = b"GGUF", (2, 3)
# behind two numbers: how llama.cpp's older files of statistics (imatrix.dat) name what they are of
IMATRIX = (b"blk.", b"output.", b"token_embd.")
MAX_HEADER = 128 << 20  # bytes before the tensors; the largest known vocabularies take 16 MB
MAX_ENTRIES = 65_536  # metadata keys, and tensors
MAX_ITEMS = 4_000_000  # of one list; the largest known list of merges has half a million
MAX_NAME = 256  # bytes
ALIGNMENT = 32  # bytes, where the file names no other
MAX_DIMENSIONS = 4
MAX_PARTS = 1024
# as llama.cpp's gguf-split names them
SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
STRING, ARRAY, BOOL = 8, 9, 7
# Block types that files have and we do not read, by their numbers: a name says more than a number.
OTHER_TYPES = {40: "NVFP4"}
NUMBERS = {
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What one file says."""

    path: Path
    metadata: Mapping[str, Any]  # plain Python values
    tensors: Mapping[str, QuantTensor]  # under the container's own names

    def value(self, key: str, kind: type[T], default: T | None = None) -> T:
        """One metadata value of a known type; whole numbers pass as floats.

        Raises:
            ModelFileError: missing without a default, of another type, or not finite.
        """
        found = self.metadata.get(key, default)
        if kind is float and isinstance(found, int) and not isinstance(found, bool):
            found = float(found)
        odd = isinstance(found, float) and not math.isfinite(found)
        if not isinstance(found, kind) or (kind is int and isinstance(found, bool)) or odd:
            state = "is missing" if found is None else f"is {found!r:.60}"
            raise ModelFileError(
                f"{self.path}: {key} {state}, expected {kind.__name__}; get the "
                f"model again or choose another"
            )
        return found


class Cursor:
    """A place in the header that only moves forward, and never beyond the end."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.place = data, 0
        self.end = min(len(data), MAX_HEADER)

    def take(self, size: int) -> memoryview:
        """The next `size` bytes; raises ValueError beyond the end."""
        if size > self.end - self.place:
            raise ValueError(
                f"{size} bytes are promised at byte {self.place}, {self.end - self.place} are there"
            )
        self.place += size
        return self.data[self.place - size : self.place]

    def number(self, form: str) -> int:
        """One whole number in `struct`'s notation."""
        return int(struct.unpack("<" + form, self.take(struct.calcsize(form)))[0])

    def text(self, limit: int = MAX_HEADER) -> str:
        """A text of at most `limit` bytes, its length before it."""
        length = self.number("Q")
        if length > limit:
            raise ValueError(f"a text of {length} bytes where at most {limit} may stand")
        return str(self.take(length), "utf-8")

    def value(self) -> Any:
        """A value, its type before it."""
        kind = self.number("I")
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.numbers(kind, 1)[0]
        item, count = self.number("I"), self.number("Q")
        if count > MAX_ITEMS:
            raise ValueError(f"a list of {count} items, at most {MAX_ITEMS} are read")
        return [self.text() for _ in range(count)] if item == STRING else self.numbers(item, count)

    def numbers(self, kind: int, count: int) -> list[Any]:
        """`count` numbers or truths of one type."""
        if kind not in NUMBERS:
            raise ValueError(f"a value of the unknown type {kind}")
        form = np.dtype(NUMBERS[kind])
        found = np.frombuffer(self.take(count * form.itemsize), form)
        values: list[Any] = (found != 0 if kind == BOOL else found).tolist()
        return values


def parts(path: Path) -> list[Path]:
    """The files of a model that is split, in order, from the path of any of them; of any other
    model its one file.

    Raises:
        ModelNotFoundError: a part is missing.
    """
    found = SPLIT.fullmatch(path.name)
    if found is None or int(found["count"]) < 2:
        return [path]
    count = min(int(found["count"]), MAX_PARTS)
    files = [
        path.with_name(f"{found['stem']}-{number:05d}-of-{found['count']}.gguf")
        for number in range(1, count + 1)
    ]
    for file in files:
        if not file.is_file():
            raise ModelNotFoundError(
                f"{file}: no such file; {path.name} is one of "
                f"{int(found['count'])} parts, get them all"
            )
    return files


def read(path: Path) -> GgufFile:
    """Map a model's file, or all parts of one that is split, and describe it.

    Args:
        path: of the file, or of any part.

    Raises:
        ModelNotFoundError: no such file, or a part of it is missing.
        ModelFileError: not GGUF, cut short, parts that do not belong together, or with a block type
        that is not supported.
    """
    files = [read_one(file) for file in parts(path)]
    metadata, tensors = files[0].metadata, dict(files[0].tensors)
    for number, file in enumerate(files):
        says = file.value("split.no", int, 0), file.value("split.count", int, 1)
        if says != (number, len(files)) and says[1] > 0:
            raise ModelFileError(
                f"{file.path}: is part {says[0] + 1} of {says[1]}, its name says {number + 1} of "
                f"{len(files)}; give each part "
                "the name that it came with (…-00001-of-00003.gguf), and get all of them from one "
                "place"
            )
        if number:
            twice = sorted(tensors.keys() & file.tensors.keys())
            if twice:
                raise ModelFileError(
                    f"{file.path}: {twice[0]:.80} is in two parts; get all parts from one place"
                )
            tensors |= file.tensors
    if len(tensors) != files[0].value("split.tensors.count", int, len(tensors)):
        raise ModelFileError(
            f"{path}: its {len(files)} parts hold {len(tensors)} tensors, the first says "
            f"{metadata['split.tensors.count']}; "
            "get all parts from one place"
        )
    return GgufFile(files[0].path, metadata, tensors)


def read_one(path: Path) -> GgufFile:
    """One file as it is, whatever it is a part of.

    Raises:
        ModelNotFoundError, ModelFileError: as `read`.
    """
    data = map_file(path)
    if bytes(data[:4]) != MAGIC:
        refuse_pointer(path)
        if bytes(data[8:32]).startswith(IMATRIX):
            raise ModelFileError(
                f"{path}: the statistics by which a model is quantised, not a model; give the "
                f"model's own file"
            )
        raise ModelFileError(
            f"{path}: not a GGUF file (it begins with {bytes(data[:4])!r}); give the path of a "
            f".gguf file or a model folder"
        )
    cursor = Cursor(memoryview(data))
    try:
        metadata, described = header(cursor)
        found = metadata.get("general.alignment", ALIGNMENT)
        alignment = found if isinstance(found, int) else 0
        if alignment < 8 or alignment & (alignment - 1) or alignment > MAX_HEADER:
            raise ValueError(
                f"general.alignment is {found!r:.20}, expected a power of two from 8 on"
            )
        start = -(-cursor.place // alignment) * alignment
        tensors = place_tensors(np.frombuffer(data, np.uint8), start, alignment, described)
    except UnsupportedBlocks as error:
        known = ", ".join(QUANT_TYPES)
        raise ModelFileError(
            f"{path}: {error}, which cannot be read; choose a file of {known}"
        ) from None
    except (ValueError, MemoryError, RecursionError, struct.error) as error:
        raise ModelFileError(
            f"{path}: damaged or cut short ({error}); pull or download it again"
        ) from error
    return GgufFile(path, metadata, tensors)


class UnsupportedBlocks(Exception):
    """A block type that no decoder knows; becomes a `ModelFileError` with the file's name."""


def map_file(path: Path) -> mmap.mmap:
    """The file's bytes, copy-on-write: nothing here may ever reach the file, and torch warns of
    read-only memory.

    Raises:
        ModelNotFoundError, ModelFileError: as `read`.
    """
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except FileNotFoundError:
        raise ModelNotFoundError(
            f"{path}: no such file; give a model file, or a name that `quietchoir model list` shows"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelFileError(
            f"{path}: cannot be read ({error}); give the path of a model file"
        ) from error


Described = tuple[str, list[int], int, int]  # name, sizes (fastest first), block type, offset


def header(cursor: Cursor) -> tuple[dict[str, Any], list[Described]]:
    """Metadata and descriptions of tensors; raises ValueError where the file contradicts itself."""
    cursor.take(len(MAGIC))
    version = cursor.number("I")
    if version & 0xFFFF == 0:
        raise ValueError("written for a machine of the other byte order; get the file for this one")
    if version not in VERSIONS:
        raise ValueError(f"version {version}, expected 2 or 3")
    tensors, keys = cursor.number("Q"), cursor.number("Q")
    if max(tensors, keys) > MAX_ENTRIES:
        raise ValueError(
            f"{tensors} tensors and {keys} keys are claimed, at most {MAX_ENTRIES} each are read"
        )
    metadata = unique(keys, lambda: (cursor.text(MAX_NAME), cursor.value()))
    # What the library's reader shows under these names as well.
    metadata |= {"GGUF.version": version, "GGUF.tensor_count": tensors, "GGUF.kv_count": keys}
    described = unique(tensors, lambda: (cursor.text(MAX_NAME), description(cursor)))
    return metadata, [(name, *rest) for name, rest in described.items()]


def unique(count: int, read_one: Callable[[], tuple[str, Any]]) -> dict[str, Any]:
    """`count` named things, each name once."""
    found: dict[str, Any] = {}
    for _ in range(count):
        name, value = read_one()
        if name in found:
            raise ValueError(f"{name:.80} is there twice")
        found[name] = value
    return found


def description(cursor: Cursor) -> tuple[list[int], int, int]:
    """Sizes, block type and offset of one tensor."""
    count = cursor.number("I")
    if not 1 <= count <= MAX_DIMENSIONS:
        raise ValueError(f"a tensor of {count} dimensions")
    return [cursor.number("Q") for _ in range(count)], cursor.number("I"), cursor.number("Q")


def place_tensors(
    data: NDArray[np.uint8], start: int, alignment: int, described: list[Described]
) -> dict[str, QuantTensor]:
    """Views on the mapped bytes, one a tensor; no two share a byte."""
    tensors: dict[str, QuantTensor] = {}
    taken: list[tuple[int, int, str]] = []
    for name, sizes, number, offset in described:
        kind = NAMES.get(number)
        if kind is None:
            raise UnsupportedBlocks(
                f"{name:.80} is {OTHER_TYPES.get(number, f'of block type {number}')}"
            )
        form, (columns, *others) = QUANT_TYPES[kind], sizes
        rows = math.prod(others)
        length = rows * (columns // form.columns) * form.size
        if (
            min(sizes) < 1
            or columns % form.columns
            or offset % alignment
            or length > len(data) - start - offset
        ):
            raise ValueError(
                f"{name:.80} is {kind} {sizes} at {offset}, which does not fit into "
                f"{len(data)} bytes"
            )
        first = start + offset
        tensors[name] = QuantTensor(
            kind, (rows, columns), data[first : first + length].reshape(rows, -1)
        )
        taken.append((first, first + length, name))
    taken.sort()
    for (_, stop, name), (first, _, other) in pairwise(taken):
        if first < stop:
            raise ValueError(f"{name:.80} and {other:.80} share bytes")
    return tensors
