"""ERNIE 4.5, dense: Llama whose q and k lie in interleaved rope order in every file.

Not covered: its mixtures of experts, what sees pictures.

Source: transformers' `models/ernie4_5`, llama.cpp's `ernie4_5` graph and its converter.
"""

from typing import Any

from ..architecture import PROJECTIONS, Architecture
from ..family import Family
from ..files.settings import HfSettings


class Ernie(Family):
    """One key gives biases to all projections."""

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        biases = PROJECTIONS if settings.get("use_bias") else ()
        return {**super().from_hf(settings, plain), "biases": biases}


FAMILY = Ernie(
    name="ernie4_5",
    hf_defaults={
        "ernie4_5": {
            "num_key_value_heads": 2,
            "head_dim": 128,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0,
            "tie_word_embeddings": True,
        }
    },
    interleaved=True,
    hf_interleaved=True,
    hf_attention_bias=(),
)
