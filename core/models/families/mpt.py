"""MPT: scores that fall with the distance in place of rope (ALiBi), LayerNorms without biases,
exact GELU without gate.

Not covered: those with a table of positions, with clipped or normed queries and keys (MPT-30B's
are neither), with biases, with key heads that queries share.

Source: transformers' `models/mpt`, llama.cpp's `mpt` graph and its converter.
"""

from collections.abc import Mapping
from typing import Any

from ..architecture import QKV, Architecture
from ..family import Family
from ..files.settings import GgufSettings, HfSettings
from .bloom import SLOPES, sloped

# of `attn_config`: what is computed, where a config says anything
EXPECTED = {
    "attn_type": "multihead_attention",
    "clip_qkv": None,
    "prefix_lm": False,
    "qk_ln": False,
    "alibi": True,
    "alibi_bias_max": SLOPES,
}


class Mpt(Family):
    """Its code works the feed-forward's width out, and knows one rule of slopes."""

    def hf_settings(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """As `Family.hf_settings`."""
        said = dict(super().hf_settings(values))
        if isinstance(width := said.get("hidden_size"), int):
            said["intermediate_size"] = 4 * width
        return {**said, "num_key_value_heads": said.get("num_attention_heads")}

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        most = settings.real("attention.max_alibi_bias", 0.0)
        if not most:
            raise ValueError("its scores do not fall with the distance")
        return {**super().from_gguf(settings, plain), **sloped(plain, most)}

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        attention = settings.rule("attn_config")
        for key, expected in EXPECTED.items():
            if attention.get(key, expected) != expected:
                raise ValueError(f"its attn_config has {key} = {attention[key]!r:.30}")
        if settings.get("no_bias") is False or settings.get("logit_scale") is not None:
            raise ValueError("it has biases, or scaled logits")
        if settings.size("expansion_ratio", 4) != 4:
            raise ValueError("its feed-forward is not four times as wide as its rows")
        scale = attention.get("softmax_scale") or 0.0
        if not isinstance(scale, int | float):
            raise ValueError(f"its attention is scaled by {scale!r:.30}")
        own = {"attention_scale": float(scale), **sloped(plain, SLOPES)}
        return {**super().from_hf(settings, plain), **own}

    def to_gguf(
        self, architecture: Architecture
    ) -> tuple[dict[str, Any], dict[str, tuple[float, ...]]]:
        """As `Family.to_gguf`."""
        settings, rows = super().to_gguf(architecture)
        return settings | {"attention.max_alibi_bias": float(architecture.alibi)}, rows


FAMILY = Mpt(
    name="mpt",
    hf_defaults={
        "mpt": {
            "vocab_size": 50_368,
            "hidden_size": 2048,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "max_position_embeddings": 2048,
            "layer_norm_epsilon": 1e-5,
            "rope_theta": 10000.0,
            "activation_function": "gelu",
            "tie_word_embeddings": True,
        }
    },
    traits={"layer_norms": True, "gated": False, "activation": "gelu"},
    gguf_fused={"attn_qkv": QKV},
    gguf_reads=("attention.max_alibi_bias",),
    hf_fused={"self_attn.qkv_proj": QKV},
    hf_keys={
        "d_model": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "max_seq_len": "max_position_embeddings",
    },
    hf_epsilon="layer_norm_epsilon",
    # no config states one: the code knows one alone
    hf_activation_key="activation_function",
    hf_activations={"gelu": "gelu"},
    hf_attention_bias=(),
    hf_renamed={
        "transformer.": "model.",
        "model.wte.": "model.embed_tokens.",
        "model.blocks.": "model.layers.",
        "model.norm_f.": "model.norm.",
        ".norm_1.": ".input_layernorm.",
        ".norm_2.": ".post_attention_layernorm.",
        ".attn.Wqkv.": ".self_attn.qkv_proj.",
        ".attn.out_proj.": ".self_attn.o_proj.",
        ".ffn.": ".mlp.",
    },
)
