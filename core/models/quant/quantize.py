"""Numbers into blocks, each weight to the nearest point of its block's grid.

Knows how the two oldest types choose their scales, by which models in memory are told apart
(`weights.load`); the others are of `grid.py`. Knows nothing of files, layers or texts.
Always: blocks come out that every reader of the format understands; numbers that are not finite are
refused. What is quantised already is not done a second time: that raised SmolLM2's perplexity from
15.7 to 21.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .grid import GRIDS, encode_weighted
from .tensor import PLAIN, QuantTensor
from .types import GROUP, QUANT_TYPES

SLAB_ROWS = 4096  # rows worked on at a time, so that the float32 copy stays small
# Where a scale is looked for: the largest weight on step -8, and 18 scales around that. Source: the
# search of ggml's `make_qx_quants`; it lowers the square error of normally distributed weights by a
# tenth (tests/core/models/checkpoint/test_to_gguf.py).
STEPS = tuple(-(8 + 0.1 * step) for step in (0, *range(-9, 0), *range(1, 10)))
# kept at 8 bits: at 4 SmolLM2's perplexity rises by 0.9
ROUTER = ".mlp.gate.weight"  # it decides, and is small
ENDS = ("model.embed_tokens.weight", "lm_head.weight")


def stored_type(name: str, shape: tuple[int, int], quant_type: str) -> str:
    """The type of one tensor of a model: vectors and routers to experts stay float32, the network's
    ends 8 bits at least, odd widths float16.
    """
    rows, columns = shape
    if rows == 1 or name.endswith(ROUTER):
        return "F32"
    if quant_type in ("Q4_0", "Q8_0") and columns % GROUP:
        return "F16"
    return "Q8_0" if quant_type == "Q4_0" and name in ENDS else quant_type


def quantize(blocks: QuantTensor, quant_type: str) -> QuantTensor:
    """A plain matrix as blocks of another type.

    Raises:
        ValueError: quantised already, columns that do not fit the blocks, or numbers that are not
        finite.
    """
    if blocks.quant_type not in PLAIN:
        raise ValueError(f"{blocks.quant_type} blocks are not quantised a second time")
    return encoded(blocks, quant_type)


def widened(blocks: QuantTensor) -> QuantTensor:
    """Blocks of one or two bits as the nearest that kernels multiply: 8 bits, whose own rounding is
    some hundredth of theirs.

    Raises:
        ValueError: numbers that are not finite.
    """
    return encoded(blocks, "Q8_0")


def encoded(blocks: QuantTensor, quant_type: str) -> QuantTensor:
    """A matrix's numbers as blocks of this type, a slab of rows at a time."""
    encode = ENCODERS[quant_type]
    if blocks.shape[1] % (wide := QUANT_TYPES[quant_type].columns):
        raise ValueError(f"{blocks.shape[1]} columns do not fit blocks of {wide}")
    slabs = []
    for start in range(0, blocks.shape[0], SLAB_ROWS):
        rows = blocks.part(start, min(start + SLAB_ROWS, blocks.shape[0])).dequantize()
        if not bool(torch.isfinite(rows).all()):
            raise ValueError("it has weights that are not finite")
        slabs.append(encode(rows).view(len(rows), -1))
    return QuantTensor(quant_type, blocks.shape, torch.cat(slabs))


def encode_q8_0(rows: Tensor) -> Tensor:
    """float32 [n, columns] -> uint8 [n * groups, 34]; the largest weight is on step 127."""
    groups = rows.reshape(-1, GROUP)
    scale = groups.abs().amax(1, keepdim=True) / 127
    steps = groups * torch.where(scale == 0, 0, 1 / scale)
    # half away from zero, as the format's reference rounds
    rounded = (steps.abs() + 0.5).floor() * steps.sign()
    return torch.cat(
        [scale.half().view(torch.uint8), rounded.to(torch.int8).view(torch.uint8)], dim=1
    )


def encode_q4_0(rows: Tensor) -> Tensor:
    """float32 [n, columns] -> uint8 [n * groups, 18]; of the scales tried, the one with the
    least square error.
    """
    groups = rows.reshape(-1, GROUP)
    largest = groups.gather(1, groups.abs().argmax(1, keepdim=True))  # signed
    best = torch.zeros_like(largest, dtype=torch.float16)
    least = groups.square().sum(1, keepdim=True)  # the error of all zeros
    for step in STEPS:
        steps = (groups * torch.where(largest == 0, 0, step / largest)).round().clamp(-8, 7)
        # The scale that fits these steps best, then rounded to what the block can hold.
        scale = (
            (groups * steps).sum(1, keepdim=True)
            / steps.square().sum(1, keepdim=True).clamp_min(1e-30)
        ).half()
        error = (groups - scale.float() * nearest(groups, scale)).square().sum(1, keepdim=True)
        better = (error < least) & torch.isfinite(scale)
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    steps = (nearest(groups, best) + 8).to(torch.uint8)
    packed = steps[:, : GROUP // 2] | (steps[:, GROUP // 2 :] << 4)
    return torch.cat([best.view(torch.uint8), packed], dim=1)


def nearest(groups: Tensor, scale: Tensor) -> Tensor:
    """The step from -8 to 7 that is nearest to each weight."""
    wide = scale.float()
    return (groups * torch.where(wide == 0, 0, 1 / wide)).round().clamp(-8, 7)


def encode_as(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Rows as plain numbers of this type."""

    def encode_plain(rows: Tensor) -> Tensor:
        return rows.to(dtype).contiguous().view(torch.uint8)

    return encode_plain


def encode_on(name: str) -> Callable[[Tensor], Tensor]:
    """Rows on the grids of this type, all weights alike."""

    def encode_grid(rows: Tensor) -> Tensor:
        return encode_weighted(rows, torch.ones(1), name)[0]

    return encode_grid


ENCODERS: Mapping[str, Callable[[Tensor], Tensor]] = {
    **{name: encode_on(name) for name in GRIDS},
    "Q4_0": encode_q4_0,
    "Q8_0": encode_q8_0,
    "F32": encode_as(torch.float32),
    "F16": encode_as(torch.float16),
    "BF16": encode_as(torch.bfloat16),
}
