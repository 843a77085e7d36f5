"""A model as a GGUF file, under llama.cpp's names and in its row orders, quantised on the way if
asked, or as it is held.

Knows what `from_gguf` reads, the other way round. Knows nothing of folders.
Always: before a byte is written, `from_gguf` is asked what it would read from such a file; unless
that is the same architecture, nothing is written. The file takes its name only when it is whole.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ModelError, ModelFileError
from ..paths import make_folder, scratch_file
from . import generation_config
from .architecture import ROPE_PROJECTIONS, Architecture
from .checkpoint import from_gguf
from .families import FAMILIES
from .family import GGUF_ENDS, Family
from .files.gguf import GgufFile
from .quant.quantize import quantize, stored_type
from .quant.tensor import PLAIN, QuantTensor, plain
from .tokenizer.vocabulary import Vocabulary
from .weights import Weights

# GGUF's number for "mostly of this type".
FILE_TYPES = {
    **{"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9},
    **{"Q4_K": 14, "Q5_K": 16, "Q6_K": 18, "BF16": 32},
}


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor of the file to come: where it comes from, and as what it is written."""

    name: str
    parts: tuple[str, ...]  # our names, one above the other
    stacked: bool  # the file counts them in a dimension of its own: experts
    quant_type: str
    interleaved: bool


def save(weights: Weights, path: Path, quant_type: str | None = None) -> None:
    """Write `weights` to `path`.

    Args:
        quant_type: of its matrices, rounded plainly; None: each tensor as it is held.

    Raises:
        ModelFileError: what GGUF or this reader of it cannot hold, or a model that is quantised
        already. ModelError: no room or no permission; nothing stays.
    """
    metadata, extra = describe(weights, quant_type or main_type(weights))
    plans = list(plan(weights, quant_type))
    check(weights, metadata, extra, plans)
    try:
        make_folder(path.parent)
        with scratch_file(path) as scratch:
            write(scratch, weights, metadata, extra, plans)
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be written ({error}); make room or name another place"
        ) from error


def main_type(weights: Weights) -> str:
    """The type that most of the weights are held in."""
    held: Counter[str] = Counter()
    for blocks in weights.tensors.values():
        held[blocks.quant_type] += blocks.shape[0] * blocks.shape[1]
    return held.most_common(1)[0][0]


def type_of(weights: Weights, name: str, quant_type: str | None) -> str:
    """As what one of our tensors is written."""
    held = weights.tensors[name]
    return held.quant_type if quant_type is None else stored_type(name, held.shape, quant_type)


def require_plain(weights: Weights, quant_type: str) -> None:
    """Raises: ModelFileError: a type that is not written, or a model that is quantised already."""
    if quant_type not in FILE_TYPES:
        raise ModelFileError(
            f"type {quant_type} cannot be written; choose one of {', '.join(FILE_TYPES)}"
        )
    quantised = {
        name: blocks.quant_type
        for name, blocks in weights.tensors.items()
        if blocks.quant_type not in PLAIN
    }
    if quantised:
        name = min(quantised)
        raise ModelFileError(
            f"{name} is {quantised[name]} already, and quantising twice ruins it; convert from the "
            f"original model folder, or see what `model quantize` makes of it"
        )


def plan(weights: Weights, quant_type: str | None) -> Iterator[TensorPlan]:
    """Every tensor of the file, with its type."""
    family = FAMILIES[weights.architecture.family]
    if quant_type is not None:
        require_plain(weights, quant_type)
    tied = weights.tensors["lm_head.weight"] is weights.tensors["model.embed_tokens.weight"]
    for ours, theirs in GGUF_ENDS.items():
        name = f"{ours}.weight"
        if name in weights.tensors and (ours != "lm_head" or not tied):
            kind = type_of(weights, name, quant_type)
            yield TensorPlan(f"{theirs}.weight", (name,), False, kind, False)
        if (name := f"{ours}.bias") in weights.tensors:
            kind = type_of(weights, name, quant_type)
            yield TensorPlan(f"{theirs}.bias", (name,), False, kind, False)
    for layer in range(weights.architecture.num_layers):
        yield from layer_plan(weights, family, layer, quant_type)


