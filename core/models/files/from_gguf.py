"""A GGUF file's metadata and tensors as our sizes and names.

Knows llama.cpp's metadata keys and tensor names, family by family. Knows nothing of bytes or
tokens.
Always: every tensor of the file has a place in the network with the shape that its sizes demand, or
the file is refused. Blocks stay where they are, except that rows of q and k come in half-split rope
order (whole rows move, no number changes).

Source: llama.cpp's `gguf-py/gguf/constants.py` for names, `src/llama-model.cpp` for what is not
written in the file.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ModelFileError
from ..architecture import Architecture
from ..families import FAMILIES, GEMMA3, GGUF_ENDS, LLAMA, PHI3, SMOLLM3, Family
from ..quant.tensor import Blocks
from ..rope import Stretch, long_magnitude, stretch
from .gguf import GgufFile
from .naming import Shelf

GEMMA_PATTERN = 6  # every sixth layer of Gemma 3 sees everything
GEMMA_LOCAL_ROPE = 10000.0  # base of the other five
# the one size whose attention is scaled by width / heads, as llama.cpp tells it
GEMMA_27B_LAYERS = 62
ROPE_KEYS = (  # below "FAMILY.rope."; one that is not here may mean anything
    *(
        "dimension_count",
        "freq_base",
        "freq_base_swa",
        "scale_linear",
        "scaling.type",
        "scaling.factor",
    ),
    *("scaling.original_context_length", "scaling.attn_factor", "scaling.finetuned"),
)
# Below "FAMILY.", all that a file may say: what is read, and what changes no logit. What is not
# here may mean anything.
READ = (
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "expert_count"),
    *(
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
    ),
    *("attention.layer_norm_rms_epsilon", "attention.sliding_window", "attention.scale"),
    *("attn_logit_softcapping", "final_logit_softcapping"),
)
HARMLESS = ("vocab_size", "tensor_data_layout", "expert_used_count", "pooling_type")
NEUTRAL: dict[str, tuple[object, ...]] = {  # values by which a file says what is so anyway
    "attention.causal": (True,),
    "use_parallel_residual": (False,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    **dict.fromkeys(("logit_scale", "embedding_scale", "residual_scale"), (0.0, 1.0)),
}
NOPE_STEP = 4  # every fourth layer of SmolLM3 has no rope
WINDOWED = (LLAMA, PHI3, GEMMA3)  # families of which we know what a file's window means

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
        ModelFileError: a family we do not know, a missing or impossible size, or something we would
        compute wrongly.
    """
    name = file.value("general.architecture", str)
    kind = file.value(
        "general.type", str, "adapter" if "adapter.type" in file.metadata else "model"
    )
    if kind != "model" or name in OTHER_FILES:
        said = OTHER_FILES.get(name) or OTHER_FILES.get(kind, f"of the type {kind!r:.40}")
        raise ModelFileError(f"{file.path}: {said}, not a model; give the model's own file")
    family = FAMILIES.get(name)
    if family is None:
        raise ModelFileError(
            f"{file.path}: family {name!r:.40} is not supported; choose a model "
            f"of {', '.join(FAMILIES)}"
        )
    keys = Keys(file, family)
    try:
        architecture = Architecture(**sizes(file, keys))
    except ValueError as error:
        raise ModelFileError(
            f"{file.path}: {error}, which is not supported; choose another model"
        ) from error
    complaint = architecture.complaint() or unsupported(keys, architecture)
    if complaint:
        raise ModelFileError(
            f"{file.path}: {complaint}, which is not supported; choose another model"
        )
    return architecture


class Keys:
    """Metadata of one family, by the part of the key behind the family's name."""

    def __init__(self, file: GgufFile, family: Family) -> None:
        self.file, self.family = file, family

    def size(self, key: str, default: int | None = None) -> int:
        """A positive whole number."""
        found = self.file.value(f"{self.family.name}.{key}", int, default)
        if found <= 0:
            raise ModelFileError(
                f"{self.file.path}: {self.family.name}.{key} is {found}, expected a positive "
                f"number; get another file"
            )
        return found

    def real(self, key: str, default: float | None = None) -> float:
        """A number."""
        return self.file.value(f"{self.family.name}.{key}", float, default)

    def whole(self, key: str, default: int) -> int:
        """A whole number, also zero."""
        return self.file.value(f"{self.family.name}.{key}", int, default)

    def text(self, key: str, default: str) -> str:
        """A word."""
        return self.file.value(f"{self.family.name}.{key}", str, default)


