"""Hunyuan's mixture of experts (A13B): Hunyuan whose every layer is a mixture, with a feed-forward
for all rows beside it.

Not covered: layers that differ in the number of experts.

Source: transformers' `models/hunyuan_v1_moe`, llama.cpp's `hunyuan-moe` graph and its converter.
"""

from typing import Any

from ..architecture import Architecture
from ..files.settings import GgufSettings, HfSettings
from .hunyuan_dense import HunyuanDense


class HunyuanMoe(HunyuanDense):
    """The feed-forward beside the experts is as wide as one of them."""

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        shared = settings.whole("expert_shared_feed_forward_length", 0)
        return {
            **super().from_gguf(settings, plain),
            "shared_size": shared or plain.intermediate_size,
        }

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        taken = settings.get("moe_topk")
        if isinstance(taken, list) and len(set(taken)) == 1:
            taken = taken[0]
        if not isinstance(taken, int):
            raise ValueError("its layers take different numbers of experts")
        return {
            **super().from_hf(settings, plain),
            "shared_size": plain.intermediate_size,
            "experts_per_token": taken,
        }

    def to_gguf(
        self, architecture: Architecture
    ) -> tuple[dict[str, Any], dict[str, tuple[float, ...]]]:
        """As `Family.to_gguf`."""
        settings, rows = super().to_gguf(architecture)
        return settings | {
            "expert_shared_count": 1,
            "expert_shared_feed_forward_length": architecture.shared_size,
        }, rows


FAMILY = HunyuanMoe(
    name="hunyuan-moe",
    hf_defaults={
        "hunyuan_v1_moe": {
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 2048,
            "moe_topk": 1,
            "num_experts_per_tok": 1,
        }
    },
    traits={"qk_norm": True, "qk_norm_last": True},
    mixture=True,
    gguf_reads=("expert_shared_count", "expert_shared_feed_forward_length"),
    hf_renamed={
        ".query_layernorm.": ".q_norm.",
        ".key_layernorm.": ".k_norm.",
        ".gate.wg.": ".gate.",
        ".shared_mlp.": ".shared_experts.",
    },
)
