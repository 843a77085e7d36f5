"""What a step consists of, and its readable twin in plain torch.

Knows tensors on one device. Knows nothing of requests, layers' order or graphs.
Always: a product comes as partial sums [P, M, N], and whoever reads it adds them up, so that a
product may be cut along its columns over many processors without a kernel of its own for the sum.
`TorchOps` is the oracle of `fused`.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from .cache import Cache
from .packed import Packed


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """How rows of queries, keys and values are to be read."""

    heads: int
    num_kv_heads: int
    size: int
    scale: float  # of q·k
    window: int  # rows that a row sees, itself included; 0 = all
    # cosines and sines, float32 [positions, size / 2]; None = no rope
    rope: tuple[Tensor, Tensor] | None
    bias: Tensor | None  # float32 [(heads + 2 * num_kv_heads) * size]
    norms: tuple[Tensor, Tensor] | None  # of q and k heads, float32 [size] each
    eps: float


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """An RMS norm over the width."""

    weight: Tensor  # float32 [D]
    eps: float


@dataclass(frozen=True, slots=True, eq=False)
class DeviceStep:
    """Where one step's rows stand."""

    positions: Tensor  # int64 [M]
    places: Tensor  # int64 [M]: block * block tokens + offset
    tables: Tensor  # int32 [M, n]: each row's blocks
    lengths: Tensor  # int32 [M]: rows that a row may see, itself included


class Ops(Protocol):
    """The arithmetic of one layer. M rows of width D; x in the compute type, sums in float32."""

    def product(self, matrix: Packed, x: Tensor) -> Tensor:
        """x [M, columns] -> partial sums float32 [P, M, rows]."""
        ...

    def unpack(self, matrix: Packed, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of the matrix as numbers, [rows, columns] in the compute type."""
        ...

    def add_norm(
        self, residual: Tensor, partial: Tensor | None, norm: Norm, post_norm: Norm | None = None
    ) -> Tensor:
        """Add the sum of `partial` to `residual` (float32 [M, D], in place); the norm of that, [M,
        D] in the compute type.

        Args:
            behind: a norm of the sum before it is added (Gemma 3).
        """
        ...

    def gate(self, partial: Tensor, activation: str) -> Tensor:
        """activation(gate) * up of partial sums [P, M, 2F], gates first: [M, F] in the compute
        type.
        """
        ...

    def rope_and_store(
        self, partial: Tensor, heads: Heads, step: DeviceStep, cache: Cache, layer: int
    ) -> Tensor:
        """Finish q, k and v of partial sums, write k and v to the cache; q [M, heads, size] in
        the compute type.
        """
        ...

    def attend(self, q: Tensor, heads: Heads, step: DeviceStep, cache: Cache, layer: int) -> Tensor:
        """Attention of each row over its own blocks, [M, heads * size] in the compute type."""
        ...


class TorchOps:
    """Torch alone, on any device: what the fused kernels must equal."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def product(self, matrix: Packed, x: Tensor) -> Tensor:
        """See `Operations`."""
        return (x.float() @ matrix.dense(torch.float32).T)[None]

    def unpack(self, matrix: Packed, start: int, stop: int) -> Tensor:
        """See `Operations`."""
        return matrix.dense(self.dtype, start, stop)

    def add_norm(
        self, residual: Tensor, partial: Tensor | None, norm: Norm, post_norm: Norm | None = None
    ) -> Tensor:
        """See `Operations`."""
        if partial is not None:
            residual += added(partial, post_norm)
        return rms_norm(residual, norm.weight, norm.eps).to(self.dtype)

    def gate(self, partial: Tensor, activation: str) -> Tensor:
        """See `Operations`."""
        gate, up = partial.sum(0).chunk(2, dim=-1)
        roped = (
            nn.functional.silu(gate)
            if activation == "silu"
            else nn.functional.gelu(gate, approximate="tanh")
        )
        return (roped * up).to(self.dtype)

    def rope_and_store(
        self, partial: Tensor, heads: Heads, step: DeviceStep, cache: Cache, layer: int
    ) -> Tensor:
        """See `Operations`."""
        whole = partial.sum(0) if heads.bias is None else partial.sum(0) + heads.bias
        q, k, v = torch.split(
            whole.view(len(whole), -1, heads.size),
            [heads.heads, heads.num_kv_heads, heads.num_kv_heads],
            dim=1,
        )
        if heads.norms is not None:
            q, k = rms_norm(q, heads.norms[0], heads.eps), rms_norm(k, heads.norms[1], heads.eps)
        q, k = rope(q, heads, step), rope(k, heads, step)
        cache.write(layer, step.places, k, v)
        return q.to(self.dtype).contiguous()

    def attend(self, q: Tensor, heads: Heads, step: DeviceStep, cache: Cache, layer: int) -> Tensor:
        """See `Operations`."""
        keys, values = cache.read(layer, step.tables)  # [M, KV, n * block tokens, size]
        seen = torch.arange(keys.shape[2], device=q.device)[None]  # [1, T]
        visible = seen < step.lengths[:, None]
        if heads.window:
            visible &= seen >= step.lengths[:, None] - heads.window
        grouped = q.float().view(
            len(q), heads.num_kv_heads, -1, heads.size
        )  # [M, KV, H / KV, size]
        mixed = nn.functional.scaled_dot_product_attention(
            grouped, keys, values, attn_mask=visible[:, None, None], scale=heads.scale
        )
        return mixed.reshape(len(q), -1).to(self.dtype)


def added(partial: Tensor, post_norm: Norm | None) -> Tensor:
    """What partial sums [P, M, D] add to the residual stream, float32 [M, D]."""
    whole = partial.sum(0)
    return whole if post_norm is None else rms_norm(whole, post_norm.weight, post_norm.eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Over the last dimension, in float32."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rope(x: Tensor, heads: Heads, step: DeviceStep) -> Tensor:
    """Rope in half-split order, [M, n, size] -> same."""
    if heads.rope is None:
        return x
    cosine, sine = (table[step.positions][:, None] for table in heads.rope)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
