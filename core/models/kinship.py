"""Are two models the same one in two number formats?

Knows architectures and a sample of matrices. Knows nothing of names or files.
Always: models of other sizes, other vocabularies or other token texts are refused before any number
is compared.

Not covered: two models that were fine-tuned from one for a short time lie as close to each other as
two formats of one do.
"""

import dataclasses

import torch

from ..errors import ChatTemplateError, ModelFileError
from .weights import Weights

ROWS = 64  # of each matrix that is looked at
SAMPLED = ("self_attn.q_proj", "mlp.down_proj")
FAR = 0.35  # relative distance; measured: 8 bits 0.006, 4 bits 0.08 to 0.11, another model 1.4
PROBE = "The quick brown fox, 1984: naïve ☕"


def distance(one: Weights, other: Weights) -> float:
    """Root of the squared difference over the squared size, of rows from the first, the middle and
    the last layer.

    Raises:
        ModelFileError: they differ in more than their numbers.
    """
    if dataclasses.replace(one.architecture, context_length=0) != dataclasses.replace(
        other.architecture, context_length=0
    ):
        raise ModelFileError(
            "the two models differ in family or sizes, so they are no two formats "
            "of one; name another"
        )
    if spelled(one) != spelled(other):
        raise ModelFileError(
            "the two models spell texts differently, so they are no two formats "
            "of one; name another"
        )
    apart, size = 0.0, 0.0
    layers = one.architecture.num_layers
    for layer in sorted({0, layers // 2, layers - 1}):
        for projection in SAMPLED:
            own = one.architecture
            if projection not in own.projections or not own.has_projection(layer, projection):
                continue  # a mixture's experts have their own, and some layers do not attend
            name = f"model.layers.{layer}.{projection}.weight"
            rows = min(ROWS, one.tensors[name].shape[0])
            mine, theirs = (
                weights.tensors[name].part(0, rows).dequantize(torch.float64)
                for weights in (one, other)
            )
            apart += float(torch.sum((mine - theirs) ** 2))
            size += float(torch.sum(mine**2))
    return float((apart / max(size, 1e-30)) ** 0.5)


def spelled(model: Weights) -> list[int]:
    """A text's tokens, alone and, where the model can chat, in a conversation."""
    tokens = model.tokenizer.encode(PROBE)
    try:
        return tokens + model.tokenizer.encode_chat([{"role": "user", "content": PROBE}])
    except ChatTemplateError:
        return tokens
