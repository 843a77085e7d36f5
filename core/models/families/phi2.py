"""Phi-1, 1.5 and 2: attention and feed-forward side by side behind one LayerNorm, no gate, rope of
part of a head, biases everywhere, the head's included.

Source: transformers' `models/phi`, llama.cpp's `phi2` graph and its converter.
"""

from typing import Any

from ..architecture import ATTENTION_PROJECTIONS, Architecture
from ..family import Family
from ..files.settings import HfSettings


class Phi2(Family):
    """Norms of q and k, which no published one has, are not computed."""

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        if settings.get("qk_layernorm"):
            raise ValueError("its q and k are normed")
        return super().from_hf(settings, plain)


FAMILY = Phi2(
    name="phi2",
    hf_defaults={
        "phi": {
            "vocab_size": 51200,
            "layer_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "max_position_embeddings": 2048,
            "hidden_act": "gelu_new",
        }
    },
    traits={
        "biases": (*ATTENTION_PROJECTIONS, "mlp.up_proj", "mlp.down_proj"),
        "layer_norms": True,
        "norm_biases": True,
        "parallel": True,
        "one_norm": True,
        "gated": False,
        "head_bias": True,
        "activation": "gelu_tanh",
    },
    hf_epsilon="layer_norm_eps",
    hf_attention_bias=(),
    hf_partial_rope=True,
    hf_activations={"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"},
    hf_renamed={
        ".dense.": ".o_proj.",
        ".fc1.": ".up_proj.",
        ".fc2.": ".down_proj.",
        "model.final_layernorm.": "model.norm.",
    },
)
