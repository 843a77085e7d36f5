"""Encoders' folders as Hugging Face's tools write them: one family a row of the table at the end.

Knows config.json of each family and what it calls its tensors. Knows nothing of tokens, pooling
beyond its kind, or of who computes.
Always: no torch; every tensor is checked against the sizes; what a config asks for and is not
computed here is refused, never ignored.

Source: the models' classes in transformers; the tests compare with them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from ...errors import ModelFileError, ModelNotFoundError
from ..files.lfs_pointer import refuse_pointer
from ..files.settings import HfSettings
from ..quant.tensor import QuantTensor
from .architecture import (
    HEAD_NORMS,
    MOST_LAYERS,
    EncoderArchitecture,
    EncoderWeights,
    ScoreHead,
    numbers,
    plain,
)
from .folder import advice, read_json

PLAIN = ("F32", "F16", "BF16")
ACTIVATION_NAMES = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "silu": "silu"}
SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderFamily:
    """One family."""

    traits: Callable[[HfSettings], dict[str, Any]]  # fields of `EncoderArchitecture`
    layer: str  # the beginning of a layer's names
    names: Mapping[str, str]  # ours -> theirs, inside a layer
    ends: Mapping[str, str]  # ours -> theirs, outside
    # one tensor of theirs, several of ours one above the other
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    prefixes: tuple[str, ...] = ()  # before every name, in some folders
    unit_norms: bool = False  # the file holds norms less 1
    # rows of positions that no token has, the first ones
    unused_positions: Callable[[HfSettings], int] = lambda _: 0
    # of what scores pairs: the matrix before the last and what follows it, and the last
    dense: str = ""
    dense_norm: str = ""
    out: str = "classifier"


def read(folder: Path) -> EncoderWeights:
    """Read config.json and model.safetensors.

    Raises:
        ModelNotFoundError: one of them is not there.
        ModelFileError: an encoder that is not computed here, damaged, or tensors that do not fit
        the sizes.
    """
    path = folder / "config.json"
    config = read_json(path)
    kind = config.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise ModelFileError(
            f"{path}: model_type is {kind!r:.40}, only {', '.join(map(repr, FAMILIES))} are "
            f"supported; choose another embedding model"
        )
    settings = HfSettings(path, config, {}, str(kind))
    architecture = read_architecture(family, settings)
    file = folder / "model.safetensors"
    found = read_tensors(file, family)
    if (unused := family.unused_positions(settings)) and (
        rows := found.get(name := f"{family.ends['positions']}.weight")
    ):
        found[name] = rows.part(min(unused, rows.shape[0]), rows.shape[0])
    tensors = named(file, family, architecture, found)
    return EncoderWeights(architecture, tensors, read_head(file, family, architecture, found))


def read_head(
    path: Path,
    family: EncoderFamily,
    architecture: EncoderArchitecture,
    found: Mapping[str, QuantTensor | None],
) -> ScoreHead | None:
    """What makes a pair's score of its vector; None: the file scores nothing.

    Raises:
        ModelFileError: it has several labels, or parts of other shapes.
    """
    width = architecture.hidden_size

    def part(name: str, rows: int) -> NDArray[np.float32] | None:
        if name not in found:
            return None
        blocks = found[name]
        if blocks is None or blocks.shape != (rows, width):
            shape = None if blocks is None else blocks.shape
            raise ModelFileError(f"{path}: {name} is {shape}, expected {(rows, width)}; {advice()}")
        return numbers(blocks)

    last = found.get(f"{family.out}.weight")
    if last is None:
        return None
    if last.shape[0] != 1:
        raise ModelFileError(
            f"{path}: it tells {last.shape[0]} labels apart, a model that scores pairs has one; "
            f"choose another"
        )
    out, bias = part(f"{family.out}.weight", 1), found.get(f"{family.out}.bias")
    dense_bias, norm = part(f"{family.dense}.bias", 1), part(f"{family.dense_norm}.weight", 1)
    assert out is not None  # it was looked at above
    return ScoreHead(
        out=out[0],
        out_bias=0.0 if bias is None else float(numbers(bias)[0, 0]),
        dense=part(f"{family.dense}.weight", width),
        dense_bias=None if dense_bias is None else dense_bias[0],
        activation="gelu" if family.dense_norm else "tanh",
        norm=None if norm is None else norm[0],
        norm_eps=architecture.norm_eps,
    )


def read_architecture(family: EncoderFamily, config: HfSettings) -> EncoderArchitecture:
    """Sizes and traits. Raises: ModelFileError: impossible, or not computed here."""
    heads = config.size("num_attention_heads")
    if (layers := config.size("num_hidden_layers")) > MOST_LAYERS:
        raise ModelFileError(
            f"{config.path}: num_hidden_layers is {layers}, expected {MOST_LAYERS} at most; "
            f"{advice()}"
        )
    width = config.size("hidden_size")
    if width % heads and config.get("head_dim") is None:
        raise ModelFileError(
            f"{config.path}: impossible sizes: {heads} heads in a width of {width}; {advice()}"
        )
    head_dim = config.size("head_dim", width // heads)
    usual: dict[str, Any] = {
        "model_type": config.model_type,
        "num_layers": layers,
        "hidden_size": width,
        "intermediate_size": config.size("intermediate_size"),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": head_dim,
        "vocab_size": config.size("vocab_size"),
        "max_positions": config.size("max_position_embeddings"),
        "attention_scale": head_dim**-0.5,
    }
    found = EncoderArchitecture(**usual | family.traits(config))
    if not found.is_possible():
        raise ModelFileError(f"{config.path}: impossible sizes {found}; {advice()}")
    return found


def read_tensors(path: Path, family: EncoderFamily) -> dict[str, QuantTensor | None]:
    """Every tensor of a file, by its name without a prefix; vectors are one row. None: it is
    there, and no plain matrix or vector.
    """
    try:
        # the library's own parser; it copies, which a mapped reader for numpy cannot yet avoid
        # where a tensor is bfloat16
        entries: list[tuple[str, dict[str, Any]]]
        entries = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except FileNotFoundError:
        raise ModelNotFoundError(f"{path}: no such file; {advice('run')}") from None
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        refuse_pointer(path)
        raise ModelFileError(f"{path}: damaged ({error!s:.200}); {advice()}") from error
    found: dict[str, QuantTensor | None] = {}
    for name, entry in entries:
        for prefix in family.prefixes:
            name = name.removeprefix(prefix)
        shape, found[name] = entry["shape"], None
        if entry["dtype"] in PLAIN and 1 <= len(shape) <= 2 and min(shape) > 0:
            rows, columns = (1, shape[0]) if len(shape) == 1 else shape
            raw = np.frombuffer(entry["data"], np.uint8).reshape(rows, -1)
            found[name] = QuantTensor(entry["dtype"], (rows, columns), raw)
    return found


def named(
    path: Path,
    family: EncoderFamily,
    architecture: EncoderArchitecture,
    found: Mapping[str, QuantTensor | None],
) -> dict[str, QuantTensor]:
    """The tensors under our names, each of the right shape.

    Raises:
        ModelFileError: one is missing or of another shape.
    """
    width, layers = architecture.hidden_size, range(architecture.num_layers)
    names = dict(family.ends)
    for layer in layers:
        begin = family.layer.format(layer)
        names |= {f"layers.{layer}.{ours}": begin + theirs for ours, theirs in family.names.items()}
    shapes = {"embedding": (architecture.vocab_size, width)}
    if architecture.learned_positions:
        shapes["positions"] = (architecture.max_positions, width)
    for layer in layers:
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in architecture.matrices()}
    tensors: dict[str, QuantTensor] = {}
    behind = family.layer.format(architecture.num_layers)
    if spare := [name for name in found if name.startswith(behind)]:
        raise ModelFileError(
            f"{path}: has {min(spare)!r:.60}, config.json tells of {architecture.num_layers} "
            f"layers; {advice()}"
        )

    def fit(theirs: str, expected: tuple[int, int]) -> QuantTensor:
        blocks = found.get(theirs)
        if blocks is None or blocks.shape != expected:
            state = "is missing" if theirs not in found else f"is no matrix of {', '.join(PLAIN)}"
            state = state if blocks is None else f"is {blocks.shape}"
            raise ModelFileError(f"{path}: {theirs} {state}, expected {expected}; {advice()}")
        return blocks

    def take(ours: str, expected: tuple[int, int], *, needed: bool = True) -> None:
        stem, _, ending = ours.rpartition(".")
        theirs = f"{names.get(stem, stem)}.{ending}"
        if ours not in tensors and (needed or theirs in found):
            tensors[ours] = fit(theirs, expected)

    sizes = dict(architecture.matrices())
    for fused, parts in family.fused.items():
        rows, columns = sum(sizes[part][0] for part in parts), sizes[parts[0]][1]
        for layer in layers:
            for ending, expected in ((".weight", (rows, columns)), (".bias", (1, rows))):
                if (theirs := f"{family.layer.format(layer)}{fused}{ending}") in found:
                    for part, blocks in cut(fit(theirs, expected), parts, ending, sizes):
                        tensors[f"layers.{layer}.{part}{ending}"] = blocks

    for stem, shape in shapes.items():
        take(f"{stem}.weight", shape)
        if stem.startswith("layers."):
            take(f"{stem}.bias", (1, shape[0]), needed=False)
    for stem in names:
        place, _, name = stem.rpartition(".")
        if name.endswith("_norm"):
            size = architecture.head_dim if name in HEAD_NORMS else width
            # ModernBERT's first layer has none of its input: the embedding's stands before it
            first = name == "attention_norm" and place == "layers.0"
            take(f"{stem}.weight", (1, size), needed=not first)
            take(f"{stem}.bias", (1, size), needed=False)
    if "token_types" in family.ends and (
        (theirs := f"{family.ends['token_types']}.weight") in found
    ):
        kinds = found[theirs]
        shifts = numbers(fit(theirs, (kinds.shape[0] if kinds else 1, width)))
        tensors["shift.weight"] = plain(shifts[:1])
        if len(shifts) > 1:
            tensors["second_shift.weight"] = plain(shifts[1:2] - shifts[:1])
    if (head := found.get("lm_head.weight")) is not None and head.shape == shapes["embedding"]:
        tensors["head.weight"] = head
    if family.unit_norms:
        for name in [name for name in tensors if name.endswith("norm.weight")]:
            tensors[name] = plain(numbers(tensors[name]) + np.float32(1))
    return tensors


def cut(
    whole: QuantTensor, parts: tuple[str, ...], ending: str, shapes: Mapping[str, tuple[int, int]]
) -> list[tuple[str, QuantTensor]]:
    """One tensor as the several that stand in it one above the other."""
    found, at = [], 0
    for part in parts:
        rows = shapes[part][0]
        if ending == ".weight":
            blocks = whole.part(at, at + rows)
        else:
            blocks = plain(numbers(whole)[:, at : at + rows])
        found.append((part, blocks))
        at += rows
    return found


def activation(config: HfSettings, key: str) -> str:
    """Ours for what a config calls it. Raises: ModelFileError: not computed here."""
    name = config.get(key)
    if name not in ACTIVATION_NAMES:
        raise refused(config, key, *ACTIVATION_NAMES)
    return ACTIVATION_NAMES[name]


def refused(config: HfSettings, key: str, *known: object) -> ModelFileError:
    """A setting that is not computed here."""
    return ModelFileError(
        f"{config.path}: {key} is {config.get(key)!r:.80}, only {', '.join(map(repr, known))} is "
        f"supported; choose another embedding model"
    )


def sliding_layers(config: HfSettings, layers: int, usual: Callable[[int], bool]) -> list[bool]:
    """Which layers see a window only: as config.json says, or as the family has it."""
    kinds = config.entries("layer_types", layers)
    if kinds is None:
        return [usual(layer) for layer in range(layers)]
    if unknown := [kind for kind in kinds if kind not in (SLIDING, FULL)]:
        raise ModelFileError(
            f"{config.path}: layer_types has {unknown[0]!r:.40}, only {SLIDING!r} and {FULL!r} are "
            f"supported; choose another embedding model"
        )
    return [kind == SLIDING for kind in kinds]


def theta(config: HfSettings, kind: str, key: str, usual: float) -> float:
    """The base of rope of one kind of layers; scaled ropes are refused."""
    rules = config.rule("rope_parameters")
    rule = rules.get(kind, rules if "rope_theta" in rules else {})
    if config.rule("rope_scaling") or not isinstance(rule, Mapping):
        raise refused(config, "rope_scaling" if config.rule("rope_scaling") else "rope_parameters")
    if rule.get("rope_type", "default") != "default":
        raise refused(config, "rope_parameters", "default")
    found = rule.get("rope_theta", config.get(key))
    found = usual if found is None else found
    if not isinstance(found, int | float) or isinstance(found, bool) or not 1 < found < 1e30:
        raise refused(config, key, usual)
    return float(found)


def bert(config: HfSettings) -> dict[str, Any]:
    """BERT, 2018: learned positions, norms behind."""
    if config.get("position_embedding_type") not in (None, "absolute"):
        raise refused(config, "position_embedding_type", "absolute")
    return {
        "max_positions": config.size("max_position_embeddings") - roberta_offset(config),
        "norm_eps": config.real("layer_norm_eps"),
        "activation": activation(config, "hidden_act"),
        "learned_positions": True,
        "norm_sums": True,
        "pooling": "first" if scores_pairs(config) else "mean",
    }


def roberta_offset(config: HfSettings) -> int:
    """RoBERTa, 2019, and XLM-R count positions from behind the padding token's number on."""
    if config.model_type == "bert":
        return 0
    padding = config.get("pad_token_id")
    return 1 + (padding if isinstance(padding, int) and padding >= 0 else 1)


