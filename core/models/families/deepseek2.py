"""DeepSeek-V2 and V3, and what is built like them (R1, Kimi K2, Moonlight): keys and values of all
heads are made of one small vector, and layers behind the first are mixtures of experts.

The cache holds whole keys and values, as of any other model, not the small vectors.
Not covered: groups whose best expert alone counts (the largest DeepSeek-V2), layers that guess
further tokens (left out), writing such a GGUF file.

Source: transformers' `models/deepseek_v2` and `models/deepseek_v3`, llama.cpp's `deepseek2` graph
and its converter.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import ModelFileError
from ..architecture import Architecture
from ..family import Family, dense_first
from ..files.settings import GgufSettings, HfSettings
from ..quant.tensor import QuantTensor, plain
from .glm4moe import SIGMOID, expert_groups

LATENT_NAMES = {
    ".q_a_proj.": ".q_down.",
    ".q_a_layernorm.": ".q_down_norm.",
    ".q_b_proj.": ".q_proj.",
    ".kv_a_proj_with_mqa.": ".kv_down.",
    ".kv_a_layernorm.": ".kv_down_norm.",
}


class Latent(Family):
    """Rows of queries hold what rope turns last, in pairs beside each other or in halves; ours
    hold it first, in halves.
    """

    def latent_from_hf(self, settings: HfSettings) -> dict[str, Any]:
        """Sizes of latent attention, and its scale."""
        turned = settings.size("qk_rope_head_dim")
        head_dim = settings.size("qk_nope_head_dim") + turned
        rule = self.hf_rope(settings)
        weight = float(rule.get("mscale_all_dim") or 0.0)
        if settings.get("attention_bias"):
            raise ValueError("its latent attention has biases")
        return {
            "head_dim": head_dim,
            "rope_dim": turned,
            "num_kv_heads": settings.size("num_attention_heads"),
            "latent_size": settings.size("kv_lora_rank"),
            "query_rank": (settings.get("q_lora_rank") and settings.size("q_lora_rank")) or 0,
            "value_dim": settings.size("v_head_dim"),
            "attention_scale": scale_of(head_dim, 0.1 * weight, float(rule.get("factor") or 1.0)),
        }

    def latent_from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """The same of a GGUF file."""
        head_dim = settings.size("attention.key_length_mla", plain.head_dim)
        value = settings.size(
            "attention.value_length_mla", settings.size("attention.value_length", head_dim)
        )
        weight = settings.real("rope.scaling.yarn_log_multiplier", 0.0)
        factor = settings.real("rope.scaling.factor", 1.0)
        return {
            "head_dim": head_dim,
            "rope_dim": settings.size("rope.dimension_count"),
            "num_kv_heads": plain.num_heads,
            "latent_size": settings.size("attention.kv_lora_rank"),
            "query_rank": settings.whole("attention.q_lora_rank", 0),
            "value_dim": value,
            "attention_scale": scale_of(head_dim, weight, factor),
            # which a file says by that multiplier alone
            **({"rope_magnitude": 1.0} if weight else {}),
        }

    def hf_unpacked(
        self, found: dict[str, QuantTensor], architecture: Architecture
    ) -> dict[str, QuantTensor]:
        """As `Family.hf_unpacked`."""
        there = dict(found)
        for layer in range(architecture.num_layers):
            own = f"model.layers.{layer}.self_attn."
            unpack(there, architecture, own, "q_proj", "kv_down", "kv_b_proj", pairs=self.in_pairs)
            for ours in "kv":
                if (blocks := there.pop(f"{own}kv_b_proj.{ours}", None)) is not None:
                    there[f"{own}{ours}_proj.weight"] = blocks
        return there

    @property
    def in_pairs(self) -> bool:
        """Whether numbers that rope turns together stand beside each other in files."""
        return True

    def gguf_unpacked(
        self, found: Mapping[str, QuantTensor], architecture: Architecture
    ) -> Mapping[str, QuantTensor]:
        """As `Family.gguf_unpacked`; newer files hold the two of keys and values apart, and that
        of keys turned on its side for each head.
        """
        there = dict(found)
        heads, own = architecture.num_heads, architecture.head_dim - architecture.turned
        queries = "attn_q_b" if architecture.query_rank else "attn_q"
        for layer in range(architecture.num_layers):
            prefix = f"blk.{layer}."
            unpack(
                there,
                architecture,
                prefix,
                queries,
                "attn_kv_a_mqa",
                "attn_kv_b",
                pairs=self.in_pairs,
            )
            if (rows := there.pop(f"{prefix}{queries}.weight", None)) is not None:
                there[f"{prefix}attn_q.weight"] = rows
            for ours in "kv":
                if (blocks := there.pop(f"{prefix}attn_kv_b.{ours}", None)) is not None:
                    there[f"{prefix}attn_{ours}.weight"] = blocks
            if (aside := there.pop(f"{prefix}attn_k_b.weight", None)) is not None:
                if aside.shape != (heads * architecture.latent_size, own):
                    raise ModelFileError(
                        f"{prefix}attn_k_b.weight is {aside.shape}, expected "
                        f"{(heads * architecture.latent_size, own)}; get the model again"
                    )
                there[f"{prefix}attn_k.weight"] = upright_heads(aside, heads, own)
            if (values := there.pop(f"{prefix}attn_v_b.weight", None)) is not None:
                there[f"{prefix}attn_v.weight"] = values
        return there


def upright_heads(aside: QuantTensor, heads: int, own: int) -> QuantTensor:
    """Each head's matrix turned by a quarter, as numbers of 16 bits where it was of blocks."""
    import torch  # only such files need it

    turned = aside.dequantize().view(heads, -1, own).transpose(1, 2).reshape(heads * own, -1)
    exact = torch.float32 if aside.quant_type == "F32" else torch.float16
    return plain(turned.to(exact).contiguous())


