"""GPT-Neo: a table of positions, attention that is not scaled, windows in every other layer, no
gate. GGUF files of it are not read.

Source: transformers' `models/gpt_neo`.
"""

from collections.abc import Mapping
from typing import Any

from ..architecture import Architecture
from ..family import FolderFamily, hf_window, layer_windows
from ..files.settings import HfSettings
from .gpt2 import DEFAULTS, placed


class GptNeo(FolderFamily):
    """Which layers see a window is said in runs of kinds, each so many times."""

    def hf_settings(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """As `Family.hf_settings`."""
        said = dict(super().hf_settings(values))
        if not said.get("intermediate_size") and isinstance(width := said.get("hidden_size"), int):
            said["intermediate_size"] = 4 * width
        return {
            **said,
            "num_key_value_heads": said.get("num_attention_heads"),
            "sliding_window": said.get("window_size", 256),
        }

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        kinds: list[object] = []
        for run in settings.get("attention_types") or ():
            if not (isinstance(run, list) and len(run) == 2 and isinstance(run[0], list)):
                raise ValueError(f"its layers see {run!r:.40}")
            if not isinstance(run[1], int) or not 0 < run[1] <= plain.num_layers:
                raise ValueError(f"its layers repeat {run[1]!r:.20} times")
            kinds += run[0] * run[1]
        if len(kinds) != plain.num_layers or not set(map(str, kinds)) <= {"global", "local"}:
            raise ValueError(f"its {plain.num_layers} layers see {kinds!r:.60}")
        window = hf_window(settings, plain.context_length)
        return {
            **placed(plain),
            "attention_scale": 1.0,
            "windows": layer_windows(window, [kind == "local" for kind in kinds]),
        }


FAMILY = GptNeo(
    name="gpt_neo",
    hf_defaults={
        "gpt_neo": DEFAULTS
        | {
            "max_position_embeddings": 2048,
            "activation_function": "gelu_new",
            "attention_types": [[["global", "local"], 12]],
        }
    },
    traits={
        "biases": ("self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"),
        "layer_norms": True,
        "norm_biases": True,
        "gated": False,
        "activation": "gelu_tanh",
    },
    gguf_written=False,
    hf_keys={"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"},
    hf_epsilon="layer_norm_epsilon",
    hf_activation_key="activation_function",
    hf_activations={"gelu_new": "gelu_tanh"},
    hf_attention_bias=(),
    hf_skipped=(".attn.attention.bias", ".attn.attention.masked_bias"),
    hf_renamed={
        "transformer.wte.": "model.embed_tokens.",
        "transformer.wpe.": "model.embed_positions.",
        "transformer.ln_f.": "model.norm.",
        "transformer.h.": "model.layers.",
        ".ln_1.": ".input_layernorm.",
        ".ln_2.": ".post_attention_layernorm.",
        ".attn.attention.out_proj.": ".self_attn.o_proj.",
        ".attn.attention.": ".self_attn.",
        ".mlp.c_fc.": ".mlp.up_proj.",
        ".mlp.c_proj.": ".mlp.down_proj.",
    },
)