def layer_plan(
    weights: Weights, family: Family, layer: int, quant_type: str | None
) -> Iterator[TensorPlan]:
    """Every tensor of one layer."""
    architecture, prefix = weights.architecture, f"model.layers.{layer}."
    grouped = from_gguf.gguf_fused(family, architecture, layer)
    for theirs, parts in grouped.items():
        names = tuple(f"{prefix}{part}" for part in parts)
        kind = type_of(weights, names[0], quant_type)
        stacked = "_exps." in theirs
        yield TensorPlan(f"blk.{layer}.{theirs}", names, stacked, kind, False)
    fused = {part for parts in grouped.values() for part in parts}
    for ours in architecture.layer_shapes(layer):
        module, _, suffix = ours.rpartition(".")
        if ours not in fused:
            name = f"blk.{layer}.{family.in_gguf(module)}.{suffix}"
            kind = type_of(weights, prefix + ours, quant_type)
            turned = family.interleaved and module in ROPE_PROJECTIONS
            yield TensorPlan(name, (prefix + ours,), False, kind, turned)


def prepared(weights: Weights, one: TensorPlan) -> QuantTensor:
    """The blocks of one tensor as they stand in the file."""
    try:
        parts = [written_as(weights.tensors[name], one.quant_type) for name in one.parts]
    except ValueError as error:
        raise ModelFileError(f"{one.parts[0]}: {error}; choose another model or type") from error
    if not one.stacked and len(parts) > 1 and all(part.shape[0] == 1 for part in parts):
        return plain(torch.cat([part.dequantize() for part in parts], dim=1))  # biases
    whole = QuantTensor(
        one.quant_type,
        (sum(part.shape[0] for part in parts), parts[0].shape[1]),
        torch.cat([p.raw for p in parts]),
    )
    if not one.interleaved:
        return whole
    return from_gguf.reordered(whole, weights.architecture, from_gguf.interleave)


def written_as(blocks: QuantTensor, quant_type: str) -> QuantTensor:
    """One of our tensors in the type of the file's. Raises: ValueError: as `quantize`."""
    as_it_is = blocks.quant_type == quant_type and quant_type not in PLAIN
    return blocks if as_it_is else quantize(blocks, quant_type)


def describe(weights: Weights, quant_type: str) -> tuple[dict[str, Any], dict[str, QuantTensor]]:
    """Metadata, and tensors that say how rope is stretched."""
    architecture = weights.architecture
    family = FAMILIES[architecture.family]
    if not family.gguf_written:
        raise ModelFileError(
            f"GGUF files of the family {family.name} are read and not written; keep the model "
            f"folder as it is"
        )
    settings, rows = family.to_gguf(architecture)
    own = sizes(architecture) | settings
    extra = {name: plain(torch.tensor([row], dtype=torch.float32)) for name, row in rows.items()}
    metadata = {
        "general.architecture": architecture.family,
        "general.file_type": FILE_TYPES.get(quant_type, 0),
        "general.quantization_version": 2,
        **generation_config.to_gguf(weights.sampling),
        **{f"{architecture.family}.{key}": value for key, value in own.items()},
        **words(weights.tokenizer.vocabulary),
    }
    return metadata, extra


def sizes(architecture: Architecture) -> dict[str, Any]:
    """Keys below the family's name that every family's file has."""
    epsilon = from_gguf.LAYER_EPSILON if architecture.layer_norms else from_gguf.RMS_EPSILON
    return {
        "block_count": architecture.num_layers,
        "context_length": architecture.context_length,
        "embedding_length": architecture.hidden_size,
        "feed_forward_length": architecture.dense_size or architecture.intermediate_size,
        "attention.head_count": architecture.num_heads,
        "attention.head_count_kv": architecture.num_kv_heads,
        "attention.key_length": architecture.head_dim,
        "attention.value_length": architecture.head_dim,
        epsilon: float(architecture.norm_eps),
        "rope.dimension_count": architecture.turned,
        "rope.freq_base": float(architecture.rope_theta),
        "vocab_size": architecture.vocab_size,
        **(mixture(architecture) if architecture.num_experts else {}),
    }


def mixture(architecture: Architecture) -> dict[str, Any]:
    """The keys of a mixture of experts."""
    return {
        "expert_count": architecture.num_experts,
        "expert_used_count": architecture.experts_per_token,
        "expert_feed_forward_length": architecture.intermediate_size,
    }


