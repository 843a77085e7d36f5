"""GLM-4 of 2024 (9B chat and its kin) and GLM-Edge: rope of half a head in interleaved order, a
fused gate; biases of q, k and v.

Not covered: ChatGLM's folders of before (they bring their own Python), what sees pictures.

Source: transformers' `models/glm`, llama.cpp's `chatglm` graph and its converter.
"""

from ..architecture import GATE_UP, QKV
from ..family import Family
from .glm4 import DEFAULTS

FAMILY = Family(
    name="chatglm",
    hf_defaults={"glm": DEFAULTS},
    interleaved=True,
    hf_interleaved=True,
    gguf_fused={"ffn_up": GATE_UP},
    gguf_may_fuse={"attn_qkv": QKV},
    hf_fused={"mlp.gate_up_proj": GATE_UP},
    hf_attention_bias=QKV,
    hf_partial_rope=True,
)
