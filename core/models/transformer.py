"""One decoder's forward pass, for serving and for training.

Knows layers, norms and rope. Knows nothing of caches, batches or sequences: rows come flat, [N, D], each with its
position, and attention is handed in. Projections are what `make_linear` makes of the file's blocks.
Always: module names are Hugging Face's, so that PEFT's names fit; nothing here is trainable.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from .architecture import Architecture
from .attention import Attention
from .blocks import Blocks
from .weights import Weights

MakeLinear = Callable[[Blocks], nn.Module]  # a module x [N, columns] -> [N, rows]


class Embedding(nn.Module):
    """Rows of the embedding, decoded when they are asked for."""

    raw: Tensor

    def __init__(self, blocks: Blocks, dtype: torch.dtype) -> None:
        super().__init__()
        self.kind, self.shape, self.dtype = blocks.kind, blocks.shape, dtype
        self.register_buffer("raw", blocks.raw, persistent=False)  # moves with the module

    def forward(self, tokens: Tensor) -> Tensor:
        """[N] -> [N, D]."""
        return Blocks(self.kind, self.shape, self.raw).rows(tokens, self.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * weight."""

    def __init__(self, blocks: Blocks, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(blocks.dense(dtype)[0], requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, D]."""
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class SelfAttention(nn.Module):
    """The four projections around attention, and rope."""

    def __init__(self, layer: int, architecture: Architecture, linear: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.layer, self.head_size = layer, architecture.head_size
        self.q_proj, self.k_proj = linear["self_attn.q_proj"], linear["self_attn.k_proj"]
        self.v_proj, self.o_proj = linear["self_attn.v_proj"], linear["self_attn.o_proj"]

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], attention: Attention) -> Tensor:
        """[N, D] -> [N, D]."""
        heads = (len(x), -1, self.head_size)
        q, k, v = self.q_proj(x).view(heads), self.k_proj(x).view(heads), self.v_proj(x).view(heads)
        mixed = attention(self.layer, rotate(q, turn), rotate(k, turn), v)
        out: Tensor = self.o_proj(mixed.reshape(len(x), -1))
        return out


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, linear: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (linear[f"mlp.{name}_proj"] for name in ("gate", "up", "down"))

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, D]."""
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """Attention, then feed-forward, each on a normed copy and added back."""

    def __init__(self, layer: int, weights: Weights, make_linear: MakeLinear, dtype: torch.dtype) -> None:
        super().__init__()
        architecture, prefix = weights.architecture, f"model.layers.{layer}."
        own = {name.removeprefix(prefix).removesuffix(".weight"): name for name in weights.tensors if name.startswith(prefix)}
        linear = {name: make_linear(weights.tensors[key]) for name, key in own.items() if name.endswith("_proj")}
        self.input_layernorm = RMSNorm(weights.tensors[own["input_layernorm"]], architecture.norm_eps, dtype)
        self.self_attn = SelfAttention(layer, architecture, linear)
        self.post_attention_layernorm = RMSNorm(weights.tensors[own["post_attention_layernorm"]], architecture.norm_eps, dtype)
        self.mlp = FeedForward(linear)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], attention: Attention) -> Tensor:
        """[N, D] -> [N, D]."""
        x = x + self.self_attn(self.input_layernorm(x), turn, attention)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Decoder(nn.Module):
    """The part that Hugging Face calls `model`; its layers keep their numbers even where the lower ones are absent."""

    def __init__(self, weights: Weights, make_linear: MakeLinear, numbers: range, dtype: torch.dtype) -> None:
        super().__init__()
        self.embed_tokens = Embedding(weights.tensors["model.embed_tokens.weight"], dtype)
        self.layers = nn.ModuleDict({str(number): Layer(number, weights, make_linear, dtype) for number in numbers})
        self.norm = RMSNorm(weights.tensors["model.norm.weight"], weights.architecture.norm_eps, dtype)


class Transformer(nn.Module):
    """A decoder, or a slice of its layers.

    Layers outside [first_layer, last_layer) are absent, and so is the head where the last layer is: a frozen prefix needs
    neither. The embedding is always there; it is a view on the file.
    """

    frequencies: Tensor

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
        self.first_layer, self.last_layer = first_layer, self.architecture.layers if last_layer is None else last_layer
        if not 0 <= self.first_layer <= self.last_layer <= self.architecture.layers:
            raise ValueError(f"layers [{first_layer}, {last_layer}) are not in [0, {self.architecture.layers})")
        self.model = Decoder(weights, make_linear, range(self.first_layer, self.last_layer), dtype)
        whole = self.last_layer == self.architecture.layers
        self.lm_head = make_linear(weights.tensors["lm_head.weight"]) if whole else None
        size = self.architecture.head_size
        exponents = torch.arange(0, size, 2, dtype=torch.float32) / size
        self.register_buffer("frequencies", 1.0 / self.architecture.rope_theta**exponents, persistent=False)

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids [N] -> rows [N, D]."""
        out: Tensor = self.model.embed_tokens(tokens)
        return out

    def layers_forward(self, x: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """Through the layers that are present, [N, D] -> [N, D]; positions [N] count from 0 in each sequence."""
        turn = self.turn(positions, x.dtype)
        for layer in self.model.layers.values():
            x = layer(x, turn, attention)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Norm and head, [N, D] -> [N, V]."""
        if self.lm_head is None:
            raise RuntimeError(f"layers end at {self.last_layer} of {self.architecture.layers}: this slice has no head")
        out: Tensor = self.lm_head(self.model.norm(x))
        return out

    def turn(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines of rope, [N, 1, hd/2] each; once for all layers, in float32 whatever `dtype` is."""
        angles = positions.float()[:, None, None] * self.frequencies
        return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rope in half-split order: [N, heads, hd] -> same.

    Source: Su et al. 2021 (RoFormer), equation 34; halves paired as Hugging Face's Llama pairs them.
    """
    cosine, sine = turn
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
