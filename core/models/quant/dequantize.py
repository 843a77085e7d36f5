"""Bytes of a block to numbers, for each block type.

Knows the byte layout of each type. Knows nothing of matrices or files.
Always: numbers come out as the format's reference computes them, rounding for rounding; any bytes
decode to something, so a hostile block can be nonsense but never an error.

The codebooks of IQ3_XXS and IQ3_S, 768 numbers of the format, are the gguf package's, and so is the
reading of IQ1 and IQ2.

Source: ggml's `ggml-common.h`, block_* structures; `gguf.quants` is the oracle
(tests/core/models/quant/test_tensor.py).
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from .types import GROUP, QUANT_TYPES, WIDENED

IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
MXFP4_VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # halves
POWERS_OF_3 = (1, 3, 9, 27, 81)


def half(blocks: Tensor, start: int) -> Tensor:
    """The float16 at byte `start` of each block, [n, size] -> float32 [n, 1]."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def nibbles(packed: Tensor) -> Tensor:
    """Sixteen bytes to 32 integers, [n, 16] -> uint8 [n, 32]: low halves are weights 0-15, high
    halves 16-31.
    """
    return torch.cat([packed & 15, packed >> 4], dim=1)


def dequantize_q4_0(blocks: Tensor) -> Tensor:
    """w = d * (q - 8)."""
    return half(blocks, 0) * (nibbles(blocks[:, 2:]).float() - 8)


def dequantize_q4_1(blocks: Tensor) -> Tensor:
    """w = d * q + m, in two roundings as the format's reference does it."""
    return half(blocks, 0) * nibbles(blocks[:, 4:]).float() + half(blocks, 2)


def fifth_bits(packed: Tensor) -> Tensor:
    """Four bytes to the fifth bits of 32 weights, [n, 4] -> uint8 [n, 32], each 0 or 16."""
    spread = packed[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((spread & 1) << 4).view(-1, GROUP)


def dequantize_q5_0(blocks: Tensor) -> Tensor:
    """w = d * (q - 16)."""
    return half(blocks, 0) * ((nibbles(blocks[:, 6:]) | fifth_bits(blocks[:, 2:6])).float() - 16)


def dequantize_q5_1(blocks: Tensor) -> Tensor:
    """w = d * q + m."""
    return half(blocks, 0) * (nibbles(blocks[:, 8:]) | fifth_bits(blocks[:, 4:8])).float() + half(
        blocks, 2
    )


def dequantize_q8_0(blocks: Tensor) -> Tensor:
    """w = d * q, q a signed byte."""
    return blocks[:, 2:].contiguous().view(torch.int8).float() * half(blocks, 0)


def parts(packed: Tensor, bits: int, stride: int) -> Tensor:
    """Fields of `bits` bits, [n, bytes] -> uint8 [n, bytes * 8 / bits].

    Runs of `stride` bytes hold first the lowest field of each byte, then the next: the order of all
    K-quants.
    """
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)[:, None]
    spread = packed.reshape(len(packed), -1, 1, stride) >> shifts  # [n, runs, fields, stride]
    return (spread & ((1 << bits) - 1)).reshape(len(packed), -1)