def scale_of(head_dim: int, weight: float, factor: float) -> float:
    """What q·k is multiplied by: stretched ropes say by a weight how much larger it grows."""
    grown = 1 + weight * math.log(factor) if factor > 1 else 1.0
    return float(head_dim**-0.5 * grown * grown)


def unpack(
    there: dict[str, QuantTensor],
    architecture: Architecture,
    prefix: str,
    queries: str,
    down: str,
    both: str,
    *,
    pairs: bool,
) -> None:
    """Bring one layer's rows into our order, and cut `both` into ".k" and ".v"."""
    turned, size = architecture.turned, architecture.head_dim
    heads, own, value = architecture.num_heads, size - turned, architecture.value_size
    order = np.arange(turned)
    if pairs:
        order = order.reshape(-1, 2).T.reshape(-1)
    rows = np.arange(heads * size).reshape(heads, size)
    first = np.concatenate([rows[:, own:][:, order], rows[:, :own]], axis=1).reshape(-1)
    blocks = there.get(name := f"{prefix}{queries}.weight")
    if blocks is not None and blocks.shape[0] == len(first):
        there[name] = blocks.take(first)
    latent = architecture.latent_size
    blocks = there.get(name := f"{prefix}{down}.weight")
    if blocks is not None and blocks.shape[0] == latent + turned:
        there[name] = blocks.take(np.concatenate([np.arange(latent), latent + order]))
    blocks = there.get(name := f"{prefix}{both}.weight")
    if blocks is not None and blocks.shape[0] == heads * (own + value):
        rows = np.arange(blocks.shape[0]).reshape(heads, -1)
        there[f"{prefix}{both}.k"] = blocks.take(rows[:, :own].reshape(-1))
        there[f"{prefix}{both}.v"] = blocks.take(rows[:, own:].reshape(-1))
        del there[name]


