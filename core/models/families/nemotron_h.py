"""Nemotron-H, Nemotron Nano 2 and Nemotron 3: Mamba-2's scans, a few layers of attention without
rope, and feed-forwards without a gate, each a layer of its own in their files; in Nemotron 3 nearly
all of those are mixtures, with one for all rows beside the experts. A feed-forward and what stands
before it are one layer here, as everywhere; some scans have none behind them.

A scan's state stands for one place of a text, as a delta net's: see `core/engine/README.md`.
Not covered: experts that are given other numbers than rows have (Nemotron 3 Super), layers that
guess further tokens (left out), a feed-forward behind another or before all else, projections with
biases, writing such a GGUF file. Steps have no lower bound, as where a token is computed alone;
transformers gives them one of 0.001 in prompts.

Source: transformers' `models/nemotron_h`, llama.cpp's `nemotron_h` graph and its converter.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..architecture import Architecture
from ..family import Family
from ..files.settings import GgufSettings, HfSettings
from ..quant.tensor import QuantTensor
from .glm4moe import expert_groups
from .granitehybrid import (
    GGUF_NAMES,
    GGUF_SCAN,
    HF_SCAN,
    READ,
    numbers_by_layer,
    scan_from_gguf,
    scans_apart,
)

# what a config calls each kind, newer and older ones
KINDS = {
    **dict.fromkeys(("linear_attention", "mamba", "M"), "scan"),
    **dict.fromkeys(("full_attention", "attention", "*"), "attention"),
    **dict.fromkeys(("mlp", "-"), "mlp"),
    **dict.fromkeys(("moe", "E"), "moe"),
}
INNER = ("mlp", "moe")  # those that are feed-forwards


class NemotronH(Family):
    """Its files' layers are told apart by what they hold."""

    def gguf_kv_heads(self, settings: GgufSettings, heads: int) -> int:
        """As `Family.gguf_kv_heads`: those of a layer that attends."""
        return max(numbers_by_layer(settings, "attention.head_count_kv")) or heads

    def gguf_inner(self, settings: GgufSettings) -> int:
        """As `Family.gguf_inner`: that of a layer that is one."""
        return max(numbers_by_layer(settings, "feed_forward_length"))

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        if plain.num_experts:
            raise ValueError("it is a mixture of experts")
        if settings.flag("rope.scaling.finetuned", default=False):
            raise ValueError("its attention has rope")
        own, kinds = scan_from_gguf(settings), self.gguf_kinds(settings, plain.num_layers, "mlp")
        return {**super().from_gguf(settings, plain), **own, **layers_of(kinds)}

    def gguf_kinds(self, settings: GgufSettings, layers: int, inner: str) -> list[str]:
        """What each of a file's layers is; `inner`: what its feed-forwards are."""
        attends, widths = (
            numbers_by_layer(settings, key)
            for key in ("attention.head_count_kv", "feed_forward_length")
        )
        return [
            inner if width else "attention" if heads else "scan"
            for heads, width in zip(attends, widths, strict=True)
        ][:layers]

    def hf_settings(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """As `Family.hf_settings`; a config counts layers by their kinds, and names experts where
        there are none.
        """
        kinds = kinds_of(values)
        own: dict[str, Any] = {"layer_kinds": kinds, "num_hidden_layers": len(kinds) or None}
        experts = values.get("n_routed_experts") or values.get("num_local_experts")
        own["n_routed_experts"] = experts if "moe" in kinds else 0
        return {**values, **own, "num_local_experts": 0}

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        kinds = settings.get("layer_kinds")
        if unknown := {*map(str, kinds)} - {*KINDS.values()}:
            raise ValueError(f"it has layers of the kind {min(unknown)!r:.20}")
        for key in ("use_bias", "mamba_proj_bias"):
            if settings.get(key):
                raise ValueError(f"{key} is true")
        if (settings.get("mamba_hidden_act") or "silu") != "silu":
            raise ValueError(f"its scans' activation is {settings.get('mamba_hidden_act')!r:.20}")
        return {
            **super().from_hf(settings, plain),
            "state_spaces": True,
            "conv_kernel": settings.size("conv_kernel"),
            "delta_key_heads": settings.size("n_groups"),
            "delta_value_heads": settings.size("mamba_num_heads"),
            "delta_key_dim": settings.size("ssm_state_size"),
            "delta_value_dim": settings.size("mamba_head_dim"),
            **(self.mixture_from_hf(settings, kinds) if plain.num_experts else {}),
            **layers_of(kinds),
        }

    def mixture_from_hf(self, settings: HfSettings, kinds: Sequence[str]) -> dict[str, Any]:
        """What a config says of the experts."""
        if latent := settings.get("moe_latent_size"):
            raise ValueError(f"its experts are given {latent!r:.20} numbers")
        return {
            **MIXTURE,
            "intermediate_size": settings.size("moe_intermediate_size"),
            "dense_size": settings.size("intermediate_size") if "mlp" in kinds else 0,
            "shared_size": settings.size("moe_shared_expert_intermediate_size"),
            "expert_norm": settings.get("norm_topk_prob") is not False,
            "expert_scale": settings.real("routed_scaling_factor"),
            **expert_groups(settings.size("n_group"), settings.size("topk_group")),
        }

    def hf_unpacked(
        self, found: dict[str, QuantTensor], architecture: Architecture
    ) -> dict[str, QuantTensor]:
        """As `Family.hf_unpacked`."""
        made = merged(
            found, re.compile(r"model\.layers\.(0|[1-9][0-9]{0,3})\.(.+)"), "model.layers.{}.{}", HF
        )
        return scans_apart(made, HF_SCAN, "model.layers.{}.", "linear_attn.", architecture)

    def gguf_unpacked(
        self, found: Mapping[str, QuantTensor], architecture: Architecture
    ) -> Mapping[str, QuantTensor]:
        """As `Family.gguf_unpacked`."""
        made = merged(found, re.compile(r"blk\.(0|[1-9][0-9]{0,3})\.(.+)"), "blk.{}.{}", GGUF)
        return scans_apart(made, GGUF_SCAN, "blk.{}.", "scan_", architecture)


def kinds_of(values: Mapping[str, Any]) -> list[str]:
    """What each layer of a config is; a kind that is not known stays as it is called."""
    said = next(
        (
            values[key]
            for key in ("layers_block_type", "layer_types", "hybrid_override_pattern")
            if values.get(key)
        ),
        (),
    )
    return (
        [KINDS.get(str(kind), str(kind)) for kind in said] if isinstance(said, list | str) else []
    )


def grouped(kinds: Sequence[str]) -> list[tuple[int, int | None]]:
    """Our layers: which of the file's is the mixer of each, and which its feed-forward.

    Raises:
        ValueError: a feed-forward with no mixer before it.
    """
    found: list[tuple[int, int | None]] = []
    for place, kind in enumerate(kinds):
        if kind not in INNER:
            found.append((place, None))
        elif not found or found[-1][1] is not None:
            raise ValueError(f"layer {place} is a feed-forward with nothing before it")
        else:
            found[-1] = (found[-1][0], place)
    return found


def layers_of(kinds: Sequence[str]) -> dict[str, Any]:
    """Fields of `Architecture` that count layers."""
    layers = grouped(kinds)
    dense = tuple(inner is not None and kinds[inner] == "mlp" for _, inner in layers)
    return {
        "num_layers": len(layers),
        "dense_layers": dense if "moe" in kinds and any(dense) else (),
        "deltas": tuple(kinds[mixer] == "scan" for mixer, _ in layers),
        "lone_mixers": tuple(mlp is None for _, mlp in layers),
        "rope_bases": (0.0,) * len(layers),
        "scan_norm": True,
    }


# by what a layer holds: its kind; then what its names become, a mixer's and a feed-forward's
Rules = tuple[Mapping[str, str], Mapping[str, tuple[str, str]], Mapping[str, tuple[str, str]]]
HF: Rules = (
    {"mixer.in_proj.weight": "scan", "mixer.q_proj.weight": "attention"},
    {
        "scan": ("mixer.", "mamba."),
        "attention": ("mixer.", "self_attn."),
        "mlp": ("mixer.", "mlp."),
    },
    {"mlp": ("norm.", "post_attention_layernorm."), "": ("norm.", "input_layernorm.")},
)
GGUF: Rules = (
    {"ssm_in.weight": "scan", "attn_q.weight": "attention"},
    {},
    {"mlp": ("attn_norm.", "ffn_norm."), "": ("attn_norm.", "attn_norm.")},
)


def merged(
    found: Mapping[str, QuantTensor], pattern: re.Pattern[str], name: str, rules: Rules
) -> dict[str, QuantTensor]:
    """A file's tensors under the numbers of our layers."""
    telling, inner, norms = rules
    matches = {theirs: match for theirs in found if (match := pattern.fullmatch(theirs))}
    kinds: dict[int, str] = {}
    for match in matches.values():
        own = telling.get(match[2])
        kinds[int(match[1])] = own or kinds.get(int(match[1]), "mlp")
    order = sorted(kinds)
    try:
        layers = grouped([kinds[number] for number in order])
    except ValueError:
        return dict(found)  # other layers than it says: refused by their names
    places = {
        order[part]: layer for layer, both in enumerate(layers) for part in both if part is not None
    }
    made = {}
    for theirs, blocks in found.items():
        if (match := matches.get(theirs)) is None:
            made[theirs] = blocks
            continue
        kind, leaf = kinds[int(match[1])], match[2]
        for old, new in (norms.get(kind, norms[""]), inner.get(kind, ("", ""))):
            if old and leaf.startswith(old):
                leaf = new + leaf.removeprefix(old)
                break
        made[name.format(places[int(match[1])], leaf)] = blocks
    return made


# beside scores of each expert for itself and a bias of the choice
MIXTURE = {"family": "nemotron_h_moe", "routing": "sigmoid", "routing_bias": True}
FAMILY = NemotronH(
    name="nemotron_h",
    hf_defaults={
        "nemotron_h": {
            "vocab_size": 131_072,
            "hidden_size": 4096,
            "intermediate_size": 21_504,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 4096,
            "layer_norm_epsilon": 1e-5,
            "rope_theta": 10000.0,
            "mlp_hidden_act": "relu2",
            "conv_kernel": 4,
            "n_groups": 8,
            "mamba_num_heads": 128,
            "mamba_head_dim": 64,
            "ssm_state_size": 128,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 7688,
            "moe_shared_expert_intermediate_size": 7688,
            "routed_scaling_factor": 1.0,
            "n_group": 1,
            "topk_group": 1,
        }
    },
    traits={"gated": False, "activation": "relu2"},
    hf_activation_key="mlp_hidden_act",
    hf_activations={"relu2": "relu2"},
    hf_epsilon="layer_norm_epsilon",
    hf_prefixes={"backbone.": "model."},
    hf_skipped=("mtp.",),
    hf_renamed={
        ".embeddings.": ".embed_tokens.",
        ".norm_f.": ".norm.",
        ".gate.e_score_correction_bias": ".gate_correction.bias",
    },
    hf_stacked=True,
    mixture=True,
    gguf_names=GGUF_NAMES,
    gguf_reads=READ,
    gguf_written=False,
)
