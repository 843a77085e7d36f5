"""Plain matrix products: the back-end that always works.

Knows one floating-point copy of a matrix. Memory: 4 (float32) or 2 (bfloat16) bytes a weight.
Always: the result has the dtype of the input.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .....models.quant.tensor import QuantTensor

# rows decoded at a time, so that a vocabulary's head does not double the memory at the start
SLAB_ROWS = 4096


class DenseLinear(nn.Module):
    """x [N, K] -> [N, rows], computed in the weight's dtype."""

    weight: Tensor

    def __init__(self, blocks: QuantTensor, dtype: torch.dtype) -> None:
        super().__init__()
        weight = torch.empty(blocks.shape, dtype=dtype)
        for part, slab in zip(torch.split(weight, SLAB_ROWS), slabs(blocks), strict=True):
            part.copy_(slab.dequantize(dtype))
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, K] -> [N, rows]."""
        return nn.functional.linear(x.to(self.weight.dtype), self.weight).to(x.dtype)


def slabs(blocks: QuantTensor) -> Iterator[QuantTensor]:
    """The same matrix in pieces of SLAB_ROWS rows; views, no copies."""
    for raw in torch.split(blocks.raw, SLAB_ROWS):
        yield QuantTensor(blocks.quant_type, (len(raw), blocks.shape[1]), raw)
