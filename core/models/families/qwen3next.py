"""Qwen3-Next: gated delta nets in three of four layers; attention in the fourth, whose output
passes a gate, with a norm over each head and rope of a quarter of it; a mixture of experts in every
layer, and beside it a feed-forward that each row opens by a gate of its own.

What a delta net remembers stands for one place of a text alone: nothing is guessed, and beginnings
are shared from places where a copy of it was kept. Adapters that others trained change attention
and what delta nets make of rows and give; what is trained here, attention without its gates.
Not covered: layers without experts among those that have them, layers that guess further tokens
(left out), adapters of experts and of a delta net's rates, writing such a GGUF file.

Source: transformers' `models/qwen3_next`, llama.cpp's `qwen3next` graph and its converter.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..architecture import ATTENTION_PROJECTIONS, Architecture
from ..family import AdaptedPart, Family
from ..files.settings import GgufSettings, HfSettings
from ..quant.tensor import QuantTensor
from .lfm2 import kernels_upright

STEP = 4  # every fourth layer attends
HF, GGUF = "model.layers.{}.linear_attn.{}.weight", "blk.{}.ssm_{}.weight"


class Qwen3Next(Family):
    """Queries and their gates stand by head in one matrix, as do the parts of a delta net by head
    of its keys.
    """

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        heads = settings.size("ssm.time_step_rank")
        step = settings.size("full_attention_interval", STEP)
        return {
            **super().from_gguf(settings, plain),
            **self.mixture_from_gguf(settings),
            "deltas": tuple(layer % step != 0 for layer in range(1, plain.num_layers + 1)),
            "conv_kernel": settings.size("ssm.conv_kernel"),
            "delta_key_heads": settings.size("ssm.group_count"),
            "delta_value_heads": heads,
            "delta_key_dim": settings.size("ssm.state_size"),
            "delta_value_dim": settings.size("ssm.inner_size") // heads,
            **self.more_from_gguf(),
        }

    def more_from_gguf(self) -> dict[str, Any]:
        """What a GGUF file holds in another order than a folder."""
        return {}

    def mixture_from_gguf(self, settings: GgufSettings) -> dict[str, Any]:
        """The feed-forward beside the experts."""
        return {"shared_size": settings.size("expert_shared_feed_forward_length")}

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        kinds = settings.entries("layer_types", plain.num_layers)
        step = settings.size("full_attention_interval", STEP)
        if not {*(kinds or ())} <= {"linear_attention", "full_attention"}:
            raise ValueError("it has layers that are neither linear nor full attention")
        linear = (
            [layer % step != 0 for layer in range(1, plain.num_layers + 1)]
            if kinds is None
            else [kind == "linear_attention" for kind in kinds]
        )
        return {
            **super().from_hf(settings, plain),
            **self.mixture_from_hf(settings),
            "deltas": tuple(linear),
            "conv_kernel": settings.size("linear_conv_kernel_dim"),
            "delta_key_heads": settings.size("linear_num_key_heads"),
            "delta_value_heads": settings.size("linear_num_value_heads"),
            "delta_key_dim": settings.size("linear_key_head_dim"),
            "delta_value_dim": settings.size("linear_value_head_dim"),
        }

    def mixture_from_hf(self, settings: HfSettings) -> dict[str, Any]:
        """What a config says of the experts."""
        if settings.get("mlp_only_layers") or settings.size("decoder_sparse_step", 1) != 1:
            raise ValueError("some of its layers have experts and some have none")
        return {
            "intermediate_size": settings.size("moe_intermediate_size"),
            "shared_size": settings.size("shared_expert_intermediate_size"),
            "expert_norm": settings.get("norm_topk_prob") is not False,
        }

    def hf_unpacked(
        self, found: dict[str, QuantTensor], architecture: Architecture
    ) -> dict[str, QuantTensor]:
        """As `Family.hf_unpacked`."""
        made = kernels_upright(
            found, ".linear_attn.conv1d.weight", ".linear_attn.kernel.weight", architecture
        )
        for layer in range(architecture.num_layers):
            prefix = f"model.layers.{layer}."
            split_gate(
                made, f"{prefix}self_attn.q_proj", f"{prefix}self_attn.out_gate", architecture
            )
            split_inputs(made, f"{prefix}linear_attn.", architecture)
            if (logs := made.pop(f"{prefix}linear_attn.A_log", None)) is not None:
                made[HF.format(layer, "decay")] = row(-np.exp(logs.vector()))
            if (shift := made.pop(f"{prefix}linear_attn.dt_bias", None)) is not None:
                made[HF.format(layer, "decay_bias")] = shift
        return made

    def gguf_unpacked(
        self, found: Mapping[str, QuantTensor], architecture: Architecture
    ) -> Mapping[str, QuantTensor]:
        """As `Family.gguf_unpacked`."""
        made = kernels_upright(found, ".ssm_conv1d.weight", ".ssm_kernel.weight", architecture)
        for layer in range(architecture.num_layers):
            prefix = f"blk.{layer}."
            split_gate(made, f"{prefix}attn_q", f"{prefix}attn_out_gate", architecture)
            rates = (f"{prefix}ssm_ba.weight", GGUF.format(layer, "beta"))
            split_rates(made, *rates, GGUF.format(layer, "alpha"), architecture)
            for theirs, ours in (("ssm_a", "a"), ("ssm_dt.bias", "dt")):
                if (vector := made.pop(prefix + theirs, None)) is not None:
                    made[GGUF.format(layer, ours)] = vector
        return made

    def adapted(
        self, name: str, layer: int, architecture: Architecture
    ) -> tuple[AdaptedPart, ...] | None:
        """As `Family.adapted`; not the rates of a delta net, nor what experts have."""
        kind, size = name.partition(".")[0], architecture.head_dim
        if kind == "mlp":
            return () if architecture.num_experts else (AdaptedPart(name),)
        if (kind == "self_attn") != architecture.attends(layer):
            return ()
        if name == "self_attn.q_proj":
            rows = np.arange(2 * architecture.num_heads * size).reshape(-1, 2, size)
            q, gate = (rows[:, place].reshape(-1) for place in range(2))
            return AdaptedPart(name, q), AdaptedPart("self_attn.out_gate", gate)
        if kind == "self_attn":
            return (AdaptedPart(name),) if name in ATTENTION_PROJECTIONS else ()
        return self.delta_adapted(name, architecture)

    def delta_adapted(self, name: str, architecture: Architecture) -> tuple[AdaptedPart, ...]:
        """The same of a delta net."""
        if name == "linear_attn.in_proj_qkvz":
            q, k, v, z = input_rows(architecture)
            inputs = np.concatenate([q, k, v])
            return AdaptedPart("linear_attn.in_proj", inputs), AdaptedPart("linear_attn.gate", z)
        return (AdaptedPart(name),) if name == "linear_attn.out_proj" else ()


def input_rows(architecture: Architecture) -> list[NDArray[np.int64]]:
    """Which rows of a folder's inputs are queries, keys, values and gates."""
    key, heads = architecture.delta_key_dim, architecture.delta_key_heads
    values = architecture.delta_value_heads * architecture.delta_value_dim // heads
    rows = np.arange(heads * (2 * key + 2 * values)).reshape(heads, -1)
    return [part.reshape(-1) for part in np.split(rows, np.cumsum([key, key, values]), axis=1)]


