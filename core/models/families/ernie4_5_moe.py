"""ERNIE 4.5's mixtures of experts: ERNIE 4.5 whose layers behind the first are mixtures, chosen by
a bias beside the softmax, with a feed-forward for all rows beside them.

Not covered: what sees pictures, layers that guess further tokens (left out).

Source: transformers' `models/ernie4_5_moe`, llama.cpp's `ernie4_5-moe` graph and its converter.
"""

from typing import Any

from ..architecture import Architecture
from ..family import Family, dense_first
from ..files.settings import GgufSettings, HfSettings


class ErnieMoe(Family):
    """Every layer from some number on is a mixture."""

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        if settings.size("interleave_moe_layer_step", 1) != 1:
            raise ValueError("layers with experts and without take turns")
        first = settings.whole("leading_dense_block_count", 0)
        count = settings.whole("expert_shared_count", 0)
        shared = settings.whole("expert_shared_feed_forward_length", 0)
        return {
            **super().from_gguf(settings, plain),
            **dense_first(plain.num_layers, first, settings.size("feed_forward_length")),
            "shared_size": shared or count * plain.intermediate_size,
        }

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        last = settings.get("moe_layer_end_index")
        if settings.size("moe_layer_interval") != 1 or last not in (-1, plain.num_layers - 1):
            raise ValueError("layers with experts and without take turns")
        if settings.get("use_bias"):
            raise ValueError("its projections have biases")
        width, first = settings.size("moe_intermediate_size"), settings.get("moe_layer_start_index")
        return {
            **super().from_hf(settings, plain),
            "intermediate_size": width,
            "num_experts": settings.size("moe_num_experts"),
            "experts_per_token": settings.size("moe_k"),
            "shared_size": width * (settings.get("moe_num_shared_experts") or 0),
            **dense_first(plain.num_layers, first, settings.size("intermediate_size")),
        }

    def to_gguf(
        self, architecture: Architecture
    ) -> tuple[dict[str, Any], dict[str, tuple[float, ...]]]:
        """As `Family.to_gguf`."""
        settings, rows = super().to_gguf(architecture)
        return settings | {
            "interleave_moe_layer_step": 1,
            "leading_dense_block_count": sum(architecture.dense_layers),
            "expert_shared_count": architecture.shared_size // architecture.intermediate_size,
            "expert_shared_feed_forward_length": architecture.shared_size,
        }, rows


FAMILY = ErnieMoe(
    name="ernie4_5-moe",
    hf_defaults={
        "ernie4_5_moe": {
            "num_key_value_heads": 4,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0,
            "tie_word_embeddings": True,
            "moe_intermediate_size": 1536,
            "moe_k": 6,
            "moe_num_experts": 64,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": -1,
            "moe_layer_interval": 1,
        }
    },
    traits={"routing_bias": True},
    interleaved=True,
    hf_interleaved=True,
    mixture=True,
    gguf_reads=(
        *("interleave_moe_layer_step", "leading_dense_block_count", "expert_shared_count"),
        "expert_shared_feed_forward_length",
    ),
    hf_attention_bias=(),
    hf_skipped=("model.mtp_",),
    hf_renamed={".moe_statics.e_score_correction_bias": ".gate_correction.bias"},
)
