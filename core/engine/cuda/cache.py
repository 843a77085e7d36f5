"""Keys and values in 8 bits, on the device.

Knows blocks by number. Knows nothing of who owns them or of when they are read.
Always: one scale for each token and head, so a token is written without looking at its neighbours; the block after the last one
belongs to nobody and takes what padding rows write.
"""

from collections.abc import Sequence as Items

import torch
from torch import Tensor

from ...errors import CacheError
from ...models.architecture import Architecture
from ..blockpool import BLOCK_TOKENS
from ..kvcache import label, unlabel

LARGEST = 127.0  # of an int8, used symmetrically


class Cache:
    """Integers int8 [2, layers, blocks + 1, kv heads, block tokens, head size], scales float16 without the last dimension."""

    def __init__(self, architecture: Architecture, blocks: int, device: torch.device) -> None:
        shape = (2, architecture.layers, blocks + 1, architecture.kv_heads, BLOCK_TOKENS, architecture.head_size)
        self.integers = torch.zeros(shape, dtype=torch.int8, device=device)
        self.scales = torch.zeros(shape[:-1], dtype=torch.float16, device=device)
        self.blocks = blocks
        inner = "x".join(map(str, (shape[1], *shape[3:])))
        self.layout = f"cuda int8 {inner}"

    def write(self, layer: int, places: Tensor, k: Tensor, v: Tensor) -> None:
        """Store k and v [M, KV, size] at `places` [M] (block * block tokens + offset)."""
        for side, values in enumerate((k, v)):
            scales = (values.abs().amax(-1).float() / LARGEST).half()  # [M, KV]
            integers = torch.round(values.float() / scales.float().clamp(min=1e-12)[..., None]).clamp(-LARGEST, LARGEST)
            block, offset = places // BLOCK_TOKENS, places % BLOCK_TOKENS
            self.integers[side, layer][block, :, offset] = integers.to(torch.int8)
            self.scales[side, layer][block, :, offset] = scales

    def read(self, layer: int, tables: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of each row's blocks [M, n], float32 [M, KV, n * block tokens, size] each."""
        found = []
        for side in range(2):
            integers = self.integers[side, layer][tables].float()  # [M, n, KV, block tokens, size]
            whole = integers * self.scales[side, layer][tables].float()[..., None]
            found.append(whole.transpose(1, 2).flatten(2, 3))
        return found[0], found[1]

    def read_blocks(self, blocks: Items[int]) -> bytes:
        """A labelled copy of whole blocks: integers, then scales."""
        table = torch.tensor(blocks, dtype=torch.long, device=self.integers.device)
        parts = (self.integers[:, :, table], self.scales[:, :, table])
        return label(self.layout, b"".join(part.cpu().flatten().view(torch.uint8).numpy().tobytes() for part in parts))

    def write_blocks(self, blocks: Items[int], data: bytes) -> None:
        """Put a labelled copy into these blocks.

        Raises:
            CacheError: another layout, another number of blocks, or scales that are not finite; nothing was written.
        """
        whole, part = (list(tensor.shape) for tensor in (self.integers, self.scales))
        whole[2] = part[2] = len(blocks)
        count = torch.Size(whole).numel()
        payload = bytearray(unlabel(self.layout, data, count + 2 * torch.Size(part).numel()))
        integers = torch.frombuffer(payload, dtype=torch.int8, count=count).view(whole)
        scales = torch.frombuffer(payload, dtype=torch.float16, offset=count).view(part)
        if not bool(torch.isfinite(scales).all()):
            raise CacheError("saved keys and values hold numbers that are not finite; the file is damaged, delete it")
        table = torch.tensor(blocks, dtype=torch.long, device=self.integers.device)
        self.integers[:, :, table] = integers.to(self.integers.device)
        self.scales[:, :, table] = scales.to(self.scales.device)


def block_bytes(architecture: Architecture) -> int:
    """Memory of one block over all layers, keys, values and scales."""
    return 2 * architecture.layers * architecture.kv_heads * BLOCK_TOKENS * (architecture.head_size + 2)
