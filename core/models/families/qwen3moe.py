"""Qwen3-MoE: Qwen3 whose feed-forward is a mixture of experts in every layer.

Not covered: layers without experts among those that have them, Qwen3-Next.
"""

from typing import Any

from ..architecture import Architecture
from ..files.settings import HfSettings
from .qwen2 import Qwen2


class Qwen3Moe(Qwen2):
    """Every layer is a mixture; a config may say whether shares add up to 1, a GGUF file of this
    family has no place for it and means that they do.
    """

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        if settings.get("mlp_only_layers") or settings.size("decoder_sparse_step", 1) != 1:
            raise ValueError("some of its layers have experts and some have none")
        return {
            **super().from_hf(settings, plain),
            "intermediate_size": settings.size("moe_intermediate_size"),
            "expert_norm": bool(settings.get("norm_topk_prob")),
        }


FAMILY = Qwen3Moe(
    name="qwen3moe",
    hf_defaults={
        "qwen3_moe": {
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "max_window_layers": 28,
            "sliding_window": 4096,
            "moe_intermediate_size": 768,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": False,
        }
    },
    traits={"qk_norm": True},
    mixture=True,
)
