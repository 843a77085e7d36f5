"""Texts into unit vectors, so that near meanings lie near each other.

Knows a tokenizer and an encoder: the compiled one wherever it runs, else torch's. Knows nothing of
documents or of who searches them.
Always: every row has length one; a text's vector does not depend on the texts beside it; two
models, or two versions of one, never have one identity.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
from safetensors.numpy import load_file
from tokenizers import Tokenizer as BackendTokenizer

from ..errors import ModelFileError, ModelNotFoundError
from ..models.embedding import families
from ..models.embedding.architecture import EncoderArchitecture, EncoderWeights, numbers
from ..models.embedding.folder import Role, advice, read_json, read_parts, read_prompts
from .backends.backend import Encoder
from .backends.select import select_encoder

DEFAULT_LENGTH = 256  # tokens; of a model with learned positions whose folder does not say
MOST_LENGTH = 8192  # of one without
TOKENIZER = "tokenizer.json"
ROWS = 4096  # of a matrix that are looked at together
BEYOND = 64  # control tokens that may stand behind an encoder's rows: Gemma has one, of pictures
PROBE = "a ꙮ"  # a letter that hardly a vocabulary has: what stands for it is there too


class SentenceEmbedder:
    """An embedding model of a folder, for any number of threads that ask."""

    def __init__(
        self,
        folder: Path,
        encoder: Encoder,
        backend: BackendTokenizer,
        vocab_size: int,
        longest: int,
        dense: Sequence[npt.NDArray[np.float32]],
        width: int,
        prompts: Mapping[Role, str],
    ) -> None:
        """As `load` read it.

        Args:
            vocab_size: tokens that the encoder has; others that a text spells are left out.
            longest: tokens of a text, marks at both ends included; what is beyond is cut off.
            dense: matrices that a vector goes through behind the encoder, [rows, columns] each.
            width: D, of what comes out.
            prompts: what stands before a text, by what it is for.
        """
        self.prompts = prompts
        self.width = width
        self.vocab_size = vocab_size
        self.longest = longest
        self.encoder = encoder
        self._folder, self._backend, self._dense = folder, backend, dense
        self._whole = BackendTokenizer.from_str(backend.to_str())  # the same, that cuts nothing off
        self._whole.no_padding()
        self._whole.no_truncation()
        self._backend.no_padding()
        self._backend.enable_truncation(longest)

    @classmethod
    def load(cls, folder: Path, threads: int = 0) -> "SentenceEmbedder":
        """Read an embedding model's folder.

        Args:
            threads: that share a batch; 0: as many as this machine's cores.

        Raises:
            ModelNotFoundError: a file is not there.
            ModelFileError: a file is damaged, or the model is not of a kind that is known here.
            MissingPartError: only torch can run it here, and torch is not installed.
        """
        weights, behind = families.read(folder), read_parts(folder)
        if behind.pooling is not None:
            own = replace(weights.architecture, pooling=behind.pooling)
            weights = EncoderWeights(own, weights.tensors)
        architecture = weights.architecture
        backend = read_tokenizer(folder, architecture)
        longest = read_longest(folder, architecture)
        if (marks := len(backend.encode("").ids)) >= longest:
            raise ModelFileError(
                f"{folder / TOKENIZER}: puts {marks} marks around a text, expected fewer than the "
                f"{longest} tokens that it may have; {advice()}"
            )
        width, dense = architecture.hidden_size, []
        for place in behind.dense:
            dense.append(read_dense(place, width))
            width = len(dense[-1])
        check_finite(folder, weights)
        encoder, vocab_size = select_encoder(weights, threads), architecture.vocab_size
        prompts = read_prompts(folder)
        return cls(folder, encoder, backend, vocab_size, longest, dense, width, prompts)

    @cached_property
    def identity(self) -> str:
        """Of the model: what decides its vectors, digested."""
        whole = hashlib.sha256()
        for path in sorted(self._folder.rglob("*")):
            if path.suffix in (".json", ".safetensors", ".txt") and path.is_file():
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").digest()
                name = path.relative_to(self._folder).as_posix()
                whole.update(f"{name}\n".encode() + digest)
        # an index from before prompts were read holds other vectors
        prompted = " prompted" if self.prompts else ""
        return f"{self._folder.name} {whole.hexdigest()}{prompted}"

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, marks at both ends included and nothing cut off."""
        return [len(encoding.ids) for encoding in self._whole.encode_batch(readable(texts))]

    def embed(self, texts: Sequence[str], role: Role = "") -> npt.NDArray[np.float32]:
        """Unit vectors of texts, float32 [N, D]; N may be 0. What is beyond the model's length
        is not seen.

        Args:
            role: what the texts are for; a model that was trained so reads another beginning.
        """
        prompt = self.prompts.get(role, "")
        encoded = self._backend.encode_batch([prompt + text for text in readable(texts)])
        known = [[token for token in each.ids if token < self.vocab_size] for each in encoded]
        # a text of no tokens at all says nothing; some vector of length one is owed for it
        tokens = [each or [0] for each in known]
        vectors = np.empty((len(tokens), self.width), np.float32)
        if not tokens:
            return vectors
        # like lengths together: members of the team end together
        order = sorted(range(len(tokens)), key=lambda place: -len(tokens[place]))
        found = self.encoder.encode([tokens[place] for place in order])
        for matrix in self._dense:
            found = found @ matrix.T
        vectors[order] = found / np.linalg.norm(found, axis=1, keepdims=True)
        return vectors


def check_finite(folder: Path, weights: EncoderWeights) -> None:
    """Raises: ModelFileError: a tensor holds what is no number, so that texts would have no
    vector.
    """
    for name, blocks in weights.tensors.items():
        for start in range(0, blocks.shape[0], ROWS):
            rows = numbers(blocks.part(start, min(start + ROWS, blocks.shape[0])))
            # the sum of what is finite is so too, and is sooner made than all are asked
            if not np.isfinite(np.sum(rows, dtype=np.float64)):
                raise ModelFileError(
                    f"{folder}: {name} holds numbers that are not finite, so it would find "
                    f"nothing; {advice()}"
                )


def read_tokenizer(folder: Path, architecture: EncoderArchitecture) -> BackendTokenizer:
    """Raises: ModelNotFoundError, ModelFileError: as `SentenceEmbedder.load`."""
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


def read_longest(folder: Path, architecture: EncoderArchitecture) -> int:
    """Tokens of one text. Raises: ModelFileError: a length that the encoder does not have."""
    path, most = folder / "sentence_bert_config.json", architecture.max_positions
    longest = read_json(path).get("max_seq_length") if path.exists() else None
    if longest is None:
        return min(DEFAULT_LENGTH if architecture.learned_positions else MOST_LENGTH, most)
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


def readable(texts: Sequence[str]) -> list[str]:
    """Half a surrogate pair becomes "?"."""
    return [text.encode("utf-8", "replace").decode() for text in texts]
