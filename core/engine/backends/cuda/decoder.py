"""The layers of a model on the device, over `ops`.

Knows the order of operations in a layer. Knows nothing of requests, blocks of the cache or graphs.
Always: the residual stream is float32, everything that is multiplied is in the compute type; the
embedding stays where the file is mapped, because its rows are few and its memory is not. Layers
keep the model's numbers also where the lowest are elsewhere.
"""

from collections import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ....models.architecture import GATE_UP, QKV, Architecture
from ....models.quant.tensor import QuantTensor
from ....models.weights import Weights
from ...block_pool import BLOCK_TOKENS
from .cache import Cache
from .ops import DeviceStep, Heads, Norm, Ops, added
from .packed import Packed, pack, supports

FEW_ROWS = 64  # above this a matrix is unpacked and multiplied by torch
SLAB_NUMBERS = (
    8 << 20
    # of a matrix that are unpacked at a time: 16 MiB in bfloat16, where a whole one may be twenty
    # times that
)
HEAD_NUMBERS = 4 << 20  # of keys that are unpacked at a time
STACKS = (  # matrices that stand on top of one another
    QKV,
    ("self_attn.o_proj",),
    GATE_UP,
    ("mlp.down_proj",),
)
# what adapters add: (module, x [M, K]) -> [M, rows]
Change = Callable[[str, Tensor], Tensor | None]


@dataclass(frozen=True, slots=True)
class PromptChunk:
    """Rows [start, stop) of a step that are one sequence's tokens from `position` on."""

    start: int
    stop: int
    position: int


# traits that are computed as Llama has them alone
ONLY: Mapping[str, object] = {
    "rope_dim": 0,
    "positions": 0,
    "num_experts": 0,
    "pre_norms": True,
    "wide_qk_norm": False,
    "residual_scale": 1.0,
    "logit_scale": 1.0,
    **dict.fromkeys(("attention_softcap", "logit_softcap"), 0.0),
    **dict.fromkeys(("rope_stretched", "dense_layers", "convolutions"), ()),
    **dict.fromkeys(("sinks", "qk_norm_last", "layer_norms", "parallel", "head_bias"), False),
    **dict.fromkeys(("rope_norms", "value_norm", "layer_scales"), False),
    **dict.fromkeys(("head_dims", "kv_heads", "inner_sizes", "kv_sources"), ()),
    **dict.fromkeys(("per_layer_size", "streams"), 0),
    "gated": True,
    **dict.fromkeys(("alibi", "temperature"), 0.0),
}


def unsupported(weights: Weights) -> str | None:
    """Why this model cannot run here; None if it can."""
    architecture = weights.architecture
    other = set(architecture.biases) - set(QKV)
    if other:
        return f"{min(other)} has a bias, which the CUDA runner does not add"
    for trait, plain in ONLY.items():
        if (found := getattr(architecture, trait)) != plain:
            return f"its {trait} is {found}, which the CUDA runner does not compute"
    if min(architecture.windows, default=0) < 0:
        return "its rows see those of their own run alone, which the CUDA runner does not compute"
    return None


