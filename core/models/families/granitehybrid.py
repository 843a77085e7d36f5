"""Granite 4's hybrids: Granite whose layers are Mamba-2's scans, all but a few that attend, mostly
without rope; a mixture of experts in every layer and a feed-forward for all rows beside it, or that
alone. Its folders' model_type is also that of Granite 4's plain ones, which are read as Granite.

A scan's state stands for one place of a text, as a delta net's: see `core/engine/README.md`.
Not covered: steps that are bounded, projections with biases, others' adapters, writing such a GGUF
file.

Source: transformers' `models/granitemoehybrid`, llama.cpp's `granitehybrid` graph and its
converter.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..architecture import Architecture
from ..files.settings import GgufSettings, HfSettings
from ..quant.tensor import QuantTensor
from .granite import without_rope
from .granitemoe import FAMILY as GRANITE_MOE
from .granitemoe import MIXTURE, GraniteMoe, apart
from .qwen3next import row

# what a scan's tensors are called inside a layer; those of a GGUF file's decay are ready
HF_SCAN = {
    "in": "mamba.in_proj.weight",
    "kernel": "mamba.conv1d.weight",
    "kernel_bias": "mamba.conv1d.bias",
    "logs": "mamba.A_log",
    "decay_bias": "mamba.dt_bias",
    "skip": "mamba.D",
    "gain": "mamba.norm.weight",
    "out_proj": "mamba.out_proj.weight",
}
GGUF_SCAN = {
    "in": "ssm_in.weight",
    "kernel": "ssm_conv1d.weight",
    "kernel_bias": "ssm_conv1d.bias",
    "decay": "ssm_a",
    "decay_bias": "ssm_dt.bias",
    "skip": "ssm_d",
    "gain": "ssm_norm.weight",
    "out_proj": "ssm_out.weight",
}
PARTS = ("in_proj", "gate", "alpha", "kernel", "decay", "decay_bias", "skip", "gain", "out_proj")
GGUF_NAMES = {f"linear_attn.{part}": f"scan_{part}" for part in PARTS}
READ = (
    *("ssm.time_step_rank", "ssm.conv_kernel", "ssm.group_count", "ssm.state_size"),
    "ssm.inner_size",
)
ATTENDS, SCANS = {"attention", "full_attention"}, {"mamba", "linear_attention"}


class GraniteHybrid(GraniteMoe):
    """A layer scans where it has no heads of keys, or where a config calls it so."""

    def gguf_kv_heads(self, settings: GgufSettings, heads: int) -> int:
        """As `Family.gguf_kv_heads`: those of a layer that attends."""
        return max(numbers_by_layer(settings, "attention.head_count_kv")) or heads

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        own = {
            **super().from_gguf(settings, plain),
            **scan_from_gguf(settings),
            "deltas": tuple(
                not heads for heads in numbers_by_layer(settings, "attention.head_count_kv")
            ),
            "scan_norm": True,
        }
        return own if plain.num_experts else own | {"shared_size": 0}

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        kinds = settings.entries("layer_types", plain.num_layers) or ["mamba"] * plain.num_layers
        if not {*kinds} <= ATTENDS | SCANS:
            raise ValueError(f"it has layers of the kinds {sorted({*map(str, kinds)})}")
        shared = settings.size("shared_intermediate_size")
        turned = settings.get("position_embedding_type") == "rope"
        own = super().from_hf(settings, plain) | ({} if turned else without_rope(plain))
        own |= {"shared_size": shared}
        if not plain.num_experts:
            own |= {"intermediate_size": shared, "shared_size": 0}
        scans = tuple(kind in SCANS for kind in kinds)
        if not any(scans):
            return own | {"family": "granitemoe" if plain.num_experts else "granite"}
        inner = settings.size("mamba_expand") * plain.hidden_size
        return own | scan_from_hf(settings, inner) | {"deltas": scans, "scan_norm": True}

    def hf_unpacked(
        self, found: dict[str, QuantTensor], architecture: Architecture
    ) -> dict[str, QuantTensor]:
        """As `Family.hf_unpacked`; views, but for a scan's inputs."""
        made = super().hf_unpacked(found, architecture)
        for layer in range(architecture.num_layers if not architecture.num_experts else 0):
            prefix, inner = f"model.layers.{layer}.mlp.", architecture.intermediate_size
            both = made.get(f"{prefix}shared.weight")
            if both is not None and both.shape[0] == 2 * inner:
                del made[f"{prefix}shared.weight"]
                names = [(f"{prefix}{kind}_proj.weight", inner) for kind in ("gate", "up")]
                made |= apart(both, names)
            down = made.pop(f"{prefix}shared_experts.down_proj.weight", None)
            if down is not None:
                made[f"{prefix}down_proj.weight"] = down
        return scans_apart(made, HF_SCAN, "model.layers.{}.", "linear_attn.", architecture)

    def gguf_unpacked(
        self, found: Mapping[str, QuantTensor], architecture: Architecture
    ) -> Mapping[str, QuantTensor]:
        """As `Family.gguf_unpacked`."""
        return scans_apart(found, GGUF_SCAN, "blk.{}.", "scan_", architecture)


def numbers_by_layer(settings: GgufSettings, key: str) -> list[int]:
    """A number for each layer, one and the same where it is not 0."""
    said, layers = settings.all().get(key), settings.size("block_count")
    if (
        not isinstance(said, list)
        or len(said) != layers
        or not all(isinstance(one, int) and one >= 0 for one in said)
        or len({one for one in said if one}) != 1
    ):
        raise ValueError(f"{key} is {said!r:.60}")
    return said


