"""Cohere 2 (Command R7B, Command A): attention and feed-forward side by side behind one LayerNorm
without bias, windows with rope in three of four layers, everything without rope in the fourth,
scaled logits.

Source: transformers' `models/cohere2`, llama.cpp's `cohere2` graph.
"""

from typing import Any

from ..architecture import Architecture
from ..family import (
    Family,
    every_but,
    gguf_window,
    gguf_windowed,
    hf_window,
    hf_windowed,
    layer_windows,
)
from ..files.settings import GgufSettings, HfSettings

PATTERN = 4  # every fourth layer sees everything, and has no rope


class Cohere2(Family):
    """What has a window has rope."""

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        inside = gguf_windowed(settings, plain.num_layers, PATTERN)
        return {
            **windowed(plain, gguf_window(settings, plain.context_length), inside),
            "logit_scale": settings.real("logit_scale"),
        }

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        pattern = settings.size("sliding_window_pattern", PATTERN)
        inside = hf_windowed(settings, plain.num_layers) or every_but(plain.num_layers, pattern)
        return {
            **windowed(plain, hf_window(settings, plain.context_length), inside),
            "logit_scale": settings.real("logit_scale"),
        }

    def to_gguf(
        self, architecture: Architecture
    ) -> tuple[dict[str, Any], dict[str, tuple[float, ...]]]:
        """As `Family.to_gguf`."""
        settings, rows = super().to_gguf(architecture)
        settings.setdefault("attention.sliding_window", architecture.context_length)
        inside = [base > 0 for base in architecture.rope_bases]
        return settings | {
            "logit_scale": architecture.logit_scale,
            "attention.sliding_window_pattern": inside,
        }, rows


def windowed(plain: Architecture, window: int, inside: list[bool]) -> dict[str, Any]:
    """Windows and ropes by layer."""
    return {
        "windows": layer_windows(window, inside),
        "rope_bases": tuple(plain.rope_theta if one else 0.0 for one in inside),
    }


FAMILY = Cohere2(
    name="cohere2",
    hf_defaults={
        "cohere2": {
            "vocab_size": 256_000,
            "logit_scale": 0.0625,
            "layer_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 8192,
            "sliding_window": 4096,
            "tie_word_embeddings": True,
        }
    },
    traits={"layer_norms": True, "parallel": True, "one_norm": True},
    interleaved=True,
    hf_interleaved=True,
    hf_epsilon="layer_norm_eps",
    gguf_reads=("logit_scale", "attention.sliding_window_pattern"),
)
