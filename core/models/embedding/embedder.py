"""Texts into unit vectors, so that near meanings lie near each other.

Knows a tokenizer and an encoder. Knows nothing of documents or of who searches them.
Always: every row has length one; a text's vector does not depend on the texts beside it, up to
float32 rounding.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer as BackendTokenizer
from torch.nn import functional

from ...errors import ModelFileError, ModelNotFoundError
from . import bert
from .bert import Encoder

BATCH = 32  # texts encoded at once
DEFAULT_LENGTH = 256  # tokens; what the model was trained for where its folder does not say


class SentenceEmbedder:
    """An encoder with mean pooling (sentence-transformers' kind)."""

    def __init__(self, network: Encoder, backend: BackendTokenizer, longest: int) -> None:
        """`longest`: tokens of a text, marks at both ends included; what is beyond is cut off."""
        self.width = network.shape.hidden_size  # D
        self.longest = longest
        self._network, self._backend = network, backend
        self._whole = BackendTokenizer.from_str(backend.to_str())  # the same, that cuts nothing off
        self._whole.no_padding()
        self._whole.no_truncation()
        self._backend.no_padding()
        self._backend.enable_truncation(longest)

    @classmethod
    def load(cls, folder: Path) -> "SentenceEmbedder":
        """Read an embedding model's folder.

        Raises:
            ModelNotFoundError: a file is not there.
            ModelFileError: a file is damaged, or the model is not of this kind.
        """
        network = bert.load(folder)
        path = folder / "tokenizer.json"
        if not path.exists():
            raise ModelNotFoundError(
                f"{path}: no such file; run: quietchoir model pull minilm-l6-v2"
            )
        try:
            backend = BackendTokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ModelFileError(
                f"{path}: not a tokenizer ({error}); pull the model again"
            ) from error
        if backend.get_vocab_size() > network.shape.vocab_size:
            raise ModelFileError(
                f"{path}: has more tokens than the encoder's "
                f"{network.shape.vocab_size}; pull the model again"
            )
        limits = folder / "sentence_bert_config.json"
        longest = (
            bert.read_json(limits).get("max_seq_length") if limits.exists() else DEFAULT_LENGTH
        )
        if type(longest) is not int or not 2 < longest <= network.shape.max_positions:
            raise ModelFileError(
                f"{limits}: max_seq_length is {longest!r}, expected 3 to "
                f"{network.shape.max_positions}; pull it again"
            )
        return cls(network, backend, longest)

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, marks at both ends included and nothing cut off."""
        return [len(encoding.ids) for encoding in self._whole.encode_batch(readable(texts))]

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors of texts, float32 [N, D]; N may be 0. What is beyond the model's length
        is not seen.
        """
        tokens = [encoding.ids for encoding in self._backend.encode_batch(readable(texts))]
        vectors = torch.empty(len(tokens), self.width)
        # like lengths together: little padding
        order = sorted(range(len(tokens)), key=lambda place: len(tokens[place]))
        with torch.inference_mode():
            for start in range(0, len(order), BATCH):
                places = order[start : start + BATCH]
                vectors[places] = self._pool([tokens[place] for place in places])
        return vectors.numpy()

    def _pool(self, batch: Sequence[Sequence[int]]) -> torch.Tensor:
        """Mean of each text's token vectors, scaled to length one, [B, D]."""
        lengths = torch.tensor([len(ids) for ids in batch])
        longest = int(lengths.max())
        tokens = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in batch])
        real = torch.arange(longest) < lengths[:, None]  # [B, L]
        rows = self._network.forward(tokens, real) * real[:, :, None]
        return functional.normalize(rows.sum(1) / lengths[:, None], dim=1)


def readable(texts: Sequence[str]) -> list[str]:
    """Half a surrogate pair becomes "?"."""
    return [text.encode("utf-8", "replace").decode() for text in texts]
