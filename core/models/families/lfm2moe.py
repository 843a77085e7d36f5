"""LFM2-MoE: LFM2 whose layers behind the first are mixtures of experts; each score is a sigmoid, a
bias takes part in the choice alone.

Not covered: what LFM2 does not cover.

Source: transformers' `models/lfm2_moe`, llama.cpp's `lfm2` graph and its converter.
"""

from typing import Any

from ..architecture import Architecture
from ..family import dense_first
from ..files.settings import GgufSettings, HfSettings
from .glm4moe import SIGMOID
from .lfm2 import DEFAULTS, GGUF_CONVOLUTION, HF_NAMES, Lfm2


class Lfm2Moe(Lfm2):
    """The first layers have one feed-forward for all rows."""

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        if settings.whole("expert_gating_func", SIGMOID) != SIGMOID:
            raise ValueError("its router's scores are no sigmoids")
        first = settings.whole("leading_dense_block_count", 0)
        return {
            **super().from_gguf(settings, plain),
            **dense_first(plain.num_layers, first, settings.size("feed_forward_length")),
            "expert_scale": settings.real("expert_weights_scale", 0.0) or 1.0,
        }

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        first = settings.get("num_dense_layers") or 0
        return {
            **super().from_hf(settings, plain),
            "intermediate_size": settings.size("moe_intermediate_size"),
            **dense_first(plain.num_layers, first, settings.size("intermediate_size")),
            "expert_scale": settings.real("routed_scaling_factor"),
            "expert_norm": settings.get("norm_topk_prob") is not False,
            "routing_bias": settings.get("use_expert_bias") is not False,
        }


FAMILY = Lfm2Moe(
    name="lfm2moe",
    hf_defaults={
        "lfm2_moe": {
            **DEFAULTS,
            "hidden_size": 2048,
            "intermediate_size": 7168,
            "moe_intermediate_size": 1792,
            "num_dense_layers": 2,
            "num_experts": 32,
            "num_experts_per_tok": 4,
            "routed_scaling_factor": 1.0,
        }
    },
    traits={"qk_norm": True, "routing": "sigmoid", "routing_bias": True},
    gguf_names=GGUF_CONVOLUTION,
    gguf_reads=(
        *("shortconv.l_cache", "leading_dense_block_count"),
        *("expert_gating_func", "expert_weights_scale"),
    ),
    gguf_written=False,
    hf_keys={"tie_embedding": "tie_word_embeddings"},
    hf_epsilon="norm_eps",
    hf_stacked=True,
    mixture=True,
    hf_renamed=HF_NAMES,
)
