"""A smaller model made of some layers of a larger one, and the network in which they are trained.

Knows which layers are kept, and what of them is stepped. Knows nothing of teachers, losses or
files.
Always: embedding and head are the teacher's own and are not trained, so a student's tokens are its
teacher's; a student is plain numbers, whatever blocks its teacher was of.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import ModelError
from ...models.attention import check_windows
from ...models.quant.tensor import QuantTensor, plain
from ...models.transformer import DecoderLayer, Transformer
from ...models.weights import Weights
from ..frozen_layers import dense_linear
from ..lora_layers import last_layer
from ..packing import PackedBatch

# What an `Architecture` says of each layer.
BY_LAYER = (
    *("windows", "rope_bases", "rope_stretched"),
    *("dense_layers", "convolutions", "deltas"),
)


def evenly(layers: int, depth: int) -> tuple[int, ...]:
    """`depth` of `layers` layers, evenly spaced, the first and the last among them.

    Source: Sanh et al. 2019 (DistilBERT), section 3: every second layer of the teacher starts the
    student.

    Raises:
        ModelError: so many are not there, or fewer than two are left.
    """
    if not 2 <= depth <= layers:
        raise ModelError(f"a student of {depth} layers: the teacher has {layers}; name 2 to that")
    return tuple(int(number) for number in np.linspace(0, layers - 1, depth).round())


def kept(weights: Weights, layers: Sequence[int]) -> Weights:
    """The model of these layers of `weights`, in this order, all of it float32.

    Raises:
        ModelError: a layer that is not there or comes twice, or a network that they do not make.
    """
    own = weights.architecture
    if not layers or list(layers) != sorted({*layers} & {*range(own.num_layers)}):
        raise ModelError(
            f"layers {', '.join(map(str, layers)) or 'none'}: expected ascending numbers from 0 to "
            f"{own.num_layers - 1}"
        )
    if not own.alike or own.per_layer_size:
        raise ModelError(
            f"this {own.family} model has {own.unadapted}, of which no smaller one is made; choose "
            f"another"
        )
    by_layer: dict[str, Any] = {
        name: tuple(values[layer] for layer in layers)
        for name in BY_LAYER
        if (values := getattr(own, name))
    }
    architecture = dataclasses.replace(own, num_layers=len(layers), **by_layer)
    try:
        architecture.validate()
    except ValueError as error:
        raise ModelError(f"layers {layers} make no model: {error}; keep others") from error
    place = {str(layer): str(number) for number, layer in enumerate(layers)}
    made: dict[int, QuantTensor] = {}  # one object stays one: a head that is the embedding
    tensors: dict[str, QuantTensor] = {}
    for name, blocks in weights.tensors.items():
        first, layered, rest = name.partition("model.layers.")
        number, _, inner = rest.partition(".")
        if layered and number not in place:
            continue
        if id(blocks) not in made:
            made[id(blocks)] = plain(blocks.dequantize(torch.float32))
        ours = f"{first}{layered}{place[number]}.{inner}" if layered else name
        tensors[ours] = made[id(blocks)]
    digest = hashlib.sha256(f"{weights.digest} layers {layers}".encode()).hexdigest()
    return Weights(architecture, tensors, weights.tokenizer, digest, weights.sampling)


def same_words(teacher: Weights, student: Weights) -> None:
    """Require that both name the same tokens by the same numbers.

    Raises:
        ModelError: they do not; logits of the one say nothing to the other.
    """
    one, other = teacher.tokenizer.vocabulary, student.tokenizer.vocabulary
    if teacher.vocab_size != student.vocab_size or one.tokens != other.tokens:
        raise ModelError(
            f"the student's {student.vocab_size} tokens are not the teacher's "
            f"{teacher.vocab_size}; choose one of the same vocabulary, or let both learn in a "
            f"federation, where answers are compared"
        )


class StudentNetwork(nn.Module):
    """A whole decoder whose layers and last norm are trained in float32."""

    def __init__(self, weights: Weights, dtype: torch.dtype) -> None:
        """Decode it: 4 bytes a weight, and 12 more of each that is trained.

        Args:
            dtype: of the head's products.

        Raises:
            ModelError: a kind of layer or head that is not trained here.
        """
        super().__init__()
        own = weights.architecture
        if own.deltas or own.logit_softcap or own.head_bias:
            raise ModelError(
                f"this {own.family} model has delta nets, or caps or shifts its logits, which is "
                f"not trained here; choose another"
            )
        self.start = weights
        self.network = Transformer(weights, dense_linear(torch.float32))
        self.head = cast(nn.Linear, self.network.lm_head).weight.detach().to(dtype)  # [V, D]
        self.network.lm_head = None
        for name, one in self.network.named_parameters():
            inner = name.startswith(("model.layers.", "model.norm."))
            # biases, sinks and kernels bear other names than their tensors, and stay the teacher's
            one.requires_grad_(inner and name in weights.tensors)

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """What is stepped, by its tensor's name, in a fixed order."""
        return {name: one for name, one in self.network.named_parameters() if one.requires_grad}

    def forward(
        self, tokens: Tensor, batch: PackedBatch, taps: Sequence[int]
    ) -> tuple[Tensor, list[Tensor]]:
        """Token ids [N] -> rows of the answers, normed, [M, D]; and what they are behind each of
        the layers `taps`, the last layer never among them, [M, D] each.
        """
        network = self.network
        check_windows(batch, network.architecture.windows)
        x = network.embed(tokens)
        if network.model.embed_positions is not None:
            x = x + network.model.embed_positions(batch.positions)
        rope = network.rope_tables(batch.positions, x.dtype)
        *lower, last = (cast(DecoderLayer, layer) for layer in network.model.layers.values())
        seen = []
        for number, layer in enumerate(lower):
            x = layer(x, rope, batch)
            if number in taps:
                seen.append(batch.answers(x))
        read = last_layer(last, x, rope, batch)[: len(batch.targets)]
        out: Tensor = network.model.norm(read)
        scale = network.architecture.logit_scale
        return (out if scale == 1.0 else out * scale), seen

    @torch.no_grad()
    def weights(self) -> Weights:
        """The student as it is now."""
        tensors = dict(self.start.tensors)
        for name, one in self.trained.items():
            tensors[name] = plain(one.detach().reshape(-1, one.shape[-1]).clone())
        return dataclasses.replace(self.start, tensors=tensors)
