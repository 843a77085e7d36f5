"""A text through a model, layer by layer, with what each matrix was given on the way.

Knows windows of tokens and the network. Knows nothing of block types or files.
Always: at most one layer is dense at a time; a layer is given what the layers before it made as
they are now, so that whoever rounds them one after the other has later ones make up for earlier
ones.

Memory: rows x D x 4 bytes for the text, and the Gram matrices of one layer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ...errors import DataError
from ..attention import packed_attention
from ..quant.tensor import QuantTensor
from ..transformer import MakeLinear, Transformer
from ..weights import Weights

WINDOW = 512  # tokens of one piece of text
CHUNK_ROWS = 4096  # rows that go through a layer together


class Gram:
    """The sum of x x^T over the inputs x of one or several matrices."""

    def __init__(self, columns: int) -> None:
        self.sum, self.rows = torch.zeros(columns, columns), 0
        self.last: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Inputs [N, columns]; the same object twice in a row is counted once."""
        if x is not self.last:
            self.last, self.rows = x, self.rows + len(x)
            self.sum.addmm_(x.T, x)

    @property
    def squares(self) -> Tensor:
        """Mean square of each input, float32 [columns]; all 1 where there was none."""
        if not self.rows:
            return torch.ones(len(self.sum))
        return self.sum.diagonal() / self.rows


class InputObserver:
    """Makes matrices that remember their inputs; those that are given the same share a Gram."""

    def __init__(self) -> None:
        self.last: Gram | None = None

    def __call__(self, blocks: QuantTensor) -> nn.Module:
        return ObservedLinear(blocks, self)


class ObservedLinear(nn.Module):
    """x W^T, in float32."""

    def __init__(self, blocks: QuantTensor, observer: InputObserver | None = None) -> None:
        super().__init__()
        self.weight, self.observer = blocks.dequantize(), observer
        self.gram: Gram | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[N, columns] -> [N, rows]."""
        if self.observer is not None:
            if self.gram is None:
                last = self.observer.last
                shared = last is not None and last.last is x
                self.gram = last if shared else Gram(x.shape[1])
                self.observer.last = self.gram
            if self.gram is not None:
                self.gram.add(x)
        return x @ self.weight.T


def plain_linear(blocks: QuantTensor) -> nn.Module:
    """A matrix that remembers nothing."""
    return ObservedLinear(blocks)


@dataclass(slots=True)
class CalibrationPass:
    """A text on its way through the layers."""

    weights: Weights
    windows: list[list[int]]  # lengths of the pieces of each chunk
    hidden: list[Tensor] = field(repr=False)  # [N, D] of each chunk
    layer: int = 0  # the next one

    @property
    def rows(self) -> int:
        """Tokens of the text."""
        return sum(map(len, self.hidden))

    @torch.no_grad()
    def observe(self, *, advance: bool = False) -> dict[str, Gram]:
        """What the next layer's matrices are given, by name ("model.layers.3.mlp.up_proj").

        Args:
            advance: go on with what the layer makes as it is; else the text stays before it.
        """
        network = self.network(InputObserver())
        passed = [
            self.through(network, x, lengths)
            for x, lengths in zip(self.hidden, self.windows, strict=True)
        ]
        if advance:
            self.hidden, self.layer = passed, self.layer + 1
        return {
            name: module.gram
            for name, module in network.named_modules()
            if isinstance(module, ObservedLinear) and module.gram is not None
        }

    @torch.no_grad()
    def go_on(self, changed: Mapping[str, QuantTensor]) -> None:
        """Through the next layer, as `changed` has its matrices."""
        self.weights = replace(self.weights, tensors={**self.weights.tensors, **changed})
        network = self.network(plain_linear)
        self.hidden = [
            self.through(network, x, lengths)
            for x, lengths in zip(self.hidden, self.windows, strict=True)
        ]
        self.layer += 1

    @torch.no_grad()
    def head_inputs(self) -> Gram:
        """What the vocabulary head is given, once all layers are passed."""
        count = self.weights.architecture.num_layers
        norm = Transformer(self.weights, plain_nothing, first_layer=count).model.norm
        gram = Gram(self.weights.architecture.hidden_size)
        for x in self.hidden:
            gram.add(norm(x))
        return gram

    def network(self, make_linear: MakeLinear) -> Transformer:
        """The next layer alone."""
        return Transformer(
            self.weights, make_linear, first_layer=self.layer, last_layer=self.layer + 1
        )

    def through(self, network: Transformer, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """[N, D] -> [N, D]."""
        positions = torch.cat([torch.arange(length) for length in lengths])
        attend = packed_attention(lengths, self.weights.architecture.windows)
        return network.layers_forward(x, positions, attend)


def plain_nothing(blocks: QuantTensor) -> nn.Module:  # noqa: ARG001
    """In the place of a head that nobody asks."""
    return nn.Identity()


def pieces(tokens: Sequence[int], window: int = WINDOW) -> list[list[int]]:
    """Windows of a text; a last one of one token is left out."""
    cut = [list(tokens[start : start + window]) for start in range(0, len(tokens), window)]
    return [piece for piece in cut if len(piece) > 1]


@torch.no_grad()
def begin(weights: Weights, texts: Sequence[Sequence[int]]) -> CalibrationPass:
    """Texts (tokens each, no longer than the context) before the first layer.

    Raises:
        DataError: no text of at least two tokens.
    """
    usable = [list(text)[: weights.context_length] for text in texts if len(text) > 1]
    if not usable:
        raise DataError("the calibration text has no two tokens; give a longer one")
    embed = Transformer(weights, plain_nothing, last_layer=0).embed
    chunks: list[list[list[int]]] = [[]]
    for text in usable:
        if sum(map(len, chunks[-1])) + len(text) > CHUNK_ROWS and chunks[-1]:
            chunks.append([])
        chunks[-1].append(text)
    hidden = [embed(torch.tensor([token for text in chunk for token in text])) for chunk in chunks]
    return CalibrationPass(weights, [[len(text) for text in chunk] for chunk in chunks], hidden)


def passes(calibration: CalibrationPass) -> Iterator[int]:
    """The numbers of the layers that are still to come."""
    while calibration.layer < calibration.weights.architecture.num_layers:
        yield calibration.layer
