"""dots.llm1: GLM-4.5's mixture with rope of whole heads and a norm over each head of q and k; a
config may give its upper layers a window.

Source: transformers' `models/dots1`, llama.cpp's `dots1` graph and its converter.
"""

from typing import Any

from ..architecture import Architecture
from ..family import hf_window, hf_windowed, layer_windows
from ..files.settings import GgufSettings, HfSettings
from .glm4moe import FAMILY as GLM
from .glm4moe import Glm4Moe


class Dots1(Glm4Moe):
    """Its heads are always normed, its shares add up to 1 only where it is said."""

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        norm = settings.flag("expert_weights_norm", default=False)
        return {**super().from_gguf(settings, plain), "qk_norm": True, "expert_norm": norm}

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        layers, window = plain.num_layers, hf_window(settings, plain.context_length)
        inside = hf_windowed(settings, layers) or [
            layer >= settings.size("max_window_layers") for layer in range(layers)
        ]
        return {
            **self.mixture_from_hf(settings, plain),
            "qk_norm": True,
            "expert_norm": bool(settings.get("norm_topk_prob")),
            "windows": layer_windows(window, inside),
        }


FAMILY = Dots1(
    name="dots1",
    hf_defaults={
        "dots1": {
            "num_key_value_heads": 32,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "routed_scaling_factor": 1.0,
            "n_group": 1,
            "topk_group": 1,
            "sliding_window": 4096,
            "max_window_layers": 62,
        }
    },
    traits=GLM.traits,
    gguf_reads=GLM.gguf_reads,
    mixture=True,
    hf_renamed=GLM.hf_renamed,
)
