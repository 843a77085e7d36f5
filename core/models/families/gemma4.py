"""Gemma 4, its language model: Gemma 3 whose layers that see everything have heads of another size;
values are normed, scores are not scaled, and each layer multiplies what it gives by a number of its
own. Its small sizes (E2B, E4B) read keys of earlier layers in the upper ones, and give each layer
some numbers of every token beside the stream; its large ones take values from keys where a layer
sees everything.

Not covered: mixtures beside a feed-forward (26B-A4B), pictures and sounds (what perceives them is
left out), adapters, writing such a GGUF file, the guesser that is published beside it.

Source: transformers' `models/gemma4` and `models/gemma4_unified`, llama.cpp's `gemma4` graph and
its converter.
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
    kv_sources,
    layer_ropes,
    layer_windows,
    ones_of,
)
from ..files.settings import GgufSettings, HfSettings
from ..quant.tensor import QuantTensor
from ..rope import RopeScaling, rope_scaling

PATTERN = 6  # every sixth layer sees everything, and the last one
KINDS = ("full_attention", "sliding_attention")
UNTURNED = 1e30  # divides the frequency of pairs of a head that rope leaves as they are


class Gemma4(Family):
    """Layers of two kinds, told apart by what they see."""

    def gguf_kv_heads(self, settings: GgufSettings, heads: int) -> int:  # noqa: ARG002
        """As `Family.gguf_kv_heads`: the most of any layer."""
        return max(by_layer(settings, "attention.head_count_kv"))

    def gguf_inner(self, settings: GgufSettings) -> int:
        """As `Family.gguf_inner`: the widest."""
        return max(by_layer(settings, "feed_forward_length"))

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        inside = gguf_windowed(settings, plain.num_layers, PATTERN)
        small = settings.size("attention.key_length_swa", plain.head_dim)
        for key in ("attention.value_length_swa", "rope.dimension_count_swa"):
            if settings.size(key, small) != small:
                raise ValueError(f"{key} is not {small}")
        if plain.turned != plain.head_dim:
            raise ValueError("rope turns only part of a head")
        sizes = [small if one else plain.head_dim for one in inside]
        keys, widths = (
            by_layer(settings, key) for key in ("attention.head_count_kv", "feed_forward_length")
        )
        return {
            **layers_of(plain, sizes, keys, widths),
            "windows": layer_windows(gguf_window(settings, plain.context_length), inside),
            "rope_bases": bases(
                inside, plain.rope_theta, settings.real("rope.freq_base_swa", 10000.0)
            ),
            "kv_sources": sources(inside, settings.whole("attention.shared_kv_layers", 0)),
            "per_layer_size": settings.whole("embedding_length_per_layer_input", 0),
            "logit_softcap": settings.real("final_logit_softcapping", 0.0),
        }

    def hf_settings(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """As `Family.hf_settings`; rows of pictures see later ones, those of texts do not."""
        said = dict(super().hf_settings(values))
        if said.get("use_bidirectional_attention") == "vision":
            del said["use_bidirectional_attention"]
        return said

    def hf_rope(self, settings: HfSettings) -> dict[str, Any]:
        """As `Family.hf_rope`; which pairs of a head are turned is said in `from_hf`."""
        rule = layer_ropes(settings, KINDS)[KINDS[0]]
        if rule.get("rope_type", "default") not in ("default", "proportional"):
            raise ValueError(f"rope is stretched by the rule {rule.get('rope_type')!r:.20}")
        if float(rule.get("factor") or 1.0) != 1.0:
            raise ValueError("rope is stretched")
        return {"rope_theta": rule.get("rope_theta")}

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        if settings.get("enable_moe_block"):
            raise ValueError("it is a mixture of experts beside a feed-forward")
        layers, ropes = plain.num_layers, layer_ropes(settings, KINDS)
        inside = hf_windowed(settings, layers) or every_but(layers, PATTERN)
        inside[-1] = False
        local = {"partial_rotary_factor": 1.0, **ropes[KINDS[1]]}
        theta = float(local.get("rope_theta") or 10000.0)
        stretched = rope_scaling(local, plain.head_dim, theta, plain.context_length)
        if stretched != RopeScaling() or local["partial_rotary_factor"] != 1.0:
            raise ValueError("rope of windowed layers is scaled")
        each, keys = self.heads_of(settings, inside)
        shared = settings.get("num_kv_shared_layers") or 0
        read_from = sources(inside, shared)  # refuses more of them than there are layers
        widths = [plain.intermediate_size] * layers
        if shared and settings.get("use_double_wide_mlp"):
            widths[layers - shared :] = [2 * plain.intermediate_size] * shared
        given = settings.get("hidden_size_per_layer_input") or 0
        if given and settings.size("vocab_size_per_layer_input") != plain.vocab_size:
            raise ValueError("it gives layers nothing of some tokens")
        return {
            **layers_of(plain, each, keys, widths),
            "rope_factors": turned_part(each[-1], ropes[KINDS[0]]),
            "windows": layer_windows(hf_window(settings, plain.context_length), inside),
            "rope_bases": bases(inside, plain.rope_theta, theta),
            "kv_sources": read_from,
            "per_layer_size": given,
            "logit_softcap": float(settings.get("final_logit_softcapping") or 0.0),
        }

    def heads_of(self, settings: HfSettings, inside: Sequence[bool]) -> tuple[list[int], list[int]]:
        """Numbers of a head and heads of keys of each layer: of two kinds, or as newer configs say
        of those that differ.
        """
        small, few = settings.size("head_dim"), settings.size("num_key_value_heads")
        large, keys = settings.get("global_head_dim"), settings.get("num_global_key_value_heads")
        keys = keys if settings.get("attention_k_eq_v") else None
        said, silent = settings.rule("per_layer_config"), settings.get("per_layer_config") is None
        differs = {int(key): own for key, own in said.items() if key.isdecimal()}
        usual = {"head_dim": large or GLOBAL, "num_key_value_heads": keys} if silent else {}
        sizes, heads = [], []
        for layer, one in enumerate(inside):
            own = differs.get(layer, {} if one else usual)
            there = HfSettings(settings.path, own, {})
            sizes.append(there.size("head_dim", small))
            heads.append(there.size("num_key_value_heads", few))
        return sizes, heads

    def hf_unpacked(
        self, found: dict[str, QuantTensor], architecture: Architecture
    ) -> dict[str, QuantTensor]:
        """As `Family.hf_unpacked`."""
        made = own_keys(found, f"{HF}{{}}_proj.weight", f"{HF}k_norm.weight", architecture)
        return values_of_keys(made, f"{HF}{{}}_proj.weight", architecture)

    def gguf_unpacked(
        self, found: Mapping[str, QuantTensor], architecture: Architecture
    ) -> Mapping[str, QuantTensor]:
        """As `Family.gguf_unpacked`."""
        made = own_keys(found, "blk.{}.attn_{}.weight", "blk.{}.attn_k_norm.weight", architecture)
        made = values_of_keys(made, "blk.{}.attn_{}.weight", architecture)
        scales = [
            f"blk.{layer}.layer_output_scale.weight" for layer in range(architecture.num_layers)
        ]
        return made if any(name in made for name in scales) else made | ones_of(scales, 1)


HF = "model.layers.{}.self_attn."
# Names of GGUF files and of folders, which Gemma 3n has too.
NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
GIVEN_NAMES = {
    ".embed_tokens_per_layer.": ".embed_per_layer.",
    ".per_layer_model_projection.": ".per_layer_proj.",
    ".per_layer_projection_norm.": ".per_layer_norm.",
    ".per_layer_input_gate.": ".per_layer.gate.",
    ".per_layer_projection.": ".per_layer.proj.",
    ".post_per_layer_input_norm.": ".per_layer.norm.",
}
GLOBAL = 512  # numbers of a head in layers that see everything, where a config is silent


def by_layer(settings: GgufSettings, key: str) -> list[int]:
    """A positive number for each layer, where a file may say one for all."""
    said, layers = settings.all().get(key), settings.size("block_count")
    if not isinstance(said, list):
        return [settings.size(key)] * layers
    if len(said) < layers or not all(isinstance(one, int) and one > 0 for one in said):
        raise ValueError(f"{key} is {said!r:.60}")
    return said[:layers]


def layers_of(
    plain: Architecture, heads: Sequence[int], keys: Sequence[int], widths: Sequence[int]
) -> dict[str, Any]:
    """Fields of sizes that layers may differ in: numbers of a head, heads of keys, widths of
    feed-forwards.
    """
    fields: dict[str, Any] = {"embedding_scale": math.sqrt(plain.hidden_size)}
    for one, all_of_them, each in (
        ("head_dim", "head_dims", heads),
        ("num_kv_heads", "kv_heads", keys),
        ("intermediate_size", "inner_sizes", widths),
    ):
        fields[one] = max(each)
        fields[all_of_them] = tuple(each) if len({*each}) > 1 else ()
    return fields


def bases(inside: Sequence[bool], full: float, local: float) -> tuple[float, ...]:
    """The base of each layer's rope."""
    if full == local:
        raise ValueError("both kinds of layers turn by the same base")
    return tuple(local if one else full for one in inside)


