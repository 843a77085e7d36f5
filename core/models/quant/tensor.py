"""Quantised rows, as the model file holds them.

Knows rows and columns of blocks. Knows nothing of files, names or layers; `dequantize.py` knows
what the bytes mean.
Always: the bytes are never changed and never quantised again; numbers come out exactly as the
file's own format defines them. Torch is imported when numbers are first asked for: who serves with
compiled kernels reads bytes alone.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .types import QUANT_TYPES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PLAIN = ("F32", "F16", "BF16")  # one number a block
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class QuantTensor:
    """A matrix in its file's own format."""

    quant_type: str  # a key of FORMATS
    shape: tuple[int, int]  # rows, columns; a vector is one row
    # uint8 [rows, bytes per row], a view on the mapped file where possible
    held: "Tensor | Bytes" = field(repr=False)

    def __post_init__(self) -> None:
        rows, columns = self.shape
        form = QUANT_TYPES.get(self.quant_type)
        if form is None:
            raise ValueError(
                f"block type {self.quant_type} is unknown; known: {', '.join(QUANT_TYPES)}"
            )
        expected = (rows, columns // form.columns * form.size)
        found, dtype = tuple(self.held.shape), str(self.held.dtype).removeprefix("torch.")
        if columns % form.columns or found != expected or dtype != "uint8":
            raise ValueError(
                f"{self.quant_type} {self.shape} must be uint8 {expected}, is {dtype} {found}"
            )

    @property
    def raw(self) -> "Tensor":
        """The bytes as a tensor, uint8 [rows, bytes per row]; the same memory."""
        import torch

        return torch.from_numpy(self.held) if isinstance(self.held, np.ndarray) else self.held

    @property
    def memory(self) -> Bytes:
        """The bytes as an array, uint8 [rows, bytes per row]; the same memory, which must be the
        processor's.
        """
        return self.held if isinstance(self.held, np.ndarray) else self.held.numpy()

    def dequantize(self, dtype: "torch.dtype | None" = None) -> "Tensor":
        """All rows as numbers, [rows, columns]; decoded in float32, then rounded once to `dtype`
        if one is given.
        """
        from .dequantize import dequantize_rows

        return dequantize_rows(self.quant_type, self.raw).to(dtype=dtype)

    def rows(self, index: "Tensor", dtype: "torch.dtype | None" = None) -> "Tensor":
        """Some rows as numbers, [len(index), columns]; only these are decoded."""
        from .dequantize import dequantize_rows

        return dequantize_rows(self.quant_type, self.raw[index]).to(dtype=dtype)

    def vector(self) -> NDArray[np.float32]:
        """The numbers of the first row; of a plain one without torch."""
        first = self.memory[0].copy()
        found: NDArray[np.float32]
        match self.quant_type:
            case "F32":
                found = first.view(np.float32)
            case "F16":
                found = first.view(np.float16).astype(np.float32)
            case "BF16":
                found = (first.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            case _:
                found = self.part(0, 1).dequantize()[0].numpy()
        return found

    def take(self, index: NDArray[np.int64]) -> "QuantTensor":
        """The same blocks with rows in another order (a copy of the bytes, no number changes)."""
        return QuantTensor(self.quant_type, (len(index), self.shape[1]), self.held[index])

    def part(self, start: int, stop: int) -> "QuantTensor":
        """Rows [start, stop), a view on the same bytes."""
        return QuantTensor(self.quant_type, (stop - start, self.shape[1]), self.held[start:stop])

    def to(self, device: "torch.device | str") -> "QuantTensor":
        """The same bytes on another device."""
        return QuantTensor(self.quant_type, self.shape, self.raw.to(device))


def plain(matrix: "Tensor") -> QuantTensor:
    """A matrix [rows, columns] of float32, float16 or bfloat16 as blocks; a view where it is
    contiguous.
    """
    import torch

    kind = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[matrix.dtype]
    rows, columns = matrix.shape
    raw = (
        matrix.contiguous().view(torch.uint8)
        if columns
        else torch.empty(rows, 0, dtype=torch.uint8)
    )
    return QuantTensor(kind, (rows, columns), raw)