def scan_from_gguf(settings: GgufSettings) -> dict[str, Any]:
    """A scan's sizes, as a GGUF file says them."""
    heads = settings.size("ssm.time_step_rank")
    return {
        "state_spaces": True,
        "conv_kernel": settings.size("ssm.conv_kernel"),
        "delta_key_heads": settings.size("ssm.group_count"),
        "delta_value_heads": heads,
        "delta_key_dim": settings.size("ssm.state_size"),
        "delta_value_dim": settings.size("ssm.inner_size") // heads,
    }


def scan_from_hf(settings: HfSettings, inner: int) -> dict[str, Any]:
    """The same of a config; `inner`: numbers that a scan gives.

    Raises:
        ValueError: it has biases, or its steps have bounds.
    """
    for key in ("mamba_proj_bias", "projectors_bias", "mlp_bias"):
        if settings.get(key):
            raise ValueError(f"{key} is true")
    least, most = settings.reals("time_step_limit", 2) or (0.0, math.inf)
    if least > 0.0 or most < math.inf:
        raise ValueError(f"its steps are between {least} and {most}")
    heads = settings.size("mamba_n_heads")
    return {
        "state_spaces": True,
        "conv_kernel": settings.size("mamba_d_conv"),
        "delta_key_heads": settings.size("mamba_n_groups"),
        "delta_value_heads": heads,
        "delta_key_dim": settings.size("mamba_d_state"),
        "delta_value_dim": inner // heads,
    }


def scans_apart(
    found: Mapping[str, QuantTensor],
    theirs: Mapping[str, str],
    layers: str,
    ours: str,
    architecture: Architecture,
) -> dict[str, QuantTensor]:
    """A file's tensors, with those of its scans cut into ours.

    Inputs of the gate and of the scan, what it writes by, what it reads by, and its steps stand in
    one matrix, one above the other; what its convolution sees comes as what it reads by, what it
    writes by, and inputs.

    Args:
        layers: what names of a layer begin with, by its number.
        ours: what our names begin with behind that.
    """
    made = dict(found)
    inner = architecture.delta_value_heads * architecture.delta_value_dim
    keys = architecture.delta_key_heads * architecture.delta_key_dim
    ends = np.cumsum([inner, inner, keys, keys])
    rows = np.arange(ends[-1] + architecture.delta_value_heads)
    gate, inputs, write, read, steps = np.split(rows, ends)
    seen = np.concatenate([read, write, inputs])
    for layer in range(architecture.num_layers if architecture.deltas else 0):
        prefix = layers.format(layer)
        own = f"{prefix}{ours}"

        def taken(part: str, size: int, prefix: str = prefix) -> QuantTensor | None:
            """One of theirs, if it has so many rows or numbers: else it is refused by its name."""
            blocks = made.get(prefix + theirs.get(part, "-"))
            there = blocks is not None and size in (blocks.shape[0], math.prod(blocks.shape))
            return made.pop(prefix + theirs[part]) if there else None

        if (whole := taken("in", len(rows))) is not None:
            for part, place in (("in_proj", seen), ("gate", gate), ("alpha", steps)):
                made[f"{own}{part}.weight"] = whole.take(place)
        if (kernel := taken("kernel", architecture.delta_width)) is not None:
            taps = numbers(kernel).reshape(kernel.shape)[seen - inner]
            made[f"{own}kernel.weight"] = row(taps.T)
            bias = taken("kernel_bias", architecture.delta_width)
            shift = np.zeros(len(seen), np.float32) if bias is None else numbers(bias)
            made[f"{own}kernel.bias"] = row(shift[seen - inner] if bias is not None else shift)
        if (logs := taken("logs", architecture.delta_value_heads)) is not None:
            made[f"{own}decay.weight"] = row(-np.exp(numbers(logs)))
        for part in ("decay", "decay_bias", "skip", "gain"):
            size = inner if part == "gain" else architecture.delta_value_heads
            if (vector := taken(part, size)) is not None:
                made[f"{own}{part}.weight"] = row(numbers(vector))
        if (out := taken("out_proj", architecture.hidden_size)) is not None:
            made[f"{own}out_proj.weight"] = out
    return made


def numbers(blocks: QuantTensor) -> NDArray[np.float32]:
    """All numbers of a small matrix, one row behind the other."""
    whole = np.ascontiguousarray(blocks.memory).reshape(1, -1)
    return QuantTensor(blocks.quant_type, (1, math.prod(blocks.shape)), whole).vector()


SCAN_DEFAULTS = {
    "mamba_n_heads": 128,
    "mamba_n_groups": 1,
    "mamba_d_state": 256,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
}
FAMILY = GraniteHybrid(
    name="granitehybrid",
    hf_defaults={
        "granitemoehybrid": {
            **MIXTURE,
            **SCAN_DEFAULTS,
            "intermediate_size": 11_008,
            "shared_intermediate_size": 1024,
        }
    },
    interleaved=True,
    mixture=True,
    hf_stacked=True,
    gguf_names=GGUF_NAMES,
    gguf_reads=(*GRANITE_MOE.gguf_reads, *READ),
    gguf_written=False,
    hf_renamed=GRANITE_MOE.hf_renamed,
)
