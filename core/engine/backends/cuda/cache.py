"""Keys and values in 8 bits, on the device.

Knows blocks by number. Knows nothing of who owns them or of when they are read.
Always: one scale for each token and head, so a token is written without looking at its neighbours;
the block after the last one belongs to nobody and takes what padding rows write.
"""

import math
from collections import abc

import torch
from torch import Tensor

from ....errors import CacheError
from ....models.architecture import Architecture
from ...block_pool import BLOCK_TOKENS
from ..backend import label, unlabel

LARGEST = 127.0  # of an int8, used symmetrically


class Cache:
    """Integers int8 [2, layers, blocks + 1, kv heads, block tokens, head size], scales float16
    without the last dimension.
    """

    def __init__(
        self,
        architecture: Architecture,
        blocks: int,
        device: torch.device,
        *,
        layers: int | None = None,
    ) -> None:
        """`layers`: of a part of the model, counted from 0 in each part; None for all of them."""
        self.layers = architecture.num_layers if layers is None else layers
        shape = (
            2,
            self.layers,
            blocks + 1,
            architecture.num_kv_heads,
            BLOCK_TOKENS,
            architecture.head_dim,
        )
        self.integers = torch.zeros(shape, dtype=torch.int8, device=device)
        self.scales = torch.zeros(shape[:-1], dtype=torch.float16, device=device)
        self.blocks = blocks

    def write(self, layer: int, places: Tensor, k: Tensor, v: Tensor) -> None:
        """Store k and v [M, KV, size] at `places` [M] (block * block tokens + offset)."""
        for side, values in enumerate((k, v)):
            scales = (values.abs().amax(-1).float() / LARGEST).half()  # [M, KV]
            integers = torch.round(
                values.float() / scales.float().clamp(min=1e-12)[..., None]
            ).clamp(-LARGEST, LARGEST)
            block, offset = places // BLOCK_TOKENS, places % BLOCK_TOKENS
            self.integers[side, layer][block, :, offset] = integers.to(torch.int8)
            self.scales[side, layer][block, :, offset] = scales

    def read(
        self,
        layer: int,
        tables: Tensor,
        dtype: torch.dtype = torch.float32,
        heads: slice = slice(None),
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of each row's blocks [M, n], [M, KV, n * block tokens, size] each;
        multiplied in float32.

        Args:
            heads: of keys and values, all by default.
        """
        found = []
        for side in range(2):
            # [M, n, KV, block tokens, size]
            whole = self.integers[side, layer, :, heads][tables].float()
            whole *= self.scales[side, layer, :, heads][tables][..., None]
            found.append(whole.to(dtype).transpose(1, 2).flatten(2, 3))
        return found[0], found[1]


def layout(caches: abc.Sequence[Cache]) -> str:
    """The name of what `read_blocks` writes: that of the whole model, wherever its layers are."""
    _, _, _, heads, tokens, size = caches[0].integers.shape
    return f"cuda int8 {sum(cache.layers for cache in caches)}x{heads}x{tokens}x{size}"


def read_blocks(caches: abc.Sequence[Cache], blocks: abc.Sequence[int]) -> bytes:
    """A labelled copy of whole blocks, integers, then scales, of every layer.

    Args:
        caches: of the parts of one model, the lowest layers first; how it is cut does not change
        what comes out.
    """
    table = torch.tensor(blocks, dtype=torch.long)
    integers = torch.cat(
        [cache.integers[:, :, table.to(cache.integers.device)].cpu() for cache in caches], dim=1
    )
    scales = torch.cat(
        [cache.scales[:, :, table.to(cache.scales.device)].cpu() for cache in caches], dim=1
    )
    return label(
        layout(caches),
        b"".join(part.flatten().view(torch.uint8).numpy().tobytes() for part in (integers, scales)),
    )


def write_blocks(caches: abc.Sequence[Cache], blocks: abc.Sequence[int], data: bytes) -> None:
    """Put a labelled copy into these blocks.

    Raises:
        CacheError: another layout, another number of blocks, or scales that are not finite; nothing
        was written.
    """
    whole = list(caches[0].integers.shape)
    whole[1:3] = [sum(cache.layers for cache in caches), len(blocks)]
    count, scale_count = math.prod(whole), math.prod(whole[:-1])
    payload = bytearray(unlabel(layout(caches), data, count + 2 * scale_count))
    integers = torch.frombuffer(payload, dtype=torch.int8, count=count).view(whole)
    scales = torch.frombuffer(payload, dtype=torch.float16, offset=count).view(whole[:-1])
    if not bool(torch.isfinite(scales).all()):
        raise CacheError(
            "saved keys and values hold numbers that are not finite; the file is damaged, delete it"
        )
    stop = 0
    for cache in caches:
        start, stop = stop, stop + cache.layers
        table = torch.tensor(blocks, dtype=torch.long, device=cache.integers.device)
        cache.integers[:, :, table] = integers[:, start:stop].to(cache.integers.device)
        cache.scales[:, :, table] = scales[:, start:stop].to(cache.scales.device)


def clear_blocks(caches: abc.Sequence[Cache], blocks: abc.Sequence[int]) -> None:
    """Zeros in these blocks."""
    for cache in caches:
        table = torch.tensor(blocks, dtype=torch.long, device=cache.integers.device)
        cache.integers[:, :, table] = 0
        cache.scales[:, :, table] = 0


def block_bytes(architecture: Architecture) -> int:
    """Memory of one block over all layers, keys, values and scales."""
    return (
        2
        * architecture.num_layers
        * architecture.num_kv_heads
        * BLOCK_TOKENS
        * (architecture.head_dim + 2)
    )
