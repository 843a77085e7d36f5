"""OPT: a table of positions in place of rope, LayerNorms, no gate, ReLU, biases everywhere but the
head.

Not covered: the one that norms behind its layers and embeds into another width (350M), Galactica
(no biases); nobody makes GGUF files of it.

Source: Zhang et al. 2022, as transformers' `models/opt` computes it.
"""

from typing import Any

from ..architecture import Architecture
from ..family import FolderFamily
from ..files.settings import HfSettings
from ..quant.tensor import QuantTensor
from .gpt2 import BIASES, placed

OFFSET = 2  # rows of its table before the first position's
# what every model has that is computed
EXPECTED = {
    "do_layer_norm_before": "its norms stand behind its layers",
    "enable_bias": "it has no biases",
    "layer_norm_elementwise_affine": "its norms have no weights",
}


class Opt(FolderFamily):
    """Its table of positions begins with two rows that no position has."""

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        for key, said in EXPECTED.items():
            if settings.get(key) is False:
                raise ValueError(said)
        if settings.get("_remove_final_layer_norm"):
            raise ValueError("it has no last norm")
        if settings.size("word_embed_proj_dim", plain.hidden_size) != plain.hidden_size:
            raise ValueError("its embedding is of another width")
        return {
            **super().from_hf(settings, plain),
            **placed(plain),
            "num_kv_heads": plain.num_heads,
            "biases": BIASES,
        }

    def hf_unpacked(
        self, found: dict[str, QuantTensor], architecture: Architecture
    ) -> dict[str, QuantTensor]:
        """As `Family.hf_unpacked`."""
        name = "model.embed_positions.weight"
        table, rows = found.get(name), OFFSET + architecture.positions
        if table is None or table.shape[0] != rows:
            return found  # another length is refused by its shape
        return {**found, name: table.part(OFFSET, rows)}


FAMILY = Opt(
    name="opt",
    hf_defaults={
        "opt": {
            "vocab_size": 50_272,
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "ffn_dim": 3072,
            "intermediate_size": 3072,
            "max_position_embeddings": 2048,
            "activation_function": "relu",
            "layer_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
        }
    },
    traits={
        "biases": BIASES,
        "layer_norms": True,
        "norm_biases": True,
        "gated": False,
        "activation": "relu",
    },
    hf_keys={"ffn_dim": "intermediate_size"},
    hf_epsilon="layer_norm_eps",
    hf_activation_key="activation_function",
    hf_activations={"relu": "relu"},
    hf_attention_bias=(),
    # some published folders hold its tensors without their beginning
    hf_prefixes={"decoder.post_attention_layernorm.": "model.norm.", "decoder.": "model."},
    hf_renamed={
        "model.decoder.final_layer_norm.": "model.norm.",
        "model.decoder.": "model.",
        ".self_attn_layer_norm.": ".input_layernorm.",
        ".final_layer_norm.": ".post_attention_layernorm.",
        ".self_attn.out_proj.": ".self_attn.o_proj.",
        ".fc1.": ".mlp.up_proj.",
        ".fc2.": ".mlp.down_proj.",
    },
)
