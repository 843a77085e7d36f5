"""Granite 3's mixtures of experts: Granite whose feed-forward is a mixture in every layer, some
with one for all rows beside it.

Source: transformers' `models/granitemoe` and `models/granitemoeshared`, llama.cpp's `granitemoe`
graph and its converter.
"""

from typing import Any

from ..architecture import Architecture
from ..files.settings import GgufSettings, HfSettings
from ..quant.tensor import QuantTensor
from .granite import DEFAULTS, Granite


class GraniteMoe(Granite):
    """A folder holds all experts' gates and ups in one tensor, gates first."""

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        shared = settings.whole("expert_shared_feed_forward_length", 0)
        return {**super().from_gguf(settings, plain), "shared_size": shared}

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        shared = (
            settings.get("shared_intermediate_size")
            if settings.model_type == "granitemoeshared"
            else 0
        )
        return {**super().from_hf(settings, plain), "shared_size": shared or 0}

    def hf_unpacked(
        self, found: dict[str, QuantTensor], architecture: Architecture
    ) -> dict[str, QuantTensor]:
        """As `Family.hf_unpacked`; views, no copies."""
        there, inner = dict(found), architecture.intermediate_size
        for layer in range(architecture.num_layers):
            prefix = f"model.layers.{layer}."
            fused = {
                "mlp.input_linear": [("gate_proj", inner), ("up_proj", inner)],
                "mlp.output_linear": [("down_proj", architecture.hidden_size)],
            }
            for theirs, parts in fused.items():
                blocks = there.get(f"{prefix}{theirs}.weight")
                names = [
                    (f"{prefix}mlp.experts.{expert}.{part}.weight", rows)
                    for expert in range(architecture.num_experts)
                    for part, rows in parts
                ]
                if blocks is not None and blocks.shape[0] == sum(rows for _, rows in names):
                    del there[f"{prefix}{theirs}.weight"]
                    there |= apart(blocks, names)
            shared, size = there.get(f"{prefix}mlp.shared.weight"), architecture.shared_size
            if shared is not None and shared.shape[0] == 2 * size:
                del there[f"{prefix}mlp.shared.weight"]
                names = [
                    (f"{prefix}{architecture.shared(part)}.weight", size)
                    for part in ("mlp.gate_proj", "mlp.up_proj")
                ]
                there |= apart(shared, names)
        return there

    def to_gguf(
        self, architecture: Architecture
    ) -> tuple[dict[str, Any], dict[str, tuple[float, ...]]]:
        """As `Family.to_gguf`."""
        settings, rows = super().to_gguf(architecture)
        if architecture.shared_size:
            settings["expert_shared_feed_forward_length"] = architecture.shared_size
        return settings, rows


def apart(blocks: QuantTensor, names: list[tuple[str, int]]) -> dict[str, QuantTensor]:
    """Rows of one tensor under these names, so many each."""
    found, start = {}, 0
    for name, rows in names:
        found[name], start = blocks.part(start, start + rows), start + rows
    return found


MIXTURE = {**DEFAULTS, "num_local_experts": 8, "num_experts_per_tok": 2}
FAMILY = GraniteMoe(
    name="granitemoe",
    hf_defaults={"granitemoe": MIXTURE, "granitemoeshared": MIXTURE},
    interleaved=True,
    mixture=True,
    hf_stacked=True,
    gguf_reads=(
        *("embedding_scale", "residual_scale", "logit_scale"),
        "expert_shared_feed_forward_length",
    ),
    hf_renamed={
        ".block_sparse_moe.router.layer.": ".mlp.gate.",
        ".block_sparse_moe.": ".mlp.",
        ".shared_mlp.input_linear.": ".mlp.shared.",
        ".shared_mlp.output_linear.": ".mlp.shared_experts.down_proj.",
    },
)
