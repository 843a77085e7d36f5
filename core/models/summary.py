"""What a model file or folder is, in a few lines for a person.

Knows what to count. Knows nothing of terminals.
Always: only what a load would accept is summarised; tensors are counted, not decoded.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..config import SamplingConfig
from ..errors import ChatTemplateError, UnsupportedModelError
from . import transformers_model
from .architecture import Architecture
from .generation_config import GGUF_KEYS
from .quant.tensor import QuantTensor
from .tokenizer.tokenizer import Tokenizer
from .weights import read_parts


@dataclass(frozen=True, slots=True)
class Summary:
    """One model."""

    architecture: Architecture
    parameters: int  # weights, the head counted once where it is the embedding
    bytes: int  # of all tensors
    quant_types: dict[str, int]  # block type -> weights held in it, most first
    chat: str  # "yes", or why it cannot chat
    sampling: SamplingConfig  # that its files recommend

    def lines(self) -> list[tuple[str, str]]:
        """Label and value of each line."""
        own = self.architecture
        windows = sorted({abs(window) for window in own.windows if window})
        shares = (
            f"{name} {count / self.parameters:.1%}" for name, count in self.quant_types.items()
        )
        return [
            ("family", own.family),
            ("weights", f"{self.parameters / 1e6:,.0f} million, {self.bytes / 1e6:,.0f} MB"),
            ("quantisation", ", ".join(shares)),
            (
                "layers",
                f"{own.num_layers} of width {own.hidden_size:,}, "
                f"feed-forward {own.intermediate_size:,}",
            ),
            (
                "heads",
                f"{own.num_heads} of {own.head_dim}, sharing {own.num_kv_heads} of keys and values",
            ),
            ("vocabulary", f"{own.vocab_size:,}"),
            (
                "context",
                f"{own.context_length:,}"
                + (f", in windows of {', '.join(map(str, windows))}" if windows else ""),
            ),
            ("chat template", self.chat),
            ("sampling", recommended(self.sampling)),
        ]


def summarize(path: Path) -> Summary:
    """Look at a GGUF file or a model folder.

    Raises:
        ModelNotFoundError, ModelFileError: as `weights.load`.
    """
    return summary_of(*read_parts(path))


def summary_of(
    architecture: Architecture,
    tensors: Mapping[str, QuantTensor],
    tokenizer: Tokenizer,
    sampling: SamplingConfig,
) -> Summary:
    """The same of a model that was read."""
    distinct: dict[int, QuantTensor] = {id(blocks): blocks for blocks in tensors.values()}
    quant_types: Counter[str] = Counter()
    for blocks in distinct.values():
        quant_types[blocks.quant_type] += blocks.shape[0] * blocks.shape[1]
    size = sum(blocks.memory.size for blocks in distinct.values())
    return Summary(
        architecture,
        quant_types.total(),
        size,
        dict(quant_types.most_common()),
        chats(tokenizer),
        sampling,
    )


def lines_of(path: Path) -> list[tuple[str, str]]:
    """Label and value of each line about any model that can be served.

    Raises:
        ModelNotFoundError, ModelFileError: as `transformers_model.load`.
    """
    try:
        return summarize(path).lines()
    except UnsupportedModelError as error:
        model = transformers_model.read(path, error)
    return [
        ("family", model.family),
        ("computed by", f"transformers: {model.reason}"),
        ("vocabulary", f"{model.vocab_size:,}"),
        ("context", f"{model.context_length:,}"),
        ("chat template", chats(model.tokenizer)),
        ("sampling", recommended(model.sampling)),
    ]


def recommended(sampling: SamplingConfig) -> str:
    """What a model's files say of how answers are drawn."""
    said = [f"{name} {value}" for name, value in sampling.given().items() if name in GGUF_KEYS]
    return ", ".join(said) or "nothing recommended"


def chats(tokenizer: Tokenizer) -> str:
    """Whether a model can chat."""
    try:
        tokenizer.check_template()
    except ChatTemplateError as error:
        return "no" if not tokenizer.vocabulary.template else str(error)
    return "yes"
