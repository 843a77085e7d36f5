"""Gemma 3n, its language model: Gemma 3 whose rows are four streams, of which each layer computes
the first and foresees and corrects the others; beside attention a product of low rank, gates that
open only far above their row's mean in the lower layers, numbers of each token for every layer,
upper layers that read keys of lower ones, normed values and capped logits.

Not covered: pictures and sounds (what perceives them is left out), adapters, writing such a GGUF
file.

Source: transformers' `models/gemma3n`, llama.cpp's `gemma3n` graph and its converter.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..architecture import Architecture
from ..family import (
    Family,
    every_but,
    gguf_window,
    gguf_windowed,
    hf_window,
    hf_windowed,
    layer_ropes,
    layer_windows,
)
from ..files.settings import GgufSettings, HfSettings
from ..quant.tensor import QuantTensor, plain
from ..rope import RopeScaling, rope_scaling
from .gemma4 import GIVEN_NAMES, KINDS, NORMS, bases, by_layer, layers_of, own_keys, sources

PATTERN = 5  # every fifth layer sees everything
SHARED, STREAMS, RANK, GIVEN, CAP = 15, 4, 64, 256, 30.0
ENDS = ("altup_projections", "altup_unembed_projections")  # a matrix for each further stream


class Gemma3n(Family):
    """Every layer is alike but for what it sees, its gates, and whose keys it reads."""

    def gguf_inner(self, settings: GgufSettings) -> int:
        """As `Family.gguf_inner`: the widest."""
        return max(by_layer(settings, "feed_forward_length"))

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        inside = gguf_windowed(settings, plain.num_layers, PATTERN)
        if settings.whole("altup.active_idx", 0) != 0:
            raise ValueError("its layers compute another stream than the first")
        tensors = settings.file.tensors
        laurel, given = (
            tensors.get(name) for name in ("blk.0.laurel_l.weight", "per_layer_token_embd.weight")
        )
        layers, keys = plain.num_layers, [plain.num_kv_heads] * plain.num_layers
        widths = by_layer(settings, "feed_forward_length")
        cutoffs = settings.all().get("activation_sparsity_scale", [-math.inf] * layers)
        return {
            **layers_of(plain, [plain.head_dim] * layers, keys, widths),
            "windows": layer_windows(gguf_window(settings, plain.context_length), inside),
            "rope_bases": bases(
                inside, plain.rope_theta, settings.real("rope.freq_base_swa", 10000.0)
            ),
            "kv_sources": sources(inside, settings.whole("attention.shared_kv_layers", SHARED)),
            "per_layer_size": settings.whole("embedding_length_per_layer_input", GIVEN),
            "per_layer_tokens": given.shape[0] if given is not None else 0,
            "streams": settings.whole("altup.num_inputs", STREAMS),
            "laurel_rank": laurel.shape[0] if laurel is not None else RANK,
            "gate_cutoffs": gate_cutoffs(cutoffs, layers),
            "logit_softcap": settings.real("final_logit_softcapping", CAP),
        }

    def hf_settings(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """As `Family.hf_settings`; a config may say the width of each layer's feed-forward."""
        said = dict(super().hf_settings(values))
        widths = said.get("intermediate_size")
        if isinstance(widths, list) and widths and all(isinstance(one, int) for one in widths):
            said |= {"intermediate_size": max(widths), "intermediate_sizes": widths}
        return said

    def hf_rope(self, settings: HfSettings) -> dict[str, Any]:
        """As `Family.hf_rope`; newer configs hold a rule for each kind of layer."""
        return {**settings.rule("rope_scaling"), **layer_ropes(settings, KINDS)[KINDS[0]]}

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        layers = plain.num_layers
        inside = hf_windowed(settings, layers) or every_but(layers, PATTERN)
        local = layer_ropes(settings, KINDS)[KINDS[1]]
        theta = float(local.get("rope_theta") or settings.real("rope_local_base_freq"))
        stretched = rope_scaling(local, plain.head_dim, theta, plain.context_length)
        if plain.rope_factors or stretched != RopeScaling():
            raise ValueError("rope is scaled")
        if settings.get("altup_active_idx") or settings.get("altup_correct_scale") is False:
            raise ValueError("its streams are corrected otherwise")
        sparse = settings.get("activation_sparsity_pattern")
        if sparse is None:
            sparse = [0.95] * (10 if layers > 10 else 0)
        sparse = (
            [*sparse, *[0.0] * layers][:layers] if isinstance(sparse, list) else [sparse] * layers
        )
        widths = (
            settings.entries("intermediate_sizes", layers) or [plain.intermediate_size] * layers
        )
        return {
            **layers_of(plain, [plain.head_dim] * layers, [plain.num_kv_heads] * layers, widths),
            "windows": layer_windows(hf_window(settings, plain.context_length), inside),
            "rope_bases": bases(inside, plain.rope_theta, theta),
            "kv_sources": sources(inside, settings.get("num_kv_shared_layers")),
            "per_layer_size": settings.size("hidden_size_per_layer_input"),
            "per_layer_tokens": settings.size("vocab_size_per_layer_input"),
            "streams": settings.size("altup_num_inputs"),
            "laurel_rank": settings.size("laurel_rank"),
            "gate_cutoffs": gate_cutoffs([deviations(one) for one in sparse], layers),
            "logit_softcap": float(settings.get("final_logit_softcapping") or 0.0),
        }

    def hf_unpacked(
        self, found: dict[str, QuantTensor], architecture: Architecture
    ) -> dict[str, QuantTensor]:
        """As `Family.hf_unpacked`."""
        prefix = "model.layers.{}.self_attn."
        made = own_keys(found, f"{prefix}{{}}_proj.weight", f"{prefix}k_norm.weight", architecture)
        for theirs, ours in zip(ENDS, ("altup_proj", "altup_unembed"), strict=True):
            names = [f"model.{theirs}.{place}.weight" for place in range(architecture.streams - 1)]
            if all(name in made for name in names):
                made[f"model.{ours}.weight"] = one_above_another([made.pop(name) for name in names])
        return made

    def gguf_unpacked(
        self, found: Mapping[str, QuantTensor], architecture: Architecture
    ) -> Mapping[str, QuantTensor]:
        """As `Family.gguf_unpacked`."""
        return own_keys(found, "blk.{}.attn_{}.weight", "blk.{}.attn_k_norm.weight", architecture)


