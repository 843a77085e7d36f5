"""The model families: what each does beyond Llama, and what it calls things in its files.

Knows names in GGUF files and in Hugging Face's. Knows no sizes and no weights.
Always: a further family is a further value of `Family`; a family that is not here is refused, never
guessed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family; `name` is GGUF's `general.architecture`."""

    name: str
    model_types: tuple[str, ...]  # in config.json
    traits: Mapping[str, Any] = field(default_factory=dict)  # fields of `Architecture`
    # inside a layer, ours -> theirs, where not as usual
    gguf_names: Mapping[str, str] = field(default_factory=dict)
    # one tensor in the file, several of ours
    gguf_fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    folder_fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    interleaved: bool = False  # GGUF files hold the rows of q and k in interleaved rope order
    unit_norms: bool = False  # Hugging Face's files hold norms less 1 (GGUF's hold them whole)

    def in_gguf(self, ours: str) -> str:
        """The file's name of a tensor inside a layer, without its ".weight" or ".bias"."""
        return self.gguf_names.get(ours) or GGUF_NAMES[ours]


GGUF_NAMES: Mapping[str, str] = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GGUF_ENDS: Mapping[str, str] = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}

LLAMA = Family(name="llama", model_types=("llama", "mistral"), interleaved=True)
QWEN2 = Family(name="qwen2", model_types=("qwen2",), traits={"biases": QKV})
QWEN3 = Family(name="qwen3", model_types=("qwen3",), traits={"qk_norm": True})
SMOLLM3 = Family(name="smollm3", model_types=("smollm3",), interleaved=True)
GEMMA3 = Family(
    name="gemma3",
    model_types=("gemma3_text", "gemma3"),
    traits={"qk_norm": True, "post_norms": True, "activation": "gelu_tanh"},
    gguf_names={
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
    unit_norms=True,
)
PHI3 = Family(
    name="phi3",
    model_types=("phi3",),
    gguf_fused={"attn_qkv": QKV, "ffn_up": GATE_UP},
    folder_fused={"self_attn.qkv_proj": QKV, "mlp.gate_up_proj": GATE_UP},
)
FAMILIES: Mapping[str, Family] = {
    family.name: family for family in (LLAMA, QWEN2, QWEN3, GEMMA3, SMOLLM3, PHI3)
}
MODEL_TYPES: Mapping[str, Family] = {
    name: family for family in FAMILIES.values() for name in family.model_types
}
