"""A Hugging Face folder's settings and tensors as our sizes and names.

Knows config.json's keys and the names of checkpoints, family by family. Knows nothing of files or
tokens.
Always: a setting that would change the computation and that we do not compute is refused; every
tensor has a place in the network with the shape that its sizes demand.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import ModelFileError
from ..architecture import Architecture
from ..families import FAMILIES, GEMMA3, MODEL_TYPES, PHI3, QWEN2, QWEN3, SMOLLM3, Family
from ..quant.tensor import Blocks, plain
from ..rope import Stretch, stretch
from . import hf_folder as container
from .naming import Shelf

# What stands beside the language model, and is not used: pictures of Gemma 3, tables that old files
# hold ready.
SKIPPED = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
    ".inv_freq",
)
# of the language model inside a larger one
PREFIXES = {"language_model.": "", "model.language_model.": "model."}
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
# What `transformers` takes where a config.json is silent; older files leave out what equals it.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "rope_theta": 10000.0},
    "mistral": {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": 4096},
    "qwen2": {
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_window_layers": 28,
        "sliding_window": 4096,
    },
    "qwen3": {
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_window_layers": 28,
        "sliding_window": 4096,
        "head_dim": 128,
    },
    "smollm3": {
        "rms_norm_eps": 1e-6,
        "rope_theta": 2000000.0,
        "tie_word_embeddings": True,
        "num_key_value_heads": 4,
    },
    "phi3": {"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "original_max_position_embeddings": 4096},
    "gemma3_text": {
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh",
    },
}


class Settings:
    """One config.json, every value asked for by name and type."""

    def __init__(self, path: Path, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.path, self.values, self.defaults = path, values, defaults

    def get(self, key: str) -> Any:
        """The value, what stands for it, or None."""
        found = self.values.get(key)
        return self.defaults.get(key) if found is None else found

    def size(self, key: str, default: int | None = None) -> int:
        """A positive whole number."""
        found = self.get(key)
        found = default if found is None else found
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise ModelFileError(
                f"{self.path}: {key} is {found!r:.40}, expected a positive whole "
                f"number; get the model again"
            )
        return found

    def real(self, key: str) -> float:
        """A positive number."""
        found = self.get(key)
        if not isinstance(found, int | float) or isinstance(found, bool) or not 0 < found < 1e300:
            raise ModelFileError(
                f"{self.path}: {key} is {found!r:.40}, expected a positive "
                f"number; get the model again"
            )
        return float(found)

    def rule(self, key: str) -> dict[str, Any]:
        """An object, empty where there is none."""
        found = self.get(key)
        if not isinstance(found, dict | None):
            raise ModelFileError(
                f"{self.path}: {key} is {found!r:.40}, expected an object; get the model again"
            )
        return found or {}

    def entries(self, key: str, layers: int) -> list[Any] | None:
        """A list with an entry for each layer, or None."""
        found = self.get(key)
        if found is None:
            return None
        if not isinstance(found, list) or len(found) < layers:
            raise ModelFileError(
                f"{self.path}: {key} is {found!r:.40}, expected a list of "
                f"{layers}; get the model again"
            )
        return found[:layers]


def read_architecture(folder: Path) -> Architecture:
    """The sizes that a folder's config.json states.

    Raises:
        ModelNotFoundError: no config.json.
        ModelFileError: a family we do not know, a missing or impossible size, or something we would
        compute wrongly.
    """
    path = folder / container.CONFIG
    values = container.read_json(path)
    kind = values.get("model_type")
    family = MODEL_TYPES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise ModelFileError(
            f"{path}: model_type {kind!r:.40} is not supported; choose one of "
            f"{', '.join(MODEL_TYPES)}"
        )
    # with pictures: the language model's settings stand in an object of their own
    if kind == "gemma3":
        values, kind = Settings(path, values, {}).rule("text_config"), "gemma3_text"
    settings = Settings(path, values, DEFAULTS[str(kind)])
    try:
        architecture = Architecture(**sizes(settings, family, str(kind)))
    except (ValueError, TypeError, OverflowError) as error:
        raise ModelFileError(
            f"{path}: {error}, which is not supported; choose another model"
        ) from error
    complaint = architecture.complaint() or unsupported(settings, family)
    if complaint:
        raise ModelFileError(f"{path}: {complaint}, which is not supported; choose another model")
    return architecture


def sizes(settings: Settings, family: Family, kind: str) -> dict[str, Any]:
    """The fields of `Architecture`."""
    heads, width = settings.size("num_attention_heads"), settings.size("hidden_size")
    layers, head_size = (
        min(settings.size("num_hidden_layers"), 1025),
        settings.size("head_dim", max(width // heads, 1)),
    )
    rope = ropes(settings, family, layers, head_size)
    context = rope.pop("context")
    found: dict[str, Any] = {
        "family": family.name,
        "layers": layers,
        "width": width,
        "ffn_width": settings.size("intermediate_size"),
        "heads": heads,
        "kv_heads": settings.size("num_key_value_heads", heads),
        "head_size": head_size,
        "vocabulary": settings.size("vocab_size"),
        "norm_eps": settings.real("rms_norm_eps"),
        "context": context,
        **family.traits,
        **rope,
    }
    if settings.get("attention_bias") and family not in (QWEN2, PHI3):
        found["biases"] = ATTENTION
    if family is GEMMA3:
        found |= {
            "embedding_scale": math.sqrt(width),
            "attention_scale": settings.real("query_pre_attn_scalar") ** -0.5,
        }
    found["windows"] = windows(settings, family, kind, layers, context)
    return found


def ropes(settings: Settings, family: Family, layers: int, head_size: int) -> dict[str, Any]:
    """Base, scaling and context; for Gemma 3 and SmolLM3 also the base of each layer."""
    rule, context = settings.rule("rope_parameters"), settings.size("max_position_embeddings")
    local: dict[str, Any] = {}
    if family is GEMMA3 and any(
        isinstance(rule.get(key), dict) for key in ("full_attention", "sliding_attention")
    ):
        kinds = Settings(settings.path, rule, {})
        others = sorted(
            key
            for key, one in rule.items()
            if one is not None and key not in ("full_attention", "sliding_attention")
        )
        if others:
            raise ValueError(f"rope has the setting {others[0]!r:.60}")
        rule, local = kinds.rule("full_attention"), kinds.rule("sliding_attention")
    rule = {**settings.rule("rope_scaling"), **rule}
    theta = float(rule.get("rope_theta") or settings.real("rope_theta"))
    original = settings.get("original_max_position_embeddings")
    rule = {
        **rule,
        "original_max_position_embeddings": original
        or rule.get("original_max_position_embeddings")
        or context,
    }
    if any(
        float(one.get("partial_rotary_factor") or settings.get("partial_rotary_factor") or 1.0)
        != 1.0
        for one in (rule, local)
    ):
        raise ValueError("rope turns only part of a head")
    stretched = stretch(rule, head_size, theta, context)
    found: dict[str, Any] = {
        "rope_theta": theta,
        "rope_factors": stretched.rope_factors,
        "rope_magnitude": stretched.rope_magnitude,
        "context": min(context, stretched.context or context),
    }
    if family is SMOLLM3:
        turned = settings.entries("no_rope_layers", layers)  # 1 = with rope, in spite of its name
        step = settings.size("no_rope_layer_interval", 4)
        turned = turned or [(layer + 1) % step != 0 for layer in range(layers)]
        found["rope_bases"] = tuple(theta if one else 0.0 for one in turned)
    if family is GEMMA3:
        local_base = float(local.get("rope_theta") or settings.real("rope_local_base_freq"))
        if stretch(local, head_size, local_base, context) != Stretch() or (
            stretched.rope_factors and local_base == theta
        ):
            raise ValueError("rope of windowed layers is scaled")
        found["rope_bases"] = tuple(
            local_base if one else theta for one in windowed(settings, family, layers)
        )
    return found


def windowed(settings: Settings, family: Family, layers: int) -> list[bool]:
    """Which layers see only a window, where the family has such layers."""
    kinds = settings.entries("layer_types", layers)
    if kinds is not None:
        if not all(kind in ("sliding_attention", "full_attention") for kind in kinds):
            raise ValueError("it has layers that are neither full nor windowed attention")
        return [kind == "sliding_attention" for kind in kinds]
    if family is GEMMA3:
        pattern = settings.size("sliding_window_pattern")
        return [(layer + 1) % pattern != 0 for layer in range(layers)]
    if family in (QWEN2, QWEN3):
        return [layer >= settings.size("max_window_layers") for layer in range(layers)]
    return [True] * layers  # Mistral and Phi-3; SmolLM3 as it is published has none


def windows(
    settings: Settings, family: Family, kind: str, layers: int, context: int
) -> tuple[int, ...]:
    """The window of each layer; none where no text is long enough to notice."""
    asked = (
        settings.get("use_sliding_window") if family in (QWEN2, QWEN3, SMOLLM3) else kind != "llama"
    )
    if (
        not asked
        or settings.get("sliding_window") is None
        or settings.size("sliding_window") >= context
    ):
        return ()
    if family is SMOLLM3:
        raise ValueError("some layers of this SmolLM3 see only a window")
    inside = (
        windowed(settings, family, layers)
        if family is not PHI3 and kind != "mistral"
        else [True] * layers
    )
    return tuple(settings.size("sliding_window") * one for one in inside) if any(inside) else ()


def unsupported(settings: Settings, family: Family) -> str:
    """What a config may also ask for, and this code does not compute."""
    activation = settings.get("hidden_activation" if family is GEMMA3 else "hidden_act") or "silu"
    if ACTIVATIONS.get(str(activation)) != family.traits.get("activation", "silu"):
        return f"its activation is {activation!r:.30}"
    for key, said in {
        "mlp_bias": "its MLP has biases",
        "final_logit_softcapping": "its logits are capped",
        "attn_logit_softcapping": "its attention is capped",
        "use_bidirectional_attention": "its rows see later rows",
        "quantization_config": "it is quantised in a way of its own",
        "num_local_experts": "it is a mixture of experts",
    }.items():
        if settings.get(key):
            return said
    return ""


def name_tensors(folder: Path, architecture: Architecture) -> dict[str, Blocks]:
    """The folder's tensors under our names, each with the shape that the architecture demands.

    Raises:
        ModelNotFoundError, ModelFileError: a tensor is missing, has another shape, or is none that
        this family uses.
    """
    family = FAMILIES[architecture.family]
    found = {
        unwrapped(name): blocks for name, blocks in container.read_tensors(folder, SKIPPED).items()
    }
    shelf = Shelf(folder, found, family.name)
    named: dict[str, Blocks] = {}
    for layer in range(architecture.layers):
        for theirs, parts in family.folder_fused.items():
            expected = [architecture.projection(part) for part in parts]
            split = shelf.split(f"model.layers.{layer}.{theirs}.weight", expected)
            named |= {
                f"model.layers.{layer}.{part}.weight": blocks
                for part, blocks in zip(parts, split, strict=True)
            }
    if tied(folder, family):
        shelf.drop("lm_head.weight")
    for name, shape in architecture.shapes().items():
        if name == "lm_head.weight" and tied(folder, family):
            named[name] = named["model.embed_tokens.weight"]
        elif name not in named:
            named[name] = shelf.take(name, shape)
        if family.unit_norms and name.endswith("norm.weight"):
            named[name] = plain(named[name].dense() + 1.0)
    shelf.finish()
    return named


def unwrapped(name: str) -> str:
    """The name that a tensor of the language model has where it stands alone."""
    for prefix, instead in PREFIXES.items():
        if name.startswith(prefix):
            return instead + name.removeprefix(prefix)
    return name


def tied(folder: Path, family: Family) -> bool:
    """Whether the head is the embedding."""
    values = container.read_json(folder / container.CONFIG)
    inner = values.get("text_config")
    said = (inner if isinstance(inner, dict) else {}).get(
        "tie_word_embeddings", values.get("tie_word_embeddings")
    )
    return bool(
        DEFAULTS[family.model_types[0]].get("tie_word_embeddings", False) if said is None else said
    )
