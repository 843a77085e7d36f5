"""What a party does with its own data.

Knows flat vectors in and out. Knows nothing of messages or protection.
Always: examples stay on this side; only `Trained` and `Counts` come back.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from ..store.checkpoint import Vector

if TYPE_CHECKING:
    from ...core.training.frozen_layers import Prepared
    from ...core.training.trainer import Hyperparameters, StepInfo, Trainer


SMALLEST_BATCH = 4  # that is chosen for a member with few examples


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The adapter after local training, and what it took."""

    flat: Vector  # [n]
    examples: int
    tokens: int  # answer tokens
    loss: float  # mean over answer tokens
    steps: int = 0  # of the optimizer; 0 if it has none
    left: int = 0  # examples for which there were not enough steps: later rounds draw them


@dataclass(frozen=True, slots=True)
class Counts:
    """Held-out answers that are right, of how many."""

    correct: int
    total: int
    near: float = 0.0  # share of their tokens that are right, 0 to 1


class Learner(Protocol):
    """One party's training, as a party sees it."""

    def train(self, flat: Vector, seed: int) -> Trained:
        """Start from the adapter `flat` [n]; leave `flat` unchanged."""
        ...

    def evaluate(self, flat: Vector) -> Counts:
        """Score the adapter `flat` [n] on held-out examples."""
        ...


@runtime_checkable
class Tunable(Protocol):
    """A learner that has a learning rate, and steps."""

    def tuned(self, share: float, max_steps: int, least_steps: int) -> Learner:
        """The same, at a share of its rate, with so many steps at most (0: all); in smaller
        batches where its examples do not give `least_steps`.
        """
        ...


class TrainerLearner:
    """The real one: `core.training.trainer` over one household's examples.

    Args:
        whole: where this member trains the first columns only, the others take part in the forward
        pass all the same.
    """

    def __init__(
        self,
        trainer: "Trainer",
        train: "Prepared",
        test: "Prepared | None",
        recipe: "Hyperparameters",
        on_step: "Callable[[StepInfo], None] | None" = None,
        *,
        whole: bool = True,
    ) -> None:
        self.trainer, self.prepared, self.test, self.recipe, self.on_step = (
            trainer,
            train,
            test,
            recipe,
            on_step,
        )
        self.whole, self.columns = whole, 0  # trained; 0: all

    def narrowed(self, columns: int) -> "TrainerLearner":
        """The same, which trains the first columns alone."""
        other = copy.copy(self)
        other.columns = columns
        return other

    def tuned(self, share: float, max_steps: int, least_steps: int) -> "TrainerLearner":
        """As `Tunable`."""
        other, recipe = copy.copy(self), self.recipe
        batch, visits = recipe.batch, len(self.prepared) * recipe.epochs
        while batch > SMALLEST_BATCH and visits < least_steps * batch:
            batch //= 2
        other.recipe = replace(recipe, lr=recipe.lr * share, batch=batch, max_steps=max_steps)
        return other

    def train(self, flat: Vector, seed: int) -> Trained:
        """As `Learner`."""
        import torch

        start = torch.from_numpy(np.array(flat, np.float32))
        if self.columns:
            from ...core.training.rank_prefix import train_columns

            result = train_columns(
                self.trainer,
                start,
                self.prepared,
                self.recipe,
                columns=self.columns,
                seed=seed,
                whole=self.whole,
                on_step=self.on_step,
            )
        else:
            result = self.trainer.train(
                start, self.prepared, self.recipe, seed=seed, on_step=self.on_step
            )
        after = np.asarray(result.flat_b.detach().to("cpu", torch.float32).numpy(), np.float32)
        return Trained(
            flat=after,
            examples=result.examples,
            tokens=result.tokens,
            loss=result.loss,
            steps=result.steps,
            left=result.left,
        )

    def evaluate(self, flat: Vector) -> Counts:
        """As `Learner`; a party without held-out examples counts none."""
        import torch

        if self.test is None:
            return Counts(0, 0)
        score = self.trainer.evaluate(torch.from_numpy(np.array(flat, np.float32)), self.test)
        return Counts(score.correct, score.total, score.near)