def deviations(share: object) -> float:
    """How many deviations above the mean of a normal distribution so large a share of it ends.

    Source: transformers' `models/gemma3n`, which asks torch the same.
    """
    import torch

    if not isinstance(share, int | float) or not 0 <= share < 1:
        raise ValueError(f"{share!r:.20} of a layer's gates are closed")
    return float(torch.special.ndtri(torch.tensor(float(share)))) if share else -math.inf


def gate_cutoffs(said: object, layers: int) -> tuple[float, ...]:
    """`Architecture.gate_cutoffs`, of a list with a number for each layer."""
    if not isinstance(said, Sequence) or len(said) < layers:
        raise ValueError(f"its layers' gates open by {said!r:.60}")
    numbers = tuple(float(one) for one in said[:layers])
    return numbers if any(one > -math.inf for one in numbers) else ()


def one_above_another(parts: Sequence[QuantTensor]) -> QuantTensor:
    """Matrices of plain numbers as one."""
    import torch

    exact = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    kind = exact[parts[0].quant_type]
    return plain(torch.cat([part.dequantize(kind) for part in parts]))


FAMILY = Gemma3n(
    name="gemma3n",
    hf_defaults={
        "gemma3n_text": {
            "vocab_size": 262_400,
            "vocab_size_per_layer_input": 262_144,
            "hidden_size": 2048,
            "hidden_size_per_layer_input": GIVEN,
            "intermediate_size": 16_384,
            "num_hidden_layers": 35,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 256,
            "max_position_embeddings": 32_768,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10000.0,
            "sliding_window": 512,
            "final_logit_softcapping": CAP,
            "altup_num_inputs": STREAMS,
            "num_kv_shared_layers": SHARED,
            "laurel_rank": RANK,
            "tie_word_embeddings": True,
            "hidden_activation": "gelu_pytorch_tanh",
        }
    },
    traits={
        "qk_norm": True,
        "post_norms": True,
        "activation": "gelu_tanh",
        "value_norm": True,
        "attention_scale": 1.0,
    },
    gguf_names=NORMS,
    gguf_reads=(
        *("altup.active_idx", "altup.num_inputs", "activation_sparsity_scale"),
        *("attention.sliding_window_pattern", "attention.shared_kv_layers", "rope.freq_base_swa"),
        "embedding_length_per_layer_input",
    ),
    gguf_written=False,
    hf_nested={"gemma3n": "text_config"},
    hf_prefixes={"model.language_model.": "model."},
    hf_skipped=tuple(
        f"model.{part}." for part in ("vision_tower", "audio_tower", "embed_vision", "embed_audio")
    ),
    hf_activation_key="hidden_activation",
    hf_renamed=GIVEN_NAMES
    | {
        ".altup.prediction_coefs.": ".altup.predict.",
        ".altup.correction_coefs.": ".altup.correct.",
        ".altup.modality_router.": ".altup.router.",
        ".altup.router_norm.": ".altup.norm.",
        ".altup.correct_output_scale": ".altup.scale.weight",
        ".laurel.linear_left.": ".laurel.left.",
        ".laurel.linear_right.": ".laurel.right.",
        ".laurel.post_laurel_norm.": ".laurel.norm.",
    },
)
