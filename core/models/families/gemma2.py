"""Gemma 2: scores and logits are capped, norms stand before and behind, every other layer sees a
window; scaled embedding and GELU as Gemma.

Source: transformers' `models/gemma2`, llama.cpp's `gemma2` graph and its converter.
"""

import math
from typing import Any

from ..architecture import Architecture
from ..family import Family, gguf_window, hf_window, hf_windowed, layer_windows
from ..files.settings import GgufSettings, HfSettings

ATTENTION_CAP, LOGIT_CAP, WINDOW = 50.0, 30.0, 4096  # where a file does not say
# the one size whose attention is scaled by width / heads, as llama.cpp tells it
LAYERS_OF_27B = 46


class Gemma2(Family):
    """The first layer sees a window, the second all, and so on."""

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        large = plain.num_layers == LAYERS_OF_27B
        per_head = plain.hidden_size / plain.num_heads if large else plain.head_dim
        window = gguf_window(settings, plain.context_length, WINDOW)
        return {
            "windows": layer_windows(window, local(plain.num_layers)),
            "embedding_scale": math.sqrt(plain.hidden_size),
            "attention_scale": settings.real("attention.scale", per_head**-0.5),
            "attention_softcap": settings.real("attn_logit_softcapping", ATTENTION_CAP),
            "logit_softcap": settings.real("final_logit_softcapping", LOGIT_CAP),
        }

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`; a cap that is null is none."""
        inside = hf_windowed(settings, plain.num_layers) or local(plain.num_layers)
        caps = {
            ours: settings.values.get(theirs, usual)
            for ours, theirs, usual in (
                ("attention_softcap", "attn_logit_softcapping", ATTENTION_CAP),
                ("logit_softcap", "final_logit_softcapping", LOGIT_CAP),
            )
        }
        return {
            "windows": layer_windows(hf_window(settings, plain.context_length), inside),
            "embedding_scale": math.sqrt(plain.hidden_size),
            "attention_scale": settings.real("query_pre_attn_scalar") ** -0.5,
            **{name: float(cap or 0.0) for name, cap in caps.items()},
        }

    def to_gguf(
        self, architecture: Architecture
    ) -> tuple[dict[str, Any], dict[str, tuple[float, ...]]]:
        """As `Family.to_gguf`."""
        settings, rows = super().to_gguf(architecture)
        return settings | {
            "attention.sliding_window": max(
                architecture.windows, default=architecture.context_length
            ),
            "attention.scale": architecture.attention_scale,
            "attn_logit_softcapping": architecture.attention_softcap,
            "final_logit_softcapping": architecture.logit_softcap,
        }, rows


def local(layers: int) -> list[bool]:
    """Which layers see a window alone."""
    return [layer % 2 == 0 for layer in range(layers)]


FAMILY = Gemma2(
    name="gemma2",
    hf_defaults={
        "gemma2": {
            "vocab_size": 256_000,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-6,
            "query_pre_attn_scalar": 256,
            "sliding_window": WINDOW,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "hidden_activation": "gelu_pytorch_tanh",
        }
    },
    traits={"post_norms": True, "activation": "gelu_tanh"},
    gguf_names={
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
    unit_norms=True,
    hf_activation_key="hidden_activation",
)
