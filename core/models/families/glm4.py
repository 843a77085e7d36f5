"""GLM-4 of 0414 (9B, 32B, Z1): norms before and behind, rope of half a head in interleaved order,
a fused gate; biases of q, k and v.

Not covered: what sees pictures (GLM-4V, GLM-OCR).

Source: transformers' `models/glm4`, llama.cpp's `glm4` graph and its converter.
"""

from ..architecture import GATE_UP, QKV
from ..family import Family

DEFAULTS = {
    "vocab_size": 151_552,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1.5625e-07,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
}
FAMILY = Family(
    name="glm4",
    hf_defaults={"glm4": DEFAULTS},
    traits={"post_norms": True},
    interleaved=True,
    hf_interleaved=True,
    gguf_names={
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
    gguf_fused={"ffn_up": GATE_UP},
    hf_fused={"mlp.gate_up_proj": GATE_UP},
    hf_attention_bias=QKV,
    hf_partial_rope=True,
    hf_renamed={
        ".post_attention_layernorm.": ".pre_feedforward_layernorm.",
        ".post_self_attn_layernorm.": ".post_attention_layernorm.",
        ".post_mlp_layernorm.": ".post_feedforward_layernorm.",
    },
)
