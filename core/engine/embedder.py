"""Texts into unit vectors, so that near meanings lie near each other.

Knows an encoder's model and who computes it: the compiled one wherever it runs, else torch's. Knows
nothing of documents or of who searches them.
Always: every row has length one; a text's vector does not depend on the texts beside it; two
models, or two versions of one, never have one identity.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as BackendTokenizer

from ..models.embedding.folder import Role
from ..models.embedding.model import EncoderModel, read
from .backends.backend import Encoder
from .backends.select import select_encoder


class SentenceEmbedder:
    """An embedding model of a folder or GGUF file, for any number of threads that ask."""

    def __init__(self, model: EncoderModel, encoder: Encoder) -> None:
        self.prompts = dict(model.prompts)
        self.vocab_size = model.weights.architecture.vocab_size
        self.longest = model.longest  # tokens of a text, marks at both ends included
        self.encoder = encoder
        self._path, self._backend, self._dense = model.path, model.backend, model.dense
        # D, of what comes out
        own = model.weights.architecture.hidden_size
        self.width = len(self._dense[-1]) if self._dense else own
        self._whole = BackendTokenizer.from_str(self._backend.to_str())  # that cuts nothing off
        for backend in (self._whole, self._backend):
            backend.no_padding()
        self._whole.no_truncation()
        self._backend.enable_truncation(self.longest)

    @classmethod
    def load(cls, path: Path, threads: int = 0) -> "SentenceEmbedder":
        """Read an embedding model's folder or GGUF file.

        Args:
            threads: that share a batch; 0: as many as this machine's cores.

        Raises:
            ModelNotFoundError: a file is not there.
            ModelFileError: a file is damaged, or the model is not of a kind that is known here.
            MissingPartError: only torch can run it here, and torch is not installed.
        """
        model = read(path)
        return cls(model, select_encoder(model.weights, threads))

    @cached_property
    def identity(self) -> str:
        """Of the model: what decides its vectors, digested."""
        whole = hashlib.sha256()
        one = self._path.is_file()
        for path in [self._path] if one else sorted(self._path.rglob("*")):
            if one or (path.suffix in (".json", ".safetensors", ".txt") and path.is_file()):
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").digest()
                name = path.name if one else path.relative_to(self._path).as_posix()
                whole.update(f"{name}\n".encode() + digest)
        # an index from before prompts were read holds other vectors
        prompted = " prompted" if self.prompts else ""
        return f"{self._path.name} {whole.hexdigest()}{prompted}"

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


def readable(texts: Sequence[str]) -> list[str]:
    """Half a surrogate pair becomes "?"."""
    return [text.encode("utf-8", "replace").decode() for text in texts]
