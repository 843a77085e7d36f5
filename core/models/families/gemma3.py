"""Gemma 3, its language model: norms behind as well, two ropes, windows in five of six layers,
scaled embedding, GELU.

Not covered: pictures (what sees them is left out).
"""

import math
from typing import Any

from ..architecture import Architecture
from ..family import Family, gguf_window, hf_window, hf_windowed, layer_ropes, layer_windows
from ..files.settings import GgufSettings, HfSettings
from ..rope import RopeScaling, rope_scaling

PATTERN = 6  # every sixth layer sees everything
LOCAL_ROPE = 10000.0  # base of the other five
# the one size whose attention is scaled by width / heads, as llama.cpp tells it
LAYERS_OF_27B = 62
KINDS = ("full_attention", "sliding_attention")


class Gemma3(Family):
    """Five windowed layers with a rope of their own, then one that sees everything."""

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        local_rope = settings.real("rope.freq_base_swa", LOCAL_ROPE)
        if plain.rope_factors and local_rope == plain.rope_theta:
            raise ValueError("rope is scaled, and both kinds of layers turn by the same base")
        large = plain.num_layers == LAYERS_OF_27B
        per_head = plain.hidden_size / plain.num_heads if large else plain.head_dim
        inside = local(plain.num_layers)
        return {
            "windows": layer_windows(gguf_window(settings, plain.context_length), inside),
            "rope_bases": tuple(local_rope if one else plain.rope_theta for one in inside),
            "embedding_scale": math.sqrt(plain.hidden_size),
            "attention_scale": settings.real("attention.scale", per_head**-0.5),
        }

    def hf_rope(self, settings: HfSettings) -> dict[str, Any]:
        """As `Family.hf_rope`; newer configs hold a rule for each kind of layer."""
        return {**settings.rule("rope_scaling"), **layer_ropes(settings, KINDS)[KINDS[0]]}

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        rule = settings.rule("rope_parameters")
        windowed = HfSettings(settings.path, rule, {}).rule(KINDS[1])
        if float(windowed.get("partial_rotary_factor") or 1.0) != 1.0:
            raise ValueError("rope turns only part of a head")
        local_rope = float(windowed.get("rope_theta") or settings.real("rope_local_base_freq"))
        unscaled = (
            rope_scaling(windowed, plain.head_dim, local_rope, plain.context_length)
            == RopeScaling()
        )
        if not unscaled or (plain.rope_factors and local_rope == plain.rope_theta):
            raise ValueError("rope of windowed layers is scaled")
        inside = hf_windowed(settings, plain.num_layers) or local(
            plain.num_layers, settings.size("sliding_window_pattern")
        )
        return {
            "windows": layer_windows(hf_window(settings, plain.context_length), inside),
            "rope_bases": tuple(local_rope if one else plain.rope_theta for one in inside),
            "embedding_scale": math.sqrt(plain.hidden_size),
            "attention_scale": settings.real("query_pre_attn_scalar") ** -0.5,
        }

    def to_gguf(
        self, architecture: Architecture
    ) -> tuple[dict[str, Any], dict[str, tuple[float, ...]]]:
        """As `Family.to_gguf`."""
        settings, rows = super().to_gguf(architecture)
        return settings | {
            "rope.freq_base_swa": min(architecture.rope_bases),
            "attention.scale": architecture.attention_scale,
        }, rows


def local(layers: int, pattern: int = PATTERN) -> list[bool]:
    """Which layers see a window alone."""
    return [layer % pattern != 0 for layer in range(1, layers + 1)]


def is_pattern(value: object) -> bool:
    """Whether a file's pattern is the family's own, as a number or layer by layer."""
    return value == PATTERN or (isinstance(value, list) and value == local(len(value)))


FAMILY = Gemma3(
    name="gemma3",
    hf_defaults={
        "gemma3_text": {
            "vocab_size": 262_208,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-6,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "sliding_window_pattern": PATTERN,
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": LOCAL_ROPE,
            "tie_word_embeddings": True,
            "hidden_activation": "gelu_pytorch_tanh",
        }
    },
    traits={"qk_norm": True, "post_norms": True, "activation": "gelu_tanh"},
    gguf_names={
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
    unit_norms=True,
    gguf_reads=("rope.freq_base_swa",),
    gguf_neutral={"attention.sliding_window_pattern": is_pattern},
    hf_nested={"gemma3": "text_config"},
    hf_prefixes={"language_model.": "", "model.language_model.": "model."},
    hf_skipped=tuple(
        f"{outer}{part}."
        for outer in ("", "model.")
        for part in ("vision_tower", "multi_modal_projector")
    ),
    hf_activation_key="hidden_activation",
)
