"""Command R and Aya: attention and feed-forward side by side behind one LayerNorm without bias,
scaled logits.

Not covered: Command R+ (norms of q and k).

Source: transformers' `models/cohere`, llama.cpp's `command-r` graph.
"""

from typing import Any

from ..architecture import Architecture
from ..family import Family
from ..files.settings import GgufSettings, HfSettings


class Cohere(Family):
    """The factor on its logits stands in its files."""

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        scale = settings.real("logit_scale")
        return {**super().from_gguf(settings, plain), "logit_scale": scale}

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        if settings.get("use_qk_norm"):
            raise ValueError("its q and k are normed")
        scale = settings.real("logit_scale")
        return {**super().from_hf(settings, plain), "logit_scale": scale}

    def to_gguf(
        self, architecture: Architecture
    ) -> tuple[dict[str, Any], dict[str, tuple[float, ...]]]:
        """As `Family.to_gguf`."""
        settings, rows = super().to_gguf(architecture)
        return settings | {"logit_scale": architecture.logit_scale}, rows


FAMILY = Cohere(
    name="command-r",
    hf_defaults={
        "cohere": {
            "vocab_size": 256_000,
            "logit_scale": 0.0625,
            "layer_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        }
    },
    traits={"layer_norms": True, "parallel": True, "one_norm": True},
    interleaved=True,
    hf_interleaved=True,
    hf_epsilon="layer_norm_eps",
    gguf_reads=("logit_scale",),
)
