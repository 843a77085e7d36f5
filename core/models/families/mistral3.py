"""Mistral 3: Ministral 3 (YaRN), and the language model of Mistral Small 3.1 and later, whose
folders nest it beside what sees pictures.

Its queries grow with their position beyond the first context: the context is cut to that length.

Not covered: pictures (what sees them is left out), Mistral 4 (latent attention).

Source: transformers' `models/ministral3` and `models/mistral3`, llama.cpp's `mistral3` graph.
"""

from typing import Any

from ..architecture import Architecture
from ..family import Family
from ..files.settings import GgufSettings, HfSettings

GROWTH = "llama_4_scaling_beta"  # of queries, by the logarithm of how often the context went by


class Mistral3(Family):
    """Its rule of rope holds what queries grow by."""

    def hf_rope(self, settings: HfSettings) -> dict[str, Any]:
        """As `Family.hf_rope`, without what is no rule of rope."""
        rule, kind = super().hf_rope(settings), settings.values.get("model_type", "mistral")
        if kind not in ("mistral", "ministral3"):
            raise ValueError(f"its language model is of the type {kind!r:.30}")
        if kind == "ministral3" and not rule:
            raise ValueError("its rope has no rule")
        return {
            key: value
            for key, value in rule.items()
            if key not in (GROWTH, "max_position_embeddings")
        }

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        rule = super().hf_rope(settings)
        return {
            **super().from_hf(settings, plain),
            **cut(plain, rule.get(GROWTH), rule.get("original_max_position_embeddings")),
        }

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        original = settings.whole("rope.scaling.original_context_length", 0)
        grown = settings.real("attention.temperature_scale", 0.0)
        return {**super().from_gguf(settings, plain), **cut(plain, grown, original)}


def cut(plain: Architecture, growth: Any, original: Any) -> dict[str, Any]:
    """The context, to where queries would begin to grow."""
    if not growth:
        return {}
    if not isinstance(original, int) or original < 1:
        raise ValueError(f"its queries grow beyond a context of {original!r:.20}")
    return {"context_length": min(plain.context_length, original)}


FAMILY = Mistral3(
    name="mistral3",
    hf_defaults={
        "ministral3": {
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 262_144,
            "rope_theta": 1_000_000.0,
        }
    },
    interleaved=True,
    gguf_reads=("attention.temperature_scale", "rope.scaling.yarn_log_multiplier"),
    hf_nested={"mistral3": "text_config"},
    hf_prefixes={"language_model.": "", "model.language_model.": "model."},
    hf_skipped=tuple(
        f"{outer}{part}."
        for outer in ("", "model.")
        for part in ("vision_tower", "multi_modal_projector")
    ),
)
