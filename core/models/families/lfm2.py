"""LFM2: short convolutions in most layers, attention with a norm over each head in the others.

A convolution sees the last few rows of what its layer lets through; these stand in the cache's
blocks beside keys and values, so that whatever holds for those holds for them.
Not covered: convolutions with biases (no published model has any), what sees pictures (LFM2-VL),
adapters of convolutions,
writing such a GGUF file.

Source: transformers' `models/lfm2`, llama.cpp's `lfm2` graph and its converter.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..architecture import Architecture
from ..family import Family
from ..files.settings import GgufSettings, HfSettings
from ..quant.tensor import QuantTensor

ATTENDS = "full_attention"


class Lfm2(Family):
    """A layer convolves where it has no heads of keys, or where a config calls it so."""

    def gguf_kv_heads(self, settings: GgufSettings, heads: int) -> int:
        """As `Family.gguf_kv_heads`: those of a layer that attends."""
        return max(self.heads_by_layer(settings)) or heads

    def heads_by_layer(self, settings: GgufSettings) -> list[int]:
        """Heads of keys, 0 where a layer convolves."""
        said, layers = settings.all().get("attention.head_count_kv"), settings.size("block_count")
        if (
            not isinstance(said, list)
            or len(said) != layers
            or not all(isinstance(one, int) and one >= 0 for one in said)
            or len({one for one in said if one}) > 1
        ):
            raise ValueError(f"its layers have {said!r:.60} heads of keys")
        return said

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        return {
            **super().from_gguf(settings, plain),
            "convolutions": tuple(not heads for heads in self.heads_by_layer(settings)),
            "conv_kernel": settings.size("shortconv.l_cache"),
        }

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        if settings.get("conv_bias"):
            raise ValueError("its convolutions have biases")
        kinds = settings.entries("layer_types", plain.num_layers)
        if kinds is None:
            attend = settings.get("full_attn_idxs")
            inside = range(plain.num_layers) if attend is None else attend
            kinds = [ATTENDS if layer in inside else "conv" for layer in range(plain.num_layers)]
        if not {*kinds} <= {ATTENDS, "conv"}:
            raise ValueError(f"it has layers of the kinds {sorted({*map(str, kinds)})}")
        return {
            **super().from_hf(settings, plain),
            "intermediate_size": self.inner_size(settings),
            "convolutions": tuple(kind == "conv" for kind in kinds),
            "conv_kernel": settings.size("conv_L_cache"),
        }

    def inner_size(self, settings: HfSettings) -> int:
        """Width of the feed-forward, as the code that reads these configs works it out."""
        size = settings.size("intermediate_size")
        if not settings.get("block_auto_adjust_ff_dim"):
            return size
        size = int(2 * size / 3)
        if settings.get("block_ffn_dim_multiplier") is None:
            return size
        unit = settings.size("block_multiple_of")
        return -(-int(settings.real("block_ffn_dim_multiplier") * size) // unit) * unit

    def hf_unpacked(
        self, found: dict[str, QuantTensor], architecture: Architecture
    ) -> dict[str, QuantTensor]:
        """As `Family.hf_unpacked`."""
        return kernels_upright(found, ".conv.conv.weight", ".conv.kernel.weight", architecture)

    def gguf_unpacked(
        self, found: Mapping[str, QuantTensor], architecture: Architecture
    ) -> Mapping[str, QuantTensor]:
        """As `Family.gguf_unpacked`; the last norm's name stands for another's."""
        name = ".shortconv.conv.weight"
        renamed = {
            "output_norm.weight" if theirs == "token_embd_norm.weight" else theirs: blocks
            for theirs, blocks in found.items()
        }
        return kernels_upright(renamed, name, ".shortconv.kernel.weight", architecture)


def kernels_upright(
    found: Mapping[str, QuantTensor], theirs: str, ours: str, architecture: Architecture
) -> dict[str, QuantTensor]:
    """Kernels [width, taps] as one row of taps times width, so that a tap's numbers stand side by
    side.
    """
    made: dict[str, QuantTensor] = {}
    for name, blocks in found.items():
        if not name.endswith(theirs):
            made[name] = blocks
            continue
        rows, columns = blocks.shape
        flat = QuantTensor(blocks.quant_type, (1, rows * columns), blocks.memory.reshape(1, -1))
        if columns != architecture.conv_kernel:
            made[name] = blocks  # which no layer has: it is refused by this name
            continue
        numbers = np.ascontiguousarray(flat.vector().reshape(rows, columns).T).reshape(1, -1)
        made[name.removesuffix(theirs) + ours] = QuantTensor(
            "F32", numbers.shape, numbers.view(np.uint8)
        )
    return made


GGUF_CONVOLUTION = {
    "conv.in_proj": "shortconv.in_proj",
    "conv.out_proj": "shortconv.out_proj",
    "conv.kernel": "shortconv.kernel",
}
HF_NAMES = {
    ".operator_norm.": ".input_layernorm.",
    ".ffn_norm.": ".post_attention_layernorm.",
    ".embedding_norm.": ".norm.",
    ".self_attn.out_proj.": ".self_attn.o_proj.",
    ".q_layernorm.": ".q_norm.",
    ".k_layernorm.": ".k_norm.",
    ".feed_forward.expert_bias": ".mlp.gate_correction.bias",
    ".feed_forward.": ".mlp.",
    ".w1.": ".gate_proj.",
    ".w2.": ".down_proj.",
    ".w3.": ".up_proj.",
}
DEFAULTS = {
    "vocab_size": 65_536,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 128_000,
    "norm_eps": 1e-5,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": True,
    "conv_L_cache": 3,
}
FAMILY = Lfm2(
    name="lfm2",
    hf_defaults={
        "lfm2": {
            **DEFAULTS,
            "hidden_size": 2560,
            "intermediate_size": 12_288,
            "block_auto_adjust_ff_dim": True,
            "block_ffn_dim_multiplier": 1.0,
            "block_multiple_of": 256,
        }
    },
    traits={"qk_norm": True},
    gguf_names=GGUF_CONVOLUTION,
    gguf_reads=("shortconv.l_cache",),
    gguf_written=False,
    hf_keys={"block_ff_dim": "intermediate_size", "tie_embedding": "tie_word_embeddings"},
    hf_epsilon="norm_eps",
    hf_stacked=True,
    hf_renamed=HF_NAMES,
)
