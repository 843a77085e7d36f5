"""GLM-4.5 and 4.6: Llama with rope of half a head, whose layers behind the first are mixtures of
experts: each score is a sigmoid, a bias takes part in the choice alone, one feed-forward stands
beside the experts.

Not covered: its layers that guess further tokens (left out), what sees pictures (GLM-4.5V).

Source: transformers' `models/glm4_moe`, llama.cpp's `glm4moe` graph and its converter.
"""

from typing import Any

from ..architecture import QKV, Architecture
from ..family import Family, dense_first
from ..files.settings import GgufSettings, HfSettings

SIGMOID = 2  # GGUF's number of the kind of score


class Glm4Moe(Family):
    """Its files may hold one layer more, which guesses further tokens."""

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        if settings.whole("expert_gating_func", SIGMOID) != SIGMOID:
            raise ValueError("its router's scores are no sigmoids")
        layers = plain.num_layers - settings.whole("nextn_predict_layers", 0)
        if layers < 1:
            raise ValueError(f"{layers} of its layers make tokens")
        first = settings.whole("leading_dense_block_count", 0)
        shared = settings.whole("expert_shared_count", 1)
        return {
            **super().from_gguf(settings, plain),
            "num_layers": layers,
            **dense_first(layers, first, settings.size("feed_forward_length")),
            "shared_size": shared * plain.intermediate_size,
            "expert_scale": settings.real("expert_weights_scale", 0.0) or 1.0,
            "expert_norm": settings.flag("expert_weights_norm", default=True),
            **expert_groups(
                settings.whole("expert_group_count", 1),
                settings.whole("expert_group_used_count", 1),
            ),
            "qk_norm": "blk.0.attn_q_norm.weight" in settings.file.tensors,
        }

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        return {
            **super().from_hf(settings, plain),
            **self.mixture_from_hf(settings, plain),
            "expert_norm": settings.get("norm_topk_prob") is not False,
            "qk_norm": bool(settings.get("use_qk_norm")),
        }

    def mixture_from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """What a config says of the experts."""
        width = settings.size("moe_intermediate_size")
        first = settings.get("first_k_dense_replace") or 0
        return {
            "intermediate_size": width,
            **dense_first(plain.num_layers, first, settings.size("intermediate_size")),
            "shared_size": width * settings.size("n_shared_experts"),
            "expert_scale": settings.real("routed_scaling_factor"),
            **expert_groups(settings.size("n_group"), settings.size("topk_group")),
        }

    def to_gguf(
        self, architecture: Architecture
    ) -> tuple[dict[str, Any], dict[str, tuple[float, ...]]]:
        """As `Family.to_gguf`."""
        settings, rows = super().to_gguf(architecture)
        return settings | {
            "leading_dense_block_count": sum(architecture.dense_layers),
            "expert_shared_count": architecture.shared_size // architecture.intermediate_size,
            "expert_gating_func": SIGMOID,
            "expert_weights_scale": architecture.expert_scale,
            "expert_weights_norm": architecture.expert_norm,
            "expert_group_count": architecture.expert_groups or 1,
            "expert_group_used_count": architecture.groups_per_token or 1,
        }, rows


def expert_groups(number: int, taken: int) -> dict[str, int]:
    """Of how many groups of experts a row takes how many; one group is none."""
    return {"expert_groups": number, "groups_per_token": taken} if number > 1 else {}


FAMILY = Glm4Moe(
    name="glm4moe",
    hf_defaults={
        "glm4_moe": {
            "vocab_size": 151_552,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "moe_intermediate_size": 1408,
            "num_experts_per_tok": 8,
            "n_shared_experts": 1,
            "n_routed_experts": 128,
            "routed_scaling_factor": 1.0,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        }
    },
    traits={"routing": "sigmoid", "routing_bias": True},
    gguf_names={"post_attention_layernorm": "post_attention_norm"},
    gguf_reads=(
        *("expert_gating_func", "nextn_predict_layers", "leading_dense_block_count"),
        *("expert_shared_count", "expert_weights_scale", "expert_weights_norm"),
        *("expert_group_count", "expert_group_used_count"),
    ),
    further_layers=True,
    hf_attention_bias=QKV,
    hf_partial_rope=True,
    mixture=True,
    hf_renamed={".gate.e_score_correction_bias": ".gate_correction.bias"},
)
