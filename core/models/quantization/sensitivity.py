"""What rounding each matrix costs on a text, measured, and the best types within a size.

Knows one pass forth and back over a text, and errors of rounding. Knows nothing of files.
Always: a mixture is never larger than the size that was asked for; what cannot be smaller is
refused with how small it can be.

Source: the divergence from what the model says now grows by half of the error's quadratic form in
the Fisher matrix, which is taken as Martens and Grosse 2015 (K-FAC) take it: targets are drawn from
the model's own likelihoods, and inputs and gradients of outputs make a product, of the latter the
diagonal alone.

Memory: the whole network in float32, and gradients of one window.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import ConfigError
from ..attention import packed_attention
from ..quant.grid import encode_weighted
from ..quant.tensor import QuantTensor
from ..quant.types import QUANT_TYPES
from ..transformer import Transformer
from ..weights import Weights
from .calibration import Gram

SLAB_ROWS = 4096  # of a matrix, whose error is worked out at a time


@dataclass(frozen=True, slots=True)
class FisherFactors:
    """What a matrix's inputs and outputs say of its errors."""

    inputs: Tensor  # mean of x x^T, float32 [columns, columns]
    outputs: Tensor  # mean of the squared gradient of the loss, float32 [rows]

    def cost(self, blocks: QuantTensor, quant_type: str) -> float:
        """By how much a token's loss grows, in nats, if this matrix is rounded plainly."""
        total, squares = 0.0, self.inputs.diagonal()
        for start in range(0, blocks.shape[0], SLAB_ROWS):
            stop = min(start + SLAB_ROWS, blocks.shape[0])
            rows = blocks.part(start, stop).dequantize()
            error = encode_weighted(rows, squares, quant_type, quick=True)[1].sub_(rows)
            total += float(((error @ self.inputs) * error).sum(1) @ self.outputs[start:stop])
        return 0.5 * total


class FisherLinear(nn.Module):
    """x W^T that remembers inputs and gradients."""

    def __init__(self, blocks: QuantTensor) -> None:
        super().__init__()
        self.weight = blocks.dequantize()
        self.gram, self.squares = Gram(blocks.shape[1]), torch.zeros(blocks.shape[0])

    def forward(self, x: Tensor) -> Tensor:
        """[N, columns] -> [N, rows]."""
        self.gram.add(x.detach())
        y = x @ self.weight.T
        if y.requires_grad:
            y.register_hook(self.add_gradient)  # type: ignore[no-untyped-call]
        return y

    def add_gradient(self, gradient: Tensor) -> None:
        """Gradients [N, rows] of the summed loss."""
        self.squares += gradient.square().sum(0)

    @property
    def factors(self) -> FisherFactors:
        """Means over the rows; of a matrix that no row reached, nothing."""
        rows = max(self.gram.rows, 1)
        return FisherFactors(self.gram.sum / rows, self.squares / rows)


def measure(weights: Weights, texts: Sequence[Sequence[int]]) -> dict[str, FisherFactors]:
    """Every matrix's, by name, over texts of at least two tokens."""
    network, draws = Transformer(weights, FisherLinear), torch.Generator().manual_seed(0)
    for text in texts:
        x = network.embed(torch.tensor(text)).requires_grad_()
        attend = packed_attention([len(x)], weights.architecture.windows)
        logits = network.logits(network.layers_forward(x, torch.arange(len(x)), attend))
        drawn = torch.multinomial(logits.detach().softmax(1), 1, generator=draws)[:, 0]
        functional.cross_entropy(logits, drawn, reduction="sum").backward()  # type: ignore[no-untyped-call]
    return {
        f"{name}.weight": module.factors
        for name, module in network.named_modules()
        if isinstance(module, FisherLinear)
    }


@dataclass(frozen=True, slots=True)
class TypeChoice:
    """One matrix, or several under one name of the file, as each of some types."""

    name: str
    bytes: Mapping[str, int]  # by type
    costs: Mapping[str, float]  # by type, nats a token

    def steps(self) -> list[tuple[float, str, str]]:
        """From the smallest type up along the lower convex hull: nats that a byte saves, from, to.
        The best step comes first.
        """
        order = sorted(self.bytes, key=lambda kind: (self.bytes[kind], self.costs[kind]))
        place, found = order[0], list[tuple[float, str, str]]()
        while True:
            above = [kind for kind in order if self.bytes[kind] > self.bytes[place]]
            gains = [
                ((self.costs[place] - self.costs[kind]) / (self.bytes[kind] - self.bytes[place]),
                 kind)
                for kind in above
            ]  # fmt: skip
            best = max(gains, default=(0.0, ""))
            if best[0] <= 0:
                return found
            found.append((best[0], place, best[1]))
            place = best[1]


def mixture(choices: Iterable[TypeChoice], size: int) -> dict[str, str]:
    """A type for each choice, so that all together cost least within `size` bytes: of all steps up
    those first that save most a byte.

    Raises:
        ConfigError: the smallest types are too large.
    """
    choices = list(choices)
    found = {one.name: min(one.bytes, key=lambda kind, one=one: one.bytes[kind]) for one in choices}  # type: ignore[misc]
    own = {one.name: one for one in choices}
    taken = sum(own[name].bytes[kind] for name, kind in found.items())
    if taken > size:
        raise ConfigError(
            f"its matrices take {taken / 1e6:.1f} MB at least, and {size / 1e6:.1f} MB are left "
            f"for them; give a larger --size or a smaller --to"
        )
    steps = sorted(
        ((gain, one.name, before, after) for one in choices for gain, before, after in one.steps()),
        key=lambda step: -step[0],
    )
    for _, name, before, after in steps:
        more = own[name].bytes[after] - own[name].bytes[before]
        # a step whose lower one did not fit is none
        if found[name] == before and taken + more <= size:
            found[name], taken = after, taken + more
    return found


def bytes_as(shape: tuple[int, int], quant_type: str) -> int:
    """Of a matrix."""
    form = QUANT_TYPES[quant_type]
    return shape[0] * (shape[1] // form.columns) * form.size
