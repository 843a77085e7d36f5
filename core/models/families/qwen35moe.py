"""Qwen3.5's mixtures: as the dense ones, with Qwen3-Next's experts and gated feed-forward beside
them in every layer.

Not covered: GGUF files that hold gates and ups of all experts in one tensor, what the dense ones do
not cover.

Source: transformers' `models/qwen3_5_moe`, llama.cpp's `qwen35moe` graph and its converter.
"""

from typing import Any

from ..architecture import Architecture
from ..files.settings import GgufSettings, HfSettings
from ..quant.tensor import QuantTensor
from .granitemoe import apart
from .qwen3next import DELTA_DEFAULTS, GGUF_DELTA, TRAITS, Qwen3Next
from .qwen35 import FAMILY as QWEN35
from .qwen35 import Qwen35


class Qwen35Moe(Qwen35):
    """Published folders hold all experts' gates and ups in one tensor, others each by itself."""

    def mixture_from_gguf(self, settings: GgufSettings) -> dict[str, Any]:
        """As `Qwen3Next.mixture_from_gguf`."""
        return Qwen3Next.mixture_from_gguf(self, settings)

    def mixture_from_hf(self, settings: HfSettings) -> dict[str, Any]:
        """As `Qwen3Next.mixture_from_hf`; shares add up to 1."""
        return {
            "intermediate_size": settings.size("moe_intermediate_size"),
            "shared_size": settings.size("shared_expert_intermediate_size"),
        }

    def hf_unpacked(
        self, found: dict[str, QuantTensor], architecture: Architecture
    ) -> dict[str, QuantTensor]:
        """As `Family.hf_unpacked`; views, no copies."""
        made = super().hf_unpacked(found, architecture)
        inner, width = architecture.intermediate_size, architecture.hidden_size
        for layer in range(architecture.num_layers):
            prefix = f"model.layers.{layer}.mlp.experts."
            for theirs, parts in (
                ("gate_up_proj", [("gate_proj", inner), ("up_proj", inner)]),
                ("down_proj", [("down_proj", width)]),
            ):
                names = [
                    (f"{prefix}{expert}.{part}.weight", rows)
                    for expert in range(architecture.num_experts)
                    for part, rows in parts
                ]
                whole = made.get(prefix + theirs)
                if whole is not None and whole.shape[0] == sum(rows for _, rows in names):
                    del made[prefix + theirs]
                    made |= apart(whole, names)
        return made


FAMILY = Qwen35Moe(
    name="qwen35moe",
    hf_defaults={
        "qwen3_5_moe_text": {
            **DELTA_DEFAULTS,
            "vocab_size": 248_320,
            "hidden_size": 2048,
            "intermediate_size": 512,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "num_hidden_layers": 40,
            "num_key_value_heads": 2,
            "num_experts": 256,
            "num_experts_per_tok": 8,
        }
    },
    traits={**TRAITS, "shared_gate": True},
    gguf_names=GGUF_DELTA,
    gguf_reads=(*QWEN35.gguf_reads, "expert_shared_feed_forward_length"),
    gguf_neutral=QWEN35.gguf_neutral,
    gguf_written=False,
    further_layers=True,
    unit_norms=True,
    hf_partial_rope=True,
    hf_stacked=True,
    hf_nested={"qwen3_5_moe": "text_config"},
    hf_prefixes=QWEN35.hf_prefixes,
    hf_skipped=QWEN35.hf_skipped,
    hf_renamed={**QWEN35.hf_renamed, ".shared_expert.": ".shared_experts."},
    mixture=True,
)
