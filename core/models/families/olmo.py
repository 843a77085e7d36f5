"""OLMo, the first: Llama with LayerNorms that have no weights.

Not covered: those that clip queries, keys and values; writing such a GGUF file.

Source: transformers' `models/olmo`, llama.cpp's `olmo` graph and its converter.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..architecture import Architecture
from ..family import Family
from ..files.settings import HfSettings
from ..quant.tensor import QuantTensor


class Olmo(Family):
    """Norms of ones stand in no file."""

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        if settings.get("clip_qkv") is not None:
            raise ValueError("its queries, keys and values are clipped")
        return super().from_hf(settings, plain)

    def hf_unpacked(
        self, found: dict[str, QuantTensor], architecture: Architecture
    ) -> dict[str, QuantTensor]:
        """As `Family.hf_unpacked`."""
        return {**ones(architecture, "model.norm", "model.layers.{}.{}"), **found}

    def gguf_unpacked(
        self, found: Mapping[str, QuantTensor], architecture: Architecture
    ) -> Mapping[str, QuantTensor]:
        """As `Family.gguf_unpacked`."""
        own = {name: self.in_gguf(name) for name in architecture.norms()}
        return {**ones(architecture, "output_norm", "blk.{}.{}", own), **found}


def ones(
    architecture: Architecture, last: str, inside: str, named: Mapping[str, str] | None = None
) -> dict[str, QuantTensor]:
    """Weights of all norms."""
    row = np.ones((1, architecture.hidden_size), np.float32)
    whole = QuantTensor("F32", row.shape, row.view(np.uint8))
    names = [
        inside.format(layer, (named or {}).get(name, name))
        for layer in range(architecture.num_layers)
        for name in architecture.norms()
    ]
    return {f"{name}.weight": whole for name in (last, *names)}


FAMILY = Olmo(
    name="olmo",
    hf_defaults={
        "olmo": {"layer_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 2048}
    },
    traits={"layer_norms": True},
    interleaved=True,
    gguf_written=False,
    hf_epsilon="layer_norm_eps",
)
