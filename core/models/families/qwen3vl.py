"""Qwen3-VL, dense, its language model: Qwen3 as Qwen2-VL is Qwen2.

Not covered: pictures (what sees them is left out), its mixtures of experts.

Source: transformers' `models/qwen3_vl`, llama.cpp's `qwen3vl` graph.
"""

from .qwen2vl import SKIPPED, Qwen2Vl, are_sections


def is_count(value: object) -> bool:
    """Whether this says how many layers get more of a picture."""
    return isinstance(value, int)


FAMILY = Qwen2Vl(
    name="qwen3vl",
    hf_defaults={
        "qwen3_vl_text": {
            "rms_norm_eps": 1e-6,
            "rope_theta": 500_000.0,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "max_position_embeddings": 128_000,
        }
    },
    traits={"qk_norm": True},
    gguf_neutral={"rope.dimension_sections": are_sections, "n_deepstack_layers": is_count},
    hf_nested={"qwen3_vl": "text_config"},
    hf_prefixes={"model.language_model.": "model."},
    hf_skipped=SKIPPED,
)
