"""Keys and values of every token that is still needed, and the rows that convolutions see.

Knows blocks by number. Knows nothing of who owns them (`blockpool` does) or of when they are read.
Always: every number in it is finite, also where nothing was written yet: a masked NaN would still
poison attention.
"""

import math
from collections import Counter, abc
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ....errors import CacheError
from ....models.architecture import Architecture
from ...block_pool import BLOCK_TOKENS
from ..backend import label, unlabel


class KeyValueCache:
    """Keys and values [blocks, block tokens, kv heads, head size] of each layer that keeps its own,
    and rows [blocks, block tokens, width] of each that convolves.

    Memory is taken from the system only where it is first written, so a large cache costs what it
    has held.
    """

    def __init__(self, architecture: Architecture, blocks: int, dtype: torch.dtype) -> None:
        self.sources = [architecture.kv_source(at) for at in range(architecture.num_layers)]
        heads, convolve = kept_heads(architecture), architecture.convolutions
        whole = {layer: (blocks, BLOCK_TOKENS, *shape) for layer, shape in heads.items()}
        self.keys = {layer: _zeros(shape, dtype) for layer, shape in whole.items()}
        self.values = {layer: _zeros(shape, dtype) for layer, shape in whole.items()}
        wide = (blocks, BLOCK_TOKENS, architecture.hidden_size)
        self.rows = {layer: _zeros(wide, dtype) for layer, own in enumerate(convolve) if own}
        self.dtype = dtype
        inner = " and ".join(
            "x".join(map(str, (count, BLOCK_TOKENS, *shape)))
            for shape, count in Counter(heads.values()).items()
        )
        if self.rows:
            inner += f" and {len(self.rows)}x{BLOCK_TOKENS}x{wide[-1]}"
        # keys, then values, then rows, each layer by layer and block by block
        self.layout = f"torch {str(dtype).removeprefix('torch.')} {inner}"

    def write(self, layer: int, places: Tensor, k: Tensor, v: Tensor) -> None:
        """Store k and v [N, KV, hd] at `places` [N] (block * block tokens + offset)."""
        if self.sources[layer] != layer:
            return  # they were stored by the layer that made them
        self.keys[layer].flatten(0, 1).index_copy_(0, places, k.to(self.dtype))
        self.values[layer].flatten(0, 1).index_copy_(0, places, v.to(self.dtype))

    def write_rows(self, layer: int, places: Tensor, rows: Tensor) -> None:
        """Store rows [N, D] of a layer that convolves."""
        self.rows[layer].flatten(0, 1).index_copy_(0, places, rows.to(self.dtype))

    def read_rows(self, layer: int, places: Tensor) -> Tensor:
        """What stands at `places` [N, n], [N, n, D]."""
        return self.rows[layer].flatten(0, 1)[places]

    def read(self, layer: int, table: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of B sequences from their blocks [B, n], each [B, KV, length, hd]."""
        sequences, blocks = table.shape

        def gather(cache: Mapping[int, Tensor]) -> Tensor:
            # [B * n, block tokens, KV, hd]
            found = cache[self.sources[layer]].index_select(0, table.flatten())
            return found.view(sequences, blocks * BLOCK_TOKENS, *found.shape[2:])[
                :, :length
            ].transpose(1, 2)

        return gather(self.keys), gather(self.values)

    def read_blocks(self, blocks: abc.Sequence[int]) -> bytes:
        """A labelled copy of whole blocks: keys [n, ...] of each layer, values, rows."""
        table = torch.tensor(blocks, dtype=torch.long)
        taken = torch.cat([part[table].flatten() for part in self._parts])
        return label(self.layout, taken.view(torch.uint8).numpy().tobytes())

    def write_blocks(self, blocks: abc.Sequence[int], data: bytes) -> None:
        """Put a labelled copy into these blocks.

        Raises:
            CacheError: another layout, another number of blocks, or numbers that are not finite;
            nothing was written.
        """
        shapes = [(len(blocks), *part.shape[1:]) for part in self._parts]
        sizes = [math.prod(shape) for shape in shapes]
        payload = unlabel(self.layout, data, sum(sizes) * self.dtype.itemsize)
        found = torch.frombuffer(bytearray(payload), dtype=torch.uint8).view(self.dtype)
        if not bool(torch.isfinite(found).all()):
            raise CacheError(
                "saved keys and values hold numbers that are not finite; the file is "
                "damaged, delete it"
            )
        table = torch.tensor(blocks, dtype=torch.long)
        for part, own, shape in zip(self._parts, torch.split(found, sizes), shapes, strict=True):
            part[table] = own.view(shape)

    def clear_blocks(self, blocks: abc.Sequence[int]) -> None:
        """Zeros in these blocks."""
        table = torch.tensor(blocks, dtype=torch.long)
        for part in self._parts:
            part[table] = 0

    @property
    def _parts(self) -> list[Tensor]:
        return [part for kind in (self.keys, self.values, self.rows) for part in kind.values()]


def kept_heads(architecture: Architecture) -> dict[int, tuple[int, int]]:
    """Heads of keys and their size of each layer that attends and reads no other's keys."""
    return {
        layer: (architecture.key_heads(layer), architecture.head_size(layer))
        for layer in range(architecture.num_layers)
        if architecture.attends(layer) and architecture.kv_source(layer) == layer
    }


def block_bytes(architecture: Architecture, dtype: torch.dtype) -> int:
    """Memory of one block over all layers: keys and values, or rows."""
    convolve = sum(architecture.convolutions)
    heads = 2 * sum(heads * size for heads, size in kept_heads(architecture).values())
    return BLOCK_TOKENS * (heads + convolve * architecture.hidden_size) * dtype.itemsize


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros that the system hands out page by page; torch's own would touch every page now."""
    if not math.prod(shape):
        return torch.zeros(shape, dtype=dtype)  # bytes of none have no other type
    return (
        torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8))
        .view(dtype)
        .view(shape)
    )
