"""A model file or folder, ready to compute with: sizes, named blocks, tokenizer, digest.

Knows which reader a path needs. Knows nothing of devices or speed.
Always: every tensor is checked against the architecture before anything computes with it; blocks
stay as the file holds them, except that rows of q and k come in half-split rope order (whole rows
move, no number changes).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .. import log, parts
from ..config import SamplingConfig
from ..errors import ModelFileError
from . import generation_config
from .architecture import Architecture
from .checkpoint import from_gguf
from .files import gguf
from .quant.tensor import QuantTensor
from .quant.types import WIDENED
from .tokenizer.tokenizer import Tokenizer
from .tokenizer.vocabulary import Vocabulary

logger = log.get("models")


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """One model, shared by everything on this machine that computes with it; nobody changes it."""

    architecture: Architecture
    tensors: Mapping[str, QuantTensor] = field(
        repr=False
    )  # Hugging Face names; "lm_head.weight" is the embedding's object where they are tied
    tokenizer: Tokenizer = field(repr=False)
    digest: str  # `digest_of` the file or folder: what an adapter's `base_digest` must equal
    # how its makers recommend to draw answers
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    @property
    def parameters(self) -> int:
        """How many weights, the head counted once where it is the embedding."""
        distinct = {id(blocks): blocks.shape for blocks in self.tensors.values()}
        return sum(rows * columns for rows, columns in distinct.values())

    @property
    def context_length(self) -> int:
        """Positions the model was trained for."""
        return self.architecture.context_length

    @property
    def vocab_size(self) -> int:
        """Rows of logits."""
        return self.architecture.vocab_size


def load(path: Path, *, quant_type: str | None = None) -> Weights:
    """Map one GGUF file, or one folder of config.json, tensors and tokenizer.json.

    Args:
        path: of the file or folder; of any part of a split GGUF file; of a folder that holds one
            GGUF model.
        quant_type: "Q4_0" or "Q8_0" quantises the matrices of a plain model in memory, as
            `to_gguf` would write them; the digest is then another one, since adapters trained on
            the one do not fit the other.

    Raises:
        ModelNotFoundError: no such file, or a folder that is not complete.
        ModelFileError: damaged, cut short, an unknown family or block type, or tensors that do not
        fit its sizes.
    """
    path = model_at(path)
    architecture, tensors, tokenizer, sampling = read_parts(path)
    tensors = widen(path, tensors)
    if quant_type is None:
        return Weights(architecture, tensors, tokenizer, digest_of(path), sampling)
    digest = hashlib.sha256(f"{digest_of(path)} as {quant_type}".encode()).hexdigest()
    quantised = quantize_all(path, tensors, quant_type)
    return Weights(architecture, quantised, tokenizer, digest, sampling)


def widening(tensors: Mapping[str, QuantTensor]) -> str:
    """What happens to blocks that no kernel multiplies; empty where there are none."""
    kinds = sorted({blocks.quant_type for blocks in tensors.values()} & {*WIDENED})
    if not kinds:
        return ""
    return (
        f"its {', '.join(kinds)} blocks are taken as Q8_0, the nearest type that is multiplied, "
        f"and take the memory of that"
    )


def widen(path: Path, tensors: dict[str, QuantTensor]) -> dict[str, QuantTensor]:
    """Blocks of one and two bits as 8-bit ones; what is one object stays one.

    Raises:
        ModelFileError: numbers that are not finite. MissingPartError: torch is not installed.
    """
    if not (said := widening(tensors)):
        return tensors
    with parts.wanted(f"{path.name} ({said})"):
        from .quant.quantize import widened

        logger.warning("%s: %s", path.name, said)
        made: dict[int, QuantTensor] = {}
        for name, blocks in tensors.items():
            if blocks.quant_type in WIDENED and id(blocks) not in made:
                try:
                    made[id(blocks)] = widened(blocks)
                except ValueError as error:
                    raise ModelFileError(f"{path}: {name}: {error}; get the model again") from error
    return {name: made.get(id(blocks), blocks) for name, blocks in tensors.items()}


def read_parts(
    path: Path,
) -> tuple[Architecture, dict[str, QuantTensor], Tokenizer, SamplingConfig]:
    """Sizes, named blocks, tokenizer and recommended sampling of a GGUF file or a model folder.

    Raises:
        ModelNotFoundError, ModelFileError: as `load`.
    """
    path = model_at(path)
    if path.is_dir():
        # with torch, which maps a folder's tensors; a GGUF file needs none
        from .checkpoint import from_hf
        from .files.hf_folder import GENERATION, optional_json
        from .tokenizer.hf_json import read_tokenizer

        architecture = from_hf.read_architecture(path)
        return (
            architecture,
            from_hf.name_tensors(path, architecture),
            read_tokenizer(path, architecture.vocab_size),
            generation_config.from_hf(path / GENERATION, optional_json(path / GENERATION)),
        )
    file = gguf.read(path)
    architecture = from_gguf.read_architecture(file)
    return (
        architecture,
        from_gguf.name_tensors(file, architecture),
        Tokenizer(Vocabulary.read(file)),
        generation_config.from_gguf(file),
    )


def model_at(path: Path) -> Path:
    """What to read: a folder's one GGUF model where it has no config.json, else the path itself.

    Raises:
        ModelFileError: several models in one folder.
        ModelNotFoundError: a part is missing.
    """
    if not path.is_dir() or (path / "config.json").exists():
        return path
    held = sorted(
        {gguf.parts(file)[0] for file in path.glob("*.gguf") if not file.name.startswith("mmproj")}
    )
    if len(held) > 1:
        raise ModelFileError(
            f"{path}: holds {len(held)} models ({', '.join(file.name for file in held)[:200]}); "
            f"name one of them"
        )
    return held[0] if held else path


def quantize_all(
    path: Path, tensors: Mapping[str, QuantTensor], quant_type: str
) -> dict[str, QuantTensor]:
    """Every matrix as blocks of this type, the ends of the network at 8 bits at least; what is one
    object stays one.

    Raises:
        ModelFileError: quantised already, or weights that are not finite.
    """
    from .quant.quantize import quantize, stored_type

    made: dict[int, QuantTensor] = {}
    for name, blocks in tensors.items():
        if id(blocks) not in made:
            try:
                made[id(blocks)] = quantize(blocks, stored_type(name, blocks.shape, quant_type))
            except ValueError as error:
                raise ModelFileError(f"{path}: {name}: {error}; load it as it is") from error
    return {name: made[id(blocks)] for name, blocks in tensors.items()}


def digest_of(path: Path) -> str:
    """sha256 of a file; of a folder, or of a file in parts, over names and hashes of what `load`
    reads; hexadecimal.

    Raises:
        ModelNotFoundError: a folder without tensors, or a part that is missing.
        ModelFileError: several models in one folder.
    """
    path = model_at(path)
    if not path.is_dir():
        return digest_of_all(gguf.parts(path))
    from .files.hf_folder import (
        CONFIG,
        GENERATION,
        TEMPLATE,
        TOKENIZER,
        TOKENIZER_CONFIG,
        tensor_files,
    )

    texts = [path / name for name in (CONFIG, GENERATION, TEMPLATE, TOKENIZER, TOKENIZER_CONFIG)]
    return digest_of_all(
        sorted({*tensor_files(path), *(text for text in texts if text.is_file())}), folder=True
    )


def digest_of_all(files: Sequence[Path], *, folder: bool = False) -> str:
    """sha256 of the one file, or over names and hashes of several."""
    digests = []
    for place in files:
        with place.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    if len(files) == 1 and not folder:
        return digests[0]
    lines = [f"{digest}  {file.name}\n" for digest, file in zip(digests, files, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
