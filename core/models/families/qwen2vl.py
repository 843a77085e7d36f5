"""Qwen2-VL and Qwen2.5-VL, their language model: Qwen2 whose rope counts time, height and width by
themselves, which for text are the same number.

Not covered: pictures (what sees them is left out), Qwen2.5-Omni.

Source: transformers' `models/qwen2_vl` and `models/qwen2_5_vl`, llama.cpp's `qwen2vl` graph.
"""

from typing import Any

from ..architecture import QKV
from ..files.settings import HfSettings
from .qwen2 import Qwen2

SECTIONS = ("mrope_section", "mrope_interleaved")  # which pairs count what


class Qwen2Vl(Qwen2):
    """Which pairs of a head count what makes no difference for text."""

    def hf_rope(self, settings: HfSettings) -> dict[str, Any]:
        """As `Family.hf_rope`."""
        rule = {
            key: value for key, value in super().hf_rope(settings).items() if key not in SECTIONS
        }
        kinds = {key: "default" for key in ("rope_type", "type") if rule.get(key) == "mrope"}
        return rule | kinds


def are_sections(value: object) -> bool:
    """Whether this says how many pairs count what."""
    return isinstance(value, list) and all(isinstance(one, int) for one in value)


SKIPPED = ("visual.", "model.visual.")
FAMILY = Qwen2Vl(
    name="qwen2vl",
    hf_defaults={
        "qwen2_vl_text": {
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "num_key_value_heads": 8,
            "max_position_embeddings": 32768,
            "max_window_layers": 80,
            "sliding_window": 4096,
        }
    },
    traits={"biases": QKV},
    hf_attention_bias=(),
    gguf_neutral={"rope.dimension_sections": are_sections},
    hf_nested={"qwen2_vl": "text_config", "qwen2_5_vl": "text_config"},
    hf_prefixes={"model.language_model.": "model."},
    hf_skipped=SKIPPED,
)
