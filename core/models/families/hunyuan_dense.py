"""Hunyuan, dense: Llama with a norm over each head of q and k, behind rope.

Its dynamic rope is one of a larger base, whatever the length of the text.

Not covered: its mixtures of experts.

Source: transformers' `models/hunyuan_v1_dense`, llama.cpp's `hunyuan-dense` graph.
"""

from typing import Any

from ..family import Family
from ..files.settings import HfSettings
from ..rope import number


class HunyuanDense(Family):
    """Folders say by what the base grows, GGUF files hold the grown one."""

    def hf_rope(self, settings: HfSettings) -> dict[str, Any]:
        """As `Family.hf_rope`."""
        rule = super().hf_rope(settings)
        if rule.get("alpha") is None:
            return rule
        kind = rule.get("rope_type") or rule.get("type")
        if kind != "dynamic":
            raise ValueError(f"rope's rule {kind!r:.20} has the setting 'alpha'")
        size = settings.size("head_dim")
        base = float(rule.get("rope_theta") or settings.real("rope_theta"))
        return {"rope_theta": base * number(rule, "alpha") ** (size / (size - 2))}


FAMILY = HunyuanDense(
    name="hunyuan-dense",
    hf_defaults={
        "hunyuan_v1_dense": {
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 2048,
        }
    },
    traits={"qk_norm": True, "qk_norm_last": True},
    hf_renamed={".query_layernorm.": ".q_norm.", ".key_layernorm.": ".k_norm."},
)
