"""StableLM 2 and its kin: LayerNorms, rope of a quarter of a head, a gate; some have biases of q, k
and v, some attention and feed-forward side by side.

Not covered: StableLM 2 12B (norms of each head of q and k).

Source: transformers' `models/stablelm`, llama.cpp's `stablelm` graph and its converter.
"""

from typing import Any

from ..architecture import QKV, Architecture
from ..family import Family
from ..files.settings import GgufSettings, HfSettings


class StableLm(Family):
    """Side by side, both halves of a layer read through one norm."""

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`: llama.cpp looks for the second norm, not at the setting."""
        beside = "blk.0.ffn_norm.weight" not in settings.file.tensors
        return {**super().from_gguf(settings, plain), "parallel": beside, "one_norm": beside}

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        if settings.get("qk_layernorm"):
            raise ValueError("its q and k are normed")
        beside = bool(settings.get("use_parallel_residual"))
        return {
            **super().from_hf(settings, plain),
            "biases": QKV if settings.get("use_qkv_bias") else (),
            "parallel": beside,
            "one_norm": beside,
        }

    def to_gguf(
        self, architecture: Architecture
    ) -> tuple[dict[str, Any], dict[str, tuple[float, ...]]]:
        """As `Family.to_gguf`."""
        settings, rows = super().to_gguf(architecture)
        return settings | {"use_parallel_residual": architecture.parallel}, rows


FAMILY = StableLm(
    name="stablelm",
    hf_defaults={
        "stablelm": {
            "vocab_size": 50304,
            "num_key_value_heads": 32,
            "layer_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,
            "max_position_embeddings": 4096,
        }
    },
    traits={"layer_norms": True, "norm_biases": True},
    hf_epsilon="layer_norm_eps",
    hf_attention_bias=(),
    hf_partial_rope=True,
    gguf_reads=("use_parallel_residual",),
)
