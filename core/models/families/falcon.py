"""Falcon: attention and feed-forward side by side behind LayerNorms, exact GELU without gate.

Not covered: those with ALiBi in place of rope (RefinedWeb's), writing such a GGUF file.

Source: transformers' `models/falcon`, llama.cpp's `falcon` graph and its converter.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..architecture import ATTENTION_PROJECTIONS, QKV, Architecture
from ..family import Family, qkv_of
from ..files.settings import GgufSettings, HfSettings
from ..quant.tensor import QuantTensor


class Falcon(Family):
    """The small one has one norm a layer and one key head, larger ones two norms."""

    def hf_settings(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """As `Family.hf_settings`."""
        heads = values.get("num_attention_heads")
        one = not values.get("new_decoder_architecture") and values.get("multi_query", True)
        kept = values.get("num_kv_heads") if values.get("new_decoder_architecture") else heads
        width = values.get("hidden_size")
        inner = values.get("ffn_hidden_size") or (4 * width if isinstance(width, int) else None)
        return {
            **values,
            "num_key_value_heads": 1 if one else kept or heads,
            "intermediate_size": inner,
        }

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        two, biased = (
            f"blk.0.{name}" in settings.file.tensors
            for name in ("attn_norm_2.weight", "attn_qkv.bias")
        )
        own = {"one_norm": not two, "biases": BIASES if biased else ()}
        return {**super().from_gguf(settings, plain), **own}

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        if settings.get("alibi"):
            raise ValueError("its positions are ALiBi's")
        if settings.get("parallel_attn") is False:
            raise ValueError("its feed-forward stands behind attention")
        newer = bool(settings.get("new_decoder_architecture"))
        norms = settings.get("num_ln_in_parallel_attn") or (2 if newer else 1)
        return {
            **super().from_hf(settings, plain),
            "one_norm": not newer or norms == 1,
            "biases": BIASES if settings.get("bias") else (),
        }

    def hf_unpacked(
        self, found: dict[str, QuantTensor], architecture: Architecture
    ) -> dict[str, QuantTensor]:
        """As `Family.hf_unpacked`: each key head's queries stand before it, and its value
        behind.
        """
        there, size, kept = dict(found), architecture.head_dim, architecture.num_kv_heads
        rows = np.arange((architecture.num_heads + 2 * kept) * size).reshape(kept, -1, size)
        three = (rows[:, :-2].reshape(-1), rows[:, -2].reshape(-1), rows[:, -1].reshape(-1))
        for layer in range(architecture.num_layers):
            prefix = f"model.layers.{layer}."
            qkv_of(there, f"{prefix}self_attn.query_key_value", prefix, three)
        return there

    def gguf_unpacked(
        self, found: Mapping[str, QuantTensor], architecture: Architecture
    ) -> Mapping[str, QuantTensor]:
        """As `Family.gguf_unpacked`: of two norms, attention's is called the second."""
        there = dict(found)
        if not architecture.one_norm:
            for layer in range(architecture.num_layers):
                for kind in ("weight", "bias"):
                    first, second = (f"blk.{layer}.attn_norm{end}.{kind}" for end in ("", "_2"))
                    if first in there and second in there:
                        there[f"blk.{layer}.ffn_norm.{kind}"] = there[first]
                        there[first] = there.pop(second)
        return there


BIASES = (*ATTENTION_PROJECTIONS, "mlp.up_proj", "mlp.down_proj")
FAMILY = Falcon(
    name="falcon",
    hf_defaults={
        "falcon": {
            "vocab_size": 65024,
            "layer_norm_epsilon": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 2048,
            "activation": "gelu",
            "tie_word_embeddings": True,
        }
    },
    traits={
        "layer_norms": True,
        "norm_biases": True,
        "parallel": True,
        "gated": False,
        "activation": "gelu",
    },
    gguf_fused={"attn_qkv": QKV},
    gguf_written=False,
    hf_epsilon="layer_norm_epsilon",
    hf_activation_key="activation",
    hf_activations={"gelu": "gelu"},
    hf_attention_bias=(),
    hf_renamed={
        "transformer.word_embeddings.": "model.embed_tokens.",
        "transformer.ln_f.": "model.norm.",
        "transformer.h.": "model.layers.",
        ".self_attention.": ".self_attn.",
        ".dense.": ".o_proj.",
        ".dense_h_to_4h.": ".up_proj.",
        ".dense_4h_to_h.": ".down_proj.",
        ".ln_attn.": ".input_layernorm.",
        ".ln_mlp.": ".post_attention_layernorm.",
    },
)
