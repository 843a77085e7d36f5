"""StarCoder, SantaCoder and their like: GPT-2 with one key head for all queries.

Source: transformers' `models/gpt_bigcode`, llama.cpp's `starcoder` graph and its converter.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..architecture import QKV, Architecture
from ..family import qkv_of
from ..files.settings import HfSettings
from ..quant.tensor import QuantTensor
from .gpt2 import DEFAULTS, KEYS, NAMES, TRAITS, Gpt2


class StarCoder(Gpt2):
    """Its matrices stand upright."""

    def hf_settings(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """As `Family.hf_settings`."""
        return {**super().hf_settings(values), "num_key_value_heads": 1}

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        if settings.get("multi_query") is False:
            raise ValueError("each of its heads has a key of its own")
        return super().from_hf(settings, plain)

    def hf_unpacked(
        self, found: dict[str, QuantTensor], architecture: Architecture
    ) -> dict[str, QuantTensor]:
        """As `Family.hf_unpacked`."""
        there, width, size = dict(found), architecture.hidden_size, architecture.head_dim
        rows = np.split(np.arange(width + 2 * size), [width, width + size])
        for layer in range(architecture.num_layers):
            prefix = f"model.layers.{layer}."
            qkv_of(there, f"{prefix}self_attn.c_attn", prefix, tuple(rows))
        return there


FAMILY = StarCoder(
    name="starcoder",
    hf_defaults={"gpt_bigcode": {**DEFAULTS, "activation_function": "gelu_pytorch_tanh"}},
    traits=TRAITS,
    gguf_fused={"attn_qkv": QKV},
    hf_keys=KEYS,
    hf_epsilon="layer_norm_epsilon",
    hf_activation_key="activation_function",
    hf_activations={"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"},
    hf_attention_bias=(),
    hf_skipped=(".attn.bias", ".attn.masked_bias"),
    hf_renamed=NAMES,
)
