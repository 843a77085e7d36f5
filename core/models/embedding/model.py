"""An encoder with everything that stands around it: what cuts text, how long texts may be, what its
vectors go through, what makes a score of them.

Knows folders and GGUF files of encoders. Knows nothing of who computes.
Always: a part that is not known here is refused; a tokenizer spells no token that the encoder has
not; no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
from safetensors.numpy import load_file
from tokenizers import Tokenizer as BackendTokenizer

from ...errors import ModelFileError, ModelNotFoundError
from . import families, gguf
from .architecture import EncoderArchitecture, EncoderWeights, numbers
from .folder import Role, advice, read_json, read_parts, read_prompts

DEFAULT_LENGTH = 256  # tokens; of a model with learned positions whose folder does not say
MOST_LENGTH = 8192  # of one without
TOKENIZER = "tokenizer.json"
ROWS = 4096  # of a matrix that are looked at together
BEYOND = 64  # control tokens that may stand behind an encoder's rows: Gemma has one, of pictures
RANKS = "pipeline_tag: text-ranking"  # in the head of a model's card
CARD_LETTERS = 4096
PROBE = "a ꙮ"  # a letter that hardly a vocabulary has: what stands for it is there too


@dataclass(frozen=True, slots=True, eq=False)
class EncoderModel:
    """What one file or folder holds."""

    path: Path
    weights: EncoderWeights
    backend: BackendTokenizer  # puts its marks around a text, or around and between two
    longest: int  # tokens of a text or pair, marks included
    dense: tuple[npt.NDArray[np.float32], ...] = ()  # behind the encoder, [rows, columns] each
    # before a text, by what it is for
    prompts: Mapping[Role, str] = field(default_factory=dict)
    judges: bool = False  # it says of itself that it scores pairs: a decoder, by a yes or a no


def read(path: Path, *, scoring: bool = False) -> EncoderModel:
    """Read an encoder's GGUF file or folder.

    Args:
        scoring: it is to score pairs.

    Raises:
        ModelNotFoundError: a file is not there.
        ModelFileError: a file is damaged, or the model is not of a kind that is known here.
    """
    model = read_file(path) if path.is_file() else read_folder(path, scoring=scoring)
    if (marks := len(model.backend.encode("").ids)) >= model.longest:
        raise ModelFileError(
            f"{path}: its tokenizer puts {marks} marks around a text, expected fewer than the "
            f"{model.longest} tokens that it may have; {advice()}"
        )
    check_finite(path, model.weights)
    return model


def read_file(path: Path) -> EncoderModel:
    """Raises: as `read`."""
    file = gguf.open_encoder(path)
    weights = gguf.read_weights(file)
    return EncoderModel(
        path,
        weights,
        gguf.read_tokenizer(file, weights.architecture.vocab_size),
        min(MOST_LENGTH, weights.architecture.max_positions),
        gguf.read_dense(file, weights.architecture.hidden_size),
        {},
        gguf.judges(file),
    )


def read_folder(folder: Path, *, scoring: bool) -> EncoderModel:
    """Raises: as `read`."""
    weights = families.read(folder)
    dense, prompts = [], {}
    if not scoring:
        behind, prompts = read_parts(folder), read_prompts(folder)
        if behind.pooling is not None:
            weights = replace(
                weights, architecture=replace(weights.architecture, pooling=behind.pooling)
            )
        width = weights.architecture.hidden_size
        for place in behind.dense:
            dense.append(read_dense(place, width))
            width = len(dense[-1])
    architecture = weights.architecture
    backend = read_tokenizer(folder, architecture)
    longest = read_longest(folder, architecture, scoring=scoring)
    return EncoderModel(
        folder, weights, backend, longest, tuple(dense), prompts, judges=judges(folder)
    )


def judges(folder: Path) -> bool:
    """Whether a folder says of itself that it scores pairs: by its name or the one that its config
    remembers, or by its card. One with modules.json makes vectors.
    """
    if (folder / "modules.json").exists():
        return False
    origin = read_json(folder / "config.json").get("_name_or_path", "")
    if any("rerank" in str(name).lower() for name in (folder.resolve().name, origin)):
        return True
    card = folder / "README.md"
    with card.open(encoding="utf-8", errors="replace") if card.is_file() else StringIO() as text:
        return RANKS in text.read(CARD_LETTERS)


def check_finite(path: Path, weights: EncoderWeights) -> None:
    """Raises: ModelFileError: a tensor holds what is no number, so that texts would have no
    vector.
    """
    for name, blocks in weights.tensors.items():
        for start in range(0, blocks.shape[0], ROWS):
            rows = numbers(blocks.part(start, min(start + ROWS, blocks.shape[0])))
            # the sum of what is finite is so too, and is sooner made than all are asked
            if not np.isfinite(np.sum(rows, dtype=np.float64)):
                raise ModelFileError(
                    f"{path}: {name} holds numbers that are not finite, so it would find "
                    f"nothing; {advice()}"
                )
    if weights.head is not None and not weights.head.is_finite():
        raise ModelFileError(
            f"{path}: what makes its scores holds numbers that are not finite; {advice()}"
        )


def read_tokenizer(folder: Path, architecture: EncoderArchitecture) -> BackendTokenizer:
    """Raises: ModelNotFoundError, ModelFileError: as `read`."""
    path = folder / TOKENIZER
    if not path.exists():
        raise ModelNotFoundError(f"{path}: no such file; {advice('run')}")
    try:
        backend = BackendTokenizer.from_file(str(path))
        backend.no_padding()  # else the probe is as long as the file says
        backend.no_truncation()
        control = {
            token for token, how in backend.get_added_tokens_decoder().items() if how.special
        } & set(range(architecture.vocab_size, architecture.vocab_size + BEYOND))
        ids = [*set(backend.get_vocab().values()) - control, *backend.encode(PROBE).ids]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # bare Exception, or a panic, which is none
        raise ModelFileError(f"{path}: not a tokenizer ({error!s:.200}); {advice()}") from error
    # before the library writes it out: that takes room for every id up to the largest
    if (largest := max(ids, default=0)) >= architecture.vocab_size:
        raise ModelFileError(
            f"{path}: has token {largest}, the encoder has {architecture.vocab_size} tokens; "
            f"{advice()}"
        )
    return backend


def read_longest(folder: Path, architecture: EncoderArchitecture, *, scoring: bool) -> int:
    """Tokens of one text, or pair. Raises: ModelFileError: a length that the encoder does not
    have.
    """
    path, most = folder / "sentence_bert_config.json", architecture.max_positions
    longest = read_json(path).get("max_seq_length") if path.exists() else None
    if longest is None:
        short = architecture.learned_positions and not scoring
        return min(DEFAULT_LENGTH if short else MOST_LENGTH, most)
    if type(longest) is not int or not 2 < longest <= most:
        raise ModelFileError(
            f"{path}: max_seq_length is {longest!r}, expected 3 to {most}; pull it again"
        )
    return longest


def read_dense(folder: Path, width: int) -> npt.NDArray[np.float32]:
    """One matrix behind the encoder, [rows, `width`].

    Raises:
        ModelNotFoundError, ModelFileError: missing, damaged, or of another width.
    """
    path = folder / "model.safetensors"
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise ModelNotFoundError(f"{path}: no such file; {advice('run')}") from None
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        raise ModelFileError(f"{path}: damaged ({error!s:.200}); {advice()}") from error
    matrix = tensors.get("linear.weight")
    if matrix is None or matrix.ndim != 2 or matrix.shape[1] != width or len(tensors) != 1:
        shapes = {name: each.shape for name, each in tensors.items()}
        raise ModelFileError(
            f"{path}: holds {shapes}, expected one linear.weight of {width} columns; {advice()}"
        )
    return matrix.astype(np.float32)
