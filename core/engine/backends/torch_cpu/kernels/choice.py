"""Which back-end multiplies which matrix.

Knows block types, and what torch can do on this processor. Knows nothing of layers or texts.
Always: there is one; `DenseLinear` takes whatever no other back-end does.
"""

import platform
from collections.abc import Mapping

import torch
from torch import nn

from .....models.quant.tensor import QuantTensor
from .dense import DenseLinear
from .int4pack import Int4Linear, supports

# a model whose 16-bit copy fits in here gets one beside its packed blocks: prefill doubles in speed
COPY_BYTES = 512 << 20


def linear_for(
    blocks: QuantTensor, *, compute: torch.dtype | None = None, copy: bool = False
) -> nn.Module:
    """A module x [N, columns] -> [N, rows] for these blocks, on the CPU.

    Args:
        compute: float32 asks for the exact product, at 4 bytes a weight: the oracle of every other
            path. None takes the fastest that this processor has without quantising the file a
            second time.
        copy: spend 2 (without bfloat16 in hardware 4) further bytes a weight, so that products of
        many rows are faster.
    """
    if compute is None and supports(blocks):
        return Int4Linear(blocks, DenseLinear(blocks, fast_dtype()) if copy else None)
    # these two do not fit into bfloat16 without loss
    if compute is None and blocks.quant_type not in ("F32", "F16"):
        return DenseLinear(blocks, fast_dtype())
    return DenseLinear(blocks, compute or torch.float32)


def copy_fits(tensors: Mapping[str, QuantTensor]) -> bool:
    """Whether copies of all matrices stay within COPY_BYTES."""
    matrices = (blocks.shape for blocks in tensors.values() if blocks.shape[0] > 1)
    return sum(rows * columns for rows, columns in matrices) * fast_dtype().itemsize <= COPY_BYTES


def fast_dtype() -> torch.dtype:
    """In which floating-point type large products run fastest here: bfloat16 only where the
    processor multiplies it.
    """
    has_bfloat16 = (
        platform.machine() in ("x86_64", "AMD64") and torch.cpu._is_avx512_bf16_supported()
    )
    return torch.bfloat16 if has_bfloat16 else torch.float32
