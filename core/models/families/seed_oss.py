"""Seed-OSS: Llama with biases of q, k and v, and heads of their own size.

Source: transformers' `models/seed_oss`, llama.cpp's `seed_oss` graph.
"""

from typing import Any

from ..architecture import QKV, Architecture
from ..family import Family
from ..files.settings import HfSettings


class SeedOss(Family):
    """A config names the bias of o by itself."""

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        out = ("self_attn.o_proj",) if settings.get("attention_out_bias") else ()
        return {**super().from_hf(settings, plain), "biases": (*plain.biases, *out)}


FAMILY = SeedOss(
    name="seed_oss",
    hf_defaults={
        "seed_oss": {
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 524_288,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "attention_bias": True,
        }
    },
    gguf_names={"post_attention_layernorm": "post_attention_norm"},
    hf_attention_bias=QKV,
)
