"""The layers of a model on the device, over `operations`.

Knows the order of operations in a layer. Knows nothing of requests, blocks of the cache or graphs.
Always: the residual stream is float32, everything that is multiplied is in the compute type; the embedding stays where the file
is mapped, because its rows are few and its memory is not.
"""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...models.architecture import Architecture
from ...models.blocks import Blocks
from ...models.weights import Weights
from .cache import Cache
from .operations import Heads, Operations, Step
from .packed import Packed, pack, supports

FEW_ROWS = 64  # above this a matrix is unpacked once and multiplied as it is
Change = Callable[[str, Tensor], Tensor | None]  # what adapters add: (module, x [M, K]) -> [M, rows]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows [start, stop) of a step that are one sequence's tokens from `position` on."""

    start: int
    stop: int
    position: int


def unsupported(weights: Weights) -> str | None:
    """Why this model cannot run here; None if it can."""
    architecture = weights.architecture
    if architecture.post_norms:
        return f"{architecture.family} norms what its layers add, which the CUDA runner does not do"
    other = set(architecture.biases) - {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}
    return f"{min(other)} has a bias, which the CUDA runner does not add" if other else None


class Linear:
    """Matrices of equally many columns on top of each other: quantised where their blocks allow it."""

    def __init__(self, names: Items[str], parts: Items[Blocks], device: torch.device, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.rows = {name: part.shape[0] for name, part in zip(names, parts, strict=True)}
        self.matrix: Packed | Tensor
        if supports(parts):
            self.matrix = pack(parts, device)
        else:
            self.matrix = torch.cat([part.dense(dtype) for part in parts]).to(device)

    def product(self, operations: Operations, x: Tensor, change: Change) -> Tensor:
        """x [M, K] -> partial sums [P, M, rows], the adapters' part in the first."""
        if isinstance(self.matrix, Packed) and len(x) <= FEW_ROWS:
            partial = operations.product(self.matrix, x)
        else:
            dense = self.matrix.dense(self.dtype) if isinstance(self.matrix, Packed) else self.matrix
            partial = (x @ dense.T).float()[None]
        start = 0
        for name, rows in self.rows.items():
            if (more := change(name, x)) is not None:
                partial[0, :, start : start + rows] += more
            start += rows
        return partial


class DeviceLayer:
    """One layer's matrices and norms."""

    def __init__(self, layer: int, weights: Weights, turns: tuple[Tensor, Tensor] | None, place: "Place") -> None:
        architecture, prefix = weights.architecture, f"model.layers.{layer}."

        def linear(*names: str) -> Linear:
            parts = [weights.tensors[f"{prefix}{name}.weight"] for name in names]
            return Linear([prefix + name for name in names], parts, place.device, place.dtype)

        self.layer = layer
        self.queries = linear("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        self.out = linear("self_attn.o_proj")
        self.gates = linear("mlp.gate_proj", "mlp.up_proj")
        self.down = linear("mlp.down_proj")
        self.input_norm = place.vector(weights, f"{prefix}input_layernorm.weight")
        self.middle_norm = place.vector(weights, f"{prefix}post_attention_layernorm.weight")
        norms = None
        if architecture.qk_norm:
            norms = tuple(place.vector(weights, f"{prefix}self_attn.{which}_norm.weight") for which in "qk")
        self.heads = Heads(
            heads=architecture.heads, kv_heads=architecture.kv_heads, size=architecture.head_size, scale=architecture.scale(),
            window=architecture.window(layer), turns=turns, bias=bias_of(weights, prefix, place), eps=architecture.norm_eps,
            norms=(norms[0], norms[1]) if norms else None,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """Where weights go, and the type that is multiplied."""

    device: torch.device
    dtype: torch.dtype

    def vector(self, weights: Weights, name: str) -> Tensor:
        """A norm or a bias, float32 [n]."""
        return weights.tensors[name].dense(torch.float32)[0].to(self.device)


def bias_of(weights: Weights, prefix: str, place: Place) -> Tensor | None:
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

    def __init__(self, weights: Weights, place: Place, operations: Operations, positions: int) -> None:
        """Move the weights to the device.

        Args:
            positions: the longest context, for the tables of rope.
        """
        architecture = weights.architecture
        self.operations, self.eps, self.activation = operations, architecture.norm_eps, architecture.activation
        tables = rope_tables(architecture, positions, place.device)
        self.layers = [
            DeviceLayer(layer, weights, tables.get(architecture.rope_base(layer)), place)
            for layer in range(architecture.layers)
        ]
        self.norm = place.vector(weights, "model.norm.weight")
        self.head = Linear(["lm_head"], [weights.tensors["lm_head.weight"]], place.device, place.dtype)

    def forward(self, residual: Tensor, step: Step, cache: Cache, change: Change, chunks: Items[Chunk] = ()) -> Tensor:
        """Embedded rows, float32 [M, D] (overwritten) -> the residual stream after the last layer, [M, D].

        Args:
            chunks: long runs of one sequence, which are attended to together instead of row by row.
        """
        operations, partial = self.operations, None
        for layer in self.layers:
            x = operations.add_norm(residual, partial, layer.input_norm, self.eps)
            q = operations.turn_and_store(layer.queries.product(operations, x, change), layer.heads, step, cache, layer.layer)
            mixed = self.attend(q, layer, step, cache, chunks)
            x = operations.add_norm(residual, layer.out.product(operations, mixed, change), layer.middle_norm, self.eps)
            gated = operations.gate(layer.gates.product(operations, x, change), self.activation)
            partial = layer.down.product(operations, gated, change)
        return residual if partial is None else residual + partial.sum(0)

    def attend(self, q: Tensor, layer: DeviceLayer, step: Step, cache: Cache, chunks: Items[Chunk]) -> Tensor:
        """[M, H, size] -> [M, H * size]: chunks for themselves, the other rows together."""
        if not chunks:
            return self.operations.attend(q, layer.heads, step, cache, layer.layer)
        out = torch.empty(len(q), layer.heads.heads * layer.heads.size, dtype=q.dtype, device=q.device)
        alone = torch.ones(len(q), dtype=torch.bool)
        for chunk in chunks:
            alone[chunk.start : chunk.stop] = False
            out[chunk.start : chunk.stop] = attend_chunk(q[chunk.start : chunk.stop], layer, step, cache, chunk)
        rows = alone.nonzero()[:, 0].to(q.device)
        if len(rows):
            few = Step(step.positions[rows], step.places[rows], step.tables[rows], step.lengths[rows])
            out[rows] = self.operations.attend(q[rows].contiguous(), layer.heads, few, cache, layer.layer)
        return out

    def logits(self, residual: Tensor) -> Tensor:
        """[S, D] -> float32 [S, V]."""
        x = self.operations.add_norm(residual, None, self.norm, self.eps)
        return self.head.product(self.operations, x, lambda module, rows: None).sum(0)


def attend_chunk(q: Tensor, layer: DeviceLayer, step: Step, cache: Cache, chunk: Chunk) -> Tensor:
    """[n, H, size] -> [n, H * size]: its keys and values are decoded once for all rows."""
    heads, count = layer.heads, chunk.stop - chunk.start
    length = chunk.position + count
    keys, values = (
        side[0, :, :length].to(q.dtype) for side in cache.read(layer.layer, step.tables[chunk.start : chunk.start + 1])
    )
    seen, row = torch.arange(length, device=q.device)[None], torch.arange(chunk.position, length, device=q.device)[:, None]
    visible = seen <= row
    if heads.window:
        visible &= seen > row - heads.window
    mixed = nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1)[None], keys[None], values[None], attn_mask=visible, scale=heads.scale, enable_gqa=True
    )
    return mixed[0].transpose(0, 1).reshape(count, -1)


def rope_tables(architecture: Architecture, positions: int, device: torch.device) -> Mapping[float, tuple[Tensor, Tensor]]:
    """Cosines and sines float32 [positions, size / 2] of each kind of rope, by its base."""
    tables: dict[float, tuple[Tensor, Tensor]] = {}
    for layer in range(architecture.layers):
        kind = architecture.rope_base(layer)
        if kind and kind not in tables:
            angles = torch.arange(positions, dtype=torch.float32)[:, None] * architecture.frequencies(layer)
            magnitude = architecture.magnitude(layer)
            tables[kind] = ((angles.cos() * magnitude).to(device), (angles.sin() * magnitude).to(device))
    return tables
