"""One decoder's forward pass, for serving and for training.

Knows layers, norms and rope, of every family. Knows nothing of caches, batches or sequences: rows
come flat, [N, D], each with its position, and attention is handed in. Projections are what
`make_linear` makes of the file's blocks.
Always: module names are Hugging Face's, so that PEFT's names fit; nothing here is trainable.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ModelError
from .architecture import PROJECTIONS, Architecture
from .attention import Attention, RowMemory, ScoreRule, check_windows
from .quant.tensor import QuantTensor
from .weights import Weights

MakeLinear = Callable[[QuantTensor], nn.Module]  # a module x [N, columns] -> [N, rows]
CosSin = tuple[Tensor, Tensor]  # cosines and sines of rope, [N, 1, hd/2] each
RopeTables = tuple[CosSin | None, ...]  # by layer number; None where rows are not turned
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "gelu": functional.gelu,
    "relu2": lambda x: functional.relu(x).square(),
    "relu": functional.relu,
}
CLAMP, STEEPNESS = 7.0, 1.702  # of gpt-oss's gate
RECURRED_ROWS = 64  # of a sequence that a recurrence takes together


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """What layers hand on beside the stream, in models where they do."""

    given: Tensor | None  # [N, L, P] of `Architecture.per_layer_size`, or nothing
    # the step's keys and values, by the layer that made them, for those that read them later
    kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Embedding(nn.Module):
    """Rows of the embedding, decoded when they are asked for."""

    raw: Tensor

    def __init__(self, blocks: QuantTensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.quant_type, self.shape, self.dtype = blocks.quant_type, blocks.shape, dtype
        self.register_buffer("raw", blocks.raw, persistent=False)  # moves with the module

    def forward(self, tokens: Tensor) -> Tensor:
        """[N] -> [N, D]."""
        return QuantTensor(self.quant_type, self.shape, self.raw).rows(tokens, self.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * weight."""

    def __init__(self, blocks: QuantTensor, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(blocks.dequantize(dtype)[0], requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, D]."""
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class LayerNorm(RMSNorm):
    """(x - mean(x)) / deviation(x) * weight, and a bias where there is one."""

    def __init__(
        self, blocks: QuantTensor, eps: float, dtype: torch.dtype, bias: QuantTensor | None
    ) -> None:
        super().__init__(blocks, eps, dtype)
        shift = None if bias is None else bias.dequantize(dtype)[0]
        self.bias = None if shift is None else nn.Parameter(shift, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, D]."""
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class LayerMaker:
    """Turns the file's blocks into the parts of a layer."""

    linear: MakeLinear
    eps: float
    dtype: torch.dtype
    layer_norms: bool = False  # as `Architecture` has it
    norm_biases: bool = False

    def norm(self, blocks: QuantTensor) -> RMSNorm:
        """A norm of a head or of all of them."""
        return RMSNorm(blocks, self.eps, self.dtype)

    def wide_norm(self, own: Mapping[str, QuantTensor], name: str) -> RMSNorm:
        """A norm over the width."""
        if self.layer_norms:
            bias = own[f"{name}.bias"] if self.norm_biases else None
            return LayerNorm(own[name], self.eps, self.dtype, bias)
        return self.norm(own[name])

    def vector(self, blocks: QuantTensor) -> nn.Parameter:
        """One row of numbers, [columns]."""
        return nn.Parameter(blocks.dequantize(self.dtype)[0], requires_grad=False)

    def exact_vector(self, blocks: QuantTensor) -> nn.Parameter:
        """The same in float32, for what is computed in it whatever the others' type."""
        return nn.Parameter(blocks.dequantize(torch.float32)[0], requires_grad=False)

    def biases(
        self,
        module: nn.Module,
        architecture: Architecture,
        own: Mapping[str, QuantTensor],
        prefix: str,
    ) -> None:
        """Put the biases of projections below `prefix` into `module`, for `projected`."""
        for name in PROJECTIONS:
            leaf = name.rpartition(".")[2]
            if architecture.has_bias(prefix + leaf) and f"{prefix}{leaf}.bias" in own:
                bias = self.vector(own[f"{prefix}{leaf}.bias"])
                module.register_parameter(leaf.replace("_proj", "_bias"), bias)


def projected(module: nn.Module, name: str, x: Tensor) -> Tensor:
    """The product with the module's `{name}_proj`, and its bias where it has one."""
    y: Tensor = getattr(module, f"{name}_proj")(x)
    bias = module._parameters.get(f"{name}_bias")
    return y if bias is None else y + bias


class SelfAttention(nn.Module):
    """The four projections around attention, and rope."""

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module

    def __init__(
        self,
        layer: int,
        architecture: Architecture,
        own: Mapping[str, QuantTensor],
        make: LayerMaker,
    ) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, architecture.head_size(layer)
        self.source = architecture.kv_source(layer)
        self.read_later = architecture.kv_sources.count(layer) > 1
        for name in "qkvo" if self.source == layer else "qo":
            setattr(self, f"{name}_proj", make.linear(own[f"self_attn.{name}_proj"]))
        make.biases(self, architecture, own, "self_attn.")
        self.wide_norm = architecture.wide_qk_norm
        normed = architecture.qk_norm and "self_attn.q_norm" in own
        self.q_norm = make.norm(own["self_attn.q_norm"]) if normed else None
        keyed = normed and self.source == layer
        self.k_norm = make.norm(own["self_attn.k_norm"]) if keyed else None
        self.value_eps = make.eps if architecture.value_norm else None
        self.growing = architecture.grows(layer)
        # Every attention divides by sqrt(head_dim); a family that wants another factor gets the
        # rest of it here.
        self.q_scale = architecture.attention_scale * self.head_dim**0.5 or 1.0
        sinks = make.vector(own["self_attn.sinks"]) if architecture.sinks else None
        self.register_parameter("sinks", sinks)
        slopes = torch.from_numpy(architecture.slopes()) if architecture.alibi else None
        self.rule = ScoreRule(architecture.attention_softcap, sinks, slopes)
        self.norm_last = architecture.qk_norm_last
        gated = architecture.attention_gate
        self.out_gate = make.linear(own["self_attn.out_gate"]) if gated else None

    def queries(self, x: Tensor, rope: CosSin | None) -> Tensor:
        """[N, D] -> [N, H, hd], ready for attention."""
        q = self._turned("q", x, self.q_norm, rope)
        if self.growing and rope is not None:
            q = q * rope[1]
        return q if self.q_scale == 1.0 else q * self.q_scale

    def keys(self, x: Tensor, rope: CosSin | None) -> Tensor:
        """[N, D] -> [N, KV, hd], ready for attention."""
        return self._turned("k", x, self.k_norm, rope)

    def values(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, KV, hd]."""
        heads = self._heads("v", x, None)
        if self.value_eps is None:
            return heads
        return functional.rms_norm(heads, heads.shape[-1:], None, self.value_eps)

    def keys_values(
        self, x: Tensor, rope: CosSin | None, beside: LayerInputs | None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of rows [N, D], the layer's own or those of the one that it reads.

        Raises:
            ModelError: that one was not computed.
        """
        if self.source == self.layer:
            made = self.keys(x, rope), self.values(x)
            if beside is not None and self.read_later:
                beside.kept[self.layer] = made
            return made
        found = beside and beside.kept.get(self.source)
        if not found:
            raise ModelError(
                f"layer {self.layer} reads keys of layer {self.source}, and is not computed "
                f"without it; take another model"
            )
        return found

    def out(self, mixed: Tensor) -> Tensor:
        """[N, H, hd] -> [N, D]."""
        return projected(self, "o", mixed.flatten(1))

    def forward(
        self,
        x: Tensor,
        rope: CosSin | None,
        attention: Attention,
        beside: LayerInputs | None = None,
    ) -> Tensor:
        """[N, D] -> [N, D]."""
        q, (k, v) = self.queries(x, rope), self.keys_values(x, rope, beside)
        return self.out(self.closed(self.mixed(attention, q, k, v), x))

    def closed(self, mixed: Tensor, x: Tensor) -> Tensor:
        """What attention gave, [N, H, hd], through the gates of its rows [N, D]."""
        if self.out_gate is None:
            return mixed
        return mixed * cast(Tensor, self.out_gate(x)).sigmoid().view(mixed.shape)

    def mixed(self, attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What queries [N, H, hd] see of keys and values [N, KV, hd], [N, H, hd]."""
        if self.rule.plain:
            return attention(self.layer, q, k, v)
        return attention(self.layer, q, k, v, self.rule)

    def _turned(
        self, letter: str, x: Tensor, norm: nn.Module | None, rope: CosSin | None
    ) -> Tensor:
        if norm is None or not self.norm_last:
            return apply_rope(self._heads(letter, x, norm), rope)
        heads: Tensor = norm(apply_rope(self._heads(letter, x, None), rope))
        return heads

    def _heads(self, letter: str, x: Tensor, norm: nn.Module | None) -> Tensor:
        rows = projected(self, letter, x)
        if norm is not None and self.wide_norm:
            rows = norm(rows)
        heads = rows.view(x.shape[0], -1, self.head_dim)
        return heads if norm is None or self.wide_norm else norm(heads)


class LatentAttention(SelfAttention):
    """Attention whose keys and values are made of one small vector a row, and whose heads share the
    numbers that rope turns.

    Source: DeepSeek-AI 2024 (DeepSeek-V2), section 2.1; heads are made whole before they are
    kept.
    """

    def __init__(
        self,
        layer: int,
        architecture: Architecture,
        own: Mapping[str, QuantTensor],
        make: LayerMaker,
    ) -> None:
        super().__init__(layer, architecture, own, make)
        self.kv_down = make.linear(own["self_attn.kv_down"])
        self.kv_down_norm = make.norm(own["self_attn.kv_down_norm"])
        if architecture.query_rank:
            self.q_down = make.linear(own["self_attn.q_down"])
            self.q_down_norm = make.norm(own["self_attn.q_down_norm"])
        self.low_queries = bool(architecture.query_rank)
        self.latent, self.heads = architecture.latent_size, architecture.num_heads
        self.value_size = architecture.value_size

    def queries(self, x: Tensor, rope: CosSin | None) -> Tensor:
        """As `SelfAttention.queries`."""
        return super().queries(self.q_down_norm(self.q_down(x)) if self.low_queries else x, rope)

    def keys(self, x: Tensor, rope: CosSin | None) -> Tensor:
        """As `SelfAttention.keys`."""
        low = self.kv_down(x)
        shared = apply_rope(low[:, None, self.latent :], rope).expand(-1, self.heads, -1)
        own = self.k_proj(self.kv_down_norm(low[:, : self.latent]))
        return torch.cat([shared, own.view(len(x), self.heads, -1)], dim=-1)

    def values(self, x: Tensor) -> Tensor:
        """As `SelfAttention.values`, zeros behind the numbers of each head."""
        low = self.kv_down_norm(self.kv_down(x)[:, : self.latent])
        values = self.v_proj(low).view(len(x), self.heads, -1)
        return functional.pad(values, (0, self.head_dim - self.value_size))

    def out(self, mixed: Tensor) -> Tensor:
        """As `SelfAttention.out`."""
        return super().out(mixed.view(len(mixed), self.heads, -1)[..., : self.value_size])


class ShortConvolution(nn.Module):
    """What stands in the place of attention in LFM2: each row's numbers, let through by a gate,
    are summed over the last few rows by weights of their own, and pass a second gate.

    Source: Liquid AI 2025 (LFM2), as transformers' `models/lfm2` computes it.
    """

    def __init__(
        self,
        layer: int,
        architecture: Architecture,
        own: Mapping[str, QuantTensor],
        make: LayerMaker,
    ) -> None:
        super().__init__()
        self.layer, self.taps = layer, architecture.conv_kernel
        self.in_proj = make.linear(own["conv.in_proj"])
        self.out_proj = make.linear(own["conv.out_proj"])
        self.kernel = make.vector(own["conv.kernel"])

    def forward(self, x: Tensor, rope: CosSin | None, attention: Attention) -> Tensor:  # noqa: ARG002
        """[N, D] -> [N, D]."""
        memory = row_memory(attention)
        opened, gate, rows = self.in_proj(x).chunk(3, dim=-1)
        seen = memory.recent(self.layer, opened * rows, self.taps)  # [N, taps, D]
        out: Tensor = self.out_proj(gate * (seen * self.kernel.view(self.taps, -1)).sum(1))
        return out


class GatedDeltaNet(nn.Module):
    """What stands in the place of attention in Qwen3-Next: each value head keeps a matrix of keys
    by values, forgets a part of it with every row, and corrects by the row's value what the
    matrix gives for its key.

    Source: Yang et al. 2024 (Gated Delta Networks), equation 10, as transformers'
    `models/qwen3_next` computes it row by row.
    """

    in_proj: nn.Module
    gate: nn.Module
    beta: nn.Module
    alpha: nn.Module
    out_proj: nn.Module
    kernel: Tensor
    decay: Tensor
    decay_bias: Tensor

    def __init__(
        self,
        layer: int,
        architecture: Architecture,
        own: Mapping[str, QuantTensor],
        make: LayerMaker,
    ) -> None:
        super().__init__()
        self.layer, self.architecture = layer, architecture
        for name in ("in_proj", "gate", "beta", "alpha", "out_proj"):
            setattr(self, name, make.linear(own[f"linear_attn.{name}"]))
        self.norm = RMSNorm(own["linear_attn.gain"], make.eps, torch.float32)
        for name in ("kernel", "decay", "decay_bias"):
            self.register_parameter(name, make.exact_vector(own[f"linear_attn.{name}"]))

    def forward(self, x: Tensor, rope: CosSin | None, attention: Attention) -> Tensor:  # noqa: ARG002
        """[N, D] -> [N, D]."""
        memory, own = row_memory(attention), self.architecture
        rows = self.in_proj(x).float()
        learn = self.beta(x).float().sigmoid()
        keep = self.decay * functional.softplus(self.alpha(x).float() + self.decay_bias)
        out = rows.new_zeros(len(x), own.delta_value_heads, own.delta_value_dim)
        for part, state in memory.sequences(self.layer):
            seen = convolved(rows[part], state, self.kernel)
            out[part] = self._remembered(seen, learn[part], keep[part], state)
        gate = functional.silu(self.gate(x).float()).view(out.shape)
        made: Tensor = self.out_proj((self.norm(out) * gate).flatten(1).to(x.dtype))
        return made

    def _remembered(
        self, rows: Tensor, learn: Tensor, keep: Tensor, state: dict[str, Tensor]
    ) -> Tensor:
        """[n, W] of one sequence, [n, heads] twice -> [n, heads, value numbers]; the matrices after
        its last row are remembered. `keep`: logarithms.
        """
        own = self.architecture
        keys, heads = own.delta_key_heads * own.delta_key_dim, own.delta_value_heads
        q, k, v = torch.split(rows, [keys, keys, rows.shape[1] - 2 * keys], dim=1)
        served = torch.arange(heads)
        groups = heads // own.delta_key_heads
        served = served % own.delta_key_heads if own.delta_tiled else served // groups
        q, k = (
            unit_length(one.view(len(rows), own.delta_key_heads, -1))[:, served] for one in (q, k)
        )
        q, v = q * own.delta_key_dim**-0.5, v.view(len(rows), heads, -1)
        return recurred(q, k, v, keep, state, learn)


class SelectiveScan(nn.Module):
    """What stands in the place of attention in Granite 4's hybrids, or beside it: each head keeps a
    matrix of a state by its numbers, forgets a part of it with every row, by a step of that row's,
    and adds the row's input times what it writes by.

    Source: Dao and Gu 2024 (Mamba-2), section 3, as transformers' `models/granitemoehybrid`
    computes it row by row.
    """

    in_proj: nn.Module
    gate: nn.Module
    alpha: nn.Module
    out_proj: nn.Module
    kernel: Tensor
    decay: Tensor
    decay_bias: Tensor
    skip: Tensor
    bias: Tensor
    gain: Tensor | None

    def __init__(
        self,
        layer: int,
        architecture: Architecture,
        own: Mapping[str, QuantTensor],
        make: LayerMaker,
    ) -> None:
        super().__init__()
        self.layer, self.architecture, self.eps = layer, architecture, make.eps
        for name in ("in_proj", "gate", "alpha", "out_proj"):
            setattr(self, name, make.linear(own[f"linear_attn.{name}"]))
        for name in ("kernel", "decay", "decay_bias", "skip"):
            self.register_parameter(name, make.exact_vector(own[f"linear_attn.{name}"]))
        self.register_parameter("bias", make.exact_vector(own["linear_attn.kernel.bias"]))
        gain = make.exact_vector(own["linear_attn.gain"]) if architecture.scan_norm else None
        self.register_parameter("gain", gain)

    def forward(self, x: Tensor, rope: CosSin | None, attention: Attention) -> Tensor:  # noqa: ARG002
        """[N, D] -> [N, D]."""
        memory, own = row_memory(attention), self.architecture
        rows = self.in_proj(x).float()
        steps = functional.softplus(self.alpha(x).float() + self.decay_bias)  # [N, heads]
        out = rows.new_zeros(len(x), own.delta_value_heads, own.delta_value_dim)
        for part, state in memory.sequences(self.layer):
            seen = convolved(rows[part], state, self.kernel, self.bias)
            out[part] = self._scanned(seen, steps[part], state)
        closed = out.flatten(1) * functional.silu(self.gate(x).float())
        if self.gain is not None:
            groups = closed.unflatten(1, (own.delta_key_heads, -1))
            closed = functional.rms_norm(groups, groups.shape[2:], None, self.eps).flatten(1)
            closed = closed * self.gain
        made: Tensor = self.out_proj(closed.to(x.dtype))
        return made

    def _scanned(self, rows: Tensor, steps: Tensor, state: dict[str, Tensor]) -> Tensor:
        """[n, W] of one sequence, [n, heads] -> [n, heads, numbers]; the matrices after its last
        row are remembered.
        """
        own = self.architecture
        keys, heads = own.delta_key_heads * own.delta_key_dim, own.delta_value_heads
        read, write, x = torch.split(rows, [keys, keys, rows.shape[1] - 2 * keys], dim=1)
        each = heads // own.delta_key_heads
        read, write = (
            one.view(len(rows), own.delta_key_heads, -1).repeat_interleave(each, dim=1)
            for one in (read, write)
        )
        x = x.view(len(rows), heads, -1)
        out = recurred(read, write, x * steps[..., None], self.decay * steps, state)
        return out + x * self.skip[:, None]


def convolved(
    rows: Tensor, state: dict[str, Tensor], kernel: Tensor, bias: Tensor | None = None
) -> Tensor:
    """[n, W] of one sequence -> [n, W], by a kernel of [taps * W]; its last rows are remembered."""
    taps = kernel.numel() // rows.shape[1]
    before = state.get("rows", rows.new_zeros(taps - 1, rows.shape[1]))
    whole = torch.cat([before, rows])
    state["rows"] = whole[len(rows) :].clone()
    summed = (whole.unfold(0, taps, 1) * kernel.view(taps, -1).T).sum(-1)
    return functional.silu(summed if bias is None else summed + bias)


def recurred(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor,
    state: dict[str, Tensor],
    learn: Tensor | None = None,
) -> Tensor:
    """What each head's matrix gives for q after every row: what it held is forgotten down to
    exp(keep), and k v^T is added; with `learn`, of v only a part of what the matrix lacks to give v
    for k. Dozens of rows are taken at a time, their sums with each other as products of matrices:
    so few numbers are kept for going back.

    Args:
        q, k: [n, H, K]; v: [n, H, V]; keep, learn: [n, H].
        state: of the sequence, with its matrices [H, K, V] behind its last row.

    Returns:
        [n, H, V].

    Source: Yang et al. 2024 (Gated Delta Networks), section 3.3; Dao and Gu 2024 (Mamba-2),
    section 6.
    """
    heads, made = v.shape[1], []
    matrix = state.get("matrix", v.new_zeros(heads, k.shape[-1], v.shape[-1]))
    given = [one.transpose(0, 1) for one in (q, k, v, keep)]
    for first in range(0, len(v), RECURRED_ROWS):
        query, key, value, fall = (one[:, first : first + RECURRED_ROWS] for one in given)
        rows = value.shape[1]
        since = fall.cumsum(1)  # logarithms of what is left of what stood before the first row
        earlier = torch.ones(rows, rows, dtype=torch.bool, device=v.device).tril_()
        apart = (since[:, :, None] - since[:, None]).masked_fill(~earlier, -torch.inf).exp()
        left = since.exp()[..., None]
        if learn is not None:
            part = learn.T[:, first : first + rows, None]
            among = (key @ key.transpose(1, 2) * apart * part).tril(-1)
            lacking = part * (value - left * (key @ matrix))
            value = torch.linalg.solve_triangular(among, lacking, upper=False, unitriangular=True)
        made.append(left * (query @ matrix) + (query @ key.transpose(1, 2) * apart) @ value)
        rest = (since[:, -1:] - since).exp()[..., None]
        matrix = left[:, -1:] * matrix + (key * rest).transpose(1, 2) @ value
    state["matrix"] = matrix
    return torch.cat(made, 1).transpose(0, 1) if made else torch.empty_like(v)


def unit_length(heads: Tensor) -> Tensor:
    """Each head [..., size] divided by its length."""
    return heads * (heads.square().sum(-1, keepdim=True) + 1e-6).rsqrt()


def row_memory(attention: Attention) -> RowMemory:
    """The attention, as one that remembers rows.

    Raises:
        ValueError: it does not.
    """
    if not hasattr(attention, "recent"):
        raise ValueError(
            "this model's layers remember rows, and the attention it was given keeps none"
        )
    return cast(RowMemory, attention)


class FeedForward(nn.Module):
    """A gated product: SwiGLU, or with Gemma's activation GeGLU."""

    def __init__(
        self,
        architecture: Architecture,
        own: Mapping[str, QuantTensor],
        make: LayerMaker,
        prefix: str = "mlp.",
    ) -> None:
        """`prefix`: of its matrices' names inside the layer."""
        super().__init__()
        self.gated, self.activation = architecture.gated, architecture.activation
        self.cutoff = -math.inf  # as `Architecture.gate_cutoffs`
        for name in architecture.mlp_projections:
            short = name.removeprefix("mlp.")
            setattr(self, short, make.linear(own[f"{prefix}{short}"]))
        make.biases(self, architecture, own, prefix)

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, D]."""
        up = projected(self, "up", x)
        if not self.gated:
            return projected(self, "down", ACTIVATIONS[self.activation](up))
        gate = projected(self, "gate", x)
        if self.cutoff > -math.inf:
            gate = far_above(gate, self.cutoff)
        if self.activation == "swiglu_oai":
            return projected(self, "down", swiglu_oai(gate, up))
        return projected(self, "down", ACTIVATIONS[self.activation](gate) * up)


def far_above(gate: Tensor, cutoff: float) -> Tensor:
    """By how much numbers of a row [N, F] are above its mean and so many deviations, or 0.

    Source: Gemma 3n, as transformers' `models/gemma3n` computes it.
    """
    wide = gate.float()
    least = wide.mean(-1, keepdim=True) + cutoff * wide.std(-1, keepdim=True, unbiased=False)
    return functional.relu(wide - least).to(gate.dtype)


def swiglu_oai(gate: Tensor, up: Tensor) -> Tensor:
    """The gate of gpt-oss: clamped, steeper than SiLU, and open to 1 more than `up`."""
    gate, up = gate.clamp(max=CLAMP), up.clamp(-CLAMP, CLAMP)
    return (up + 1) * gate * (STEEPNESS * gate).sigmoid()


class ExpertFeedForward(nn.Module):
    """Many feed-forwards, of which each row takes the few that a router scores highest, by their
    shares.

    Source: Shazeer et al. 2017; shares as Mixtral's and Qwen3's, a softmax over all experts; as
    DeepSeek-V3's, a sigmoid of each, chosen by another number and from the best groups alone.
    """

    routing_bias: Tensor | None
    router_bias: Tensor | None
    shared_gate: Tensor | None

    def __init__(
        self, architecture: Architecture, own: Mapping[str, QuantTensor], make: LayerMaker
    ) -> None:
        super().__init__()
        self.gate = make.linear(own["mlp.gate"])
        self.experts = nn.ModuleList(
            FeedForward(architecture, own, make, f"mlp.experts.{expert}.")
            for expert in range(architecture.num_experts)
        )
        self.architecture = architecture
        rare = {
            "routing_bias": architecture.routing_bias and "mlp.gate_correction.bias",
            "router_bias": architecture.expert_biases and "mlp.gate.bias",
            "shared_gate": architecture.shared_gate and "mlp.shared_expert_gate",
        }
        for ours, theirs in rare.items():
            self.register_parameter(ours, make.vector(own[theirs]) if theirs else None)
        self.shared_experts = (
            FeedForward(architecture, own, make, "mlp.shared_experts.")
            if architecture.shared_size
            else None
        )

    def routed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shares and numbers of each row's experts, [N, taken] each."""
        architecture, logits = self.architecture, self.gate(x).float()
        if self.router_bias is not None:
            logits = logits + self.router_bias
        scores = logits.softmax(-1) if architecture.routing == "softmax" else logits.sigmoid()
        choice = scores if self.routing_bias is None else scores + self.routing_bias
        if (groups := architecture.expert_groups) > 1:
            grouped = choice.view(len(x), groups, -1)
            best = grouped.topk(min(2, grouped.shape[-1]), -1)[0].sum(-1)
            kept = best.topk(architecture.groups_per_token, -1)[1]
            there = torch.zeros_like(best, dtype=torch.bool).scatter_(1, kept, value=True)
            choice = grouped.masked_fill(~there[..., None], -torch.inf).flatten(1)
        chosen: Tensor = choice.topk(architecture.experts_per_token)[1]
        shares = scores.gather(1, chosen)
        if architecture.expert_norm:
            shares = shares / shares.sum(-1, keepdim=True)
        return shares * architecture.expert_scale, chosen

    def beside(self, x: Tensor) -> Tensor:
        """What the feed-forward for all rows gives, [N, D] -> [N, D]."""
        if self.shared_experts is None:
            return torch.zeros_like(x)
        out: Tensor = self.shared_experts(x)
        return out if self.shared_gate is None else out * (x @ self.shared_gate).sigmoid()[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, D]."""
        shares, chosen = self.routed(x)
        out = self.beside(x)
        before = self.architecture.expert_inputs
        for expert in sorted(set(chosen.flatten().tolist())):
            rows, place = (chosen == expert).nonzero(as_tuple=True)
            share = shares[rows, place, None].to(x.dtype)
            one = self.experts[expert]
            made = one(x[rows] * share) if before else one(x[rows]) * share
            out = out.index_add(0, rows, made)
        return out


class AlternatingUpdates(nn.Module):
    """Several streams of rows, of which a layer computes the first: the others are foreseen from
    all before it and corrected by what it makes of the first.

    Source: Baykal et al. 2023 (AltUp), as transformers' `models/gemma3n` computes it.
    """

    def __init__(
        self, architecture: Architecture, own: Mapping[str, QuantTensor], make: LayerMaker
    ) -> None:
        super().__init__()
        self.streams, self.less = architecture.streams, architecture.hidden_size**-1.0
        self.router = make.linear(own["altup.router"])
        self.norm = make.norm(own["altup.norm"])
        for name in ("predict", "correct"):
            coefficients = own[f"altup.{name}"].dequantize(torch.float32)
            self.register_buffer(name, coefficients, persistent=False)
        self.scale = make.vector(own["altup.scale"])

    def modalities(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, S]."""
        return cast(Tensor, self.router(self.norm(x) * self.less)).float().tanh()

    def foreseen(self, streams: Tensor) -> Tensor:
        """[S, N, D] -> [S, N, D], before a layer."""
        shares = self.modalities(streams[0]) @ cast(Tensor, self.predict).T  # [N, S * S]
        each = shares.view(-1, self.streams, self.streams).to(streams.dtype)
        return streams + torch.einsum("jnd,nij->ind", streams, each)

    def corrected(self, streams: Tensor, x: Tensor) -> Tensor:
        """Those foreseen [S, N, D], and what the layer made of the first [N, D] -> [S, N, D]."""
        shares = self.modalities(x) @ cast(Tensor, self.correct).T + 1.0  # [N, S]
        return streams + shares.T[:, :, None].to(x.dtype) * (x - streams[0])


class Laurel(nn.Module):
    """Rows, and what a product of low rank makes of them, normed."""

    def __init__(self, own: Mapping[str, QuantTensor], make: LayerMaker) -> None:
        super().__init__()
        self.left, self.right = (make.linear(own[f"laurel.{side}"]) for side in ("left", "right"))
        self.norm = make.norm(own["laurel.norm"])

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, D]."""
        out: Tensor = x + self.norm(self.right(self.left(x)))
        return out


class GivenRows(nn.Module):
    """What a layer makes of the numbers that it is given of each row beside the stream, which opens
    a gate for them.

    Source: Gemma 3n and 4, as transformers' `models/gemma4` computes it.
    """

    def __init__(
        self, architecture: Architecture, own: Mapping[str, QuantTensor], make: LayerMaker
    ) -> None:
        super().__init__()
        self.activation = architecture.activation
        self.gate, self.proj = (
            make.linear(own["per_layer.gate"]),
            make.linear(own["per_layer.proj"]),
        )
        self.norm = make.norm(own["per_layer.norm"])

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        """[N, D], [N, P] -> [N, D]."""
        out: Tensor = self.norm(self.proj(ACTIVATIONS[self.activation](self.gate(x)) * given))
        return out


class DecoderLayer(nn.Module):
    """Attention, a convolution or a recurrence, then feed-forward, each on a normed copy and added
    back; Gemma norms what it adds as well, OLMo 2 that alone.
    """

    input_layernorm: RMSNorm
    post_attention_layernorm: RMSNorm
    pre_feedforward_layernorm: RMSNorm
    post_feedforward_layernorm: RMSNorm
    mlp: nn.Module | None  # None: nothing is behind its mixer
    layer_scale: Tensor | None

    def __init__(self, layer: int, weights: Weights, make: LayerMaker) -> None:
        super().__init__()
        architecture, prefix = weights.architecture, f"model.layers.{layer}."
        own = {
            name.removeprefix(prefix).removesuffix(".weight"): blocks
            for name, blocks in weights.tensors.items()
            if name.startswith(prefix)
        }
        self.layer, self.post_norms = layer, architecture.post_norms
        self.pre_norms, self.scale = architecture.pre_norms, architecture.residual_scale
        self.parallel, self.one_norm = architecture.parallel, architecture.one_norm
        lone = architecture.is_lone(layer)
        for name in architecture.norms()[:1] if lone else architecture.norms():
            setattr(self, name, make.wide_norm(own, name))
        attention = LatentAttention if architecture.latent_size else SelfAttention
        if architecture.is_convolution(layer):
            self.conv = ShortConvolution(layer, architecture, own, make)
        if architecture.is_delta(layer):
            recurrence = SelectiveScan if architecture.state_spaces else GatedDeltaNet
            self.linear_attn = recurrence(layer, architecture, own, make)
        if architecture.attends(layer):
            self.self_attn = attention(layer, architecture, own, make)
        mlp = ExpertFeedForward if architecture.is_mixture(layer) else FeedForward
        self.mlp = None if lone else mlp(architecture, own, make)
        if architecture.gate_cutoffs and isinstance(self.mlp, FeedForward):
            self.mlp.cutoff = architecture.gate_cutoffs[layer]
        if architecture.streams:
            self.altup = AlternatingUpdates(architecture, own, make)
            self.laurel = Laurel(own, make)
        given = bool(architecture.per_layer_size)
        self.per_layer = GivenRows(architecture, own, make) if given else None
        out = make.vector(own["layer_scale"]) if architecture.layer_scales else None
        self.register_parameter("layer_scale", out)

    def attention_input(self, x: Tensor) -> Tensor:
        """What attention sees of the rows, [N, D] -> [N, D]."""
        out: Tensor = self.input_layernorm(x) if self.pre_norms else x
        return out

    def attention_residual(self, mixed: Tensor) -> Tensor:
        """What the attention's output [N, D] adds."""
        return self._scaled(self.post_attention_layernorm(mixed) if self.post_norms else mixed)

    def mlp_residual(self, x: Tensor) -> Tensor:
        """What the feed-forward adds, [N, D] -> [N, D]."""
        if self.mlp is None:
            raise RuntimeError(f"layer {self.layer} has no feed-forward")
        if self.one_norm:
            return self._scaled(self.mlp(self.input_layernorm(x)))
        if not self.post_norms:
            return self._scaled(self.mlp(self.post_attention_layernorm(x)))
        seen = self.pre_feedforward_layernorm(x) if self.pre_norms else x
        return self._scaled(self.post_feedforward_layernorm(self.mlp(seen)))

    def forward(
        self, x: Tensor, rope: RopeTables, attention: Attention, beside: LayerInputs | None = None
    ) -> Tensor:
        """[N, D] -> [N, D]."""
        seen, turned = self.attention_input(x), rope[self.layer]
        found = [self._modules.get(name) for name in ("conv", "linear_attn")]
        mixed = [one(seen, turned, attention) for one in found if one is not None]
        if "self_attn" in self._modules:
            mixed.append(self.self_attn(seen, turned, attention, beside))
        out = self.with_mlp(x, self.attention_residual(sum(mixed[1:], mixed[0])))
        if self.per_layer is not None and beside is not None and beside.given is not None:
            out = out + self.per_layer(out, beside.given[:, self.layer])
        return out if self.layer_scale is None else out * self.layer_scale

    def alternate(
        self, streams: Tensor, rope: RopeTables, attention: Attention, beside: LayerInputs
    ) -> Tensor:
        """The same of several streams, [S, N, D] -> [S, N, D]."""
        if self.per_layer is None or beside.given is None:
            raise RuntimeError(f"layer {self.layer} is given nothing beside its streams")
        streams = self.altup.foreseen(streams)
        x = streams[0]
        seen = self.attention_input(x)
        mixed = self.self_attn(seen, rope[self.layer], attention, beside)
        x = (x + self.attention_residual(mixed) + self.laurel(seen)) * 2**-0.5
        streams = self.altup.corrected(streams, x + self.mlp_residual(x))
        first = streams[0] * self.altup.scale
        added = self.per_layer(first, beside.given[:, self.layer])
        return torch.cat([streams[:1], streams[1:] + added])

    def with_mlp(self, x: Tensor, added: Tensor) -> Tensor:
        """Rows [N, D], what attention adds to them, and what the feed-forward adds."""
        if self.parallel:
            return x + added + self.mlp_residual(x)
        x = x + added
        return x if self.mlp is None else x + self.mlp_residual(x)

    def _scaled(self, added: Tensor) -> Tensor:
        return added if self.scale == 1.0 else added * self.scale