def sizes(file: GgufFile, keys: Keys) -> dict[str, Any]:
    """The fields of `Architecture`."""
    family, heads, width = (
        keys.family,
        keys.size("attention.head_count"),
        keys.size("embedding_length"),
    )
    layers, head_size = (
        keys.size("block_count"),
        keys.size("attention.key_length", max(width // heads, 1)),
    )
    theta, context = keys.real("rope.freq_base", 10000.0), keys.size("context_length")
    stretched = read_stretch(file, keys, head_size, theta, context)
    found: dict[str, Any] = {
        "family": family.name,
        "layers": layers,
        "width": width,
        "ffn_width": keys.size("feed_forward_length"),
        "heads": heads,
        "kv_heads": keys.size("attention.head_count_kv", heads),
        "head_size": head_size,
        "vocabulary": len(file.value("tokenizer.ggml.tokens", list)),
        "rope_theta": theta,
        "norm_eps": keys.real("attention.layer_norm_rms_epsilon"),
        "context": min(context, stretched.context or context),
        "rope_factors": stretched.rope_factors,
        "rope_magnitude": stretched.rope_magnitude,
        **family.traits,
    }
    window = keys.whole("attention.sliding_window", 0)
    if family is not GEMMA3 and 0 < window < found["context"]:
        found["windows"] = (window,) * min(layers, 1024)
    if family is SMOLLM3:
        found["rope_bases"] = tuple(
            0.0 if (layer + 1) % NOPE_STEP == 0 else theta for layer in range(min(layers, 1024))
        )
    if family is GEMMA3:
        found |= gemma3(keys, found, window)
    return found


def gemma3(keys: Keys, found: dict[str, Any], window: int) -> dict[str, Any]:
    """What Gemma 3 does besides: five windowed layers with a rope of their own, then one that
    sees everything.
    """
    local = local_layers(min(found["layers"], 1024))
    local_rope = keys.real("rope.freq_base_swa", GEMMA_LOCAL_ROPE)
    if found["rope_factors"] and local_rope == found["rope_theta"]:
        raise ValueError("rope is scaled, and both kinds of layers turn by the same base")
    per_head = (
        found["width"] / found["heads"]
        if found["layers"] == GEMMA_27B_LAYERS
        else found["head_size"]
    )
    return {
        "windows": tuple(window * one for one in local) if 0 < window < found["context"] else (),
        "rope_bases": tuple(local_rope if one else found["rope_theta"] for one in local),
        "embedding_scale": math.sqrt(found["width"]),
        "attention_scale": keys.real("attention.scale", per_head**-0.5),
    }


def read_stretch(file: GgufFile, keys: Keys, head_size: int, theta: float, context: int) -> Stretch:
    """Rope's scaling: a rule in the metadata, or factors that stand among the tensors."""
    prefix = f"{keys.family.name}.rope."
    unknown = sorted(
        key
        for key in file.metadata
        if key.startswith(prefix) and key.removeprefix(prefix) not in ROPE_KEYS
    )
    if unknown:
        raise ValueError(f"rope has the setting {unknown[0]:.80}")
    kind = keys.text("rope.scaling.type", "linear")  # as llama.cpp takes it
    # its older name; 0 = none
    factor = keys.real("rope.scaling.factor", 0.0) or keys.real("rope.scale_linear", 0.0) or 1.0
    original = keys.whole("rope.scaling.original_context_length", 0)
    if short := file.tensors.get("rope_factors_short.weight"):
        factors = tuple(factor_row(file, "rope_factors_short.weight", short, head_size))
        default = long_magnitude(context / original, original) if original > 0 else 1.0
        return Stretch(factors, keys.real("rope.scaling.attn_factor", default), original)
    if keys.real("rope.scaling.attn_factor", 1.0) != 1.0:
        raise ValueError("rope's cosines are multiplied by a factor of their own")
    if frequencies := file.tensors.get("rope_freqs.weight"):
        if kind not in ("none", "linear") or factor != 1.0:
            raise ValueError(f"rope is scaled twice, by factors and by {kind!r:.20}")
        return Stretch(tuple(factor_row(file, "rope_freqs.weight", frequencies, head_size)))
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return Stretch()
    return stretch({"rope_type": kind, "factor": factor}, head_size, theta, context)


def factor_row(file: GgufFile, name: str, blocks: Blocks, head_size: int) -> list[float]:
    """A tensor of divisors, one a pair."""
    if blocks.shape != (1, head_size // 2) or blocks.kind not in ("F32", "F16", "BF16"):
        raise ModelFileError(
            f"{file.path}: {name} is {blocks.kind} {blocks.shape}, expected (1, {head_size // 2}); "
            f"get it again"
        )
    row: list[float] = blocks.vector().tolist()
    return row


def unsupported(keys: Keys, architecture: Architecture) -> str:
    """What a file may also ask for, and this code does not compute."""
    size = architecture.head_size
    if setting := unread(keys.file, keys.family):
        return f"it has the setting {setting}"
    scale = keys.real("attention.scale", 0.0)
    if keys.family is not GEMMA3 and scale and not math.isclose(scale, size**-0.5, rel_tol=1e-4):
        return f"its attention is scaled by {scale:.4g}"
    if keys.whole("rope.dimension_count", size) != size:
        return "rope turns only part of a head"
    if keys.whole("attention.value_length", size) != size:
        return "keys and values differ in size"
    if keys.whole("expert_count", 0):
        return "it is a mixture of experts"
    if keys.real("final_logit_softcapping", 0.0) or keys.real("attn_logit_softcapping", 0.0):
        return "its logits are capped"
    if architecture.windows and keys.family not in WINDOWED:
        return f"some layers of this {keys.family.name} model see only a window"
    return ""


def unread(file: GgufFile, family: Family) -> str:
    """A setting of this family that would be passed over, with its value; "" if there is none."""
    prefix = f"{family.name}."
    for key, value in sorted(file.metadata.items()):
        name = key.removeprefix(prefix)
        if name == key or name.startswith("rope.") or name in (*READ, *HARMLESS):
            continue
        if name == "attention.sliding_window_pattern" and family is GEMMA3:
            if value == GEMMA_PATTERN or (
                isinstance(value, list) and value == local_layers(len(value))
            ):
                continue
        elif not isinstance(value, list) and value in NEUTRAL.get(name, ()):
            continue
        return f"{key:.80} = {value!r:.40}"
    return ""


def local_layers(layers: int) -> list[bool]:
    """Which layers of Gemma 3 see a window alone."""
    return [(layer + 1) % GEMMA_PATTERN != 0 for layer in range(layers)]


def name_tensors(file: GgufFile, architecture: Architecture) -> dict[str, Blocks]:
    """The file's tensors under Hugging Face's names, each with the shape that the architecture
    demands.

    Raises:
        ModelFileError: a tensor is missing, has another shape, or is none that this family uses.
    """
    family = FAMILIES[architecture.family]
    shelf = Shelf(file.path, file.tensors, family.name)
    for read_already in (
        "rope_freqs.weight",
        "rope_factors_short.weight",
        "rope_factors_long.weight",
    ):
        shelf.drop(read_already)
    shapes = architecture.shapes()
    named = {
        f"{ours}.weight": shelf.take(f"{theirs}.weight", shapes[f"{ours}.weight"])
        for ours, theirs in ends(shelf).items()
    }
    named.setdefault("lm_head.weight", named["model.embed_tokens.weight"])
    for layer in range(architecture.layers):
        for theirs, parts in family.gguf_fused.items():
            expected = [architecture.projection(part) for part in parts]
            for part, blocks in zip(
                parts, shelf.split(f"blk.{layer}.{theirs}.weight", expected), strict=True
            ):
                named[f"model.layers.{layer}.{part}.weight"] = blocks
        for ours, expected_shape in architecture.layer_shapes().items():
            if f"model.layers.{layer}.{ours}" not in named:
                module, _, kind = ours.rpartition(".")
                blocks = shelf.take(f"blk.{layer}.{family.in_gguf(module)}.{kind}", expected_shape)
                if family.interleaved and module in ("self_attn.q_proj", "self_attn.k_proj"):
                    blocks = blocks.take(half_split(expected_shape[0], architecture.head_size))
                named[f"model.layers.{layer}.{ours}"] = blocks
    shelf.finish()
    return named


def ends(shelf: Shelf) -> dict[str, str]:
    """Embedding, last norm and, where it has a matrix of its own, the head."""
    return {
        ours: theirs
        for ours, theirs in GGUF_ENDS.items()
        if ours != "lm_head" or f"{theirs}.weight" in shelf.left
    }


def half_split(rows: int, head_size: int) -> NDArray[np.int64]:
    """Row order that brings interleaved rope pairs (0, 1), (2, 3)… of each head into two halves,
    [rows].
    """
    return np.arange(rows).reshape(-1, head_size // 2, 2).transpose(0, 2, 1).reshape(-1)


def interleave(rows: int, head_size: int) -> NDArray[np.int64]:
    """The inverse of `half_split`."""
    return half_split(rows, head_size).argsort()
