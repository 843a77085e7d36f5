"""An encoder in torch, float32: the readable twin of the compiled one, for machines without it.

Knows an architecture's traits and named tensors. Knows nothing of files or pooling by file.
Always: texts are computed one by one, so that none depends on those beside it and no padding is
there to go wrong.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from .architecture import EncoderWeights

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "silu": functional.silu,
}


class TorchEncoder:
    """Inference only."""

    def __init__(self, weights: EncoderWeights) -> None:
        """Take all numbers over as float32."""
        self.architecture = weights.architecture
        self._tensors = {name: each.dequantize() for name, each in weights.tensors.items()}

    def encode(
        self, texts: Sequence[Sequence[int]], seconds: Sequence[int] | None = None
    ) -> NDArray[np.float32]:
        """See `engine.backends.backend.Encoder.encode`."""
        begins = [len(tokens) for tokens in texts] if seconds is None else seconds
        with torch.inference_mode():
            rows = [
                self._pool(self._forward(torch.tensor(tokens), second))
                for tokens, second in zip(texts, begins, strict=True)
            ]
            found: NDArray[np.float32] = torch.stack(rows).numpy()
        return found

    def _forward(self, tokens: Tensor, second: int) -> Tensor:
        """Every token's last row, [L, D]."""
        own = self.architecture
        x = self._tensors["embedding.weight"][tokens] * own.embedding_scale
        if own.learned_positions:
            x = x + self._tensors["positions.weight"][: len(tokens)]
        if (shift := self._tensors.get("shift.weight")) is not None:
            x = x + shift
        if (shift := self._tensors.get("second_shift.weight")) is not None:
            x[second:] += shift
        x = self._norm("embedding_norm", x)
        for layer in range(own.num_layers):
            name = f"layers.{layer}"
            mixed = self._attend(layer, self._norm(f"{name}.attention_norm", x))
            x = self._add(f"{name}.post_attention_norm", x, mixed)
            inner = self._norm(f"{name}.mlp_norm", x)
            up = self._linear(f"{name}.up_proj", inner)
            activate = ACTIVATIONS[own.activation]
            if own.gated:
                up = activate(self._linear(f"{name}.gate_proj", inner)) * up
            else:
                up = activate(up)
            x = self._add(f"{name}.post_mlp_norm", x, self._linear(f"{name}.down_proj", up))
        return self._norm("final_norm", x)

    def _pool(self, rows: Tensor) -> Tensor:
        match self.architecture.pooling:
            case "mean":
                return rows.mean(0)
            case "first":
                return rows[0]
            case "last":
                return rows[-1]

    def _add(self, norm: str, x: Tensor, more: Tensor) -> Tensor:
        if self.architecture.norm_sums:
            return self._norm(norm, x + more)
        return x + self._norm(norm, more)

    def _attend(self, layer: int, x: Tensor) -> Tensor:
        own, name, length = self.architecture, f"layers.{layer}", len(x)

        def heads(part: str, count: int) -> Tensor:  # [L, D] -> [heads, L, hd]
            found = self._linear(f"{name}.{part}_proj", x).view(length, count, own.head_dim)
            if part != "v":
                found = self._turn(layer, self._norm(f"{name}.{part}_norm", found))
            return found.transpose(0, 1).repeat_interleave(own.num_heads // count, 0)

        apart = torch.arange(length)[:, None] - torch.arange(length)  # how far back a key is
        seen = torch.ones(length, length, dtype=torch.bool)
        if own.causal:
            seen = apart >= 0
        if reach := own.reach(layer):
            seen = seen & (apart.abs() <= reach)
        mixed = functional.scaled_dot_product_attention(
            heads("q", own.num_heads),
            heads("k", own.num_kv_heads),
            heads("v", own.num_kv_heads),
            attn_mask=seen,
            scale=own.attention_scale,
        )
        return self._linear(f"{name}.o_proj", mixed.transpose(0, 1).reshape(length, -1))

    def _turn(self, layer: int, x: Tensor) -> Tensor:
        """Rope of [L, heads, hd]."""
        radians = torch.from_numpy(self.architecture.inv_freq(layer))
        if not len(radians):
            return x
        angles = torch.arange(len(x))[:, None, None] * radians
        first, second = x.chunk(2, -1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        bias = self._tensors.get(f"{name}.bias")
        return functional.linear(
            x, self._tensors[f"{name}.weight"], None if bias is None else bias[0]
        )

    def _norm(self, name: str, x: Tensor) -> Tensor:
        """Through a norm, where there is one."""
        weight, bias = self._tensors.get(f"{name}.weight"), self._tensors.get(f"{name}.bias")
        if weight is None:
            return x
        if self.architecture.rms_norms:
            return functional.rms_norm(x, weight[0].shape, weight[0], self.architecture.norm_eps)
        return functional.layer_norm(
            x,
            weight[0].shape,
            weight[0],
            None if bias is None else bias[0],
            self.architecture.norm_eps,
        )
