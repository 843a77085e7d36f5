"""The upper layers with LoRA: A frozen, B trained, in PEFT's own layers.

Knows PEFT's layers and the flat vector that B is. Knows nothing of examples or optimizers.
Always: one flat vector holds every B in the order of `Layout`; PEFT's B matrices are views on it,
and so are their gradients, so reading and writing an adapter is one copy.

What PEFT's layers compute is computed here in fewer passes over the rows: as products that are
added where they belong while they are made, not one after the other.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from ..models.attention import check_windows
from ..models.lora.layout import AdapterShape, Layout, a_name, b_name, frozen_a
from ..models.transformer import DecoderLayer, RopeTables, Transformer
from ..models.weights import Weights
from .frozen_layers import dense_linear
from .packing import PackedBatch, few_rows

DENSE = 0.9  # share of rows with a gradient above which they are not picked out
ADAPTER = "default"  # PEFT's name for the one adapter


class UpperLayers:
    """The trained part of the network, dense in one number format."""

    def __init__(self, weights: Weights, shape: AdapterShape, dtype: torch.dtype) -> None:
        self.layout = Layout(shape, weights.architecture)
        first = weights.architecture.num_layers - shape.upper_layers
        self.model = Transformer(weights, dense_linear(dtype), first_layer=first, dtype=dtype)
        config = LoraConfig(
            r=shape.rank,
            lora_alpha=cast(int, shape.alpha),
            lora_dropout=0.0,
            target_modules=list(shape.targets),
            bias="none",
        )
        inject_adapter_in_model(config, self.model, ADAPTER)
        self.flat = torch.zeros(self.layout.size, dtype=dtype)  # [n]
        self.grad = torch.zeros(self.layout.size, dtype=dtype)  # [n]
        self.bind(frozen_a(shape, weights.architecture), dtype)

    def bind(self, a: dict[str, Tensor], dtype: torch.dtype) -> None:
        """Put the frozen A into PEFT's layers, and make each B a view on the flat vector."""
        self.model.requires_grad_(False)
        b, grads = self.layout.unflatten(self.flat), self.layout.unflatten(self.grad)
        bound = 0
        for name, module in self.model.named_modules():
            if b_name(name) not in b:
                continue
            into, out = lora_halves(module)
            into.weight = nn.Parameter(a[a_name(name)].to(dtype), requires_grad=False)
            out.weight = nn.Parameter(b[b_name(name)])
            out.weight.grad = grads[b_name(name)]
            # an instance's own comes before its class's
            module.__dict__["forward"] = lora_linear(module)
            bound += 1
        if bound != len(b):
            raise RuntimeError(
                f"PEFT wrapped {bound} of {len(b)} projections"
            )  # our bug, or names that PEFT changed

    @property
    def head(self) -> Tensor:
        """The vocabulary head, [V, D], frozen."""
        return cast(nn.Linear, self.model.lm_head).weight

    @torch.no_grad()
    def set(self, flat_b: Tensor) -> None:
        """Take over B, float32 [n], and forget gradients."""
        self.flat.copy_(flat_b)
        self.grad.zero_()

    def answers(self, x: Tensor, batch: PackedBatch) -> Tensor:
        """Hidden rows [N, D] -> normed rows of the answers only, [M, D], ready for the head."""
        check_windows(batch, self.model.architecture.windows)
        rope = self.model.rope_tables(batch.positions, x.dtype)
        *lower, last = (cast(DecoderLayer, layer) for layer in self.model.model.layers.values())
        for layer in lower:
            x = layer(x, rope, batch)
        rows = last_layer(last, x, rope, batch)[: len(batch.targets)]
        out: Tensor = self.model.model.norm(rows)
        scale = self.model.architecture.logit_scale  # of logits, and the head is linear
        return out if scale == 1.0 else out * scale


class LoraProduct(torch.autograd.Function):
    """x W^T + scale (x A^T) B^T, with gradients for x and B.

    Source: Hu et al. 2021 (LoRA), equation 3.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """x [N, in], weight [out, in], a [r, in], b [out, r] -> [N, out]."""
        low = (x @ a.T).mul_(scale)  # [N, r]
        ctx.save_for_backward(weight, a, b, low)
        ctx.scale = scale
        return (x @ weight.T).addmm_(low, b.T)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, None, None, Tensor | None, None]:
        """Gradients [N, out] -> those of x, if somebody wants them (nobody does at the lowest
        trained layer), and of B.
        """
        (grad,) = outer
        weight, a, b, low = ctx.saved_tensors
        # rows of examples that teach nothing, and padding of none: there is nothing to go back
        live = few_rows(grad.any(dim=1))
        some, whole = len(live) < len(grad) * DENSE, None
        if some:
            whole, grad, low = grad, grad[live], low[live]
        into = None
        if ctx.needs_input_grad[0]:
            into = (grad @ weight).addmm_((grad @ b).mul_(ctx.scale), a)
            if whole is not None:
                into = into.new_zeros(len(whole), into.shape[1]).index_copy_(0, live, into)
        return into, None, None, grad.T @ low if ctx.needs_input_grad[3] else None, None


def lora_halves(module: nn.Module) -> tuple[nn.Linear, nn.Linear]:
    """A and B of one of PEFT's layers."""
    halves = (getattr(module, half)[ADAPTER] for half in ("lora_A", "lora_B"))
    into, out = (cast(nn.Linear, half) for half in halves)
    return into, out


def lora_linear(module: nn.Module, others: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """What one of PEFT's layers computes, [N, in] -> [N, out], with the weights that it then holds.

    Args:
        others: further columns of B [out, r'], frozen, behind the trained ones.
    """
    base, (into, out) = cast(nn.Linear, module.base_layer), lora_halves(module)
    scale = cast(dict[str, float], module.scaling)[ADAPTER]

    def forward(x: Tensor) -> Tensor:
        b = out.weight if others is None else torch.cat((out.weight, others), dim=1)
        product: Tensor = LoraProduct.apply(x, base.weight, into.weight, b, scale)  # type: ignore[no-untyped-call]
        return product

    return forward


def last_layer(layer: DecoderLayer, x: Tensor, rope: RopeTables, batch: PackedBatch) -> Tensor:
    """The last layer where only answers are read: keys and values of all rows, everything else
    of those in `answer_rows`, [>= M, D]. A layer that does not attend alone reads all rows.
    """
    if "self_attn" not in layer._modules or "linear_attn" in layer._modules:
        return cast(Tensor, layer(x, rope, batch))[batch.answer_rows]
    wanted, block, cos_sin = batch.answer_rows, layer.self_attn, rope[layer.layer]
    normed = layer.attention_input(x)
    q = block.queries(normed[wanted], cos_sin and (cos_sin[0][wanted], cos_sin[1][wanted]))
    # attention wants all rows
    everywhere = q.new_zeros(len(x), *q.shape[1:]).index_copy(0, wanted, q)
    keys, values = block.keys(normed, cos_sin), block.values(normed)
    mixed = block.closed(block.mixed(batch, everywhere, keys, values)[wanted], normed[wanted])
    return layer.with_mlp(x[wanted], layer.attention_residual(block.out(mixed)))