def scores_pairs(config: HfSettings) -> bool:
    """Whether a folder says that its model has labels."""
    classes = config.get("architectures")
    return isinstance(classes, list) and any(
        str(one).endswith("ForSequenceClassification") for one in classes
    )


def modernbert(config: HfSettings) -> dict[str, Any]:
    """ModernBERT, 2024: rope, windows in two layers of three."""
    layers, every = config.size("num_hidden_layers"), config.size("global_attn_every_n_layers", 3)
    sliding = sliding_layers(config, layers, lambda layer: bool(layer % every))
    wide = theta(config, FULL, "global_rope_theta", 160_000.0)
    near = theta(config, SLIDING, "local_rope_theta", 10_000.0)
    reach = config.size("local_attention", 128) // 2
    first = scores_pairs(config) and config.get("classifier_pooling") != "mean"
    if scores_pairs(config) and config.get("classifier_activation") not in (None, "gelu"):
        raise refused(config, "classifier_activation", "gelu")
    return {
        "pooling": "first" if first else "mean",
        "norm_eps": config.real("norm_eps"),
        "activation": activation(config, "hidden_activation"),
        "gated": True,
        "thetas": tuple(near if one else wide for one in sliding),
        "reaches": tuple(reach if one else 0 for one in sliding),
    }


