"""GPT-2 and DistilGPT-2: a table of positions in place of rope, LayerNorms, no gate, biases
everywhere but the head.

Source: transformers' `models/gpt2`, llama.cpp's `gpt2` graph and its converter.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..architecture import ATTENTION_PROJECTIONS, QKV, Architecture
from ..family import Family, qkv_of, upright
from ..files.settings import GgufSettings, HfSettings
from ..quant.tensor import QuantTensor

BIASES = (*ATTENTION_PROJECTIONS, "mlp.up_proj", "mlp.down_proj")


class Gpt2(Family):
    """A folder holds its matrices' rows as columns, and q, k and v in one."""

    def hf_settings(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """As `Family.hf_settings`."""
        said = dict(super().hf_settings(values))
        if not said.get("intermediate_size") and isinstance(width := said.get("hidden_size"), int):
            said["intermediate_size"] = 4 * width
        return {**said, "num_key_value_heads": said.get("num_attention_heads")}

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        return {**super().from_gguf(settings, plain), **placed(plain)}

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        if settings.get("scale_attn_weights") is False:
            raise ValueError("its attention is not scaled")
        if settings.get("scale_attn_by_inverse_layer_idx") or settings.get("add_cross_attention"):
            raise ValueError("its attention is scaled by layer, or reads another text")
        return {**super().from_hf(settings, plain), **placed(plain)}

    def hf_unpacked(
        self, found: dict[str, QuantTensor], architecture: Architecture
    ) -> dict[str, QuantTensor]:
        """As `Family.hf_unpacked`."""
        there = {
            name: upright(blocks)
            if name.endswith(".weight") and name.split(".")[-2] in ("c_attn", "o_proj", *MLP)
            else blocks
            for name, blocks in found.items()
        }
        rows = np.arange(3 * architecture.hidden_size).reshape(3, -1)
        for layer in range(architecture.num_layers):
            prefix = f"model.layers.{layer}."
            qkv_of(there, f"{prefix}self_attn.c_attn", prefix, tuple(rows))
        return there


MLP = ("up_proj", "down_proj")


def placed(plain: Architecture) -> dict[str, Any]:
    """Positions are read from a table, and nothing is turned."""
    return {"positions": plain.context_length, "rope_bases": (0.0,) * plain.num_layers}


DEFAULTS = {
    "vocab_size": 50257,
    "layer_norm_epsilon": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
TRAITS = {
    "biases": BIASES,
    "layer_norms": True,
    "norm_biases": True,
    "gated": False,
    "activation": "gelu_tanh",
}
KEYS = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "n_inner": "intermediate_size",
}
NAMES = {
    "transformer.": "model.",
    "model.h.": "model.layers.",
    "model.wte.": "model.embed_tokens.",
    "model.wpe.": "model.embed_positions.",
    "model.ln_f.": "model.norm.",
    ".ln_1.": ".input_layernorm.",
    ".ln_2.": ".post_attention_layernorm.",
    ".attn.c_proj.": ".self_attn.o_proj.",
    ".attn.c_attn.": ".self_attn.c_attn.",
    ".mlp.c_fc.": ".mlp.up_proj.",
    ".mlp.c_proj.": ".mlp.down_proj.",
}
FAMILY = Gpt2(
    name="gpt2",
    hf_defaults={"gpt2": {**DEFAULTS, "activation_function": "gelu_new"}},
    traits=TRAITS,
    gguf_fused={"attn_qkv": QKV},
    hf_keys=KEYS,
    hf_epsilon="layer_norm_epsilon",
    hf_activation_key="activation_function",
    hf_activations={"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"},
    hf_attention_bias=(),
    # the oldest folders hold its tensors without their beginning, and masks
    hf_prefixes={
        "h.": "model.layers.",
        "wte.": "model.embed_tokens.",
        "wpe.": "model.embed_positions.",
        "ln_f.": "model.norm.",
    },
    hf_skipped=(".attn.bias", ".attn.masked_bias"),
    hf_renamed=NAMES,
)
