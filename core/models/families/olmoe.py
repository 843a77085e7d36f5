"""OLMoE: a mixture of experts in every layer, one norm over all heads of q and of k.

Not covered: clipped q, k and v, FlexOlmo.

Source: transformers' `models/olmoe`, llama.cpp's `olmoe` graph.
"""

from typing import Any

from ..architecture import Architecture
from ..family import Family
from ..files.settings import HfSettings


class Olmoe(Family):
    """Shares are as the softmax over all experts has them, unless a config says otherwise."""

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        if settings.get("clip_qkv") is not None:
            raise ValueError("its q, k and v are clipped")
        norm = bool(settings.get("norm_topk_prob"))
        return {**super().from_hf(settings, plain), "expert_norm": norm}


FAMILY = Olmoe(
    name="olmoe",
    hf_defaults={
        "olmoe": {
            "vocab_size": 50304,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 4096,
            "num_experts": 64,
            "num_experts_per_tok": 8,
        }
    },
    traits={"qk_norm": True, "wide_qk_norm": True, "expert_norm": False},
    mixture=True,
)