def nomic_bert(config: HfSettings) -> dict[str, Any]:
    """nomic-embed-text, 2024: BERT's order with rope and gates."""
    layers = config.size("num_hidden_layers")
    return {
        "norm_eps": config.real("layer_norm_eps"),
        "activation": activation(config, "hidden_act"),
        "gated": True,
        "norm_sums": True,
        "thetas": (theta(config, FULL, "rope_theta", 1000.0),) * layers,
    }


def qwen3(config: HfSettings) -> dict[str, Any]:
    """Qwen3-Embedding, 2025: a decoder whose last token is the text's vector."""
    layers = config.size("num_hidden_layers")
    if config.get("use_sliding_window"):
        raise refused(config, "use_sliding_window", False)
    return {
        "num_kv_heads": config.size("num_key_value_heads"),
        "head_dim": config.size("head_dim", 128),
        "attention_scale": config.size("head_dim", 128) ** -0.5,
        "norm_eps": config.real("rms_norm_eps"),
        "activation": activation(config, "hidden_act"),
        "gated": True,
        "rms_norms": True,
        "causal": True,
        "pooling": "last",
        "thetas": (theta(config, FULL, "rope_theta", 1_000_000.0),) * layers,
    }


def gemma3(config: HfSettings) -> dict[str, Any]:
    """EmbeddingGemma, 2025: Gemma 3 that sees to both sides."""
    layers, pattern = config.size("num_hidden_layers"), config.size("sliding_window_pattern", 6)
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(key):
            raise refused(config, key, None)
    if not config.get("use_bidirectional_attention"):
        raise refused(config, "use_bidirectional_attention", True)
    sliding = sliding_layers(config, layers, lambda layer: bool((layer + 1) % pattern))
    wide = theta(config, FULL, "rope_theta", 1_000_000.0)
    near = theta(config, SLIDING, "rope_local_base_freq", 10_000.0)
    reach = config.size("sliding_window") // 2
    return {
        "num_kv_heads": config.size("num_key_value_heads"),
        "attention_scale": config.real("query_pre_attn_scalar") ** -0.5,
        "norm_eps": config.real("rms_norm_eps"),
        "activation": activation(config, "hidden_activation"),
        "gated": True,
        "rms_norms": True,
        "embedding_scale": math.sqrt(config.size("hidden_size")),
        "thetas": tuple(near if one else wide for one in sliding),
        "reaches": tuple(reach if one else 0 for one in sliding),
    }


