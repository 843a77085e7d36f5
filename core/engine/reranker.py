"""How well texts answer a question: one model reads both together and says a number.

Knows an encoder's model that scores pairs, and who computes it. Knows nothing of documents or of
who searches them.
Always: a text's score does not depend on the texts beside it; no text can write a mark, so none can
end where it does not end. A pair that is too long loses the end of its longer text.
Source: Nogueira and Cho 2019, "Passage re-ranking with BERT"; of Qwen3-Reranker, its model card.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding
from tokenizers import Tokenizer as BackendTokenizer

from ..errors import ModelFileError
from ..models.embedding.architecture import ScoreHead, numbers
from ..models.embedding.gguf import RANK
from ..models.embedding.model import RANKS, EncoderModel, read
from .backends.backend import Encoder
from .backends.select import select_encoder
from .embedder import readable

# What a decoder that says yes or no is asked, as it was trained.
BEFORE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
ASKED = (
    "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
    "<Query>: {query}\n<Document>: {text}"
)
BEHIND = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


class Reranker(Protocol):
    """Whoever says how well texts answer a question."""

    def score(self, query: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """The probability of each text to be an answer, [N], in their order; N may be 0."""
        ...


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A question and a text as the model reads them."""

    tokens: tuple[int, ...]
    second: int  # where the text begins; their number where the model is not told


class CrossEncoder:
    """A `Reranker` of a folder or GGUF file, for any number of threads that ask."""

    def __init__(self, model: EncoderModel, encoder: Encoder) -> None:
        """Raises: ModelFileError: it makes vectors and no scores."""
        self.longest = model.longest  # tokens of a pair, marks included
        self._encoder, self._head = encoder, read_head(model)
        self._backend = model.backend
        self._backend.no_padding()
        self._backend.encode_special_tokens = True  # names of marks in a text are letters
        self._decoder = model.weights.architecture.causal
        self._before: tuple[int, ...] = ()
        self._behind: tuple[int, ...] = ()
        if self._decoder:
            marked = BackendTokenizer.from_str(self._backend.to_str())
            marked.encode_special_tokens = False
            self._before, self._behind = (
                tuple(marked.encode(part, add_special_tokens=False).ids)
                for part in (BEFORE, BEHIND)
            )
        # of these no text may have one, though its letters may spell it
        own = self._backend.get_added_tokens_decoder()
        placed = {*self._backend.encode("", "").ids, *self._before, *self._behind}
        self._marks = {token for token in placed if token in own and own[token].special}
        room = self.longest - len(self._before) - len(self._behind)
        if room < 16:
            raise ModelFileError(
                f"{model.path}: reads {self.longest} tokens, too few for a question and a text; "
                f"choose another model"
            )
        self._backend.enable_truncation(room, strategy="longest_first")

    @classmethod
    def load(cls, path: Path, threads: int = 0) -> "CrossEncoder":
        """Read a reranker's folder or GGUF file.

        Args:
            threads: that share a batch; 0: as many as this machine's cores.

        Raises:
            ModelNotFoundError: a file is not there.
            ModelFileError: a file is damaged, or the model scores no pairs.
            MissingPartError: only torch can run it here, and torch is not installed.
        """
        model = read(path, scoring=True)
        read_head(model)  # before anything is packed
        return cls(model, select_encoder(model.weights, threads))

    def pairs(self, query: str, texts: Sequence[str]) -> list[TokenPair]:
        """The question beside each text, cut to what the model reads."""
        query, *others = readable([query, *texts])
        if self._decoder:
            asked = [ASKED.format(query=query, text=text) for text in others]
            found = self._backend.encode_batch(asked, add_special_tokens=False)
            inner = [[token for token in one.ids if token not in self._marks] for one in found]
            whole = [(*self._before, *tokens, *self._behind) for tokens in inner]
            return [TokenPair(tokens, len(tokens)) for tokens in whole]
        return [
            self._pair(one)
            for one in self._backend.encode_batch([(query, text) for text in others])
        ]

    def _pair(self, both: Encoding) -> TokenPair:
        """Two texts with the marks around them, and no other."""
        kept = [
            (token, part)
            for token, part, mark in zip(
                both.ids, both.type_ids, both.special_tokens_mask, strict=True
            )
            if mark or token not in self._marks
        ]
        parts = [part for _, part in kept]
        second = parts.index(1) if 1 in parts else len(parts)
        return TokenPair(tuple(token for token, _ in kept), second)

    def logits(self, pairs: Sequence[TokenPair]) -> npt.NDArray[np.float32]:
        """What the model says of each pair, [N]; any number, the higher the better."""
        found = np.empty(len(pairs), np.float32)
        if not pairs:
            return found
        # like lengths together: members of the team end together
        order = sorted(range(len(pairs)), key=lambda place: -len(pairs[place].tokens))
        vectors = self._encoder.encode(
            [pairs[place].tokens for place in order], [pairs[place].second for place in order]
        )
        found[order] = self._head(vectors)
        return found

    def score(self, query: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """See `Reranker.score`."""
        return probability(self.logits(self.pairs(query, texts)))


def probability(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Logits as probabilities."""
    found: npt.NDArray[np.float32] = (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(
        np.float32
    )
    return found


def read_head(model: EncoderModel) -> ScoreHead:
    """What makes a score of a pair's vector: the file's own, or by how much a decoder would rather
    say yes than no.

    Raises:
        ModelFileError: there is neither.
    """
    weights = model.weights
    if weights.head is not None:
        return weights.head
    yes, no = (model.backend.token_to_id(word) for word in ("yes", "no"))
    if not weights.architecture.causal or not model.judges or yes is None or no is None:
        raise ModelFileError(
            f"{model.path}: makes vectors and no scores, as far as it says; give a reranker, one "
            f"of BERT's, XLM-R's or ModernBERT's with one label, or Qwen3-Reranker (of a GGUF "
            f"file the pooling type is {RANK}, or its own name says rerank; of a folder its name "
            f"does, or its card says {RANKS!r})"
        )
    head = weights.tensors.get("head.weight", weights.tensors["embedding.weight"])
    rows = [numbers(head.part(token, token + 1))[0] for token in (yes, no)]
    return ScoreHead(out=rows[0] - rows[1])
