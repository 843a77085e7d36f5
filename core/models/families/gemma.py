"""Gemma, the first: Llama with a scaled embedding, GELU, and norms that files hold less 1.

Not covered: Gemma 2 (capped logits), RecurrentGemma.

Source: transformers' `models/gemma`, llama.cpp's `gemma` graph and its converter.
"""

import math
from typing import Any

from ..architecture import Architecture
from ..family import Family
from ..files.settings import GgufSettings, HfSettings


class Gemma(Family):
    """Rows of the embedding are multiplied by the root of their length."""

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        return {**super().from_gguf(settings, plain), **scaled(plain)}

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`; an older key of the activation, where it is set, decided it."""
        if settings.get("hidden_activation") not in (None, "gelu_pytorch_tanh"):
            raise ValueError(f"its activation is {settings.get('hidden_activation')!r:.30}")
        return {**super().from_hf(settings, plain), **scaled(plain)}


def scaled(plain: Architecture) -> dict[str, Any]:
    """The factor on the embedding."""
    return {"embedding_scale": math.sqrt(plain.hidden_size)}


FAMILY = Gemma(
    name="gemma",
    hf_defaults={
        "gemma": {
            "vocab_size": 256_000,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "head_dim": 256,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "hidden_act": "gelu_pytorch_tanh",
        }
    },
    traits={"activation": "gelu_tanh"},
    unit_norms=True,
    # the first configs say "gelu" and mean its approximation, as everybody computes it
    hf_activations={"gelu": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"},
)
