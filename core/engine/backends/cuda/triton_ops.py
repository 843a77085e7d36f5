"""The same operations as `ops`, through Triton kernels.

Knows how work is cut into programs. Knows nothing of requests or of the order of layers.
Always: each kernel equals its twin in `TorchOps` up to rounding; tests hold that in Triton's
interpreter, without a GPU. Not run on a GPU yet: the sizes of tiles are reasoned, not measured.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...block_pool import BLOCK_TOKENS
from . import kernels
from .cache import LARGEST, Cache
from .ops import DeviceStep, Heads, Norm
from .packed import CHUNK, Packed

ROWS = 16  # the fewest rows that a tensor core multiplies
# keys that a program looks at together; half of them where heads are wide, or registers run out
TOKENS = 64
# about how many a product is cut into, so that every processor of a large GPU has several
PROGRAMS = 1024
MOST_PARTS = 8
UNPACKED_ROWS = 32  # of a matrix, that one program unpacks
SPLITS = 8  # parts of a context that are attended to side by side

DTYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


class TritonOps:
    """See `ops.Ops`."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.out = dtype, DTYPES[dtype]

    def product(self, matrix: Packed, x: Tensor) -> Tensor:
        """See `Operations`."""
        m, n, wide = len(x), matrix.rows, 64 if matrix.rows >= 1 << 15 else 32
        tiles, high = -(-n // wide), -(-m // ROWS)
        parts = max(1, min(MOST_PARTS, matrix.chunks, PROGRAMS // (tiles * high)))
        each = -(-matrix.chunks // parts)
        parts = -(-matrix.chunks // each)
        out = torch.empty(parts, m, n, device=x.device)
        grid: Any = (tiles, parts, high)
        if matrix.bits == 4:
            zeros = matrix.scales if matrix.zeros is None else matrix.zeros
            kernels.product_4[grid](
                x,
                matrix.words,
                matrix.scales,
                zeros,
                out,
                m,
                n,
                matrix.columns,
                matrix.chunks,
                each,
                HAS_ZEROS=matrix.zeros is not None,
                BM=ROWS,
                BN=wide,
                DOT=self.out,
            )
        else:
            kernels.product_8[grid](
                x,
                matrix.words,
                matrix.scales,
                out,
                m,
                n,
                matrix.columns,
                matrix.chunks,
                each,
                BM=ROWS,
                BN=wide,
                DOT=self.out,
            )
        return out

    def unpack(self, matrix: Packed, start: int, stop: int) -> Tensor:
        """See `Operations`."""
        out = torch.empty(
            stop - start, matrix.columns, dtype=self.dtype, device=matrix.words.device
        )
        grid: Any = (-(-len(out) // UNPACKED_ROWS), matrix.chunks)
        sizes = (out, matrix.rows, matrix.columns, start, stop)
        if matrix.bits == 4:
            zeros = matrix.scales if matrix.zeros is None else matrix.zeros
            kernels.unpack_4[grid](
                matrix.words,
                matrix.scales,
                zeros,
                *sizes,
                HAS_ZEROS=matrix.zeros is not None,
                BN=UNPACKED_ROWS,
                OUT=self.out,
            )
        else:
            kernels.unpack_8[grid](
                matrix.words, matrix.scales, *sizes, BN=UNPACKED_ROWS, OUT=self.out
            )
        return out

    def add_norm(
        self, residual: Tensor, partial: Tensor | None, norm: Norm, post_norm: Norm | None = None
    ) -> Tensor:
        """See `Operations`."""
        m, d = residual.shape
        out = torch.empty(m, d, dtype=self.dtype, device=residual.device)
        parts, wide = 0 if partial is None else len(partial), triton.next_power_of_2(d)
        last = norm if post_norm is None else post_norm
        kernels.add_norm_row[(m,)](
            residual,
            residual if partial is None else partial,
            last.weight,
            norm.weight,
            out,
            m,
            d,
            norm.eps,
            last.eps,
            PARTS=parts,
            BEHIND=post_norm is not None,
            BD=wide,
            OUT=self.out,
            num_warps=max(4, min(8, wide // 512)),
        )
        return out

    def gate(self, partial: Tensor, activation: str) -> Tensor:
        """See `Operations`."""
        parts, m, f = partial.shape[0], partial.shape[1], partial.shape[2] // 2
        out = torch.empty(m, f, dtype=self.dtype, device=partial.device)
        kernels.gate_row[(m, -(-f // 1024))](
            partial, out, m, f, PARTS=parts, GELU=activation != "silu", BF=1024, OUT=self.out
        )
        return out

    def rope_and_store(
        self, partial: Tensor, heads: Heads, step: DeviceStep, cache: Cache, layer: int
    ) -> Tensor:
        """See `Operations`."""
        parts, m, _ = partial.shape
        q = torch.empty(m, heads.heads, heads.size, dtype=self.dtype, device=partial.device)
        integers, scales = cache.integers[:, layer], cache.scales[:, layer]
        q_norm, k_norm = heads.norms or (partial, partial)
        cosines, sines = heads.rope or (partial, partial)
        kernels.rope_head[(m, heads.heads + 2 * heads.num_kv_heads)](
            partial,
            partial if heads.bias is None else heads.bias,
            q_norm,
            k_norm,
            cosines,
            sines,
            step.positions,
            step.places,
            q,
            integers,
            scales,
            m,
            heads.eps,
            LARGEST,
            integers.stride(0),
            scales.stride(0),
            H=heads.heads,
            KV=heads.num_kv_heads,
            HALF=heads.size // 2,
            BHALF=triton.next_power_of_2(heads.size // 2),
            BLOCK=BLOCK_TOKENS,
            PARTS=parts,
            BIAS=heads.bias is not None,
            NORMS=heads.norms is not None,
            TURN=heads.rope is not None,
            OUT=self.out,
        )
        return q

    def attend(self, q: Tensor, heads: Heads, step: DeviceStep, cache: Cache, layer: int) -> Tensor:
        """See `Operations`."""
        m, share = len(q), heads.heads // heads.num_kv_heads
        mixed = torch.empty(m, heads.heads, SPLITS, heads.size, device=q.device)
        tops, sums = torch.empty(2, m, heads.heads, SPLITS, device=q.device)
        integers, scales = cache.integers[:, layer], cache.scales[:, layer]
        size = triton.next_power_of_2(heads.size)
        together = TOKENS if size <= 128 else TOKENS // 2
        kernels.attend_part[(m, heads.num_kv_heads, SPLITS)](
            q,
            integers[0],
            scales[0],
            integers[1],
            scales[1],
            step.tables,
            step.lengths,
            mixed,
            tops,
            sums,
            step.tables.shape[1],
            heads.window,
            heads.scale,
            H=heads.heads,
            KV=heads.num_kv_heads,
            SHARE=share,
            BSHARE=max(ROWS, triton.next_power_of_2(share)),
            SIZE=heads.size,
            BSIZE=size,
            BLOCK=BLOCK_TOKENS,
            T=together,
            PARTS=SPLITS,
            DOT=self.out,
        )
        out = torch.empty(m, heads.heads * heads.size, dtype=self.dtype, device=q.device)
        kernels.attend_whole[(m * heads.heads,)](
            mixed, tops, sums, out, SIZE=heads.size, BSIZE=size, PARTS=SPLITS, OUT=self.out
        )
        return out


assert CHUNK == 128  # as the kernels have it
