"""OLMo 2 and 3: norms behind attention and MLP alone, and one norm over all heads of q and of k.
OLMo 3 sees windows in three of four layers, where its rope is not stretched.

Not covered: OLMo 1 (norms without weights).

Source: transformers' `models/olmo2` and `models/olmo3`, llama.cpp's `olmo2` graph.
"""

from typing import Any

from ..architecture import Architecture
from ..family import (
    NORMS_BEHIND,
    Family,
    every_but,
    gguf_window,
    gguf_windowed,
    hf_window,
    hf_windowed,
    layer_ropes,
    layer_windows,
)
from ..files.settings import GgufSettings, HfSettings
from ..rope import RopeScaling, rope_scaling

PATTERN = 4  # every fourth layer sees everything, where there are windows
KINDS = ("full_attention", "sliding_attention")


class Olmo2(Family):
    """Where a file has windows, it is OLMo 3."""

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        if not settings.whole("attention.sliding_window", 0):
            return {}
        inside = gguf_windowed(settings, plain.num_layers, PATTERN)
        base = settings.real("rope.freq_base_swa", plain.rope_theta)
        return windowed(plain, gguf_window(settings, plain.context_length), inside, base)

    def hf_rope(self, settings: HfSettings) -> dict[str, Any]:
        """As `Family.hf_rope`; newer configs hold a rule for each kind of layer."""
        return {**settings.rule("rope_scaling"), **layer_ropes(settings, KINDS)[KINDS[0]]}

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        if settings.model_type == "olmo2":
            return super().from_hf(settings, plain)
        rule = layer_ropes(settings, KINDS)[KINDS[1]]
        base = float(rule.get("rope_theta") or plain.rope_theta)
        if rope_scaling(rule, plain.head_dim, base, plain.context_length) != RopeScaling():
            raise ValueError("rope of windowed layers is scaled")
        inside = hf_windowed(settings, plain.num_layers) or every_but(plain.num_layers, PATTERN)
        return windowed(plain, hf_window(settings, plain.context_length), inside, base)

    def to_gguf(
        self, architecture: Architecture
    ) -> tuple[dict[str, Any], dict[str, tuple[float, ...]]]:
        """As `Family.to_gguf`."""
        settings, rows = super().to_gguf(architecture)
        if architecture.rope_stretched:
            inside = [not one for one in architecture.rope_stretched]
            settings.setdefault("attention.sliding_window", architecture.context_length)
            settings["attention.sliding_window_pattern"] = inside
            settings["rope.freq_base_swa"] = architecture.rope_base(inside.index(True))
        return settings, rows


def windowed(plain: Architecture, window: int, inside: list[bool], base: float) -> dict[str, Any]:
    """Windows and ropes by layer."""
    if not any(inside):
        return {}
    return {
        "windows": layer_windows(window, inside),
        "rope_bases": tuple(base if one else plain.rope_theta for one in inside)
        if base != plain.rope_theta
        else (),
        "rope_stretched": tuple(not one for one in inside),
    }


FAMILY = Olmo2(
    name="olmo2",
    hf_defaults={
        "olmo2": {
            "vocab_size": 50304,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 2048,
        },
        "olmo3": {
            "vocab_size": 50304,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0,
            "max_position_embeddings": 2048,
            "sliding_window": 4096,
        },
    },
    traits={"qk_norm": True, "wide_qk_norm": True, "pre_norms": False, "post_norms": True},
    gguf_names=NORMS_BEHIND,
    gguf_reads=("rope.freq_base_swa", "attention.sliding_window_pattern"),
)