def row(numbers: NDArray[np.float32]) -> QuantTensor:
    """A vector of numbers."""
    whole = np.ascontiguousarray(numbers, np.float32).reshape(1, -1)
    return QuantTensor("F32", whole.shape, whole.view(np.uint8))


def split_gate(
    made: dict[str, QuantTensor], queries: str, gate: str, architecture: Architecture
) -> None:
    """Rows of queries and of their gates, which take turns by head, in place."""
    size, whole = architecture.head_dim, made.get(f"{queries}.weight")
    if whole is None or whole.shape[0] != 2 * architecture.num_heads * size:
        return  # another number of rows is refused by its shape
    rows = np.arange(whole.shape[0]).reshape(-1, 2, size)
    for place, name in enumerate((queries, gate)):
        made[f"{name}.weight"] = whole.take(rows[:, place].reshape(-1))


def split_rates(
    made: dict[str, QuantTensor], theirs: str, beta: str, alpha: str, architecture: Architecture
) -> None:
    """Rows of beta and alpha, which take turns by head of the keys, in place."""
    heads, whole = architecture.delta_value_heads, made.get(theirs)
    if whole is None or whole.shape[0] != 2 * heads:
        return
    rows = np.arange(2 * heads).reshape(architecture.delta_key_heads, 2, -1)
    del made[theirs]
    made[beta], made[alpha] = (whole.take(rows[:, place].reshape(-1)) for place in range(2))


def split_inputs(made: dict[str, QuantTensor], prefix: str, architecture: Architecture) -> None:
    """A folder's matrices of a delta net, whose rows stand together by head of the keys."""
    split_rates(
        made,
        f"{prefix}in_proj_ba.weight",
        f"{prefix}beta.weight",
        f"{prefix}alpha.weight",
        architecture,
    )
    q, k, v, z = input_rows(architecture)
    whole = made.get(f"{prefix}in_proj_qkvz.weight")
    if whole is None or whole.shape[0] != len(q) + len(k) + len(v) + len(z):
        return
    del made[f"{prefix}in_proj_qkvz.weight"]
    made[f"{prefix}in_proj.weight"] = whole.take(np.concatenate([q, k, v]))
    made[f"{prefix}gate.weight"] = whole.take(z)


GGUF_DELTA = {
    "post_attention_layernorm": "post_attention_norm",
    "self_attn.out_gate": "attn_out_gate",
    "linear_attn.in_proj": "attn_qkv",
    "linear_attn.gate": "attn_gate",
    "linear_attn.beta": "ssm_beta",
    "linear_attn.alpha": "ssm_alpha",
    "linear_attn.out_proj": "ssm_out",
    "linear_attn.kernel": "ssm_kernel",
    "linear_attn.decay": "ssm_a",
    "linear_attn.decay_bias": "ssm_dt",
    "linear_attn.gain": "ssm_norm",
}
READ = (
    *("ssm.time_step_rank", "ssm.conv_kernel", "ssm.group_count", "ssm.state_size"),
    *("ssm.inner_size", "full_attention_interval"),
)
DELTA_DEFAULTS = {
    "num_attention_heads": 16,
    "head_dim": 256,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.25,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}
TRAITS = {"qk_norm": True, "attention_gate": True}
FAMILY = Qwen3Next(
    name="qwen3next",
    hf_defaults={
        "qwen3_next": {
            **DELTA_DEFAULTS,
            "vocab_size": 151_936,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 48,
            "num_key_value_heads": 2,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "num_experts": 512,
            "num_experts_per_tok": 10,
        }
    },
    traits={**TRAITS, "shared_gate": True},
    gguf_names=GGUF_DELTA,
    gguf_reads=(*READ, "expert_shared_feed_forward_length"),
    gguf_written=False,
    unit_norms=True,
    hf_partial_rope=True,
    hf_stacked=True,
    hf_skipped=("mtp.",),
    hf_renamed={".linear_attn.norm.": ".linear_attn.gain.", ".shared_expert.": ".shared_experts."},
    mixture=True,
)
