"""Qwen2-MoE and Qwen1.5-MoE: a mixture of experts in every layer, and beside it a feed-forward
that each row opens by a gate of its own; biases of q, k and v.

Not covered: layers without experts among those that have them.

Source: transformers' `models/qwen2_moe`, llama.cpp's `qwen2moe` graph.
"""

from typing import Any

from ..architecture import QKV, Architecture
from ..files.settings import GgufSettings, HfSettings
from .qwen2 import Qwen2


class Qwen2Moe(Qwen2):
    """Shares are as the softmax over all experts has them, unless a config says otherwise."""

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        shared = settings.whole("expert_shared_feed_forward_length", 0) or settings.size(
            "feed_forward_length"
        )
        return {**super().from_gguf(settings, plain), "shared_size": shared}

    def from_hf(
        self,
        settings: HfSettings,
        plain: Architecture,  # noqa: ARG002
    ) -> dict[str, Any]:
        """As `Family.from_hf`."""
        if settings.get("mlp_only_layers") or settings.size("decoder_sparse_step", 1) != 1:
            raise ValueError("some of its layers have experts and some have none")
        if settings.get("qkv_bias") is False:
            raise ValueError("its q, k and v have no biases")
        if settings.get("use_sliding_window"):
            raise ValueError("some of its layers see only a window")
        return {
            "intermediate_size": settings.size("moe_intermediate_size"),
            "shared_size": settings.size("shared_expert_intermediate_size"),
            "expert_norm": bool(settings.get("norm_topk_prob")),
        }

    def to_gguf(
        self, architecture: Architecture
    ) -> tuple[dict[str, Any], dict[str, tuple[float, ...]]]:
        """As `Family.to_gguf`."""
        settings, rows = super().to_gguf(architecture)
        return settings | {"expert_shared_feed_forward_length": architecture.shared_size}, rows


FAMILY = Qwen2Moe(
    name="qwen2moe",
    hf_defaults={
        "qwen2_moe": {
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "num_experts": 60,
            "num_experts_per_tok": 4,
        }
    },
    traits={"biases": QKV, "expert_norm": False, "shared_gate": True},
    mixture=True,
    gguf_reads=("expert_shared_feed_forward_length",),
    hf_attention_bias=(),
    hf_renamed={".shared_expert.": ".shared_experts."},
)