def words(vocabulary: Vocabulary) -> dict[str, Any]:
    """The tokenizer's keys."""
    pieces = vocabulary.spelling == "sentencepiece"
    if not pieces and not vocabulary.splitting:
        raise ModelFileError(
            "the model cuts text by a rule that GGUF has no name for; keep the "
            "model folder as it is"
        )
    found: dict[str, Any] = {
        "tokenizer.ggml.model": "llama" if pieces else "gpt2",
        "tokenizer.ggml.pre": "default" if pieces else vocabulary.splitting,
        "tokenizer.ggml.tokens": list(vocabulary.tokens),
        "tokenizer.ggml.token_type": list(vocabulary.token_types),
        "tokenizer.ggml.add_bos_token": bool(vocabulary.start),
    }
    if pieces:
        found |= {
            "tokenizer.ggml.scores": list(vocabulary.scores),
            "tokenizer.ggml.add_space_prefix": vocabulary.space_first,
        }
    else:
        found["tokenizer.ggml.merges"] = [" ".join(merge) for merge in vocabulary.merges]
    place = {token: number for number, token in enumerate(vocabulary.tokens)}
    for name, text in vocabulary.named:
        if text in place:
            found[f"tokenizer.ggml.{NAMED.get(name, name)}_id"] = place[text]
    stops = sorted(vocabulary.stop - {found.get("tokenizer.ggml.eos_token_id")})
    if stops and "tokenizer.ggml.eos_token_id" not in found:
        found["tokenizer.ggml.eos_token_id"] = stops.pop(0)
    if stops:
        found["tokenizer.ggml.eot_token_id"] = stops[0]
    if vocabulary.template:
        found["tokenizer.chat_template"] = vocabulary.template
    return found


NAMED = {"unk_token": "unknown_token", "pad_token": "padding_token"}  # where GGUF's word is another


def check(
    weights: Weights,
    metadata: Mapping[str, Any],
    extra: Mapping[str, QuantTensor],
    plans: list[TensorPlan],
) -> None:
    """See that what will be read is what is written.

    Raises:
        ModelFileError: GGUF cannot hold this model, or its tokenizer, as it is.
    """
    planned = {one.name: weights.tensors[one.parts[0]] for one in plans}
    file = GgufFile(Path("the converted file"), metadata, {**planned, **extra})
    found, expected = asdict(from_gguf.read_architecture(file)), asdict(weights.architecture)
    different = [name for name in expected if rounded(found[name]) != rounded(expected[name])]
    if different:
        raise ModelFileError(
            f"GGUF has no place for this model's {different[0]}; keep the model folder as it is"
        )
    vocabulary, own = Vocabulary.read(file), weights.tokenizer.vocabulary
    if (vocabulary.trims_after, vocabulary.start) != (
        own.trims_after,
        own.start,
    ) or not vocabulary.stop >= own.stop:
        raise ModelFileError(
            "GGUF has no place for this model's special tokens; keep the model folder as it is"
        )


def rounded(value: Any) -> Any:
    """A number as float32 holds it: what files of this kind can say."""
    if isinstance(value, float):
        return float(np.float32(value))
    return tuple(map(rounded, value)) if isinstance(value, tuple) else value


def write(
    path: Path,
    weights: Weights,
    metadata: Mapping[str, Any],
    extra: Mapping[str, QuantTensor],
    plans: list[TensorPlan],
) -> None:
    """The file itself, one tensor in memory at a time."""
    from .files.gguf_writer import GgufWriter

    with GgufWriter(path, weights.architecture.family) as writer:
        fill(writer, weights, metadata, extra, plans)


def fill(
    writer: Any,
    weights: Weights,
    metadata: Mapping[str, Any],
    extra: Mapping[str, QuantTensor],
    plans: list[TensorPlan],
) -> None:
    """Everything that the file holds."""
    import gguf

    for key, value in metadata.items():
        if key == "general.architecture":
            continue  # the writer's own
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value:
            writer.add_array(key, value)
    for name, blocks in extra.items():
        announce(writer, gguf, name, blocks.quant_type, (blocks.shape[1],))
    for one in plans:
        rows = sum(weights.tensors[name].shape[0] for name in one.parts)
        columns = weights.tensors[one.parts[0]].shape[1]
        shape: tuple[int, ...] = (columns,) if rows == 1 else (rows, columns)
        if rows == len(one.parts) > 1 and not one.stacked:
            shape = (sum(weights.tensors[name].shape[1] for name in one.parts),)
        if one.stacked and rows > len(one.parts):
            shape = (len(one.parts), rows // len(one.parts), columns)
        announce(writer, gguf, one.name, one.quant_type, shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for blocks in [*extra.values()]:
        writer.write_tensor_data(blocks.raw.numpy())
    for one in plans:
        writer.write_tensor_data(prepared(weights, one).raw.numpy())


def announce(writer: Any, gguf: Any, name: str, quant_type: str, shape: tuple[int, ...]) -> None:
    """Describe a tensor that follows."""
    form = gguf.GGMLQuantizationType[quant_type]
    size = gguf.quants.quant_shape_to_byte_shape(shape, form)
    writer.add_tensor_info(name, size, np.dtype(np.uint8), int(np.prod(size)), raw_dtype=form)
