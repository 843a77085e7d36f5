"""Keys and values of every token that is still needed, and the rows that convolutions see.

Knows blocks by number. Knows nothing of who owns them (`blockpool` does) or of when they are read.
Always: every number in it is finite, also where nothing was written yet: a masked NaN would still
poison attention.
"""

import math
from collections import abc

import numpy as np
import torch
from torch import Tensor

from ....errors import CacheError
from ....models.architecture import Architecture
from ...block_pool import BLOCK_TOKENS
from ..backend import label, unlabel


class KeyValueCache:
    """Two tensors [layers that attend, blocks, block tokens, kv heads, head size], and a third
    [layers that convolve, blocks, block tokens, width].

    Memory is taken from the system only where it is first written, so a large cache costs what it
    has held.
    """

    def __init__(self, architecture: Architecture, blocks: int, dtype: torch.dtype) -> None:
        heads = (architecture.num_kv_heads, architecture.head_dim)
        kinds = [
            (architecture.attends(layer), architecture.is_convolution(layer))
            for layer in range(architecture.num_layers)
        ]
        # of each layer, its place among those of its kind
        self.place = [kinds[:layer].count(kind) for layer, kind in enumerate(kinds)]
        shape = (architecture.attending, blocks, BLOCK_TOKENS, *heads)
        convolve = sum(architecture.convolutions)
        wide = (convolve, blocks, BLOCK_TOKENS, architecture.hidden_size)
        self.keys, self.values = _zeros(shape, dtype), _zeros(shape, dtype)
        self.rows = _zeros(wide, dtype)
        self.dtype = dtype
        inner = "x".join(map(str, (shape[0], *shape[2:])))
        if convolve:
            inner += f" and {convolve}x{BLOCK_TOKENS}x{wide[-1]}"
        # keys, then values, then rows, block by block
        self.layout = f"torch {str(dtype).removeprefix('torch.')} {inner}"

    def write(self, layer: int, places: Tensor, k: Tensor, v: Tensor) -> None:
        """Store k and v [N, KV, hd] at `places` [N] (block * block tokens + offset)."""
        own = self.place[layer]
        self.keys[own].flatten(0, 1).index_copy_(0, places, k.to(self.dtype))
        self.values[own].flatten(0, 1).index_copy_(0, places, v.to(self.dtype))

    def write_rows(self, layer: int, places: Tensor, rows: Tensor) -> None:
        """Store rows [N, D] of a layer that convolves."""
        self.rows[self.place[layer]].flatten(0, 1).index_copy_(0, places, rows.to(self.dtype))

    def read_rows(self, layer: int, places: Tensor) -> Tensor:
        """What stands at `places` [N, n], [N, n, D]."""
        return self.rows[self.place[layer]].flatten(0, 1)[places]

    def read(self, layer: int, table: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of B sequences from their blocks [B, n], each [B, KV, length, hd]."""
        sequences, blocks = table.shape

        def gather(cache: Tensor) -> Tensor:
            # [B * n, block tokens, KV, hd]
            found = cache[self.place[layer]].index_select(0, table.flatten())
            return found.view(sequences, blocks * BLOCK_TOKENS, *found.shape[2:])[
                :, :length
            ].transpose(1, 2)

        return gather(self.keys), gather(self.values)

    def read_blocks(self, blocks: abc.Sequence[int]) -> bytes:
        """A labelled copy of whole blocks: keys [layers, n, ...], values, rows."""
        table = torch.tensor(blocks, dtype=torch.long)
        taken = torch.cat([part[:, table].flatten() for part in self._parts])
        return label(self.layout, taken.view(torch.uint8).numpy().tobytes())

    def write_blocks(self, blocks: abc.Sequence[int], data: bytes) -> None:
        """Put a labelled copy into these blocks.

        Raises:
            CacheError: another layout, another number of blocks, or numbers that are not finite;
            nothing was written.
        """
        shapes = [(len(part), len(blocks), *part.shape[2:]) for part in self._parts]
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
            part[:, table] = own.view(shape)

    def clear_blocks(self, blocks: abc.Sequence[int]) -> None:
        """Zeros in these blocks."""
        table = torch.tensor(blocks, dtype=torch.long)
        for part in self._parts:
            part[:, table] = 0

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.keys, self.values, self.rows


def block_bytes(architecture: Architecture, dtype: torch.dtype) -> int:
    """Memory of one block over all layers: keys and values, or rows."""
    convolve = sum(architecture.convolutions)
    heads = 2 * architecture.attending * architecture.num_kv_heads
    numbers = heads * architecture.head_dim + convolve * architecture.hidden_size
    return BLOCK_TOKENS * numbers * dtype.itemsize


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros that the system hands out page by page; torch's own would touch every page now."""
    if not math.prod(shape):
        return torch.zeros(shape, dtype=dtype)  # bytes of none have no other type
    return (
        torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8))
        .view(dtype)
        .view(shape)
    )