DECODER_NAMES = {
    **{f"{part}_proj": f"self_attn.{part}_proj" for part in "qkvo"},
    **{f"{part}_proj": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
    **{norm: f"self_attn.{norm}" for norm in HEAD_NORMS},
    "attention_norm": "input_layernorm",
}
DECODER_ENDS = {"embedding": "embed_tokens", "final_norm": "norm"}
BERT = EncoderFamily(
    traits=bert,
    layer="encoder.layer.{}.",
    names={
        "q_proj": "attention.self.query",
        "k_proj": "attention.self.key",
        "v_proj": "attention.self.value",
        "o_proj": "attention.output.dense",
        "up_proj": "intermediate.dense",
        "down_proj": "output.dense",
        "post_attention_norm": "attention.output.LayerNorm",
        "post_mlp_norm": "output.LayerNorm",
    },
    ends={
        "embedding": "embeddings.word_embeddings",
        "positions": "embeddings.position_embeddings",
        "token_types": "embeddings.token_type_embeddings",
        "embedding_norm": "embeddings.LayerNorm",
    },
    prefixes=("bert.", "roberta."),
    dense="pooler.dense",
)
ROBERTA = replace(
    BERT, unused_positions=roberta_offset, dense="classifier.dense", out="classifier.out_proj"
)
FAMILIES: Mapping[str, EncoderFamily] = {
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "modernbert": EncoderFamily(
        traits=modernbert,
        layer="layers.{}.",
        names={
            "o_proj": "attn.Wo",
            "down_proj": "mlp.Wo",
            "attention_norm": "attn_norm",
            "mlp_norm": "mlp_norm",
        },
        ends={
            "embedding": "embeddings.tok_embeddings",
            "embedding_norm": "embeddings.norm",
            "final_norm": "final_norm",
        },
        fused={"attn.Wqkv": ("q_proj", "k_proj", "v_proj"), "mlp.Wi": ("gate_proj", "up_proj")},
        prefixes=("model.",),
        dense="head.dense",
        dense_norm="head.norm",
    ),
    "nomic_bert": EncoderFamily(
        traits=nomic_bert,
        layer="encoder.layers.{}.",
        names={
            "o_proj": "attn.out_proj",
            "gate_proj": "mlp.fc12",
            "up_proj": "mlp.fc11",
            "down_proj": "mlp.fc2",
            "post_attention_norm": "norm1",
            "post_mlp_norm": "norm2",
        },
        ends={
            "embedding": "embeddings.word_embeddings",
            "token_types": "embeddings.token_type_embeddings",
            "embedding_norm": "emb_ln",
        },
        fused={"attn.Wqkv": ("q_proj", "k_proj", "v_proj")},
        prefixes=("bert.",),
    ),
    "qwen3": EncoderFamily(
        traits=qwen3,
        layer="layers.{}.",
        names=DECODER_NAMES | {"mlp_norm": "post_attention_layernorm"},
        ends=DECODER_ENDS,
        prefixes=("model.",),
        out="score",
    ),
    "gemma3_text": EncoderFamily(
        traits=gemma3,
        layer="layers.{}.",
        names=DECODER_NAMES
        | {
            "post_attention_norm": "post_attention_layernorm",
            "mlp_norm": "pre_feedforward_layernorm",
            "post_mlp_norm": "post_feedforward_layernorm",
        },
        ends=DECODER_ENDS,
        prefixes=("model.",),
        unit_norms=True,
    ),
}
