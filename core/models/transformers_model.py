"""A model that transformers computes, because no file of `families/` says how.

Knows config.json as transformers reads it, and which of a GGUF file's settings transformers heeds.
Knows nothing of tensors' numbers or of steps: `core/engine/backends/transformers` runs it.
Always: no hub is asked, no code of a folder is run and no pickle is opened; what transformers would
load but compute otherwise than the file says is refused, with the family's name.

transformers reads a GGUF file's settings by a list and passes over whatever is not on it. Here each
setting has to be found again in what it made of them.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import parts
from ..config import SamplingConfig
from ..errors import ModelFileError, UnsupportedModelError
from . import generation_config, weights
from .architecture import LIMITS
from .checkpoint import from_gguf
from .files import gguf
from .tokenizer.tokenizer import Tokenizer
from .tokenizer.vocabulary import Vocabulary
from .weights import Weights, digest_of, model_at

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Processor time of one answer and of eight at a time beside the compiled kernels over 4-bit blocks,
# as `bench families` measures it.
TRANSFORMERS_IS = "10 to 15 times slower"
CODE = "auto_map"  # of a config.json: names Python files of the folder
ELSEWHERE = "transformers_weights"  # of a config.json: names another file of tensors
# What a config.json may ask of the library besides a network: another implementation, perhaps from
# a hub, or code; and names of classes, as many as it says, which continue no text.
ASIDE = (
    *("attn_implementation", "experts_implementation", "use_kernels", "kernel_config"),
    *("fusion_config", "distributed_config", CODE),
    *("num_labels", "id2label", "label2id"),
)
# Settings, however a family calls them, for each one of which the library's reading of a
# configuration makes an object.
COUNTS = re.compile(r"(layers?|blocks?|block_count|depth|replace|attention_types)$")
# Below "FAMILY.", settings of GGUF files, and the names under which a config holds the same.
HELD_AS: Mapping[str, tuple[str, ...]] = {
    "block_count": ("num_hidden_layers",),
    "context_length": ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len"),
    "embedding_length": ("hidden_size",),
    "feed_forward_length": ("intermediate_size", "n_inner", "ffn_hidden_size"),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads", "num_attention_heads"),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("v_head_dim", "head_dim"),
    "attention.layer_norm_epsilon": (
        *("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps"),
    ),
    "attention.layer_norm_rms_epsilon": (
        *("rms_norm_eps", "norm_eps", "layer_norm_epsilon", "layer_norm_eps"),
    ),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "expert_count": ("num_local_experts", "num_experts", "n_routed_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size", "intermediate_size"),
    "ssm.conv_kernel": ("conv_kernel",),
    "ssm.state_size": ("state_size",),
    "ssm.time_step_rank": ("time_step_rank",),
    "ssm.inner_size": ("intermediate_size",),
    "shortconv.l_cache": ("conv_L_cache",),
    "use_parallel_residual": ("use_parallel_residual", "parallel_attn"),
}
BOUNDLESS = 1 << 20  # tokens: the context of a network that counts no positions
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
CONTEXTS = ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len")


@dataclass(frozen=True, slots=True, eq=False)
class TransformersModel:
    """What everyone but its backend needs of such a model."""

    path: Path  # a folder, or one GGUF file
    family: str  # transformers' model_type
    config: "PretrainedConfig"
    reason: str  # why core/models does not compute it
    context_length: int  # positions the model was trained for
    vocab_size: int
    parameters: int  # numbers that its file or folder holds
    tokenizer: Tokenizer
    digest: str  # as `Weights.digest`
    sampling: SamplingConfig  # how its makers recommend to draw answers

    @property
    def hidden_size(self) -> int:
        """Of the residual stream."""
        return int(self.config.get_text_config(decoder=True).hidden_size)

    @property
    def bytes(self) -> int:
        """What its file, or the folder's tensors, take."""
        if not self.path.is_dir():
            return self.path.stat().st_size
        from .files.hf_folder import tensor_files

        return sum(file.stat().st_size for file in tensor_files(self.path))


ServedModel = Weights | TransformersModel