class DeepSeek(Latent):
    """Versions 2 and 3 share a name in GGUF files; how a router scores tells them apart."""

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        layers = plain.num_layers - settings.whole("nextn_predict_layers", 0)
        if layers < 1:
            raise ValueError(f"{layers} of its layers make tokens")
        first = settings.whole("leading_dense_block_count", 0)
        sigmoid = settings.whole("expert_gating_func", 1) == SIGMOID
        biased = any(name.endswith("exp_probs_b.bias") for name in settings.file.tensors)
        in_groups = expert_groups(
            settings.whole("expert_group_count", 1), settings.whole("expert_group_used_count", 1)
        )
        if in_groups and not sigmoid:
            raise ValueError("a group of its experts counts by its best one")
        return {
            **super().from_gguf(settings, plain),
            **self.latent_from_gguf(settings, plain),
            "num_layers": layers,
            **dense_first(layers, first, settings.size("feed_forward_length")),
            "shared_size": settings.whole("expert_shared_count", 0) * plain.intermediate_size,
            "expert_scale": settings.real("expert_weights_scale", 0.0) or 1.0,
            "expert_norm": settings.flag("expert_weights_norm", default=False),
            "routing": "sigmoid" if sigmoid else "softmax",
            "routing_bias": biased,
            **in_groups,
        }

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        third = settings.model_type == "deepseek_v3"
        width, first = settings.size("moe_intermediate_size"), settings.get("first_k_dense_replace")
        if settings.get("rope_interleave") is False:
            raise ValueError("numbers that rope turns together stand apart in its files")
        if (settings.get("moe_layer_freq") or 1) != 1:
            raise ValueError("only some of its layers are mixtures")
        if not third and settings.get("topk_method") not in (None, "greedy"):
            raise ValueError("a group of its experts counts by its best one")
        return {
            **super().from_hf(settings, plain),
            **self.latent_from_hf(settings),
            "intermediate_size": width,
            **dense_first(plain.num_layers, first or 0, settings.size("intermediate_size")),
            "shared_size": width * (settings.get("n_shared_experts") or 0),
            "expert_scale": settings.real("routed_scaling_factor"),
            # version 2's own code knows of no other
            "expert_norm": third and settings.get("norm_topk_prob") is not False,
            "routing": "sigmoid" if third else "softmax",
            "routing_bias": third,
            **(
                expert_groups(settings.get("n_group") or 1, settings.get("topk_group") or 1)
                if third
                else {}
            ),
        }


DEFAULTS = {
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "kv_lora_rank": 512,
    "routed_scaling_factor": 1.0,
}
READS = (
    *("attention.kv_lora_rank", "attention.q_lora_rank"),
    *("attention.key_length_mla", "attention.value_length_mla"),
    "rope.scaling.yarn_log_multiplier",
)
LATENT_GGUF = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
}
FAMILY = DeepSeek(
    name="deepseek2",
    hf_defaults={
        "deepseek_v2": DEFAULTS
        | {
            "max_position_embeddings": 2048,
            "moe_intermediate_size": 1407,
            "n_shared_experts": 2,
            "n_routed_experts": 64,
        },
        "deepseek_v3": DEFAULTS
        | {
            "moe_intermediate_size": 2048,
            "n_shared_experts": 1,
            "n_routed_experts": 256,
            "num_experts_per_tok": 8,
            "routed_scaling_factor": 2.5,
            "n_group": 8,
            "topk_group": 4,
            "first_k_dense_replace": 3,
        },
    },
    gguf_names=LATENT_GGUF,
    gguf_written=False,
    gguf_reads=(
        *READS,
        *("expert_gating_func", "nextn_predict_layers", "leading_dense_block_count"),
        *("expert_shared_count", "expert_weights_scale", "expert_weights_norm"),
        *("expert_group_count", "expert_group_used_count"),
    ),
    further_layers=True,
    hf_head_dim="qk_rope_head_dim",
    mixture=True,
    hf_renamed={**LATENT_NAMES, ".gate.e_score_correction_bias": ".gate_correction.bias"},
)
