"""Quantised rows, as the model file holds them.

Knows the byte layout of each block type and how to turn blocks into numbers. Knows nothing of files, names or layers.
Always: `raw` is never changed and never quantised again; numbers come out exactly as the file's own format defines them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

GROUP = 32  # weights that share one scale in Q4_0, Q4_1 and Q8_0


def half(blocks: Tensor, start: int) -> Tensor:
    """The float16 at byte `start` of each block, [n, size] -> float32 [n, 1]."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def nibbles(packed: Tensor) -> Tensor:
    """Sixteen bytes to 32 integers, [n, 16] -> uint8 [n, 32]: low halves are weights 0-15, high halves 16-31."""
    return torch.cat([packed & 15, packed >> 4], dim=1)


def decode_q4_0(blocks: Tensor) -> Tensor:
    """w = d * (q - 8)."""
    return half(blocks, 0) * (nibbles(blocks[:, 2:]).float() - 8)


def decode_q4_1(blocks: Tensor) -> Tensor:
    """w = d * q + m, in two roundings as the format's reference does it."""
    return half(blocks, 0) * nibbles(blocks[:, 4:]).float() + half(blocks, 2)


def decode_q8_0(blocks: Tensor) -> Tensor:
    """w = d * q, q a signed byte."""
    return blocks[:, 2:].contiguous().view(torch.int8).float() * half(blocks, 0)


def decode_as(kind: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Blocks that are one plain number each."""

    def decode(blocks: Tensor) -> Tensor:
        return blocks.contiguous().view(kind).float()

    return decode


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """One block type: how many weights, how many bytes, and how bytes become weights."""

    columns: int  # weights in one block
    size: int  # bytes of one block
    decode: Callable[[Tensor], Tensor]  # uint8 [n, size] -> float32 [n, columns]


# One line a type; further types (the K-quants) are further lines. Source: ggml's `ggml-common.h`, block_* structures.
FORMATS = {
    "F32": BlockFormat(1, 4, decode_as(torch.float32)),
    "F16": BlockFormat(1, 2, decode_as(torch.float16)),
    "BF16": BlockFormat(1, 2, decode_as(torch.bfloat16)),
    "Q4_0": BlockFormat(GROUP, 2 + 16, decode_q4_0),
    "Q4_1": BlockFormat(GROUP, 4 + 16, decode_q4_1),
    "Q8_0": BlockFormat(GROUP, 2 + 32, decode_q8_0),
}


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

    def to(self, device: torch.device | str) -> "Blocks":
        """The same bytes on another device."""
        return Blocks(self.kind, self.shape, self.raw.to(device))


def decode(kind: str, raw: Tensor) -> Tensor:
    """Rows of blocks to numbers, uint8 [rows, bytes] -> float32 [rows, columns]; never a view on `raw`."""
    form = FORMATS[kind]
    if form.columns == 1 and form.decode is FORMATS["F32"].decode:
        return raw.contiguous().view(torch.float32).clone()
    return form.decode(raw.reshape(-1, form.size)).reshape(raw.shape[0], -1)
