"""StarCoder2: LayerNorms and biases everywhere, a feed-forward without gate; a window for all
layers.

Source: transformers' `models/starcoder2`, llama.cpp's `starcoder2` graph.
"""

from typing import Any

from ..architecture import ATTENTION_PROJECTIONS, Architecture
from ..family import Family, hf_window, layer_windows
from ..files.settings import HfSettings

BIASES = (*ATTENTION_PROJECTIONS, "mlp.up_proj", "mlp.down_proj")


class Starcoder2(Family):
    """A window, where a config has one, holds for every layer; llama.cpp knows of none."""

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        window = hf_window(settings, plain.context_length)
        return {
            "windows": layer_windows(window, [True] * plain.num_layers),
            "biases": () if settings.get("use_bias") is False else BIASES,
        }


FAMILY = Starcoder2(
    name="starcoder2",
    hf_defaults={
        "starcoder2": {
            "vocab_size": 49152,
            "num_key_value_heads": 2,
            "norm_epsilon": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
            "hidden_act": "gelu_pytorch_tanh",
        }
    },
    traits={"layer_norms": True, "norm_biases": True, "gated": False, "activation": "gelu_tanh"},
    hf_epsilon="norm_epsilon",
    hf_attention_bias=(),
    hf_renamed={".c_fc.": ".up_proj.", ".c_proj.": ".down_proj."},
)
