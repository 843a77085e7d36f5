"""What an encoder is: sizes and traits, and the names of its tensors.

Knows numbers and names. Knows nothing of files, families by name or of who computes.
Always: one description serves every family; what is not said is BERT's.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..quant.tensor import QuantTensor

Pooling = Literal["mean", "first", "last"]  # of a text's tokens: which give its vector
ACTIVATIONS = ("silu", "gelu_tanh", "gelu")  # the last is GELU's exact form
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# of the input of each half of a layer, and of what comes out behind it
NORMS = ("attention_norm", "mlp_norm", "post_attention_norm", "post_mlp_norm")
HEAD_NORMS = ("q_norm", "k_norm")
MOST_LAYERS = 1000  # many times what any encoder has; what stands by layer is made for so many


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderArchitecture:
    """Sizes and traits of one encoder."""

    model_type: str  # as its config.json says
    num_layers: int
    hidden_size: int  # D
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int  # longest text, in tokens
    norm_eps: float
    attention_scale: float
    activation: str  # of ACTIVATIONS
    learned_positions: bool = False
    gated: bool = False  # activation(gate x) * up x, else activation(up x)
    rms_norms: bool = False  # else of mean and deviation
    # norms behind are of the stream with what was added to it, else of what is about to be added
    norm_sums: bool = False
    causal: bool = False
    pooling: Pooling = "mean"
    embedding_scale: float = 1.0
    thetas: tuple[float, ...] = ()  # a layer's base of rope; empty: no rope
    reaches: tuple[int, ...] = ()  # tokens that a layer sees to either side, 0: all; empty: all

    def is_possible(self) -> bool:
        """Whether heads divide, and no norm or rope makes what is no number."""
        bases = all(1 < base < 1e30 for base in self.thetas)
        whole = self.num_heads % self.num_kv_heads == 0 and self.head_dim % 2 == 0
        return whole and bases and 0 < self.norm_eps < 1

    def matrices(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Those inside a layer, with their shapes."""
        width, wide = self.hidden_size, self.intermediate_size
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        yield "q_proj", (queries, width)
        yield "k_proj", (keys, width)
        yield "v_proj", (keys, width)
        yield "o_proj", (width, queries)
        if self.gated:
            yield "gate_proj", (wide, width)
        yield "up_proj", (wide, width)
        yield "down_proj", (width, wide)

    def inv_freq(self, layer: int) -> NDArray[np.float32]:
        """Radians a position of each pair of a head's numbers, [head_dim / 2]; empty: no rope."""
        if not self.thetas:
            return np.empty(0, np.float32)
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim
        return (self.thetas[layer] ** -exponents).astype(np.float32)

    def reach(self, layer: int) -> int:
        """Tokens that a layer's rows see to either side; 0: all."""
        return self.reaches[layer] if self.reaches else 0


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ScoreHead:
    """From a text's vector to one number: out · norm(activation(dense · vector))."""

    out: NDArray[np.float32]  # [D]
    out_bias: float = 0.0
    dense: NDArray[np.float32] | None = None  # [D, D]; None: the vector goes to `out` as it is
    dense_bias: NDArray[np.float32] | None = None  # [D]
    activation: str = "tanh"  # or "gelu"
    norm: NDArray[np.float32] | None = None  # [D], of mean and deviation, without a bias
    norm_eps: float = 1e-5

    def is_finite(self) -> bool:
        """Whether all its numbers are."""
        parts = (self.out, self.out_bias, self.dense, self.dense_bias, self.norm)
        return all(part is None or bool(np.isfinite(part).all()) for part in parts)

    def __call__(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logit of each vector, [N, D] -> [N]."""
        x = vectors.astype(np.float64)
        if self.dense is not None:
            x = x @ self.dense.T + (0.0 if self.dense_bias is None else self.dense_bias)
            x = np.tanh(x) if self.activation == "tanh" else x * (1 + erf(x / math.sqrt(2))) / 2
        if self.norm is not None:
            off = x - x.mean(-1, keepdims=True)
            x = off / np.sqrt((off**2).mean(-1, keepdims=True) + self.norm_eps) * self.norm
        found: NDArray[np.float32] = (x @ self.out + self.out_bias).astype(np.float32)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class EncoderWeights:
    """One encoder. Tensors by our names: "embedding", "positions", "embedding_norm", "final_norm",
    "shift" (added to every token), "second_shift" (to those of a pair's second text), "head" (of a
    model that also writes, where it is not its embedding), and "layers.N." with PROJECTIONS, NORMS
    and HEAD_NORMS; each with ".weight", many with ".bias".
    """

    architecture: EncoderArchitecture
    tensors: Mapping[str, QuantTensor] = field(repr=False)
    head: ScoreHead | None = None  # of one that scores pairs


erf = np.vectorize(math.erf, otypes=[np.float64])


def numbers(blocks: QuantTensor) -> NDArray[np.float32]:
    """A plain matrix as float32 [rows, columns]; a view where it is that already."""
    raw, shape = np.ascontiguousarray(blocks.memory), blocks.shape
    if blocks.quant_type == "F32":
        return raw.view(np.float32).reshape(shape)
    if blocks.quant_type == "F16":
        return raw.view(np.float16).reshape(shape).astype(np.float32)
    if blocks.quant_type == "BF16":
        wide = raw.view(np.uint16).reshape(shape).astype(np.uint32) << 16
        return wide.view(np.float32)
    return blocks.dequantize().numpy()


def plain(values: NDArray[np.float32]) -> QuantTensor:
    """Numbers [rows, columns] as blocks."""
    values = np.ascontiguousarray(values, np.float32)
    rows, columns = values.shape
    return QuantTensor("F32", (rows, columns), values.view(np.uint8).reshape(rows, 4 * columns))
