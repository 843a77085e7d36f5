"""GPT-J: attention and feed-forward side by side behind one LayerNorm, rope of part of a head in
pairs, a head with biases. GGUF files of it are not read.

Source: transformers' `models/gptj`.
"""

from collections.abc import Mapping
from typing import Any

from ..family import FolderFamily
from ..files.settings import HfSettings


class GptJ(FolderFamily):
    """What rope turns is said in numbers."""

    def hf_settings(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """As `Family.hf_settings`."""
        said = dict(super().hf_settings(values))
        if not said.get("intermediate_size") and isinstance(width := said.get("hidden_size"), int):
            said["intermediate_size"] = 4 * width
        return {**said, "num_key_value_heads": said.get("num_attention_heads")}

    def hf_rope(self, settings: HfSettings) -> dict[str, Any]:
        """As `Family.hf_rope`."""
        # more heads than values are refused with the whole
        size = max(settings.size("hidden_size") // settings.size("num_attention_heads"), 1)
        turned = settings.size("rotary_dim")
        part = {"partial_rotary_factor": turned / size} if turned != size else {}
        return super().hf_rope(settings) | part


DEFAULTS = {
    "vocab_size": 50400,
    "layer_norm_epsilon": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "rotary_dim": 64,
    "activation_function": "gelu_new",
}
TRAITS = {
    "biases": ("mlp.up_proj", "mlp.down_proj"),
    "layer_norms": True,
    "norm_biases": True,
    "parallel": True,
    "one_norm": True,
    "gated": False,
    "head_bias": True,
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
    "transformer.wte.": "model.embed_tokens.",
    "transformer.ln_f.": "model.norm.",
    "transformer.h.": "model.layers.",
    ".ln_1.": ".input_layernorm.",
    ".attn.out_proj.": ".self_attn.o_proj.",
    ".attn.": ".self_attn.",
    ".fc_in.": ".up_proj.",
    ".fc_out.": ".down_proj.",
}
MASKS = (".attn.bias", ".attn.masked_bias", ".attn.causal_mask", ".attn.embed_positions")
FOLDERS: dict[str, Any] = {
    "traits": TRAITS,
    "gguf_written": False,
    "hf_interleaved": True,
    "hf_keys": KEYS,
    "hf_epsilon": "layer_norm_epsilon",
    "hf_activation_key": "activation_function",
    "hf_activations": {"gelu_new": "gelu_tanh"},
    "hf_attention_bias": (),
    "hf_partial_rope": True,
    "hf_skipped": MASKS,
    "hf_renamed": NAMES,
}
FAMILY = GptJ(name="gptj", hf_defaults={"gptj": DEFAULTS}, **FOLDERS)