class Decoder(nn.Module):
    """The part that Hugging Face calls `model`; its layers keep their numbers even where the
    lower ones are absent.
    """

    def __init__(self, weights: Weights, make: LayerMaker, numbers: range) -> None:
        super().__init__()
        self.embed_tokens = Embedding(weights.tensors["model.embed_tokens.weight"], make.dtype)
        self.layers = nn.ModuleDict(
            {str(number): DecoderLayer(number, weights, make) for number in numbers}
        )
        ends = {
            name.removesuffix(".weight"): blocks
            for name, blocks in weights.tensors.items()
            if name.startswith("model.norm.")
        }
        self.norm = make.wide_norm(ends, "model.norm")
        first = {
            name.removesuffix(".weight"): blocks
            for name, blocks in weights.tensors.items()
            if name.startswith("model.embed_norm.")
        }
        self.embed_norm = (
            make.wide_norm(first, "model.embed_norm")
            if weights.architecture.embedding_norm
            else None
        )
        self.embed_positions = (
            Embedding(weights.tensors["model.embed_positions.weight"], make.dtype)
            if weights.architecture.positions
            else None
        )
        if weights.architecture.per_layer_size:
            own = weights.tensors
            self.embed_per_layer = Embedding(own["model.embed_per_layer.weight"], make.dtype)
            self.per_layer_proj = make.linear(own["model.per_layer_proj.weight"])
            self.per_layer_norm = make.norm(own["model.per_layer_norm.weight"])
        if weights.architecture.streams:
            for name in ("altup_proj", "altup_unembed"):
                setattr(self, name, make.linear(weights.tensors[f"model.{name}.weight"]))


