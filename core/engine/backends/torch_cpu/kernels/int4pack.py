"""Four-bit products over the file's own integers, by torch's int4pack kernel.

Knows groups of 32 weights, one scale and one offset each. Memory: 5 bits a weight (Q4), 10 (Q8_0,
held as two nibbles).
Always: the integers are the file's; only scales and offsets are rounded, to bfloat16. Nothing is
quantised again (a second quantisation raised perplexity from 15.7 to 21; this rounding left it at
15.7).
"""

import torch
from torch import Tensor, nn

from .....models.quant.dequantize import half, nibbles
from .....models.quant.tensor import QuantTensor
from .....models.quant.types import GROUP
from .dense import slabs

ROW_MULTIPLE = 16  # what the kernel can pack
INNER_TILES = 2  # ignored by the CPU kernel, which wants a number all the same
# up to here the packed kernel beats a bfloat16 product (measured: 1.5x at 1 row, 1.1x at 4, 0.8x at
# 8)
FEW_ROWS = 4


def supports(blocks: QuantTensor) -> bool:
    """Whether these blocks can be held here."""
    return blocks.quant_type in ("Q4_0", "Q4_1", "Q8_0") and blocks.shape[0] % ROW_MULTIPLE == 0


class Int4Linear(nn.Module):
    """x [N, K] -> [N, rows]; with a `copy` of the matrix at hand, more than a few rows go
    through that one.
    """

    packed: Tensor
    scales: Tensor

    def __init__(self, blocks: QuantTensor, copy: nn.Module | None = None) -> None:
        super().__init__()
        packed, scales = [], []
        for slab in slabs(blocks):  # the kernel packs groups of 64 rows or fewer, each for itself
            integers, pairs = _split(slab)
            packed.append(torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers, INNER_TILES))
            scales.append(pairs)
        self.copy = copy
        self.register_buffer("packed", torch.cat(packed), persistent=False)
        self.register_buffer("scales", torch.cat(scales, dim=1).contiguous(), persistent=False)
        self.halves = 2 * self.packed.shape[1] // blocks.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """[N, K] -> [N, rows]."""
        if self.copy is not None and len(x) > FEW_ROWS:
            wide: Tensor = self.copy(x)
            return wide
        narrow = x.to(torch.bfloat16)
        if self.halves == 2:
            narrow = torch.cat([narrow, narrow], dim=1)
        out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            narrow, self.packed, GROUP, self.scales
        )
        return out.to(x.dtype)


def _split(blocks: QuantTensor) -> tuple[Tensor, Tensor]:
    """Integers int32 [rows, K or 2K] in 0..15, and (scale, zero) bfloat16 [groups, rows, 2]: w =
    scale * (q - 8) + zero.
    """
    rows = blocks.shape[0]
    size = blocks.raw.shape[1] // (blocks.shape[1] // GROUP)
    flat = blocks.raw.reshape(-1, size)  # one block a row
    scale = half(flat, 0).view(rows, -1)  # [rows, groups]
    # a byte b + 128 = 16 * high + low, so b = 16 * (high - 8) + (low - 8) + 8
    if blocks.quant_type == "Q8_0":
        byte = (flat[:, 2:].contiguous().view(torch.int8).to(torch.int32) + 128).view(rows, -1)
        integers = torch.cat([byte >> 4, byte & 15], dim=1)
        # rounded first, so that both halves stay in exact proportion
        scale = scale.to(torch.bfloat16).float()
        scales = torch.cat([16 * scale, scale], dim=1)
        zeros = torch.cat([torch.zeros_like(scale), 8 * scale], dim=1)
    else:
        integers = nibbles(flat[:, -GROUP // 2 :]).view(rows, -1).to(torch.int32)
        scales = scale
        zeros = (
            torch.zeros_like(scale)
            if blocks.quant_type == "Q4_0"
            else half(flat, 2).view(rows, -1) + 8 * scale
        )
    pairs = torch.stack([scales.T, zeros.T], dim=2)  # [groups, rows, 2]
    return integers, pairs.to(torch.bfloat16).contiguous()
