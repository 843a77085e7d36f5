"""Qwen2 and Qwen2.5: biases of q, k and v; a config may give its upper layers a window.

Not covered: windows of a GGUF file, which has no place for which layers have them.
"""

from typing import Any

from ..architecture import QKV, Architecture
from ..family import Family, hf_window, hf_windowed, layer_windows
from ..files.settings import HfSettings


class Qwen2(Family):
    """Windows are off unless the config turns them on."""

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        window = (
            hf_window(settings, plain.context_length) if settings.get("use_sliding_window") else 0
        )
        if not window:
            return {}
        inside = hf_windowed(settings, plain.num_layers) or [
            layer >= settings.size("max_window_layers") for layer in range(plain.num_layers)
        ]
        return {"windows": layer_windows(window, inside)}


FAMILY = Qwen2(
    name="qwen2",
    hf_defaults={
        "qwen2": {
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "max_window_layers": 28,
            "sliding_window": 4096,
        }
    },
    traits={"biases": QKV},
    hf_attention_bias=(),
)