def load(path: Path) -> ServedModel:
    """A model for serving: as `weights.load` maps it, else one for transformers.

    Raises:
        ModelNotFoundError, ModelFileError: as `weights.load`; a family that nobody computes is
        refused by its name.
        MissingPartError: only transformers computes it, and it is not installed.
    """
    try:
        return weights.load(path)
    except UnsupportedModelError as error:
        return read(path, error)


def read(path: Path, refused: UnsupportedModelError) -> TransformersModel:
    """The same without its tensors' numbers.

    Args:
        refused: why core/models does not compute it.

    Raises:
        ModelNotFoundError, ModelFileError, MissingPartError: as `load`.
    """
    path = model_at(path)
    reason = in_short(path, refused)
    with parts.wanted(f"this model ({reason})"):
        import transformers  # noqa: F401  # seconds, and with torch
    if path.is_dir():
        return of_folder(path, reason)
    return of_gguf(gguf.read(path), reason)


def in_short(path: Path, refused: UnsupportedModelError) -> str:
    """What was refused, without where and without advice: transformers takes it."""
    said = str(refused)
    for place in (path / "config.json", path):
        said = said.removeprefix(f"{place}: ")
    return said.partition("; ")[0]


def of_folder(folder: Path, reason: str) -> TransformersModel:
    """A folder of config.json, safetensors and tokenizer.json."""
    from .files.hf_folder import CONFIG, GENERATION, optional_json, read_json, tensor_files
    from .tokenizer.hf_json import read_tokenizer

    path = folder / CONFIG
    values = read_json(path)
    family = str(values.get("model_type"))
    refuse_family(path, values)
    if any(file.suffix != ".safetensors" for file in tensor_files(folder)):
        raise ModelFileError(
            f"{folder}: only transformers computes {family:.40}, and it is handed no pickles; get "
            f"the model as safetensors"
        )
    config = config_of(path, family, values)
    decoder = config.get_text_config(decoder=True)
    vocabulary = size(path, "vocab_size", getattr(decoder, "vocab_size", None))
    parameters = numbers_of(folder)
    refuse_sizes(path, decoder)
    refuse_crowds(path, decoder, parameters)
    return TransformersModel(
        path=folder,
        family=family,
        config=config,
        reason=reason,
        context_length=context_of(path, decoder),
        vocab_size=vocabulary,
        parameters=parameters,
        tokenizer=read_tokenizer(folder, vocabulary),
        digest=digest_of(folder),
        sampling=generation_config.from_hf(folder / GENERATION, optional_json(folder / GENERATION)),
    )


def numbers_of(path: Path) -> int:
    """How many numbers a folder or a GGUF file holds; only heads are read.

    Raises:
        ModelFileError: it is none.
    """
    if not path.is_dir():
        return numbers_held(gguf.read(path))
    from .files.hf_folder import tensor_files

    return sum(map(numbers_in, tensor_files(path)))


def numbers_held(file: gguf.GgufFile) -> int:
    """The same of a GGUF file that was read."""
    return sum(rows.shape[0] * rows.shape[1] for rows in file.tensors.values())


def numbers_in(file: Path) -> int:
    """How many numbers a safetensors file holds; nothing but its header is read."""
    import safetensors

    try:
        with safetensors.safe_open(file, "pt") as tensors:
            return sum(
                math.prod(tensors.get_slice(name).get_shape())
                for name in tensors.keys()  # noqa: SIM118  # no mapping
            )
    except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise ModelFileError(
            f"{file}: damaged or cut short ({error!s:.200}); get the model again"
        ) from error


def refuse_family(path: Path, values: Mapping[str, Any]) -> None:
    """Raises: UnsupportedModelError: nobody computes it, or not as this library loads models."""
    family = str(values.get("model_type"))
    named = values.get("architectures")
    classes = [str(one) for one in named] if isinstance(named, list) else []
    known = causal()
    if family not in known:
        advice = (
            "; its computation comes as Python code in the folder, which is never run"
            if CODE in values
            else ""
        )
        raise UnsupportedModelError(
            f"{path}: the family {family!r:.40} is computed neither here nor by transformers"
            f"{advice}; choose a model of another family, or a GGUF file of this one for llama.cpp"
        )
    if classes and known[family] not in classes:
        raise UnsupportedModelError(
            f"{path}: holds a {classes[0]:.60}, expected a {known[family]}, which continues texts; "
            f"choose such a model of the family {family}"
        )
    if values.get("quantization_config"):
        raise UnsupportedModelError(
            f"{path}: this {family} model is quantised in a way of its own; get it in bfloat16, or "
            f"as GGUF"
        )
    if (other := values.get(ELSEWHERE)) is not None:
        raise UnsupportedModelError(
            f"{path}: {ELSEWHERE} names {other!r:.80}, expected the tensors in model.safetensors "
            f"or in the files of its index; name them so and remove the setting"
        )
    refuse_adapter(path.parent)


