"""BLOOM and BLOOMZ: scores that fall with the distance in place of rope (ALiBi), a LayerNorm behind
the embedding, LayerNorms, no gate, biases everywhere but the head.

Not covered: those whose norms' outputs are added back (no published model).

Source: transformers' `models/bloom`, llama.cpp's `bloom` graph and its converter.
"""

from collections.abc import Mapping
from typing import Any

from ..architecture import QKV, Architecture
from ..files.settings import GgufSettings, HfSettings
from .gpt2 import BIASES
from .gptneox import GptNeoX

SLOPES = 8.0  # ALiBi's, of every model


class Bloom(GptNeoX):
    """As GPT-NeoX, its folders hold q, k and v of each head beside each other."""

    def hf_settings(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """As `Family.hf_settings`; what its code works out and does not read."""
        said = dict(super().hf_settings(values))
        if isinstance(width := said.get("hidden_size"), int):
            said["intermediate_size"] = 4 * width
        return {**said, "num_key_value_heads": said.get("num_attention_heads")}

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        return {**super(GptNeoX, self).from_gguf(settings, plain), **sloped(plain, SLOPES)}

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        if settings.get("apply_residual_connection_post_layernorm"):
            raise ValueError("what its norms give is added back")
        own = {"biases": BIASES, **sloped(plain, SLOPES)}
        return {**super(GptNeoX, self).from_hf(settings, plain), **own}

    def to_gguf(
        self, architecture: Architecture
    ) -> tuple[dict[str, Any], dict[str, tuple[float, ...]]]:
        """As `Family.to_gguf`."""
        return super(GptNeoX, self).to_gguf(architecture)


def sloped(plain: Architecture, most: float) -> dict[str, Any]:
    """Scores fall with the distance, and nothing is turned."""
    return {"alibi": most, "rope_bases": (0.0,) * plain.num_layers}


FAMILY = Bloom(
    name="bloom",
    hf_defaults={
        "bloom": {
            "vocab_size": 250_880,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "max_position_embeddings": 2048,
            "layer_norm_epsilon": 1e-5,
            "rope_theta": 10000.0,
            "activation_function": "gelu_new",
            "tie_word_embeddings": True,
        }
    },
    traits={
        "biases": BIASES,
        "layer_norms": True,
        "norm_biases": True,
        "embedding_norm": True,
        "gated": False,
        "activation": "gelu_tanh",
    },
    gguf_fused={"attn_qkv": QKV},
    hf_keys={
        "n_embed": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "seq_length": "max_position_embeddings",
    },
    hf_epsilon="layer_norm_epsilon",
    # no config states one: the code knows one alone
    hf_activation_key="activation_function",
    hf_activations={"gelu_new": "gelu_tanh"},
    hf_attention_bias=(),
    # most published folders hold its tensors without their beginning
    hf_prefixes={
        "h.": "model.layers.",
        "word_embeddings.": "model.embed_tokens.",
        "word_embeddings_layernorm.": "model.embed_norm.",
        "ln_f.": "model.norm.",
    },
    hf_renamed={
        "transformer.": "model.",
        "model.h.": "model.layers.",
        "model.word_embeddings.": "model.embed_tokens.",
        "model.word_embeddings_layernorm.": "model.embed_norm.",
        "model.ln_f.": "model.norm.",
        ".self_attention.dense.": ".self_attn.o_proj.",
        ".self_attention.query_key_value.": ".self_attn.query_key_value.",
        ".dense_h_to_4h.": ".up_proj.",
        ".dense_4h_to_h.": ".down_proj.",
    },
)