class Transformer(nn.Module):
    """A decoder, or a slice of its layers.

    Layers outside [first_layer, last_layer) are absent, and so is the head where the last layer is:
    a frozen prefix needs neither. The embedding is always there; it is a view on the file.
    """

    head_bias: Tensor | None

    def __init__(
        self,
        weights: Weights,
        make_linear: MakeLinear,
        *,
        first_layer: int = 0,
        last_layer: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.architecture = weights.architecture
        self.first_layer, self.last_layer = (
            first_layer,
            self.architecture.num_layers if last_layer is None else last_layer,
        )
        if not 0 <= self.first_layer <= self.last_layer <= self.architecture.num_layers:
            raise ValueError(
                f"layers [{first_layer}, {last_layer}) are not in "
                f"[0, {self.architecture.num_layers})"
            )
        own = self.architecture
        make = LayerMaker(make_linear, own.norm_eps, dtype, own.layer_norms, own.norm_biases)
        self.model = Decoder(weights, make, range(self.first_layer, self.last_layer))
        whole = self.last_layer == self.architecture.num_layers
        self.lm_head = make_linear(weights.tensors["lm_head.weight"]) if whole else None
        bias = make.vector(weights.tensors["lm_head.bias"]) if own.head_bias else None
        self.register_parameter("head_bias", bias)
        # One rope a kind of layer: Gemma 3 has two, SmolLM3 one and none, most others one.
        self.ropes = [
            (own.rope_base(layer), own.stretched(layer), own.turned_in(layer))
            for layer in range(own.num_layers)
        ]
        for kind, layer in self._kinds().items():
            inv_freq = torch.from_numpy(self.architecture.inv_freq(layer))
            self.register_buffer(f"inv_freq_{kind}", inv_freq, persistent=False)

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids [N] -> rows [N, D], and behind their numbers those that each layer is given of
        them, where there are any: [N, D + L * P].
        """
        out: Tensor = self.model.embed_tokens(tokens)
        scale = self.architecture.embedding_scale
        out = out if scale == 1.0 else out * scale
        if self.model.embed_norm is not None:
            out = self.model.embed_norm(out)
        if not (size := self.architecture.per_layer_size):
            return out
        made = self.model.per_layer_proj(out) * self.architecture.hidden_size**-0.5
        made = self.model.per_layer_norm(made.unflatten(1, (-1, size))).flatten(1)
        if known := self.architecture.per_layer_tokens:
            tokens = torch.where(tokens < known, tokens, 0)
        given = (made + self.model.embed_per_layer(tokens) * size**0.5) * 2**-0.5
        return torch.cat([out, given], dim=1)

    def layers_forward(self, x: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """Through the layers that are present, [N, D] -> [N, D], what stands behind those numbers
        staying as long as further layers follow; positions [N] count from 0 in each sequence.
        """
        check_windows(attention, self.architecture.windows)
        rope = self.rope_tables(positions, x.dtype)
        width, each = self.architecture.hidden_size, self.architecture.per_layer_size
        rest, beside = x[:, width:], None
        if each or self.architecture.kv_sources:
            beside = LayerInputs(rest.reshape(len(rest), -1, each) if each else None)
            x = x[:, :width]
        if self.model.embed_positions is not None and self.first_layer == 0:
            x = x + self.model.embed_positions(positions)
        if self.architecture.streams and beside is not None:
            return self._alternate(x, rope, attention, beside)
        for layer in self.model.layers.values():
            x = layer(x, rope, attention, beside)
        return torch.cat([x, rest], dim=1) if each and self.lm_head is None else x

    def _alternate(
        self, x: Tensor, rope: RopeTables, attention: Attention, beside: LayerInputs
    ) -> Tensor:
        """All layers over several streams, each made of the one at first and made one at last, as
        large as it: [N, D] -> [N, D].
        """
        if len(self.model.layers) != self.architecture.num_layers:
            raise ModelError("streams of rows go through all layers of a model or none")
        width = self.architecture.hidden_size
        made = cast(nn.Module, self.model.altup_proj)(x)  # of all further ones, side by side
        others = made.view(len(x), -1, width).transpose(0, 1)
        streams = torch.cat([x[None], as_large(others, x)])
        for layer in self.model.layers.values():
            streams = cast(DecoderLayer, layer).alternate(streams, rope, attention, beside)
        # each of the others by its own part of the matrix
        whole = cast(nn.Module, self.model.altup_unembed)(streams[1:].flatten(0, 1)).view(
            len(streams) - 1, len(x), -1, width
        )
        each = torch.stack([whole[place, :, place] for place in range(len(whole))])
        return torch.cat([streams[:1], as_large(each, streams[0])]).mean(0)

    def logits(self, x: Tensor) -> Tensor:
        """Norm and head, [N, D] -> [N, V]."""
        if self.lm_head is None:
            raise RuntimeError(
                f"layers end at {self.last_layer} of {self.architecture.num_layers}: "
                f"this slice has no head"
            )
        out: Tensor = self.lm_head(self.model.norm(x))
        out = out if self.head_bias is None else out + self.head_bias
        scale, cap = self.architecture.logit_scale, self.architecture.logit_softcap
        out = out if scale == 1.0 else out * scale
        return cap * (out / cap).tanh() if cap else out

    def rope_tables(self, positions: Tensor, dtype: torch.dtype) -> RopeTables:
        """Cosines and sines of rope for each layer, [N, 1, hd/2] each; computed once a kind of
        rope, in float32.
        """
        made: dict[tuple[float, bool, int], CosSin] = {}
        for kind, layer in self._kinds().items():
            angles = positions.float()[:, None, None] * getattr(self, f"inv_freq_{kind}")
            cosine, sine, magnitude = angles.cos(), angles.sin(), self.architecture.magnitude(layer)
            if magnitude != 1.0:
                cosine, sine = cosine * magnitude, sine * magnitude
            made[self.ropes[layer]] = cosine.to(dtype), sine.to(dtype)
        growth = self._growth(positions).to(dtype) if self.architecture.temperature else None
        return tuple(
            made.get(rope)
            if growth is None or not self.architecture.grows(layer)
            else (growth[..., :0], growth)
            for layer, rope in enumerate(self.ropes)
        )

    def _growth(self, positions: Tensor) -> Tensor:
        """What queries of layers without rope are multiplied by, [N, 1, 1]: it stands where their
        sines would, and there are no cosines.
        """
        own = self.architecture
        passed = ((positions.float() + 1) / own.temperature_floor).floor()
        return (1 + own.temperature * passed.log1p())[:, None, None]

    def _kinds(self) -> dict[int, int]:
        """Number of each kind of rope, and the first layer that has it; layers without rope are
        of no kind.
        """
        bases = [rope for rope in dict.fromkeys(self.ropes) if rope[0]]
        return {kind: self.ropes.index(rope) for kind, rope in enumerate(bases)}


def as_large(x: Tensor, other: Tensor) -> Tensor:
    """Rows [..., N, D], each as large as the other's [N, D] on average."""
    wanted = other.float().square().mean(-1, keepdim=True).sqrt()
    own = x.float().square().mean(-1, keepdim=True).clamp(min=1e-5).sqrt()
    return x * (wanted / own).to(x.dtype)


def apply_rope(x: Tensor, rope: CosSin | None) -> Tensor:
    """Rope in half-split order: [N, heads, hd] -> same; without a rope x itself. Numbers of a head
    beyond those that the rope has cosines for stay as they are.

    Source: Su et al. 2021 (RoFormer), equation 34; halves paired as Hugging Face's Llama pairs
    them.
    """
    if rope is None:
        return x
    cosine, sine = rope
    half = cosine.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = [first * cosine - second * sine, second * cosine + first * sine]
    return torch.cat([*turned, rest] if rest.shape[-1] else turned, dim=-1)