def scales_and_minima(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Six bits each for eight groups: [n, 12] -> two of float32 [n, 8]."""
    low, middle, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat([low & 63, (high & 15) | ((low >> 2) & 48)], dim=1)
    minima = torch.cat([middle & 63, (high >> 4) | ((middle >> 2) & 48)], dim=1)
    return scales.float(), minima.float()


def scaled(integers: Tensor, scales: Tensor, minima: Tensor | None = None) -> Tensor:
    """scale * q - minimum, group by group: [n, 256] with [n, groups] each -> float32 [n, 256]."""
    grouped = scales[:, :, None] * integers.float().view(len(integers), scales.shape[1], -1)
    return (grouped if minima is None else grouped - minima[:, :, None]).view(len(integers), -1)


def dequantize_q2_k(blocks: Tensor) -> Tensor:
    """16 groups: w = d * scale * q - dmin * min."""
    packed = blocks[:, :16]
    scales, minima = (
        half(blocks, 80) * (packed & 15).float(),
        half(blocks, 82) * (packed >> 4).float(),
    )
    return scaled(parts(blocks[:, 16:80], 2, 32), scales, minima)


def dequantize_q3_k(blocks: Tensor) -> Tensor:
    """16 groups: w = d * (scale - 32) * q, q from -4 to 3; its high bit is stored inverted."""
    low, high = parts(blocks[:, 96:104], 4, 8), parts(blocks[:, 104:108], 2, 4)
    scales = half(blocks, 108) * ((low | (high << 4)).float() - 32)
    # `hmask` has one run of 32 bytes, whose eight bits go to the eight groups of 32 weights one
    # after another.
    inverted = (parts(blocks[:, :32], 1, 32) ^ 1) << 2
    return scaled(parts(blocks[:, 32:96], 2, 32).float() - inverted.float(), scales)


def dequantize_q4_k(blocks: Tensor) -> Tensor:
    """8 groups: w = d * scale * q - dmin * min."""
    scales, minima = scales_and_minima(blocks[:, 4:16])
    return scaled(parts(blocks[:, 16:], 4, 32), half(blocks, 0) * scales, half(blocks, 2) * minima)


def dequantize_q5_k(blocks: Tensor) -> Tensor:
    """As Q4_K, with a fifth bit."""
    scales, minima = scales_and_minima(blocks[:, 4:16])
    integers = parts(blocks[:, 48:], 4, 32) | (parts(blocks[:, 16:48], 1, 32) << 4)
    return scaled(integers, half(blocks, 0) * scales, half(blocks, 2) * minima)


def dequantize_q6_k(blocks: Tensor) -> Tensor:
    """16 groups: w = d * scale * (q - 32), the scale a signed byte."""
    integers = parts(blocks[:, :128], 4, 64) | (parts(blocks[:, 128:192], 2, 32) << 4)
    scales = half(blocks, 208) * blocks[:, 192:208].contiguous().view(torch.int8).float()
    return scaled(integers.float() - 32, scales)


def dequantize_tq2_0(blocks: Tensor) -> Tensor:
    """w = d * (q - 1)."""
    return half(blocks, 64) * (parts(blocks[:, :64], 2, 32).float() - 1)


def trits(packed: Tensor, digits: int) -> Tensor:
    """Base-3 digits, the first highest, of bytes that hold them as a fraction of 256: [n, bytes] ->
    uint8 [n, digits * bytes].
    """
    powers = torch.tensor(POWERS_OF_3[:digits], dtype=torch.uint8, device=packed.device)[:, None]
    rests = packed[:, None] * powers  # modulo 256
    return ((rests.to(torch.int16) * 3) >> 8).to(torch.uint8).view(len(packed), -1)


def dequantize_tq1_0(blocks: Tensor) -> Tensor:
    """w = d * (q - 1)."""
    places = ((0, 32, 5), (32, 48, 5), (48, 52, 4))
    integers = [trits(blocks[:, start:stop], digits) for start, stop, digits in places]
    return half(blocks, 52) * (torch.cat(integers, dim=1).float() - 1)


def values_of(numbers: tuple[int, ...], integers: Tensor) -> Tensor:
    """Numbers of a table, float32 in the shape of `integers`."""
    table = torch.tensor(numbers, dtype=torch.float32, device=integers.device)
    return table[integers.long()]


def dequantize_iq4_nl(blocks: Tensor) -> Tensor:
    """w = d * table[q]."""
    return half(blocks, 0) * values_of(IQ4_VALUES, nibbles(blocks[:, 2:]))


def dequantize_iq4_xs(blocks: Tensor) -> Tensor:
    """8 groups: w = d * (scale - 32) * table[q]."""
    low, high = parts(blocks[:, 4:8], 4, 1), parts(blocks[:, 2:4], 2, 1)
    scales = half(blocks, 0) * ((low | (high << 4)).float() - 32)
    return scaled(values_of(IQ4_VALUES, parts(blocks[:, 8:], 4, 16)), scales)


def dequantize_mxfp4(blocks: Tensor) -> Tensor:
    """w = 2^(e - 128) * table[q]: the table's numbers are doubled, the exponent's bias is 127."""
    exponents = blocks[:, :1].to(torch.int32)
    small = torch.full_like(exponents, 1 << 21) << exponents.clamp_max(1)  # no normal number
    bits = torch.where(exponents < 2, small, (exponents - 1) << 23)
    return bits.view(torch.float32) * values_of(MXFP4_VALUES, nibbles(blocks[:, 1:]))


@cache
def codebook(quant_type: str) -> Tensor:
    """Four sizes for each number that a block may name, float32 [entries, 4]."""
    from gguf import quants

    book = getattr(quants, quant_type)
    book.init_grid()
    return torch.tensor(book.grid, dtype=torch.float32).view(-1, 4)


def named_sizes(quant_type: str, numbers: Tensor) -> Tensor:
    """[n, 64] -> float32 [n, 256]."""
    return codebook(quant_type).to(numbers.device)[numbers.long()].view(len(numbers), -1)


def dequantize_iq3_s(blocks: Tensor) -> Tensor:
    """8 groups: w = ± d * (2 scale + 1) * size, sizes from a codebook."""
    numbers = blocks[:, 2:66].int() | (parts(blocks[:, 66:74], 1, 1).int() << 8)
    signs = 1 - 2 * parts(blocks[:, 74:106], 1, 1).float()
    scales = half(blocks, 0) * (2 * parts(blocks[:, 106:110], 4, 1).float() + 1)
    return scaled(named_sizes("IQ3_S", numbers) * signs, scales)


def dequantize_iq3_xxs(blocks: Tensor) -> Tensor:
    """8 groups: w = ± d * (scale + 1/2) / 2 * size; every eighth sign makes their number even."""
    words = blocks[:, 66:].contiguous().view(torch.int32)  # four times seven signs, then the scale
    shifts = torch.arange(0, 28, 7, device=blocks.device)
    sevens = ((words[:, :, None] >> shifts) & 127).to(torch.uint8)  # [n, 8, 4]
    seven = parts(sevens.view(len(blocks), -1), 1, 1).view(len(blocks), -1, 8)[:, :, :7]
    signs = torch.cat([seven, seven.sum(2, keepdim=True, dtype=torch.uint8) & 1], dim=2)
    scales = half(blocks, 0) * (((words >> 28) & 15).float() + 0.5) * 0.5
    sizes = named_sizes("IQ3_XXS", blocks[:, 2:66])
    return scaled(sizes * (1 - 2 * signs.float()).view(len(blocks), -1), scales)


def dequantize_by_gguf(kind: str) -> Callable[[Tensor], Tensor]:
    """Blocks of one and two bits: whole codebooks of the format, so the gguf package reads them."""

    def dequantize(blocks: Tensor) -> Tensor:
        import gguf
        import numpy as np

        with np.errstate(all="ignore"):  # hostile scales
            found = gguf.quants.dequantize(
                blocks.contiguous().cpu().numpy(), gguf.GGMLQuantizationType[kind]
            )
        return torch.from_numpy(found).to(blocks.device)

    return dequantize


def dequantize_as(kind: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Blocks that are one plain number each."""

    def dequantize_plain(blocks: Tensor) -> Tensor:
        return blocks.contiguous().view(kind).float()

    return dequantize_plain


# uint8 [n, size] -> float32 [n, columns], for each key of `types.QUANT_TYPES`
DEQUANTIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "F32": dequantize_as(torch.float32),
    "F16": dequantize_as(torch.float16),
    "BF16": dequantize_as(torch.bfloat16),
    "Q4_0": dequantize_q4_0,
    "Q4_1": dequantize_q4_1,
    "Q5_0": dequantize_q5_0,
    "Q5_1": dequantize_q5_1,
    "Q8_0": dequantize_q8_0,
    "Q2_K": dequantize_q2_k,
    "Q3_K": dequantize_q3_k,
    "Q4_K": dequantize_q4_k,
    "Q5_K": dequantize_q5_k,
    "Q6_K": dequantize_q6_k,
    **{kind: dequantize_by_gguf(kind) for kind in WIDENED},
    "IQ3_XXS": dequantize_iq3_xxs,
    "IQ3_S": dequantize_iq3_s,
    "IQ4_NL": dequantize_iq4_nl,
    "IQ4_XS": dequantize_iq4_xs,
    "TQ1_0": dequantize_tq1_0,
    "TQ2_0": dequantize_tq2_0,
    "MXFP4": dequantize_mxfp4,
}


def dequantize_rows(quant_type: str, raw: Tensor) -> Tensor:
    """Rows of blocks to numbers, uint8 [rows, bytes] -> float32 [rows, columns]; never a view on
    `raw`.
    """
    if quant_type == "F32":
        return raw.contiguous().view(torch.float32).clone()
    blocks = raw.reshape(-1, QUANT_TYPES[quant_type].size)
    return DEQUANTIZERS[quant_type](blocks).reshape(raw.shape[0], -1)
