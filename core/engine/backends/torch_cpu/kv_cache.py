"""Keys and values of every token that is still needed.

Knows blocks by number. Knows nothing of who owns them (`blockpool` does) or of when they are read.
Always: every number in it is finite, also where nothing was written yet: a masked NaN would still
poison attention.
"""

import math
from collections.abc import Sequence as Items

import numpy as np
import torch
from torch import Tensor

from ....errors import CacheError
from ....models.architecture import Architecture
from ...block_pool import BLOCK_TOKENS
from ..backend import label, unlabel


class KeyValueCache:
    """Two tensors [layers, blocks, block tokens, kv heads, head size].

    Memory is taken from the system only where it is first written, so a large cache costs what it
    has held.
    """

    def __init__(self, architecture: Architecture, blocks: int, dtype: torch.dtype) -> None:
        shape = (
            architecture.num_layers,
            blocks,
            BLOCK_TOKENS,
            architecture.num_kv_heads,
            architecture.head_dim,
        )
        self.keys, self.values = _zeros(shape, dtype), _zeros(shape, dtype)
        self.dtype = dtype
        inner = "x".join(map(str, (shape[0], *shape[2:])))
        # keys, then values, block by block
        self.layout = f"torch {str(dtype).removeprefix('torch.')} {inner}"

    def write(self, layer: int, places: Tensor, k: Tensor, v: Tensor) -> None:
        """Store k and v [N, KV, hd] at `places` [N] (block * block tokens + offset)."""
        self.keys[layer].flatten(0, 1).index_copy_(0, places, k.to(self.dtype))
        self.values[layer].flatten(0, 1).index_copy_(0, places, v.to(self.dtype))

    def read(self, layer: int, table: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of B sequences from their blocks [B, n], each [B, KV, length, hd]."""
        sequences, blocks = table.shape

        def gather(cache: Tensor) -> Tensor:
            found = cache[layer].index_select(0, table.flatten())  # [B * n, block tokens, KV, hd]
            return found.view(sequences, blocks * BLOCK_TOKENS, *found.shape[2:])[
                :, :length
            ].transpose(1, 2)

        return gather(self.keys), gather(self.values)

    def read_blocks(self, blocks: Items[int]) -> bytes:
        """A labelled copy of whole blocks: keys [layers, n, ...], then values."""
        table = torch.tensor(blocks, dtype=torch.long)
        taken = torch.stack([self.keys[:, table], self.values[:, table]])
        return label(self.layout, taken.flatten().view(torch.uint8).numpy().tobytes())

    def write_blocks(self, blocks: Items[int], data: bytes) -> None:
        """Put a labelled copy into these blocks.

        Raises:
            CacheError: another layout, another number of blocks, or numbers that are not finite;
            nothing was written.
        """
        shape = (2, self.keys.shape[0], len(blocks), *self.keys.shape[2:])
        payload = unlabel(self.layout, data, math.prod(shape) * self.dtype.itemsize)
        found = torch.frombuffer(bytearray(payload), dtype=torch.uint8).view(self.dtype).view(shape)
        if not bool(torch.isfinite(found).all()):
            raise CacheError(
                "saved keys and values hold numbers that are not finite; the file is "
                "damaged, delete it"
            )
        table = torch.tensor(blocks, dtype=torch.long)
        self.keys[:, table], self.values[:, table] = found[0], found[1]

    def clear_blocks(self, blocks: Items[int]) -> None:
        """Zeros in these blocks."""
        table = torch.tensor(blocks, dtype=torch.long)
        self.keys[:, table] = self.values[:, table] = 0


def block_bytes(architecture: Architecture, dtype: torch.dtype) -> int:
    """Memory of one block over all layers, keys and values."""
    one = architecture.num_kv_heads * architecture.head_dim * dtype.itemsize
    return 2 * architecture.num_layers * BLOCK_TOKENS * one


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros that the system hands out page by page; torch's own would touch every page now."""
    return (
        torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8))
        .view(dtype)
        .view(shape)
    )
