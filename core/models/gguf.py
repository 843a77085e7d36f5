"""One GGUF file: its metadata and its tensors, mapped and not copied.

Knows the container. Knows nothing of what a metadata key means, nor of layers.
Always: a file that is not GGUF, is cut short or holds a block type we cannot read is a `ModelFileError`; the
container's parser never sees the network.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import gguf
import numpy as np
import torch

from ..errors import ModelFileError, ModelNotFoundError
from .blocks import FORMATS, Blocks

T = TypeVar("T", str, int, float, bool, list[Any])
MAGIC = b"GGUF"
STRING, ARRAY = gguf.GGUFValueType.STRING, gguf.GGUFValueType.ARRAY
Parts = tuple[int, list[Any], list[int], list[Any]]  # bytes read, parts, which of them are data, types


class Reader(gguf.GGUFReader):  # type: ignore[misc]  # the library is not typed
    """The library's reader with a short cut for long lists.

    The library makes several mapped views for each item of a list: three seconds of work for a vocabulary of 49,152
    tokens, against a tenth here. Should the library rename the method, this one is not called: slower, never wrong.
    """

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Parts:
        if raw_type != ARRAY or self.byte_order != "I":
            return super()._get_field_parts(orig_offs, raw_type)  # type: ignore[no-any-return]
        item, count, start = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64), orig_offs + 12
        kind = gguf.GGUFValueType(item[0])
        if kind in self.gguf_scalar_to_np:
            values = self._get(start, self.gguf_scalar_to_np[kind], count[0])
            if len(values) != count[0]:
                raise ValueError(f"a list of {count[0]} numbers ends after {len(values)}")
            return 12 + int(values.nbytes), [item, count, values], [2], [ARRAY, kind]
        if kind != STRING:
            return super()._get_field_parts(orig_offs, raw_type)  # type: ignore[no-any-return]
        buffer, place, texts = memoryview(self.data), start, []
        for _ in range(int(count[0])):
            (length,) = struct.unpack_from("=Q", buffer, place)
            if place + 8 + length > len(buffer):
                raise ValueError(f"a text of {length} bytes runs beyond the end of the file")
            texts.append(buffer[place + 8 : place + 8 + length])
            place += 8 + length
        return place - orig_offs, [item, count, *texts], list(range(2, 2 + len(texts))), [ARRAY, kind]


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What one file says."""

    path: Path
    metadata: Mapping[str, Any]  # plain Python values
    tensors: Mapping[str, Blocks]  # under the container's own names

    def value(self, key: str, kind: type[T], default: T | None = None) -> T:
        """One metadata value of a known type; whole numbers pass as floats.

        Raises:
            ModelFileError: missing without a default, or of another type.
        """
        found = self.metadata.get(key, default)
        if kind is float and isinstance(found, int) and not isinstance(found, bool):
            found = float(found)
        if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
            state = "is missing" if found is None else f"is {found!r:.60}"
            raise ModelFileError(f"{self.path}: {key} {state}, expected {kind.__name__}; get the model again or choose another")
        return found


def read(path: Path) -> GgufFile:
    """Map `path` and describe it.

    Raises:
        ModelNotFoundError: no such file.
        ModelFileError: not GGUF, cut short, or with a block type that is not supported.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
    except FileNotFoundError:
        raise ModelNotFoundError(
            f"{path}: no such file; give a model file, or a name that `quietchoir model list` shows"
        ) from None
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror}); give the path of a model file") from error
    if magic != MAGIC:
        raise ModelFileError(f"{path}: not a GGUF file (it begins with {magic!r}); give the path of a .gguf file")
    try:
        # Copy-on-write: torch warns about read-only memory, and nothing here may ever reach the file.
        reader = Reader(path, "c")
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, LookupError, TypeError, OverflowError, MemoryError, OSError, struct.error) as error:
        raise ModelFileError(f"{path}: damaged or cut short ({error}); pull or download it again") from error
    if reader.byte_order != "I":
        raise ModelFileError(f"{path}: written for a machine of the other byte order; get the file for this one")
    return GgufFile(path, metadata, {tensor.name: blocks_of(path, tensor) for tensor in reader.tensors})


def blocks_of(path: Path, tensor: Any) -> Blocks:
    """One tensor of the container as rows of blocks."""
    kind = tensor.tensor_type.name
    if kind not in FORMATS:
        known = ", ".join(FORMATS)
        raise ModelFileError(f"{path}: {tensor.name} is {kind}, which cannot be read; choose a file of {known}")
    shape = [int(size) for size in reversed(tensor.shape)]  # the container names the fastest dimension first
    rows = math.prod(shape[:-1])
    data = torch.from_numpy(np.asarray(tensor.data).reshape(-1).view(np.uint8))
    try:
        return Blocks(kind, (rows, shape[-1]), data.view(rows, -1))
    except (ValueError, RuntimeError) as error:
        raise ModelFileError(f"{path}: {tensor.name} does not fit its shape ({error}); pull or download it again") from error
