"""Quantised matrices in the order in which a GPU reads them.

Knows how GGUF blocks become words. Knows nothing of kernels or layers.
Always: integers and scales are the file's; a matrix is cut into chunks of 128 columns, all rows of
a chunk side by side, so that neighbouring threads read neighbouring bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ....models.quant.dequantize import half
from ....models.quant.tensor import QuantTensor
from ....models.quant.types import GROUP

CHUNK = 128  # columns of one chunk: four blocks
FOUR_BIT, EIGHT_BIT = ("Q4_0", "Q4_1"), ("Q8_0",)
SLAB_ROWS = 4096  # rows that are reordered together


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A matrix [rows, columns] of 4 or 8 bits a weight: w = scale * (q - 8) + zero, or scale * q
    for 8 bits.
    """

    bits: int
    rows: int
    columns: int
    # int32 [chunks, rows, 16], word i holds byte i of the chunk's four blocks; 8 bits: int8
    # [chunks, rows, 128]
    words: Tensor
    scales: Tensor  # float16 [groups, rows]
    zeros: Tensor | None  # float32 [groups, rows]; None where every one is 0

    @property
    def chunks(self) -> int:
        """Chunks of 128 columns; the last one may be filled up with weights of 0."""
        return len(self.words)

    def dense(self, dtype: torch.dtype, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop) of the matrix, all by default: [rows, columns]."""
        words, scales = self.words[:, start:stop], self.scales[:, start:stop]
        rows = words.shape[1]
        if self.bits == 4:
            shifts = torch.arange(0, 32, 4, device=words.device, dtype=torch.int32)
            # word i, shift 4 * j: column 16 * j + i of the chunk
            integers = ((words[..., None] >> shifts) & 15).transpose(2, 3).reshape(
                self.chunks, rows, CHUNK
            ) - 8
        else:
            integers = words
        by_group = (
            integers.reshape(self.chunks, rows, CHUNK // GROUP, GROUP)
            .transpose(1, 2)
            .reshape(-1, rows, GROUP)
        )
        weights = by_group.float() * scales.float()[:, :, None]
        if self.zeros is not None:
            weights = weights + self.zeros[:, start:stop, None]
        return weights.transpose(0, 1).reshape(rows, -1)[:, : self.columns].to(dtype)


def supports(parts: Sequence[QuantTensor]) -> bool:
    """Whether these matrices, one on top of the other, can be held as one `Packed`."""
    kinds = {part.quant_type for part in parts}
    return kinds <= set(FOUR_BIT) or kinds <= set(EIGHT_BIT)


def packed_bytes(parts: Sequence[QuantTensor]) -> tuple[int, int, int]:
    """What `pack` will take of the device: bytes of words, scales and zeros."""
    # chunks of all rows
    places = -(-parts[0].shape[1] // CHUNK) * sum(part.shape[0] for part in parts)
    groups, bits = places * (CHUNK // GROUP), 4 if parts[0].quant_type in FOUR_BIT else 8
    return (
        places * CHUNK * bits // 8,
        2 * groups,
        4 * groups * any(part.quant_type == "Q4_1" for part in parts),
    )


def pack(parts: Sequence[QuantTensor], device: torch.device) -> Packed:
    """Matrices of equally many columns, one on top of the other, on the device.

    Raises:
        ValueError: a kind of block that `supports` refuses.
    """
    if not supports(parts):
        raise ValueError(
            f"blocks of {sorted({part.quant_type for part in parts})} cannot be packed together"
        )
    slabs = [slab for part in parts for slab in torch.split(part.raw, SLAB_ROWS)]
    kinds = [part.quant_type for part in parts for _ in torch.split(part.raw, SLAB_ROWS)]
    packed = [reorder(kind, slab.to(device)) for kind, slab in zip(kinds, slabs, strict=True)]
    words = torch.cat([words for words, _, _ in packed], dim=1)
    scales = torch.cat([scales for _, scales, _ in packed], dim=1)
    zeros = None
    if any(part.quant_type == "Q4_1" for part in parts):
        zeros = torch.cat(
            [
                torch.zeros_like(scales).float() if zero is None else zero
                for _, scales, zero in packed
            ],
            dim=1,
        )
    rows = sum(part.shape[0] for part in parts)
    return Packed(
        4 if parts[0].quant_type in FOUR_BIT else 8, rows, parts[0].shape[1], words, scales, zeros
    )


def reorder(kind: str, raw: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Words, scales [groups, rows] and zeros of some rows' bytes, uint8 [rows, bytes]."""
    size = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[kind]
    rows, blocks = len(raw), raw.shape[1] // size
    missing = -blocks % (CHUNK // GROUP)
    body_bytes = GROUP if kind == "Q8_0" else GROUP // 2
    table = raw.view(rows, blocks, size)
    flat = table.reshape(-1, size)
    scales = half(flat, 0).view(rows, blocks)
    zeros = half(flat, 2).view(rows, blocks) + 8 * scales if kind == "Q4_1" else None
    body = table[:, :, size - body_bytes :]
    if missing:  # weights of 0 up to the chunk's end: scale 0
        scales, body = (
            torch.nn.functional.pad(scales, (0, missing)),
            torch.nn.functional.pad(body, (0, 0, 0, missing)),
        )
        zeros = None if zeros is None else torch.nn.functional.pad(zeros, (0, missing))
    chunks = body.view(rows, -1, CHUNK // GROUP, body_bytes)  # [rows, chunks, 4, bytes]
    if kind == "Q8_0":
        words = chunks.flatten(2).view(torch.int8).transpose(0, 1)
    else:
        words = chunks.permute(1, 0, 3, 2).contiguous().view(torch.int32).squeeze(-1)
    roped = None if zeros is None else zeros.T.contiguous().float()
    return words.contiguous(), scales.T.contiguous().half(), roped
