"""EXAONE 4: norms behind attention and MLP alone, a norm over each head of q and k; its larger
model sees windows in three of four layers, and has no rope in the fourth.

Not covered: EXAONE 3 (other names), its mixtures of experts.

Source: transformers' `models/exaone4`, llama.cpp's `exaone4` graph.
"""

from typing import Any

from ..architecture import Architecture
from ..family import NORMS_BEHIND, Family, hf_windowed, layer_windows
from ..files.settings import GgufSettings, HfSettings

PATTERN = 4  # every fourth layer sees everything, where there are windows
WINDOW = 4096  # where a config does not say


class Exaone4(Family):
    """What has a window has rope, where anything has a window."""

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        window = settings.whole("attention.sliding_window", 0)
        return windowed(plain, window, local(plain.num_layers)) if window else {}

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`; a window that is null is none, one that is absent is the usual."""
        window = settings.values.get("sliding_window", WINDOW)
        if window is None:
            return {}
        inside = hf_windowed(settings, plain.num_layers)
        if inside is None:
            inside = local(plain.num_layers, settings.size("sliding_window_pattern", PATTERN))
        return windowed(plain, settings.size("sliding_window", WINDOW), inside)


def local(layers: int, pattern: int = PATTERN) -> list[bool]:
    """Which layers see a window alone."""
    return [layer % pattern != 0 for layer in range(1, layers + 1)]


def windowed(plain: Architecture, window: int, inside: list[bool]) -> dict[str, Any]:
    """Windows and ropes by layer."""
    return {
        "windows": layer_windows(window if window < plain.context_length else 0, inside),
        "rope_bases": tuple(plain.rope_theta if one else 0.0 for one in inside),
    }


def is_pattern(value: object) -> bool:
    """Whether a file's pattern is the family's own, as a number or layer by layer."""
    return value == PATTERN or (isinstance(value, list) and value == local(len(value)))


FAMILY = Exaone4(
    name="exaone4",
    hf_defaults={
        "exaone4": {
            "vocab_size": 102_400,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 2048,
        }
    },
    traits={"qk_norm": True, "pre_norms": False, "post_norms": True},
    gguf_names=NORMS_BEHIND,
    gguf_neutral={"attention.sliding_window_pattern": is_pattern},
)
