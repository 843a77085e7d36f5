"""Falcon-H1: attention and one of Mamba-2's scans side by side in every layer, on the same rows,
and factors on nearly every matrix, by which a folder's are multiplied when it is read (a GGUF file
holds them so).

A scan's state stands for one place of a text, as a delta net's: see `core/engine/README.md`.
Not covered: a norm before a scan's gate, steps that are bounded, projections with biases, others'
adapters, writing such a GGUF file.

Source: transformers' `models/falcon_h1`, llama.cpp's `falcon-h1` graph and its converter.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..architecture import Architecture
from ..family import Family
from ..files.settings import GgufSettings, HfSettings
from ..quant.tensor import QuantTensor, plain
from .granitehybrid import (
    GGUF_NAMES,
    GGUF_SCAN,
    HF_SCAN,
    READ,
    SCAN_DEFAULTS,
    scan_from_gguf,
    scan_from_hf,
    scans_apart,
)


class FalconH1(Family):
    """Every layer has both."""

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        return {
            **super().from_gguf(settings, plain),
            **scan_from_gguf(settings),
            **both_in_all(plain),
            "scan_norm": f"blk.0.{GGUF_SCAN['gain']}" in settings.file.tensors,
        }

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        normed = bool(settings.get("mamba_rms_norm"))
        if normed and settings.get("mamba_norm_before_gate"):
            raise ValueError("its scans are normed before their gate")
        return {
            **super().from_hf(settings, plain),
            **scan_from_hf(settings, inner_size(settings)),
            **both_in_all(plain),
            "scan_norm": normed,
            "embedding_scale": settings.real("embedding_multiplier"),
            "logit_scale": settings.real("lm_head_multiplier"),
        }

    def hf_scaled(
        self, found: dict[str, QuantTensor], settings: HfSettings
    ) -> dict[str, QuantTensor]:
        """As `Family.hf_scaled`; in the folder's own type, as its GGUF files have them."""
        gates, downs = settings.reals("mlp_multipliers", 2) or (1.0, 1.0)
        seen = settings.real("attention_in_multiplier")
        factors: dict[str, Any] = {
            ".mlp.gate_proj.weight": gates,
            ".mlp.down_proj.weight": downs,
            ".self_attn.q_proj.weight": seen,
            ".self_attn.k_proj.weight": seen * settings.real("key_multiplier"),
            ".self_attn.v_proj.weight": seen,
            ".self_attn.o_proj.weight": settings.real("attention_out_multiplier"),
            ".mamba.out_proj.weight": settings.real("ssm_out_multiplier"),
            ".mamba.in_proj.weight": scan_factors(settings)[:, None],
        }
        ends = {name: own for name, own in factors.items() if np.any(own != 1.0)}
        made = {}
        for name, blocks in found.items():
            own = next((ends[end] for end in ends if name.endswith(end)), None)
            made[name] = blocks if own is None else multiplied(blocks, own)
        return made

    def hf_unpacked(
        self, found: dict[str, QuantTensor], architecture: Architecture
    ) -> dict[str, QuantTensor]:
        """As `Family.hf_unpacked`."""
        return scans_apart(found, HF_SCAN, "model.layers.{}.", "linear_attn.", architecture)

    def gguf_unpacked(
        self, found: Mapping[str, QuantTensor], architecture: Architecture
    ) -> Mapping[str, QuantTensor]:
        """As `Family.gguf_unpacked`; one norm's name has no ending there."""
        whole = {
            f"{name}.weight" if name.endswith(".ffn_norm") else name: blocks
            for name, blocks in found.items()
        }
        return scans_apart(whole, GGUF_SCAN, "blk.{}.", "scan_", architecture)


def both_in_all(plain: Architecture) -> dict[str, Any]:
    """A scan beside attention in every layer."""
    return {"deltas": (True,) * plain.num_layers, "scan_beside": True}


def inner_size(settings: HfSettings) -> int:
    """Numbers that a scan gives."""
    if settings.get("mamba_d_ssm") is not None:
        return settings.size("mamba_d_ssm")
    return settings.size("mamba_expand") * settings.size("hidden_size")


def scan_factors(settings: HfSettings) -> np.ndarray[Any, np.dtype[np.float32]]:
    """By how much each row of a scan's inputs is multiplied."""
    inner, heads = inner_size(settings), settings.size("mamba_n_heads")
    keys = settings.size("mamba_n_groups") * settings.size("mamba_d_state")
    parts = settings.reals("ssm_multipliers", 5) or (1.0,) * 5
    whole = settings.real("ssm_in_multiplier") * np.array(parts, np.float32)
    return np.repeat(whole, [inner, inner, keys, keys, heads])


def multiplied(blocks: QuantTensor, factor: Any) -> QuantTensor:
    """Numbers times a factor, or each row times its own; another number of rows stays, and is
    refused by its shape.
    """
    import torch

    exact = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    by = torch.as_tensor(factor, dtype=torch.float32)
    if by.dim() and len(by) != blocks.shape[0]:
        return blocks
    return plain((blocks.dequantize() * by).to(exact[blocks.quant_type]))


FAMILY = FalconH1(
    name="falcon-h1",
    hf_defaults={
        "falcon_h1": {
            **SCAN_DEFAULTS,
            "vocab_size": 128_000,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "mamba_norm_before_gate": True,
            **dict.fromkeys(("embedding_multiplier", "lm_head_multiplier"), 1.0),
            **dict.fromkeys(("attention_in_multiplier", "attention_out_multiplier"), 1.0),
            **dict.fromkeys(("ssm_in_multiplier", "ssm_out_multiplier", "key_multiplier"), 1.0),
        }
    },
    gguf_names=GGUF_NAMES,
    gguf_reads=READ,
    gguf_written=False,
    hf_stacked=True,
    hf_renamed={
        ".pre_ff_layernorm.": ".post_attention_layernorm.",
        ".feed_forward.": ".mlp.",
        "model.final_layernorm.": "model.norm.",
    },
)
