"""Phi-3: fused matrices (taken apart as views), a window for all layers, long rope as it is for
short texts.

Phi-4-mini besides: rope turns three quarters of each head.

Not covered: long rope's factors for long texts (the context is cut to where they would begin).
"""

from typing import Any

from ..architecture import GATE_UP, QKV, Architecture
from ..family import Family, gguf_window, hf_window, layer_windows
from ..files.settings import GgufSettings, HfSettings


class Phi3(Family):
    """A window, where there is one, holds for every layer."""

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        window = gguf_window(settings, plain.context_length)
        return {"windows": layer_windows(window, [True] * plain.num_layers)}

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        window = hf_window(settings, plain.context_length)
        return {"windows": layer_windows(window, [True] * plain.num_layers)}

    def to_gguf(
        self, architecture: Architecture
    ) -> tuple[dict[str, Any], dict[str, tuple[float, ...]]]:
        """As `Family.to_gguf`; beyond `context` nothing is read, so both halves of long rope are
        the short one.
        """
        factors = architecture.rope_factors
        if not factors:
            return super().to_gguf(architecture)
        settings: dict[str, Any] = {
            "rope.scaling.attn_factor": float(architecture.rope_magnitude),
            "rope.scaling.original_context_length": architecture.context_length,
        }
        if any(architecture.windows):
            settings["attention.sliding_window"] = max(architecture.windows)
        return settings, {"rope_factors_short.weight": factors, "rope_factors_long.weight": factors}


FAMILY = Phi3(
    name="phi3",
    hf_defaults={
        "phi3": {
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "original_max_position_embeddings": 4096,
        }
    },
    gguf_fused={"attn_qkv": QKV, "ffn_up": GATE_UP},
    hf_fused={"self_attn.qkv_proj": QKV, "mlp.gate_up_proj": GATE_UP},
    gguf_keeps_space=("<unk>", "<s>", "<|endoftext|>"),
    hf_attention_bias=(),
    hf_partial_rope=True,
)