class Linear:
    """Matrices of equally many columns on top of each other: quantised where their blocks allow
    it.
    """

    def __init__(
        self,
        names: abc.Sequence[str],
        parts: abc.Sequence[QuantTensor],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.dtype = dtype
        self.rows = {name: part.shape[0] for name, part in zip(names, parts, strict=True)}
        self.matrix: Packed | Tensor
        if supports(parts):
            self.matrix = pack(parts, device)
        else:
            self.matrix = torch.cat([part.dequantize(dtype) for part in parts]).to(device)

    def product(self, ops: Ops, x: Tensor, change: Change) -> Tensor:
        """x [M, K] -> partial sums [P, M, rows], the adapters' part in the first."""
        if isinstance(self.matrix, Tensor):
            partial = (x @ self.matrix.T).float()[None]
        elif len(x) <= FEW_ROWS:
            partial = ops.product(self.matrix, x)
        else:
            partial = in_slabs(ops, self.matrix, x)
        start = 0
        for name, rows in self.rows.items():
            if (more := change(name, x)) is not None:
                partial[0, :, start : start + rows] += more
            start += rows
        return partial


def in_slabs(ops: Ops, matrix: Packed, x: Tensor) -> Tensor:
    """x [M, K] -> float32 [1, M, rows], a slab of the matrix's rows at a time: their numbers are
    never all in memory.
    """
    out = torch.empty(1, len(x), matrix.rows, device=x.device)
    high = slab_rows(matrix.rows, matrix.columns)
    for start in range(0, matrix.rows, high):
        stop = min(start + high, matrix.rows)
        out[0, :, start:stop] = x @ ops.unpack(matrix, start, stop).T
    return out


def slab_rows(rows: int, columns: int) -> int:
    """How many rows of a matrix are unpacked at a time."""
    return max(1, min(rows, SLAB_NUMBERS // columns))


class DeviceLayer:
    """One layer's matrices and norms."""

    def __init__(
        self,
        layer: int,
        cached: int,
        weights: Weights,
        rope: tuple[Tensor, Tensor] | None,
        place: "WeightPlace",
    ) -> None:
        """`cached`: its number in the cache, which counts from the first layer on this device."""
        architecture, prefix = weights.architecture, f"model.layers.{layer}."

        def linear(names: abc.Sequence[str]) -> Linear:
            parts = [weights.tensors[f"{prefix}{name}.weight"] for name in names]
            return Linear([prefix + name for name in names], parts, place.device, place.dtype)

        self.cached = cached
        self.queries, self.out, self.gates, self.down = map(linear, STACKS)
        own = {name: place.norm(weights, f"{prefix}{name}.weight") for name in architecture.norms()}
        post_norm = architecture.post_norms
        self.input_norm = own["input_layernorm"]
        self.mlp_norm = own[
            "pre_feedforward_layernorm" if post_norm else "post_attention_layernorm"
        ]
        self.post_attention_norm = own["post_attention_layernorm"] if post_norm else None
        self.post_mlp_norm = own["post_feedforward_layernorm"] if post_norm else None
        norms = None
        if architecture.qk_norm:
            norms = tuple(
                place.vector(weights, f"{prefix}self_attn.{which}_norm.weight") for which in "qk"
            )
        self.heads = Heads(
            heads=architecture.num_heads,
            num_kv_heads=architecture.num_kv_heads,
            size=architecture.head_dim,
            scale=architecture.scale(),
            window=architecture.window(layer),
            rope=rope,
            bias=bias_of(weights, prefix, place),
            eps=architecture.norm_eps,
            norms=(norms[0], norms[1]) if norms else None,
        )


@dataclass(frozen=True, slots=True)
class WeightPlace:
    """Where weights go, and the type that is multiplied."""

    device: torch.device
    dtype: torch.dtype

    def vector(self, weights: Weights, name: str) -> Tensor:
        """A norm or a bias, float32 [n]."""
        return weights.tensors[name].dequantize(torch.float32)[0].to(self.device)

    def norm(self, weights: Weights, name: str) -> Norm:
        """A norm over the width."""
        return Norm(self.vector(weights, name), weights.architecture.norm_eps)


def bias_of(weights: Weights, prefix: str, place: WeightPlace) -> Tensor | None:
    """Biases of q, k and v behind one another; zeros where one has none, None where none has."""
    architecture = weights.architecture
    names = [f"self_attn.{which}_proj" for which in "qkv"]
    if not set(names) & set(architecture.biases):
        return None
    parts = [
        place.vector(weights, f"{prefix}{name}.bias")
        if name in architecture.biases
        else torch.zeros(architecture.projection(name)[0], device=place.device)
        for name in names
    ]
    return torch.cat(parts)


class DeviceDecoder:
    """Embedded rows in, logits out."""

    def __init__(
        self,
        weights: Weights,
        place: WeightPlace,
        ops: Ops,
        positions: int,
        *,
        first_layer: int = 0,
    ) -> None:
        """Move the weights to the device.

        Args:
            positions: the longest context, for the tables of rope.
            first_layer: lower ones are elsewhere.
        """
        architecture = weights.architecture
        self.ops, self.activation = ops, architecture.activation
        tables = rope_tables(
            architecture, range(first_layer, architecture.num_layers), positions, place.device
        )
        self.layers = [
            DeviceLayer(
                layer,
                layer - first_layer,
                weights,
                tables.get(architecture.rope_base(layer)),
                place,
            )
            for layer in range(first_layer, architecture.num_layers)
        ]
        self.norm = place.norm(weights, "model.norm.weight")
        self.head = Linear(
            ["lm_head"], [weights.tensors["lm_head.weight"]], place.device, place.dtype
        )

    def forward(
        self,
        residual: Tensor,
        step: DeviceStep,
        cache: Cache,
        change: Change,
        chunks: abc.Sequence[PromptChunk] = (),
    ) -> Tensor:
        """The residual stream before the first layer here, float32 [M, D] (overwritten) -> that
        after the last, [M, D].

        Args:
            chunks: long runs of one sequence, which are attended to together instead of row by row.
        """
        ops, partial, post_norm = self.ops, None, None
        for layer in self.layers:
            x = ops.add_norm(residual, partial, layer.input_norm, post_norm)
            q = ops.rope_and_store(
                layer.queries.product(ops, x, change), layer.heads, step, cache, layer.cached
            )
            mixed = layer.out.product(ops, self.attend(q, layer, step, cache, chunks), change)
            x = ops.add_norm(residual, mixed, layer.mlp_norm, layer.post_attention_norm)
            gated = ops.gate(layer.gates.product(ops, x, change), self.activation)
            partial, post_norm = layer.down.product(ops, gated, change), layer.post_mlp_norm
        return residual if partial is None else residual + added(partial, post_norm)

    def attend(
        self,
        q: Tensor,
        layer: DeviceLayer,
        step: DeviceStep,
        cache: Cache,
        chunks: abc.Sequence[PromptChunk],
    ) -> Tensor:
        """[M, H, size] -> [M, H * size]: chunks for themselves, the other rows together."""
        if not chunks:
            return self.ops.attend(q, layer.heads, step, cache, layer.cached)
        out = torch.empty(
            len(q), layer.heads.heads * layer.heads.size, dtype=q.dtype, device=q.device
        )
        alone = torch.ones(len(q), dtype=torch.bool)
        for chunk in chunks:
            alone[chunk.start : chunk.stop] = False
            out[chunk.start : chunk.stop] = attend_chunk(
                q[chunk.start : chunk.stop], layer, step, cache, chunk
            )
        rows = alone.nonzero()[:, 0].to(q.device)
        if len(rows):
            few = DeviceStep(
                step.positions[rows], step.places[rows], step.tables[rows], step.lengths[rows]
            )
            out[rows] = self.ops.attend(q[rows].contiguous(), layer.heads, few, cache, layer.cached)
        return out

    def logits(self, residual: Tensor) -> Tensor:
        """[S, D] -> float32 [S, V]."""
        x = self.ops.add_norm(residual, None, self.norm)
        return self.head.product(self.ops, x, lambda module, rows: None).sum(0)


def attend_chunk(
    q: Tensor, layer: DeviceLayer, step: DeviceStep, cache: Cache, chunk: PromptChunk
) -> Tensor:
    """[n, H, size] -> [n, H * size]: its keys and values are decoded once for all rows, some
    heads at a time.
    """
    heads, count = layer.heads, chunk.stop - chunk.start
    length, share = chunk.position + count, heads.heads // heads.num_kv_heads
    table = step.tables[chunk.start : chunk.start + 1, : -(-length // BLOCK_TOKENS)]
    seen, row = (
        torch.arange(length, device=q.device)[None],
        torch.arange(chunk.position, length, device=q.device)[:, None],
    )
    visible = seen <= row
    if heads.window:
        visible &= seen > row - heads.window
    # Queries that share a key stand as further rows, [1, KV, share * n, size]: every attention of
    # torch takes that form.
    visible = visible.repeat(share, 1)
    rows = (
        q.view(count, heads.num_kv_heads, share, heads.size)
        .permute(1, 2, 0, 3)
        .reshape(1, heads.num_kv_heads, -1, heads.size)
    )
    out = torch.empty_like(rows)
    together = max(1, HEAD_NUMBERS // (length * heads.size))
    for first in range(0, heads.num_kv_heads, together):
        some = slice(first, first + together)
        keys, values = (
            side[:, :, :length] for side in cache.read(layer.cached, table, q.dtype, some)
        )
        out[:, some] = nn.functional.scaled_dot_product_attention(
            rows[:, some], keys, values, attn_mask=visible, scale=heads.scale
        )
    return out.view(heads.heads, count, heads.size).transpose(0, 1).reshape(count, -1)


def rope_tables(
    architecture: Architecture, layers: range, positions: int, device: torch.device
) -> Mapping[float, tuple[Tensor, Tensor]]:
    """Cosines and sines float32 [positions, size / 2] of each kind of rope of these layers, by
    its base.
    """
    tables: dict[float, tuple[Tensor, Tensor]] = {}
    for layer in layers:
        kind = architecture.rope_base(layer)
        if kind and kind not in tables:
            inv_freq = torch.from_numpy(architecture.inv_freq(layer))
            angles = torch.arange(positions, dtype=torch.float32)[:, None] * inv_freq
            magnitude = architecture.magnitude(layer)
            tables[kind] = (
                (angles.cos() * magnitude).to(device),
                (angles.sin() * magnitude).to(device),
            )
    return tables
