"""Llama 4, its language model: experts whose rows are scaled by a sigmoid before they see them, one
feed-forward beside them; runs of rows in three of four layers, whose queries and keys are normed
behind rope; everything, without rope, in the fourth, whose queries grow with their position.

Not covered: what sees pictures (left out), writing such a GGUF file.

Source: transformers' `models/llama4`, llama.cpp's `llama4` graph and its converter.
"""

from collections.abc import Mapping
from typing import Any

from ..architecture import Architecture
from ..family import Family, layer_windows, ones_of, upright
from ..files.settings import GgufSettings, HfSettings
from ..quant.tensor import QuantTensor

NOPE_STEP = 4  # every fourth layer has no rope
# what GGUF has no place for
CHUNK, GROWTH, FLOOR = 8192, 0.1, 8192
UNNORMED_EXPERTS = 128  # a file with so many (Maverick) norms neither queries nor keys


class Llama4(Family):
    """Norms of queries and keys have no weights: those of ones stand in no file."""

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`; a window of 0 says that no layer sees runs, and all have rope."""
        whole = settings.whole("attention.sliding_window", CHUNK) == 0
        step = plain.num_layers + 1 if whole else NOPE_STEP
        turned = [layer % step != 0 for layer in range(1, plain.num_layers + 1)]
        every = settings.size("interleave_moe_layer_step", 1)
        return {
            **layers_of(plain, turned, [one and not whole for one in turned], CHUNK),
            **experts_of(plain, range(every - 1, plain.num_layers, every)),
            "dense_size": settings.size("feed_forward_length"),
            "qk_norm": plain.num_experts != UNNORMED_EXPERTS,
            "temperature": GROWTH,
            "temperature_floor": FLOOR,
        }

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        layers = plain.num_layers
        # 1 = with rope, in spite of its name
        turned = (
            settings.entries("no_rope_layers", layers)
            if settings.get("no_rope_layers")
            else (
                [
                    layer % settings.size("no_rope_layer_interval", NOPE_STEP) != 0
                    for layer in range(1, layers + 1)
                ]
            )
        )
        turned = [bool(one) for one in turned or ()]
        kinds = settings.entries("layer_types", layers)
        inside = turned if kinds is None else [one == "chunked_attention" for one in kinds]
        if not {*(kinds or ())} <= {"chunked_attention", "full_attention"}:
            raise ValueError("it has layers that see neither everything nor a run")
        every = settings.size("interleave_moe_layer_step", 1)
        mixtures = settings.get("moe_layers")
        chunk = settings.get("attention_chunk_size")
        grows = settings.get("attn_temperature_tuning") is not False
        return {
            **layers_of(plain, turned, inside, chunk and settings.size("attention_chunk_size")),
            **experts_of(plain, range(every - 1, layers, every) if mixtures is None else mixtures),
            "dense_size": settings.size("intermediate_size_mlp"),
            "qk_norm": settings.get("use_qk_norm") is not False,
            "temperature": settings.real("attn_scale") if grows else 0.0,
            "temperature_floor": settings.size("floor_scale") if grows else 0,
        }

    def hf_unpacked(
        self, found: dict[str, QuantTensor], architecture: Architecture
    ) -> dict[str, QuantTensor]:
        """As `Family.hf_unpacked`: experts' matrices stand one behind the other, their columns as
        rows, gate and up side by side.
        """
        made, inner = dict(found), architecture.intermediate_size
        names = normed_heads(architecture, "model.layers.{}.self_attn.{}_norm.weight")
        for layer in range(architecture.num_layers):
            prefix = f"model.layers.{layer}.mlp.experts."
            for kind, kinds in (("gate_up_proj", ("gate", "up")), ("down_proj", ("down",))):
                whole = made.pop(prefix + kind, None)
                if whole is None:
                    continue
                rows = inner if kind == "down_proj" else architecture.hidden_size
                if whole.shape[0] != rows * architecture.num_experts:
                    made[prefix + kind] = whole  # which no layer has: it is refused by this name
                    continue
                for expert in range(architecture.num_experts):
                    own = upright(whole.part(expert * rows, (expert + 1) * rows))
                    each = own.shape[0] // len(kinds)
                    for place, name in enumerate(kinds):
                        part = own.part(place * each, (place + 1) * each)
                        made[f"{prefix}{expert}.{name}_proj.weight"] = part
        return {**made, **ones_of(names, architecture.head_dim)}

    def gguf_unpacked(
        self, found: Mapping[str, QuantTensor], architecture: Architecture
    ) -> Mapping[str, QuantTensor]:
        """As `Family.gguf_unpacked`."""
        names = normed_heads(architecture, "blk.{}.attn_{}_norm.weight")
        return {**found, **ones_of(names, architecture.head_dim)}


def normed_heads(architecture: Architecture, name: str) -> list[str]:
    """The names of all norms of queries and keys."""
    return [
        name.format(layer, letter)
        for layer in range(architecture.num_layers)
        for letter in "qk"
        if f"self_attn.{letter}_norm.weight" in architecture.layer_shapes(layer)
    ]


def layers_of(
    plain: Architecture, turned: list[bool], inside: list[bool], chunk: int | None
) -> dict[str, Any]:
    """Ropes and runs by layer."""
    run = chunk if chunk and chunk < plain.context_length else 0
    return {
        "rope_bases": tuple(plain.rope_theta if one else 0.0 for one in turned),
        "windows": layer_windows(-run, inside),
    }


def experts_of(plain: Architecture, mixtures: Any) -> dict[str, Any]:
    """Which layers have experts, and the feed-forward beside them."""
    dense = tuple(layer not in mixtures for layer in range(plain.num_layers))
    if all(dense):
        raise ValueError("none of its layers has experts")
    own = {"shared_size": plain.intermediate_size}
    return own | ({"dense_layers": dense} if any(dense) else {})


FAMILY = Llama4(
    name="llama4",
    hf_defaults={
        "llama4_text": {
            "vocab_size": 202_048,
            "hidden_size": 5120,
            "intermediate_size": 8192,
            "intermediate_size_mlp": 16_384,
            "num_hidden_layers": 48,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0,
            "num_local_experts": 16,
            "num_experts_per_tok": 1,
            "attention_chunk_size": CHUNK,
            "attn_scale": GROWTH,
            "floor_scale": FLOOR,
        }
    },
    traits={
        "qk_norm_last": True,
        "rope_norms": True,
        "routing": "sigmoid",
        "expert_norm": False,
        "expert_inputs": True,
    },
    gguf_reads=("interleave_moe_layer_step",),
    gguf_written=False,
    interleaved=True,
    hf_interleaved=True,
    hf_stacked=True,
    mixture=True,
    hf_nested={"llama4": "text_config"},
    hf_prefixes={"language_model.": ""},
    hf_skipped=("vision_model.", "multi_modal_projector."),
    hf_renamed={
        ".feed_forward.router.": ".mlp.gate.",
        ".feed_forward.shared_expert.": ".mlp.shared_experts.",
        ".feed_forward.": ".mlp.",
    },
)