def sources(inside: Sequence[bool], shared: int) -> tuple[int, ...]:
    """`Architecture.kv_sources` of the two kinds."""
    if not isinstance(shared, int) or not 0 <= shared < len(inside):
        raise ValueError(f"{shared!r:.20} of its {len(inside)} layers read others' keys")
    return kv_sources(inside, shared) if shared else ()


def turned_part(size: int, rule: Mapping[str, Any]) -> tuple[float, ...]:
    """Divisors of frequencies by which rope turns the first pairs of a head alone, though they
    follow each other as if all were turned.
    """
    part = rule.get("partial_rotary_factor", 1.0)
    if rule.get("rope_type") != "proportional" or part == 1.0:
        return ()
    if not isinstance(part, int | float) or not 0 < part < 1:
        raise ValueError(f"rope turns {part!r:.20} of a head")
    turned = int(part * size // 2)
    return (1.0,) * turned + (UNTURNED,) * (size // 2 - turned)


def own_keys(
    found: Mapping[str, QuantTensor], projection: str, norm: str, architecture: Architecture
) -> dict[str, QuantTensor]:
    """A file's tensors without those of layers that read another's keys, as nothing reads them."""
    made = dict(found)
    for layer in range(architecture.num_layers):
        if architecture.kv_source(layer) != layer:
            for name in (*(projection.format(layer, one) for one in "kv"), norm.format(layer)):
                made.pop(name, None)
    return made


def values_of_keys(
    found: dict[str, QuantTensor], projection: str, architecture: Architecture
) -> dict[str, QuantTensor]:
    """With keys as values too in the layers that see everything, where none of them has any of its
    own; one that alone lacks them is a broken file.
    """
    whole = [
        layer
        for layer in range(architecture.num_layers)
        if not architecture.window(layer) and architecture.kv_source(layer) == layer
    ]
    values = {projection.format(layer, "v"): projection.format(layer, "k") for layer in whole}
    if any(name in found for name in values):
        return found
    return found | {value: found[key] for value, key in values.items() if key in found}


DEFAULTS = {
    "vocab_size": 262_144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "sliding_window": 512,
    "vocab_size_per_layer_input": 262_144,
    "rope_theta": 1_000_000.0,
    "rope_parameters": {
        KINDS[1]: {"rope_type": "default", "rope_theta": 10000.0},
        KINDS[0]: {
            "rope_type": "proportional",
            "partial_rotary_factor": 0.25,
            "rope_theta": 1_000_000.0,
        },
    },
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
}
FAMILY = Gemma4(
    name="gemma4",
    hf_defaults={"gemma4_text": DEFAULTS, "gemma4_unified_text": DEFAULTS},
    traits={
        "qk_norm": True,
        "post_norms": True,
        "activation": "gelu_tanh",
        "value_norm": True,
        "layer_scales": True,
        "attention_scale": 1.0,
    },
    gguf_names=NORMS,
    gguf_reads=(
        *("attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa"),
        *("attention.sliding_window_pattern", "attention.shared_kv_layers", "rope.freq_base_swa"),
        "embedding_length_per_layer_input",
    ),
    gguf_written=False,
    hf_nested={"gemma4": "text_config", "gemma4_unified": "text_config"},
    hf_prefixes={"model.language_model.": "model."},
    hf_skipped=tuple(
        f"model.{part}."
        for part in (
            "vision_tower",
            "audio_tower",
            "embed_vision",
            "embed_audio",
            "vision_embedder",
        )
    ),
    hf_activation_key="hidden_activation",
    hf_renamed=GIVEN_NAMES | {".layer_scalar": ".layer_scale.weight"},
)
