"""A GGUF file's metadata and tensors as our sizes and names.

Knows llama.cpp's metadata keys; what is one family's own stands in `families/`. Knows nothing of
bytes or tokens.
Always: every tensor of the file has a place in the network with the shape that its sizes demand, or
the file is refused. Blocks stay where they are, except that rows of q and k come in half-split rope
order (whole rows move, no number changes).

Source: llama.cpp's `gguf-py/gguf/constants.py` for names, `src/llama-model.cpp` for what is not
written in the file.
"""

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ModelFileError, UnsupportedModelError
from ..architecture import GATE_UP, PROJECTIONS, ROPE_PROJECTIONS, Architecture
from ..families import FAMILIES
from ..family import GGUF_ENDS, GGUF_NAMES, Family
from ..files.gguf import GgufFile
from ..files.settings import GgufSettings
from ..files.tensor_map import TensorMap
from ..quant.tensor import QuantTensor
from ..rope import BETA_FAST, BETA_SLOW, RopeScaling, longrope_magnitude, rope_scaling

# Below "FAMILY.", all that a file may say: what is read here, and what changes no logit. What is
# not here, nor among what its family reads, may mean anything.
READ = (
    *("block_count", "context_length", "embedding_length", "feed_forward_length"),
    *("expert_count", "expert_used_count", "expert_feed_forward_length"),
    *("attention.head_count", "attention.head_count_kv"),
    *("attention.key_length", "attention.value_length"),
    *("attention.sliding_window", "attention.scale"),
    *("attn_logit_softcapping", "final_logit_softcapping"),
    *("rope.dimension_count", "rope.freq_base", "rope.scale_linear"),
    *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"),
    *("rope.scaling.attn_factor", "rope.scaling.finetuned"),
    *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
)
RMS_EPSILON = "attention.layer_norm_rms_epsilon"
LAYER_EPSILON = "attention.layer_norm_epsilon"
HARMLESS = ("vocab_size", "tensor_data_layout", "pooling_type")
NEUTRAL: dict[str, tuple[object, ...]] = {  # values by which a file says what is so anyway
    "attention.causal": (True,),
    "use_parallel_residual": (False,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    **dict.fromkeys(("logit_scale", "embedding_scale", "residual_scale"), (0.0, 1.0)),
}
MAY_LACK = ("lm_head",)  # which then is the embedding
GATE_UP_EXPERTS = "ffn_gate_up_exps"  # of all experts, each one's gate above its up
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")

# What else comes as GGUF, by `general.type` or, where older files have none, by
# `general.architecture`.
OTHER_FILES = {
    "adapter": "a LoRA adapter for llama.cpp (import its PEFT folder with `quietchoir adapter "
    "import`)",
    "mmproj": "the projector that makes rows of pictures for another model",
    "clip": "the projector that makes rows of pictures for another model",
    "imatrix": "the statistics by which a model is quantised",
    "controlvector": "a control vector",
}


def read_architecture(file: GgufFile) -> Architecture:
    """The sizes that a file's metadata states.

    Raises:
        UnsupportedModelError: a family we do not know, or something we would compute wrongly.
        ModelFileError: a missing or impossible size.
    """
    family = family_of(file)
    settings = GgufSettings(file, family.name)
    try:
        plain = sizes(settings, family)
        plain.validate()
        refuse_unread(settings, family)
        whole = replace(plain, **family.from_gguf(settings, plain))
        whole.validate()
        refuse_unsupported(settings, whole)
    except ValueError as error:
        raise UnsupportedModelError(
            f"{file.path}: {error}, which is not supported; choose another model"
        ) from error
    return whole


def family_of(file: GgufFile) -> Family:
    """The family that a file names.

    Raises:
        ModelFileError: not a model. UnsupportedModelError: of a family that is not computed.
    """
    kind = file.value(
        "general.type", str, "adapter" if "adapter.type" in file.metadata else "model"
    )
    # statistics name none
    name = file.value("general.architecture", str, None if kind == "model" else "")
    if kind != "model" or name in OTHER_FILES:
        said = OTHER_FILES.get(name) or OTHER_FILES.get(kind, f"of the type {kind!r:.40}")
        raise ModelFileError(f"{file.path}: {said}, not a model; give the model's own file")
    if name not in FAMILIES:
        raise UnsupportedModelError(
            f"{file.path}: family {name!r:.40} is not supported; choose a model "
            f"of {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]


def sizes(settings: GgufSettings, family: Family) -> Architecture:
    """What every family's file says in the same words."""
    heads, width = settings.size("attention.head_count"), settings.size("embedding_length")
    head_dim = settings.size("attention.key_length", max(width // heads, 1))
    theta, context = settings.real("rope.freq_base", 10000.0), settings.size("context_length")
    turned = settings.size("rope.dimension_count", head_dim)
    stretched = read_rope_scaling(settings, family, turned, theta, context)
    experts = settings.whole("expert_count", 0)
    ffn = settings.whole("expert_feed_forward_length", 0) if experts else 0
    biases = {"biases": biased(settings, family)}
    return Architecture(
        family=family.name,
        num_layers=settings.size("block_count"),
        hidden_size=width,
        intermediate_size=ffn or family.gguf_inner(settings),
        num_heads=heads,
        num_kv_heads=family.gguf_kv_heads(settings, heads),
        head_dim=head_dim,
        vocab_size=len(settings.file.value("tokenizer.ggml.tokens", list)),
        rope_theta=theta,
        norm_eps=settings.real(LAYER_EPSILON if family.traits.get("layer_norms") else RMS_EPSILON),
        context_length=min(context, stretched.context or context),
        rope_factors=stretched.rope_factors,
        rope_magnitude=stretched.rope_magnitude,
        rope_dim=turned if turned != head_dim else 0,
        num_experts=experts,
        experts_per_token=settings.size("expert_used_count") if experts else 0,
        **(dict(family.traits) | biases),
    )


def biased(settings: GgufSettings, family: Family) -> tuple[str, ...]:
    """Projections with a bias: those that this family always has, and those that this file has."""
    always = family.traits.get("biases", ())
    tensors = settings.file.tensors
    fused = {part: name for name, parts in family.gguf_may_fuse.items() for part in parts}
    return tuple(
        name
        for name in PROJECTIONS
        if name in always
        or f"blk.0.{family.in_gguf(name)}.bias" in tensors
        or f"blk.0.{fused.get(name)}.bias" in tensors
    )


def read_rope_scaling(
    settings: GgufSettings, family: Family, turned: int, theta: float, context: int
) -> RopeScaling:
    """Rope's scaling: a rule in the metadata, or factors that stand among the tensors.

    Args:
        turned: numbers of a head that rope turns.
    """
    file = settings.file
    kind = settings.text("rope.scaling.type", "linear")  # as llama.cpp takes it
    # its older name; 0 = none
    factor = (
        settings.real("rope.scaling.factor", 0.0) or settings.real("rope.scale_linear", 0.0) or 1.0
    )
    original = settings.whole("rope.scaling.original_context_length", 0)
    if short := file.tensors.get("rope_factors_short.weight"):
        factors = tuple(factor_row(file, "rope_factors_short.weight", short, turned))
        default = longrope_magnitude(context / original, original) if original > 0 else 1.0
        return RopeScaling(factors, settings.real("rope.scaling.attn_factor", default), original)
    magnitude = settings.real("rope.scaling.attn_factor", 1.0)
    if frequencies := file.tensors.get("rope_freqs.weight"):
        if kind not in ("none", "linear") or factor != 1.0:
            raise ValueError(f"rope is scaled twice, by factors and by {kind!r:.20}")
        factors = tuple(factor_row(file, "rope_freqs.weight", frequencies, turned))
        return RopeScaling(factors, magnitude)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return RopeScaling(rope_magnitude=magnitude)
    rule: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        rule |= {
            "original_max_position_embeddings": original or context,
            "beta_fast": settings.real("rope.scaling.yarn_beta_fast", BETA_FAST),
            "beta_slow": settings.real("rope.scaling.yarn_beta_slow", BETA_SLOW),
        }
        rule |= family.gguf_yarn()
        if weight := settings.real("rope.scaling.yarn_log_multiplier", 0.0):
            rule |= {"mscale": 1.0, "mscale_all_dim": weight}
    scaling = rope_scaling(rule, turned, theta, context)
    return replace(scaling, rope_magnitude=scaling.rope_magnitude * magnitude)


def factor_row(file: GgufFile, name: str, blocks: QuantTensor, turned: int) -> list[float]:
    """A tensor of divisors, one a pair."""
    if blocks.shape != (1, turned // 2) or blocks.quant_type not in ("F32", "F16", "BF16"):
        raise ModelFileError(
            f"{file.path}: {name} is {blocks.quant_type} {blocks.shape}, expected "
            f"(1, {turned // 2}); get it again"
        )
    row: list[float] = blocks.vector().tolist()
    return row


def refuse_unread(settings: GgufSettings, family: Family) -> None:
    """Raises: ValueError: a setting of this family that would be passed over."""
    for key, value in settings.all().items():
        own = family.gguf_neutral.get(key)
        neutral = not isinstance(value, list) and value in NEUTRAL.get(key, ())
        epsilon = LAYER_EPSILON if family.traits.get("layer_norms") else RMS_EPSILON
        read = key in (epsilon, *READ, *HARMLESS, *family.gguf_reads)
        if not (read or neutral or (own is not None and own(value))):
            named = f"{family.name}.{key}"
            raise ValueError(f"it has the setting {named:.80} = {value!r:.40}")


def refuse_unsupported(settings: GgufSettings, architecture: Architecture) -> None:
    """Raises: ValueError: what a file may also ask for, and this code does not compute."""
    size = architecture.head_dim
    scale = settings.real("attention.scale", 0.0)
    if scale and not math.isclose(scale, architecture.scale(), rel_tol=1e-4):
        raise ValueError(f"its attention is scaled by {scale:.4g}")
    if architecture.num_experts and not FAMILIES[architecture.family].mixture:
        raise ValueError("it is a mixture of experts")
    if not architecture.latent_size and settings.whole("attention.value_length", size) != size:
        raise ValueError("keys and values differ in size")
    caps = {"attn": architecture.attention_softcap, "final": architecture.logit_softcap}
    if any(settings.real(f"{of}_logit_softcapping", cap) != cap for of, cap in caps.items()):
        raise ValueError("its logits are capped")


def name_tensors(file: GgufFile, architecture: Architecture) -> dict[str, QuantTensor]:
    """The file's tensors under Hugging Face's names, each with the shape that the architecture
    demands.

    Raises:
        ModelFileError: a tensor is missing, has another shape, or is none that this family uses.
    """
    family = FAMILIES[architecture.family]
    unpacked = family.gguf_unpacked(file.tensors, architecture)
    tensors = TensorMap(file.path, unpacked, family.name)
    for read_already in ROPE_TENSORS:
        tensors.drop(read_already)
    if family.further_layers:
        tensors.drop_layers("blk.", architecture.num_layers)
    shapes = architecture.shapes()
    named = {
        f"{ours}.{kind}": tensors.take(f"{theirs}.{kind}", shapes[f"{ours}.{kind}"])
        for ours, theirs in ends(tensors).items()
        for kind in ("weight", "bias")
        if f"{ours}.{kind}" in shapes
    }
    named.setdefault("lm_head.weight", named["model.embed_tokens.weight"])
    for layer in range(architecture.num_layers):
        own = architecture.layer_shapes(layer)
        fused = gguf_fused(family, architecture, layer, tensors.left)
        fused |= may_be_fused(family, tensors, own, layer)
        for theirs, parts in fused.items():
            expected = [own[part] for part in parts]
            for part, blocks in zip(
                parts, tensors.split(f"blk.{layer}.{theirs}", expected), strict=True
            ):
                named[f"model.layers.{layer}.{part}"] = blocks
        for ours, expected_shape in own.items():
            if f"model.layers.{layer}.{ours}" not in named:
                module, _, kind = ours.rpartition(".")
                blocks = tensors.take(
                    f"blk.{layer}.{family.in_gguf(module)}.{kind}", expected_shape
                )
                named[f"model.layers.{layer}.{ours}"] = blocks
    tensors.finish()
    turned = tuple(f"{name}.{kind}" for name in ROPE_PROJECTIONS for kind in ("weight", "bias"))
    return {
        name: half_split(blocks, architecture)
        if family.interleaved and name.endswith(turned)
        else blocks
        for name, blocks in named.items()
    }


def may_be_fused(
    family: Family, tensors: TensorMap, own: Mapping[str, tuple[int, int]], layer: int
) -> dict[str, tuple[str, ...]]:
    """As `gguf_fused`, of what only some files of a family hold so."""
    return {
        f"{theirs}.{kind}": tuple(f"{part}.{kind}" for part in parts)
        for theirs, parts in family.gguf_may_fuse.items()
        for kind in ("weight", "bias")
        if f"{parts[0]}.{kind}" in own and f"blk.{layer}.{theirs}.{kind}" in tensors.left
    }


def ends(tensors: TensorMap) -> dict[str, str]:
    """Embedding, last norm and, where it has a matrix of its own, the head."""
    return {
        ours: theirs
        for ours, theirs in GGUF_ENDS.items()
        if ours not in MAY_LACK or f"{theirs}.weight" in tensors.left
    }


def gguf_fused(
    family: Family, architecture: Architecture, layer: int, there: Container[str] = ()
) -> dict[str, tuple[str, ...]]:
    """The file's tensors of a layer that hold several of ours one above the other.

    Args:
        there: the names of a file's tensors, where it is read: experts' gates and ups may stand
            apart or together.
    """
    own = architecture.layer_shapes(layer)
    stacked = {
        f"{GGUF_NAMES[name]}_exps": architecture.experts(name)
        for name in architecture.mlp_projections
        if architecture.is_mixture(layer)
    }
    if stacked and f"blk.{layer}.{GATE_UP_EXPERTS}.weight" in there and architecture.gated:
        gates, ups = (stacked.pop(f"{GGUF_NAMES[name]}_exps") for name in GATE_UP)
        stacked[GATE_UP_EXPERTS] = tuple(chain.from_iterable(zip(gates, ups, strict=True)))
    return {
        f"{theirs}.{kind}": tuple(f"{part}.{kind}" for part in parts)
        for theirs, parts in {**family.gguf_fused, **stacked}.items()
        for kind in ("weight", "bias")
        if f"{parts[0]}.{kind}" in own
    }


def half_split(blocks: QuantTensor, architecture: Architecture) -> QuantTensor:
    """Rows of q or k, or their bias, from interleaved rope order into half-split."""
    return reordered(blocks, architecture, half_split_order)


def reordered(
    blocks: QuantTensor,
    architecture: Architecture,
    order: Callable[[int, int, int], NDArray[np.int64]],
) -> QuantTensor:
    """Rows of a matrix, or the numbers of a vector, in the order that `order` gives."""
    rows, columns = blocks.shape
    place = order(rows if rows > 1 else columns, architecture.head_dim, architecture.turned)
    if rows > 1:
        return blocks.take(place)
    numbers = blocks.vector()[place]
    return QuantTensor("F32", blocks.shape, numbers.view(np.uint8)[None])


def half_split_order(rows: int, head_dim: int, turned: int = 0) -> NDArray[np.int64]:
    """Row order that brings interleaved rope pairs (0, 1), (2, 3)… of each head into two halves,
    [rows].

    Args:
        turned: numbers of a head that rope turns, the first ones; 0 = all.
    """
    heads = np.arange(rows).reshape(-1, head_dim)
    pairs, rest = heads[:, : turned or head_dim], heads[:, turned or head_dim :]
    halves = pairs.reshape(len(heads), -1, 2).transpose(0, 2, 1).reshape(len(heads), -1)
    return np.concatenate([halves, rest], axis=1).reshape(-1)


def interleave(rows: int, head_dim: int, turned: int = 0) -> NDArray[np.int64]:
    """The inverse of `half_split_order`."""
    return half_split_order(rows, head_dim, turned).argsort()
