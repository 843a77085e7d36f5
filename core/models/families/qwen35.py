"""Qwen3.5, the dense ones: as Qwen3-Next, with one feed-forward for all rows. Its folders nest it
beside what sees pictures, which is left out.

Not covered: pictures, what Qwen3-Next does not cover.

Source: transformers' `models/qwen3_5`, llama.cpp's `qwen35` graph and its converter.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from ..architecture import Architecture
from ..family import AdaptedPart
from ..files.settings import GgufSettings, HfSettings
from ..quant.tensor import QuantTensor
from .qwen2vl import SECTIONS, are_sections
from .qwen3next import DELTA_DEFAULTS, GGUF_DELTA, READ, TRAITS, Qwen3Next

APART = {"in_proj_qkv": "in_proj", "in_proj_z": "gate", "in_proj_b": "beta", "in_proj_a": "alpha"}


class Qwen35(Qwen3Next):
    """Its delta nets' matrices stand by themselves; in a GGUF file their heads of values take turns
    among heads of keys.
    """

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        layers = plain.num_layers - settings.whole("nextn_predict_layers", 0)
        if layers < 1:
            raise ValueError(f"{layers} of its layers make tokens")
        own = super().from_gguf(settings, plain)
        return {**own, "num_layers": layers, "deltas": own["deltas"][:layers]}

    def more_from_gguf(self) -> dict[str, Any]:
        """As `Qwen3Next.more_from_gguf`."""
        return {"delta_tiled": True}

    def in_files(self, architecture: Architecture) -> Architecture:
        """As `Family.in_files`."""
        return replace(architecture, delta_tiled=True)

    def mixture_from_gguf(self, settings: GgufSettings) -> dict[str, Any]:  # noqa: ARG002
        """There is none."""
        return {}

    def mixture_from_hf(self, settings: HfSettings) -> dict[str, Any]:  # noqa: ARG002
        """There is none."""
        return {}

    def hf_rope(self, settings: HfSettings) -> dict[str, Any]:
        """As `Family.hf_rope`; in a text all pairs count its tokens."""
        rule = super().hf_rope(settings)
        return {key: value for key, value in rule.items() if key not in SECTIONS}

    def hf_unpacked(
        self, found: dict[str, QuantTensor], architecture: Architecture
    ) -> dict[str, QuantTensor]:
        """As `Family.hf_unpacked`."""
        return super().hf_unpacked(renamed(found), architecture)

    def delta_adapted(self, name: str, architecture: Architecture) -> tuple[AdaptedPart, ...]:
        """As `Qwen3Next.delta_adapted`."""
        own = architecture
        values = np.arange(own.delta_value_heads * own.delta_value_dim)
        if own.delta_tiled:  # as a GGUF file has them
            heads = values.reshape(own.delta_key_heads, -1, own.delta_value_dim)
            values = heads.transpose(1, 0, 2).reshape(-1)
        keys = np.arange(2 * own.delta_key_heads * own.delta_key_dim)
        return {
            "linear_attn.in_proj_qkv": (
                AdaptedPart("linear_attn.in_proj", np.concatenate([keys, len(keys) + values])),
            ),
            "linear_attn.in_proj_z": (AdaptedPart("linear_attn.gate", values),),
            "linear_attn.out_proj": (AdaptedPart(name, columns=values),),
        }.get(name, ())


def renamed(found: dict[str, QuantTensor]) -> dict[str, QuantTensor]:
    """Matrices of delta nets under our names."""
    made = {}
    for name, blocks in found.items():
        before, there, leaf = name.partition(".linear_attn.")
        own = APART.get(leaf.removesuffix(".weight"), "")
        made[f"{before}{there}{own}.weight" if own else name] = blocks
    return made


FAMILY = Qwen35(
    name="qwen35",
    hf_defaults={
        "qwen3_5_text": {
            **DELTA_DEFAULTS,
            "vocab_size": 248_320,
            "hidden_size": 4096,
            "intermediate_size": 12_288,
            "num_hidden_layers": 32,
            "num_key_value_heads": 4,
        }
    },
    traits=TRAITS,
    gguf_names=GGUF_DELTA,
    gguf_reads=(*READ, "nextn_predict_layers"),
    gguf_neutral={"rope.dimension_sections": are_sections},
    gguf_written=False,
    further_layers=True,
    unit_norms=True,
    hf_partial_rope=True,
    hf_stacked=True,
    hf_nested={"qwen3_5": "text_config"},
    hf_prefixes={"model.language_model.": "model."},
    hf_skipped=("mtp.", "model.visual."),
    hf_renamed={".linear_attn.norm.": ".linear_attn.gain."},
)
