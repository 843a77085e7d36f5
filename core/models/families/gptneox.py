"""GPT-NeoX and Pythia: attention and feed-forward side by side behind a LayerNorm each, exact GELU
without gate, rope of part of a head, biases everywhere but the head.

Source: transformers' `models/gpt_neox`, llama.cpp's `gptneox` graph and its converter.
"""

from typing import Any

import numpy as np

from ..architecture import ATTENTION_PROJECTIONS, QKV, Architecture
from ..family import Family, qkv_of
from ..files.settings import GgufSettings, HfSettings
from ..quant.tensor import QuantTensor


class GptNeoX(Family):
    """A folder holds q, k and v of each head beside each other."""

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        beside = settings.flag("use_parallel_residual", default=True)
        return {**super().from_gguf(settings, plain), "parallel": beside}

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        if settings.get("attention_bias") is False:
            raise ValueError("its q, k and v have no biases")
        beside = settings.get("use_parallel_residual") is not False
        own = {"parallel": beside, "biases": BIASES, "num_kv_heads": plain.num_heads}
        return {**super().from_hf(settings, plain), **own}

    def hf_rope(self, settings: HfSettings) -> dict[str, Any]:
        """As `Family.hf_rope`; older configs use other words."""
        rule = super().hf_rope(settings)
        older = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
        said = {ours: settings.get(theirs) for ours, theirs in older.items()}
        return {ours: value for ours, value in said.items() if value is not None} | rule

    def hf_unpacked(
        self, found: dict[str, QuantTensor], architecture: Architecture
    ) -> dict[str, QuantTensor]:
        """As `Family.hf_unpacked`."""
        there, size = dict(found), architecture.head_dim
        rows = np.arange(3 * architecture.num_heads * size).reshape(-1, 3, size)
        three = tuple(rows[:, place].reshape(-1) for place in range(3))
        for layer in range(architecture.num_layers):
            prefix = f"model.layers.{layer}."
            qkv_of(there, f"{prefix}self_attn.query_key_value", prefix, three)
        return there

    def to_gguf(
        self, architecture: Architecture
    ) -> tuple[dict[str, Any], dict[str, tuple[float, ...]]]:
        """As `Family.to_gguf`."""
        settings, rows = super().to_gguf(architecture)
        return settings | {"use_parallel_residual": architecture.parallel}, rows


BIASES = (*ATTENTION_PROJECTIONS, "mlp.up_proj", "mlp.down_proj")
FAMILY = GptNeoX(
    name="gptneox",
    hf_defaults={
        "gpt_neox": {
            "vocab_size": 50432,
            "layer_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,
            "max_position_embeddings": 2048,
            "hidden_act": "gelu",
        }
    },
    traits={
        "biases": BIASES,
        "layer_norms": True,
        "norm_biases": True,
        "gated": False,
        "activation": "gelu",
    },
    gguf_fused={"attn_qkv": QKV},
    gguf_reads=("use_parallel_residual",),
    hf_epsilon="layer_norm_eps",
    hf_attention_bias=(),
    hf_partial_rope=True,
    hf_activations={"gelu": "gelu"},
    hf_skipped=(".attention.bias", ".attention.masked_bias"),
    hf_renamed={
        "gpt_neox.final_layer_norm.": "model.norm.",
        "gpt_neox.embed_in.": "model.embed_tokens.",
        "gpt_neox.": "model.",
        "embed_out.": "lm_head.",
        ".attention.dense.": ".self_attn.o_proj.",
        ".attention.query_key_value.": ".self_attn.query_key_value.",
        ".dense_h_to_4h.": ".up_proj.",
        ".dense_4h_to_h.": ".down_proj.",
    },
)
