"""Quantised rows, as the model file holds them.

Knows rows and columns of blocks. Knows nothing of files, names or layers; `decoders.py` knows what the bytes mean.
Always: `raw` is never changed and never quantised again; numbers come out exactly as the file's own format defines them.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .decoders import FORMATS

__all__ = ["FORMATS", "Blocks", "decode", "plain"]

PLAIN = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """A matrix in its file's own format."""

    kind: str  # a key of FORMATS
    shape: tuple[int, int]  # rows, columns; a vector is one row
    raw: Tensor = field(repr=False)  # uint8 [rows, bytes per row], a view on the mapped file where possible

    def __post_init__(self) -> None:
        rows, columns = self.shape
        form = FORMATS.get(self.kind)
        if form is None:
            raise ValueError(f"block type {self.kind} is unknown; known: {', '.join(FORMATS)}")
        expected = (rows, columns // form.columns * form.size)
        if columns % form.columns or tuple(self.raw.shape) != expected or self.raw.dtype != torch.uint8:
            raise ValueError(f"{self.kind} {self.shape} must be uint8 {expected}, is {self.raw.dtype} {tuple(self.raw.shape)}")

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """All rows as numbers, [rows, columns]; decoded in float32, then rounded once to `dtype`."""
        return decode(self.kind, self.raw).to(dtype)

    def rows(self, index: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Some rows as numbers, [len(index), columns]; only these are decoded."""
        return decode(self.kind, self.raw[index]).to(dtype)

    def take(self, index: Tensor) -> "Blocks":
        """The same blocks with rows in another order (a copy of the bytes, no number changes)."""
        return Blocks(self.kind, (len(index), self.shape[1]), self.raw[index])

    def part(self, start: int, stop: int) -> "Blocks":
        """Rows [start, stop), a view on the same bytes."""
        return Blocks(self.kind, (stop - start, self.shape[1]), self.raw[start:stop])

    def to(self, device: torch.device | str) -> "Blocks":
        """The same bytes on another device."""
        return Blocks(self.kind, self.shape, self.raw.to(device))


def decode(kind: str, raw: Tensor) -> Tensor:
    """Rows of blocks to numbers, uint8 [rows, bytes] -> float32 [rows, columns]; never a view on `raw`."""
    form = FORMATS[kind]
    if form.columns == 1 and form.decode is FORMATS["F32"].decode:
        return raw.contiguous().view(torch.float32).clone()
    return form.decode(raw.reshape(-1, form.size)).reshape(raw.shape[0], -1)


def plain(matrix: Tensor) -> Blocks:
    """A matrix [rows, columns] of float32, float16 or bfloat16 as blocks; a view where it is contiguous."""
    rows, columns = matrix.shape
    raw = matrix.contiguous().view(torch.uint8) if columns else torch.empty(rows, 0, dtype=torch.uint8)
    return Blocks(PLAIN[matrix.dtype], (rows, columns), raw)
