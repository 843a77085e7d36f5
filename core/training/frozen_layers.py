"""The frozen lower layers, run once over all examples; what comes out is kept.

Knows layers below the first trained one. Knows nothing of LoRA, loss or rounds.
Always: at most one layer is dense at a time, and the kept rows are exactly what the upper layers
would have been given.

Memory: rows x D x bytes of the format. 150 requests of about 55 tokens, 15 of them common, at D =
576 in bfloat16 are 7 MB; 10,000 such requests 450 MB.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import DataError
from ..models.quant.tensor import QuantTensor
from ..models.transformer import Transformer
from ..models.weights import Weights
from .examples import Example
from .packing import PackedBatch, TokenExample, input_tokens, plan, shared_start, tokenize

CHUNK_ROWS = 4096  # rows that go through a layer together

OnProgress = Callable[[int, int], None]  # layers done, layers in all


@dataclass(frozen=True, slots=True)
class Prepared:
    """Examples as the upper layers want them."""

    examples: tuple[TokenExample, ...]
    shared: int  # tokens that all examples begin with
    start: Tensor  # [shared, D]: hidden rows of the common start
    own: tuple[Tensor, ...]  # per example, [rows - shared, D]
    windows: tuple[int, ...] = ()  # the architecture's

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def answer_tokens(self) -> int:
        """Tokens that are learned, in all examples."""
        return sum(len(example.answer) for example in self.examples)

    @property
    def targets(self) -> Tensor:
        """Those tokens themselves, each once, int64."""
        return torch.tensor(
            sorted({token for example in self.examples for token in example.answer})
        )

    @property
    def memory_bytes(self) -> int:
        """What the kept rows take."""
        return sum(rows.numel() * rows.element_size() for rows in (self.start, *self.own))

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, PackedBatch]:
        """Hidden rows [N, D] and layout of some examples."""
        layout = plan([self.examples[index] for index in indices], self.shared, self.windows)
        rows = torch.cat([self.start, *(self.own[index] for index in indices)])
        return functional.pad(rows, (0, 0, 0, len(layout.home) - len(rows))), layout


def dense_linear(dtype: torch.dtype) -> Callable[[QuantTensor], nn.Module]:
    """A maker of frozen `nn.Linear` in `dtype`, the kind that PEFT knows how to wrap."""

    def make(blocks: QuantTensor) -> nn.Module:
        rows, columns = blocks.shape
        # no random start: it would be thrown away
        linear = nn.Linear(columns, rows, bias=False, device="meta")
        linear.weight = nn.Parameter(blocks.dequantize(dtype), requires_grad=False)
        return linear

    return make


@torch.no_grad()
def prepare(
    examples: Sequence[Example],
    weights: Weights,
    *,
    layers: int,
    dtype: torch.dtype,
    on_progress: OnProgress | None = None,
) -> Prepared:
    """Run `examples` through the embedding and the lowest `layers` layers.

    Raises:
        DataError: examples that cannot be tokenized, or hidden rows that are not finite in this
        format.
    """
    tokens = tokenize(examples, weights.tokenizer, longest=weights.architecture.context_length)
    shared = shared_start(tokens)
    chunks = cut(tokens, shared)
    layouts = [plan(chunk, shared, weights.architecture.windows) for chunk in chunks]
    none_yet = Transformer(weights, dense_linear(dtype), last_layer=0, dtype=dtype)
    hidden = [none_yet.embed(input_tokens(chunk, shared)) for chunk in chunks]
    for layer in range(layers):
        one = Transformer(
            weights, dense_linear(dtype), first_layer=layer, last_layer=layer + 1, dtype=dtype
        )
        hidden = [
            one.layers_forward(x, rows.positions, rows)
            for x, rows in zip(hidden, layouts, strict=True)
        ]
        if on_progress is not None:
            on_progress(layer + 1, layers)
    if not all(bool(torch.isfinite(x).all()) for x in hidden):
        raise DataError(f"the model's lower layers overflow in {dtype}; prepare again in float32")
    own: list[Tensor] = []
    for chunk, x in zip(chunks, hidden, strict=True):
        lengths = [example.rows - shared for example in chunk]
        own += torch.split(x[shared : shared + sum(lengths)], lengths)
    return Prepared(
        tuple(tokens), shared, hidden[0][:shared].clone(), tuple(own), weights.architecture.windows
    )


def cut(tokens: Sequence[TokenExample], shared: int) -> list[list[TokenExample]]:
    """Consecutive chunks of about `CHUNK_ROWS` rows."""
    chunks: list[list[TokenExample]] = [[]]
    filled = 0
    for example in tokens:
        if chunks[-1] and filled + example.rows > CHUNK_ROWS:
            chunks.append([])
            filled = 0
        chunks[-1].append(example)
        filled += example.rows - shared
    return chunks
