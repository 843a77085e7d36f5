"""MiniMax-M2: a mixture of experts in every layer, sigmoids as scores and a bias of the choice, one
norm over all heads of q and of k, rope of part of a head.

Source: transformers' `models/minimax_m2`, llama.cpp's `minimax-m2` graph.
"""

from typing import Any

from ..architecture import Architecture
from ..family import Family
from ..files.settings import GgufSettings, HfSettings
from .glm4moe import SIGMOID


class MiniMaxM2(Family):
    """Published folders say how many numbers of a head turn, not which part."""

    def hf_rope(self, settings: HfSettings) -> dict[str, Any]:
        """As `Family.hf_rope`."""
        rule = super().hf_rope(settings)
        if settings.get("rotary_dim") and not rule.get("partial_rotary_factor"):
            part = settings.size("rotary_dim") / settings.size("head_dim")
            rule["partial_rotary_factor"] = part
        return rule

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        if settings.whole("expert_gating_func", SIGMOID) != SIGMOID:
            raise ValueError("its router's scores are no sigmoids")
        return super().from_gguf(settings, plain)

    def to_gguf(
        self, architecture: Architecture
    ) -> tuple[dict[str, Any], dict[str, tuple[float, ...]]]:
        """As `Family.to_gguf`."""
        settings, rows = super().to_gguf(architecture)
        return settings | {"expert_gating_func": SIGMOID}, rows


FAMILY = MiniMaxM2(
    name="minimax-m2",
    hf_defaults={
        "minimax_m2": {
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 196_608,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "num_local_experts": 256,
            "num_experts_per_tok": 8,
        }
    },
    traits={"qk_norm": True, "wide_qk_norm": True, "routing": "sigmoid", "routing_bias": True},
    mixture=True,
    gguf_reads=("expert_gating_func",),
    hf_partial_rope=True,
    hf_renamed={
        ".block_sparse_moe.e_score_correction_bias": ".mlp.gate_correction.bias",
        ".block_sparse_moe.": ".mlp.",
        ".w1.weight": ".gate_proj.weight",
        ".w2.weight": ".down_proj.weight",
        ".w3.weight": ".up_proj.weight",
    },
)
