"""Training a prefix of an adapter's columns: what a small node does of a large adapter.

Knows how a wide flat B and a narrow one lie in each other, and PEFT's layers as `lora_layers`
leaves them.
Knows nothing of rounds.
Always: B's other columns are what they were, bit for bit; the trainer is as it was when this is
over, also after an error.

Two ways to go forward meanwhile. *Whole* (the default): the other columns are frozen and take part,
so the gradient is that of the network which everybody will run; their products are computed, but
they have no gradient, no optimizer and no master copy. *Own*: only the trained columns are
computed, as if the others were zero; a little less memory, and the gradient of another network:
what the other columns do already is learned once more, and the two together overshoot.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from ..models.architecture import LORA_B
from ..models.lora.layout import AdapterShape, Layout, a_name, b_name
from .frozen_layers import Prepared
from .lora_layers import UpperLayers, lora_halves, lora_linear
from .trainer import Hyperparameters, StepInfo, Trainer, TrainResult


def prefix_shape(shape: AdapterShape, columns: int) -> AdapterShape:
    """The shape of the first `columns` columns alone, under the same scale.

    Raises:
        ValueError: not between one column and all of them.
    """
    if not 1 <= columns <= shape.rank:
        raise ValueError(
            f"{columns} columns of an adapter of rank {shape.rank}: expected 1 to {shape.rank}"
        )
    return dataclasses.replace(shape, rank=columns, alpha=shape.alpha * columns / shape.rank)


def first_columns(flat_b: Tensor, rank: int, columns: int) -> Tensor:
    """The flat B of the narrow shape [n * columns / rank] in a wide one [n].

    Every B is [rows, rank] and begins at a multiple of the rank, so a value's column is its place
    modulo the rank.
    """
    return flat_b.view(-1, rank)[:, :columns].reshape(-1)


def widened(prefix: Tensor, flat_b: Tensor, rank: int, columns: int) -> Tensor:
    """`flat_b` [n] with its first columns replaced by those of `prefix`."""
    out = flat_b.detach().clone()
    out.view(-1, rank)[:, :columns] = prefix.view(-1, columns)
    return out


def train_columns(
    trainer: Trainer,
    flat_b: Tensor,
    prepared: Prepared,
    recipe: Hyperparameters,
    *,
    columns: int,
    seed: int,
    whole: bool = True,
    on_step: Callable[[StepInfo], None] | None = None,
) -> TrainResult:
    """Train the first `columns` columns of every B from `flat_b` (float32 [n], not changed); the
    result is [n] too.

    Args:
        whole: the other columns take part in the forward pass.

    Raises:
        TrainingError, ValueError: as `Trainer.train` and `prefix_shape`.
    """
    rank = trainer.shape.rank
    start = flat_b.detach().to(torch.float32)
    with prefix_trainer(trainer, trainer.checked(start), columns, whole=whole) as prefix:
        result = prefix.train(
            first_columns(start, rank, columns), prepared, recipe, seed=seed, on_step=on_step
        )
    return dataclasses.replace(result, flat_b=widened(result.flat_b, start, rank, columns))


@contextmanager
def prefix_trainer(
    trainer: Trainer, flat_b: Tensor, columns: int, *, whole: bool
) -> Iterator[Trainer]:
    """A trainer of the first columns, on the same layers; `trainer` itself must not train
    meanwhile.
    """
    prefix = copy.copy(trainer)
    prefix.shape = prefix_shape(trainer.shape, columns)
    layers = RankPrefixLayers(trainer.upper, prefix.shape)
    prefix.upper = layers
    try:
        layers.enter(flat_b if whole else None)
        yield prefix
    finally:
        layers.leave()


class RankPrefixLayers(UpperLayers):
    """Upper layers that train a prefix of the columns of others, whose network they share."""

    def __init__(self, wide: UpperLayers, shape: AdapterShape) -> None:
        self.model, self.wide, self.shape = wide.model, wide, shape
        self.layout = Layout(shape, wide.model.architecture)
        self.flat = torch.zeros(self.layout.size, dtype=wide.flat.dtype)  # [n']
        self.grad = torch.zeros_like(self.flat)  # [n']
        # whose weights they were, and whether they are trained
        self.taken: list[tuple[nn.Linear, nn.Parameter, bool]] = []
        self.joined: list[nn.Module] = []  # projections that multiply by frozen columns too

    def enter(self, flat_b: Tensor | None) -> None:
        """Put the first columns in the place of all; `flat_b` [n]: the other columns take part,
        frozen.
        """
        columns, modules = self.shape.rank, dict(self.model.named_modules())
        rest = {} if flat_b is None else self.wide.layout.unflatten(flat_b.to(self.flat.dtype))
        a, frozen = dict[str, Tensor](), list[tuple[nn.Module, Tensor]]()
        for name in self.layout.shapes:
            module = modules[name.removesuffix(LORA_B)]
            into, out = lora_halves(module)
            for linear in (into, out):
                weight = cast(nn.Parameter, linear.weight)
                self.taken.append((linear, weight, weight.requires_grad))
            key = name.removesuffix(LORA_B)
            a[a_name(key)] = into.weight.detach() if rest else into.weight.detach()[:columns]
            if rest:
                frozen.append((module, rest[b_name(key)][:, columns:]))
        self.bind(a, self.flat.dtype)
        for module, others in frozen:
            module.__dict__["forward"] = lora_linear(module, others)
            self.joined.append(module)

    def leave(self) -> None:
        """Put everything back."""
        for module in self.joined:
            module.__dict__["forward"] = lora_linear(module)
        for linear, weight, trained in self.taken:
            linear.weight = weight.requires_grad_(trained)
        self.joined.clear()
        self.taken.clear()
