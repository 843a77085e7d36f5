"""Granite 3 and 4, dense: Llama with a factor on the embedding, on attention, on what layers add,
and a divisor of logits; some without rope.

Granite 4's folders are read by `granitehybrid.py`.

Source: transformers' `models/granite` and `models/granitemoehybrid`, llama.cpp's `granite` graph
and its converter.
"""

from typing import Any

from ..architecture import Architecture
from ..family import Family
from ..files.settings import GgufSettings, HfSettings


class Granite(Family):
    """Its four factors stand in its files."""

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`; 0 says nothing, as llama.cpp takes it."""
        divisor = settings.real("logit_scale", 0.0) or 1.0
        turned = settings.flag("rope.scaling.finetuned", default=True)  # its switch of rope
        return {
            **super().from_gguf(settings, plain),
            **({} if turned else without_rope(plain)),
            "embedding_scale": settings.real("embedding_scale", 0.0) or 1.0,
            "residual_scale": settings.real("residual_scale", 0.0) or 1.0,
            "attention_scale": settings.real("attention.scale", 0.0),
            "logit_scale": 1.0 / divisor,
        }

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        return {
            **super().from_hf(settings, plain),
            "embedding_scale": settings.real("embedding_multiplier"),
            "residual_scale": settings.real("residual_multiplier"),
            "attention_scale": settings.real("attention_multiplier"),
            "logit_scale": 1.0 / settings.real("logits_scaling"),
        }

    def to_gguf(
        self, architecture: Architecture
    ) -> tuple[dict[str, Any], dict[str, tuple[float, ...]]]:
        """As `Family.to_gguf`."""
        settings, rows = super().to_gguf(architecture)
        if architecture.rope_bases:
            settings["rope.scaling.finetuned"] = False
        return settings | {
            "embedding_scale": architecture.embedding_scale,
            "residual_scale": architecture.residual_scale,
            "attention.scale": architecture.scale(),
            "logit_scale": 1.0 / architecture.logit_scale,
        }, rows


def without_rope(plain: Architecture) -> dict[str, Any]:
    """No layer's rows are turned."""
    return {"rope_bases": (0.0,) * plain.num_layers}


DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier"), 1.0),
    **dict.fromkeys(("attention_multiplier", "logits_scaling"), 1.0),
}
FAMILY = Granite(
    name="granite",
    hf_defaults={"granite": DEFAULTS},
    interleaved=True,
    gguf_reads=("embedding_scale", "residual_scale", "logit_scale"),
)
