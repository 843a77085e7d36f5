"""A Hugging Face folder's settings and tensors as our sizes and names.

Knows config.json's keys and the names of checkpoints; what is one family's own stands in
`families/`. Knows nothing of files or tokens.
Always: a setting that would change the computation and that we do not compute is refused; every
tensor has a place in the network with the shape that its sizes demand.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import UnsupportedModelError
from ..architecture import ROPE_PROJECTIONS, Architecture
from ..families import MODEL_TYPES
from ..family import Family
from ..files import hf_folder
from ..files.settings import HfSettings
from ..files.tensor_map import TensorMap
from ..quant.tensor import QuantTensor, plain
from ..rope import rope_scaling
from .from_gguf import half_split

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
TABLES = (".inv_freq",)  # which old files hold ready, and nothing reads
# whose rows rope turns
TURNED = tuple(f"{name}.{kind}" for name in ROPE_PROJECTIONS for kind in ("weight", "bias"))


def read_architecture(folder: Path) -> Architecture:
    """The sizes that a folder's config.json states.

    Raises:
        ModelNotFoundError: no config.json.
        UnsupportedModelError: a family we do not know, or something we would compute wrongly.
        ModelFileError: a missing or impossible size.
    """
    settings, family = read_settings(folder)
    try:
        plain = sizes(settings, family)
        plain.validate()
        whole = replace(plain, **family.from_hf(settings, plain))
        whole.validate()
        refuse_unsupported(settings, family, whole)
    except (TypeError, OverflowError) as error:
        raise UnsupportedModelError(
            f"{settings.path}: a setting has another type than {family.name}'s has ({error}); get "
            f"the model again"
        ) from error
    except ValueError as error:
        raise UnsupportedModelError(
            f"{settings.path}: {error}, which is not supported; choose another model"
        ) from error
    return whole


def read_settings(folder: Path) -> tuple[HfSettings, Family]:
    """The language model's settings in config.json, and its family.

    Raises:
        ModelNotFoundError: no config.json. UnsupportedModelError: a family that is not computed.
    """
    path = folder / hf_folder.CONFIG
    values = hf_folder.read_json(path)
    kind = values.get("model_type")
    family = MODEL_TYPES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise UnsupportedModelError(
            f"{path}: model_type {kind!r:.40} is not supported; choose one of "
            f"{', '.join(MODEL_TYPES)}"
        )
    model_type = str(kind)
    if inner := family.hf_nested.get(model_type):
        model_type = next(iter(family.hf_defaults))
        # older ones do not nest
        outer, values = values, HfSettings(path, values, {}).rule(inner) or values
        values = {"tie_word_embeddings": outer.get("tie_word_embeddings"), **values}
    said = family.hf_settings(values)
    return HfSettings(path, said, family.hf_defaults[model_type], model_type), family


def sizes(settings: HfSettings, family: Family) -> Architecture:
    """What every family's config says in the same words."""
    heads, width = settings.size("num_attention_heads"), settings.size("hidden_size")
    head_dim = settings.size(family.hf_head_dim, max(width // heads, 1))
    biases = family.hf_attention_bias if settings.get("attention_bias") else ()
    traits: dict[str, Any] = {"biases": biases, **family.traits}
    return Architecture(
        family=family.name,
        num_layers=settings.size("num_hidden_layers"),
        hidden_size=width,
        intermediate_size=settings.size("intermediate_size"),
        num_heads=heads,
        num_kv_heads=settings.size("num_key_value_heads", heads),
        head_dim=head_dim,
        vocab_size=settings.size("vocab_size"),
        norm_eps=settings.real(family.hf_epsilon),
        **traits,
        **rope(settings, family, head_dim),
        **experts(settings, family),
    )


def experts(settings: HfSettings, family: Family) -> dict[str, Any]:
    """How many experts there are, and how many a row takes."""
    named = [key for key in EXPERTS if settings.get(key)]
    if not named or not family.mixture:
        return {}
    return {
        "num_experts": settings.size(named[0]),
        "experts_per_token": settings.size("num_experts_per_tok"),
    }


def rope(settings: HfSettings, family: Family, head_dim: int) -> dict[str, Any]:
    """Base, scaling, and the context that they hold for.

    Raises:
        ValueError: a rule that is not computed.
    """
    rule = family.hf_rope(settings)
    context = settings.size("max_position_embeddings")
    said = HfSettings(
        settings.path,
        {key: value for key, value in rule.items() if value},
        {
            "rope_theta": settings.get("rope_theta"),
            "partial_rotary_factor": settings.get("partial_rotary_factor") or 1.0,
        },
    )
    theta, part = said.real("rope_theta"), said.real("partial_rotary_factor")
    if part != 1.0 and not (family.hf_partial_rope and 0 < part < 1):
        raise ValueError("rope turns only part of a head")
    turned = int(head_dim * part)
    original = "original_max_position_embeddings"
    rule[original] = settings.get(original) or rule.get(original) or context
    stretched = rope_scaling(rule, turned, theta, context)
    return {
        "rope_dim": turned if turned != head_dim else 0,
        "rope_theta": theta,
        "rope_factors": stretched.rope_factors,
        "rope_magnitude": stretched.rope_magnitude,
        "context_length": min(context, stretched.context or context),
    }


def refuse_unsupported(settings: HfSettings, family: Family, whole: Architecture) -> None:
    """Raises: ValueError: what a config may also ask for, and this code does not compute."""
    activation = settings.get(family.hf_activation_key) or "silu"
    if family.hf_activations.get(str(activation)) != family.traits.get("activation", "silu"):
        raise ValueError(f"its activation is {activation!r:.30}")
    for key, said in {
        "mlp_bias": "its MLP has biases",
        **({} if whole.logit_softcap else {"final_logit_softcapping": "its logits are capped"}),
        **(
            {} if whole.attention_softcap else {"attn_logit_softcapping": "its attention is capped"}
        ),
        "use_bidirectional_attention": "its rows see later rows",
        "quantization_config": "it is quantised in a way of its own",
        **dict.fromkeys(() if family.mixture else EXPERTS, "it is a mixture of experts"),
    }.items():
        if settings.get(key):
            raise ValueError(said)


def name_tensors(folder: Path, architecture: Architecture) -> dict[str, QuantTensor]:
    """The folder's tensors under our names, each with the shape that the architecture demands.

    Raises:
        ModelNotFoundError, ModelFileError: a tensor is missing, has another shape, or is none that
        this family uses.
    """
    settings, family = read_settings(folder)
    skipped = (*family.hf_skipped, *TABLES)
    found = hf_folder.read_tensors(folder, skipped, stacked=family.hf_stacked)
    ours = {unwrapped(name, family): blocks for name, blocks in found.items()}
    unpacked = family.hf_unpacked(family.hf_scaled(ours, settings), architecture)
    tensors = TensorMap(folder, unpacked, family.name)
    if family.further_layers:
        tensors.drop_layers("model.layers.", architecture.num_layers)
    named: dict[str, QuantTensor] = {}
    for layer in range(architecture.num_layers):
        own = architecture.layer_shapes(layer)
        for theirs, parts in family.hf_fused.items():
            apart = f"model.layers.{layer}.{parts[0]}.weight" in tensors.left
            if apart:  # some of this family hold them fused, some do not
                continue
            expected = [own[f"{part}.weight"] for part in parts]
            split = tensors.split(f"model.layers.{layer}.{theirs}.weight", expected)
            named |= {
                f"model.layers.{layer}.{part}.weight": blocks
                for part, blocks in zip(parts, split, strict=True)
            }
    tied = bool(settings.get("tie_word_embeddings"))  # the head is the embedding
    if tied:
        tensors.drop("lm_head.weight")
    for name, shape in architecture.shapes().items():
        if name == "lm_head.weight" and tied:
            named[name] = named["model.embed_tokens.weight"]
        elif name not in named:
            named[name] = tensors.take(name, shape)
        if family.hf_interleaved and name.endswith(TURNED):
            named[name] = half_split(named[name], architecture)
        if family.unit_norms and name.endswith("norm.weight"):
            named[name] = plain(named[name].dequantize() + 1.0)
    tensors.finish()
    return named


def unwrapped(name: str, family: Family) -> str:
    """The name that a tensor of the language model has where it stands alone."""
    for theirs, ours in family.hf_renamed.items():
        name = name.replace(theirs, ours)
    for prefix, instead in family.hf_prefixes.items():
        if name.startswith(prefix):
            return instead + name.removeprefix(prefix)
    return name
