"""SmolLM3: Llama without rope in every fourth layer."""

from typing import Any

from ..architecture import Architecture
from ..family import Family
from ..files.settings import GgufSettings, HfSettings

NOPE_STEP = 4  # every fourth layer has no rope


class SmolLm3(Family):
    """Published models have no window, and none is computed."""

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        return super().from_gguf(settings, plain) | rope_bases(plain, NOPE_STEP)

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        fields = super().from_hf(settings, plain) if settings.get("use_sliding_window") else {}
        # 1 = with rope, in spite of its name
        turned = settings.entries("no_rope_layers", plain.num_layers)
        if turned is None:
            return fields | rope_bases(plain, settings.size("no_rope_layer_interval", NOPE_STEP))
        return fields | {"rope_bases": tuple(plain.rope_theta if one else 0.0 for one in turned)}


def rope_bases(plain: Architecture, step: int) -> dict[str, Any]:
    """No rope in every layer of this step."""
    layers = range(1, plain.num_layers + 1)
    return {"rope_bases": tuple(plain.rope_theta if layer % step else 0.0 for layer in layers)}


FAMILY = SmolLm3(
    name="smollm3",
    hf_defaults={
        "smollm3": {
            "rms_norm_eps": 1e-6,
            "rope_theta": 2000000.0,
            "tie_word_embeddings": True,
            "num_key_value_heads": 4,
        }
    },
    interleaved=True,
)