def refuse_adapter(folder: Path) -> None:
    """Raises: UnsupportedModelError: transformers would put it into the model, or look for the
    model where it says.
    """
    if (folder / "adapter_config.json").exists():
        raise UnsupportedModelError(
            f"{folder}: holds an adapter beside the model, which transformers would put into "
            f"it; move adapter_config.json elsewhere"
        )


def refuse_counts(path: Path, value: object, key: str = "") -> None:
    """Looks at settings as the file holds them, in the objects and lists inside too.

    Raises:
        ModelFileError: more layers than any model has.
    """
    limit = LIMITS["num_layers"]
    match value:
        case Mapping():
            for name, one in value.items():
                refuse_counts(path, one, name)
        case list():
            for one in value:
                refuse_counts(path, one, key)
        case int() if value > limit and COUNTS.search(key):
            raise ModelFileError(
                f"{path}: {key:.80} is {value!r:.40}, expected at most {limit}; get the model again"
            )


def causal() -> dict[str, str]:
    """What transformers can continue texts with: its class by `model_type`."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def without_aside(value: Any) -> Any:
    """Settings of the network alone, in the objects inside too."""
    match value:
        case {"__float__": str(number)}:  # how the library writes what JSON has no number for
            return float(number)
        case dict():
            return {
                key: without_aside(one)
                for key, one in value.items()
                if key not in ASIDE and not key.startswith("_")
            }
        case list():
            return [without_aside(one) for one in value]
    return value


def config_of(path: Path, family: str, values: dict[str, Any]) -> "PretrainedConfig":
    """The library's own reading of them."""
    from transformers import CONFIG_MAPPING

    try:
        refuse_counts(path, values)
        config: PretrainedConfig = CONFIG_MAPPING[family].from_dict(without_aside(values))
    except ModelFileError:
        raise
    # whatever a configuration of somebody else's makes of odd values
    except Exception as error:
        raise ModelFileError(
            f"{path}: transformers cannot read this {family} model ({error!s:.200}); get the model "
            f"again"
        ) from error
    return config


def refuse_sizes(path: Path, decoder: "PretrainedConfig") -> None:
    """Raises: ModelFileError: sizes that no model has."""
    for key, name in (("num_hidden_layers", "num_layers"), ("hidden_size", "hidden_size")):
        if (found := getattr(decoder, key, None)) is not None and not (
            isinstance(found, int) and 0 < found <= LIMITS[name]
        ):
            raise ModelFileError(f"{path}: {key} is {found!r:.40}, expected 1 to {LIMITS[name]}")


def refuse_crowds(path: Path, decoder: "PretrainedConfig", parameters: int) -> None:
    """Raises: ModelFileError: more layers and experts than the file has numbers for. The library
    would make an object of each before it looks at the file.
    """
    crowd = max(
        (found for key in EXPERTS if isinstance(found := getattr(decoder, key, None), int)),
        default=1,
    ) * (getattr(decoder, "num_hidden_layers", None) or 1)
    if crowd > parameters:
        raise ModelFileError(
            f"{path}: its layers and experts are {crowd:,}, its tensors hold {parameters:,} "
            f"numbers; get the model again"
        )


def context_of(path: Path, decoder: "PretrainedConfig") -> int:
    """How many positions the network was made for."""
    for key in CONTEXTS:
        if (found := getattr(decoder, key, None)) is not None:
            return size(path, key, found)
    return BOUNDLESS


