"""The real learner's seam to the trainer: vectors in, vectors out, nothing shared."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from quietchoir.core.training.trainer import Trainer
from quietchoir.federation.spec.policy import AdapterTable, Recipe
from quietchoir.federation.training.learner import Counts, TrainerLearner
from quietchoir.tests.fakes.training import chatter, tiny_pair


class HalfwayTrainer:
    """Trains halfway to one, in place of a model; scores what is above a half."""

    def train(
        self, flat_b: torch.Tensor, prepared: object, recipe: object, *, seed: int, on_step: object
    ) -> Any:
        flat_b += (1 - flat_b) / 2
        return SimpleNamespace(flat_b=flat_b, examples=3, tokens=30, loss=1.5)

    def evaluate(self, flat_b: torch.Tensor, prepared: object) -> Any:
        return SimpleNamespace(correct=int((flat_b > 0.4).sum()), total=len(flat_b))


def test_training_leaves_the_federations_vector_alone() -> None:
    learner = TrainerLearner(HalfwayTrainer(), None, "tests", None)  # type: ignore[arg-type]
    flat = np.zeros(4, np.float32)
    trained = learner.train(flat, seed=1)
    assert flat.tolist() == [0.0] * 4
    assert trained.flat.tolist() == [0.5] * 4 and trained.flat.dtype == np.float32
    assert (trained.examples, trained.tokens, trained.loss) == (3, 30, 1.5)
    assert learner.evaluate(trained.flat) == Counts(4, 4)


def test_a_party_without_held_out_examples_counts_none() -> None:
    learner = TrainerLearner(HalfwayTrainer(), None, None, None)  # type: ignore[arg-type]
    assert learner.evaluate(np.ones(4, np.float32)) == Counts(0, 0)


def test_a_proximal_pull_keeps_a_member_near_the_rounds_adapter() -> None:
    weights = tiny_pair()[0]
    table = AdapterTable(rank=2, alpha=4.0, upper_layers=2)
    trainer, moved = Trainer(weights, table.shape()), {}
    prepared = trainer.prepare(chatter(8))
    start = np.full(trainer.size, 0.02, np.float32)
    for proximal in (0.0, 1.0, 100.0):
        recipe = Recipe(lr=1e-2, batch=2, epochs=3, proximal=proximal)
        trained = TrainerLearner(trainer, prepared, None, recipe.trainer()).train(start, seed=1)
        moved[proximal] = float(np.linalg.norm(trained.flat - start))
        assert (trained.steps, trained.examples) == (12, 24)
    assert moved[100.0] < 0.7 * moved[0.0] and moved[1.0] < moved[0.0]
    with pytest.raises(ValueError, match="proximal"):
        Recipe(proximal=-1.0)