def size(path: Path, key: str, found: object) -> int:
    """A positive number within reason."""
    limit = LIMITS.get(key, LIMITS["context_length"])
    if not isinstance(found, int) or isinstance(found, bool) or not 0 < found <= limit:
        raise ModelFileError(f"{path}: {key} is {found!r:.40}, expected 1 to {limit}")
    return found


def of_gguf(file: gguf.GgufFile, reason: str) -> TransformersModel:
    """A GGUF file of a family that transformers reads."""
    from transformers import CONFIG_MAPPING
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    family = file.value("general.architecture", str)
    if len(gguf.parts(file.path)) > 1:
        raise UnsupportedModelError(
            f"{file.path}: transformers, which alone computes {family:.40}, reads no file in "
            f"parts; join them with llama.cpp's gguf-split --merge"
        )
    refuse_adapter(file.path.parent)
    refuse_counts(file.path, file.metadata)
    try:
        values: dict[str, Any] = load_gguf_checkpoint(str(file.path))["config"]
        model_type = str(values.pop("model_type"))
        config: PretrainedConfig = CONFIG_MAPPING[model_type].from_dict(values)
    # it refuses by many kinds of errors
    except Exception as error:
        raise UnsupportedModelError(
            f"{file.path}: the family {family!r:.40} is computed neither here nor, from a GGUF "
            f"file, by transformers ({error!s:.120}); get the model as a folder of safetensors"
        ) from error
    if model_type not in causal():
        raise UnsupportedModelError(
            f"{file.path}: a {family:.40} model does not continue texts; choose another"
        )
    decoder = config.get_text_config(decoder=True)
    parameters = numbers_held(file)
    refuse_sizes(file.path, decoder)
    refuse_crowds(file.path, decoder, parameters)
    if lost := sorted(unheeded(file, family, decoder)):
        raise UnsupportedModelError(
            f"{file.path}: transformers would pass over {', '.join(lost)[:300]} of this {family} "
            f"file and compute something else; get the model as a folder of safetensors"
        )
    return TransformersModel(
        path=file.path,
        family=model_type,
        config=config,
        reason=reason,
        context_length=context_of(file.path, decoder),
        vocab_size=len(file.value("tokenizer.ggml.tokens", list)),
        parameters=parameters,
        tokenizer=Tokenizer(Vocabulary.read(file)),
        digest=digest_of(file.path),
        sampling=generation_config.from_gguf(file),
    )


def unheeded(file: gguf.GgufFile, family: str, decoder: "PretrainedConfig") -> Iterator[str]:
    """Settings of a file that its configuration does not hold."""
    prefix = f"{family}."
    for whole, value in file.metadata.items():
        key = whole.removeprefix(prefix)
        if not whole.startswith(prefix) or key in from_gguf.HARMLESS:
            continue
        neutral = from_gguf.NEUTRAL.get(key, ())
        if value in neutral or any(same(value, one) for one in held(decoder, key)):
            continue
        yield key


def held(decoder: "PretrainedConfig", key: str) -> Iterator[object]:
    """What a configuration says of one setting of a GGUF file, under whatever name."""
    rope = getattr(decoder, "rope_parameters", None) or {}
    head = getattr(decoder, "head_dim", None) or (
        decoder.hidden_size // max(1, getattr(decoder, "num_attention_heads", None) or 1)
    )
    match key:
        case "rope.freq_base":
            yield rope.get("rope_theta", getattr(decoder, "rope_theta", None))
        case "rope.dimension_count":
            part = rope.get("partial_rotary_factor", getattr(decoder, "partial_rotary_factor", 1.0))
            yield int(head * part)
        case "attention.key_length" | "attention.value_length":
            yield head
        case "feed_forward_length" if getattr(decoder, "n_inner", 0) is None:
            yield 4 * decoder.hidden_size  # as GPT-2 and its like take it
    for name in HELD_AS.get(key, ()):
        yield getattr(decoder, name, None)


def same(one: object, other: object) -> bool:
    """Equal, numbers as float32 holds them."""
    numbers = isinstance(one, int | float) and isinstance(other, int | float)
    if numbers and not isinstance(one, bool) and not isinstance(other, bool):
        return math.isclose(float(one), float(other), rel_tol=1e-6)  # type: ignore[arg-type]
    return type(one) is type(other) and one == other
