"""A prefix of the columns is trained, the others take part and stay what they are, and the
trainer is left as it was.
"""

import dataclasses

import pytest
import torch

from quietchoir.core.errors import TrainingError
from quietchoir.core.models.lora.adapter import AdapterShape, Layout, frozen_a
from quietchoir.core.training import rank_prefix
from quietchoir.core.training.frozen_layers import Prepared
from quietchoir.core.training.trainer import Hyperparameters, Trainer
from quietchoir.tests.fakes.training import TINY, chatter, tiny_pair

SHAPE = AdapterShape(rank=6, alpha=12.0, upper_layers=2)
RECIPE = Hyperparameters(lr=1e-2, batch=4, epochs=2, weight_decay=0.0)


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return Trainer(tiny_pair()[0], SHAPE, precision="float32")


@pytest.fixture(scope="module")
def prepared(trainer: Trainer) -> Prepared:
    return trainer.prepare(chatter(10))


@pytest.fixture
def start(trainer: Trainer) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    return 0.05 * torch.randn(trainer.size, generator=draw)


def test_the_narrow_vector_is_the_layout_of_the_narrow_shape(
    trainer: Trainer, start: torch.Tensor
) -> None:
    small = rank_prefix.prefix_shape(SHAPE, 2)
    wide, thin = (
        Layout(SHAPE, TINY).unflatten(start),
        Layout(small, TINY).unflatten(rank_prefix.first_columns(start, 6, 2)),
    )
    assert all(torch.equal(thin[name], wide[name][:, :2]) for name in wide)
    assert small.scale == SHAPE.scale
    a_wide, a_thin = frozen_a(SHAPE, TINY), frozen_a(small, TINY)
    assert all(torch.equal(a_thin[name], a_wide[name][:2]) for name in a_wide)


def test_the_gradient_is_that_of_the_whole_adapter_cut_to_the_columns(
    trainer: Trainer, prepared: Prepared, start: torch.Tensor
) -> None:
    trainer.upper.set(start)
    loss, _ = trainer.step(prepared, range(10))
    expected = rank_prefix.first_columns(trainer.upper.grad, 6, 2).clone()
    with rank_prefix.prefix_trainer(trainer, start, 2, whole=True) as small:
        small.upper.set(rank_prefix.first_columns(start, 6, 2))
        same_loss, _ = small.step(prepared, range(10))
        assert same_loss == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(small.upper.grad, expected, rtol=1e-3, atol=1e-6)
    with rank_prefix.prefix_trainer(trainer, start, 2, whole=False) as small:
        small.upper.set(rank_prefix.first_columns(start, 6, 2))
        other_loss, _ = small.step(prepared, range(10))
        assert abs(other_loss - loss) > 1e-3  # another network: the other columns are missing


@pytest.mark.parametrize("whole", [True, False])
def test_the_other_columns_come_back_bit_for_bit(
    trainer: Trainer, prepared: Prepared, start: torch.Tensor, whole: bool
) -> None:
    given = start.clone()
    result = rank_prefix.train_columns(
        trainer, given, prepared, RECIPE, columns=2, seed=1, whole=whole
    )
    assert torch.equal(given, start)
    after, before = result.flat_b.view(-1, 6), start.view(-1, 6)
    assert torch.equal(after[:, 2:], before[:, 2:]) and bool(
        (after[:, :2] != before[:, :2]).any(dim=1).all()
    )
    assert (result.examples, result.tokens > 0) == (20, True)


def test_all_columns_narrowly_is_plain_training(
    trainer: Trainer, prepared: Prepared, start: torch.Tensor
) -> None:
    plain = trainer.train(start, prepared, RECIPE, seed=1)
    assert torch.equal(
        rank_prefix.train_columns(trainer, start, prepared, RECIPE, columns=6, seed=1).flat_b,
        plain.flat_b,
    )


def test_afterwards_the_trainer_trains_as_before(
    trainer: Trainer, prepared: Prepared, start: torch.Tensor
) -> None:
    plain = trainer.train(start, prepared, RECIPE, seed=1)
    with pytest.raises(TrainingError):
        rank_prefix.train_columns(
            trainer, start, prepared, dataclasses.replace(RECIPE, lr=1e38), columns=2, seed=1
        )
    again = trainer.train(start, prepared, RECIPE, seed=1)
    assert torch.equal(plain.flat_b, again.flat_b) and plain.loss == again.loss


@pytest.mark.parametrize("columns", [0, 7])
def test_columns_that_are_not_there_are_refused(
    trainer: Trainer, prepared: Prepared, start: torch.Tensor, columns: int
) -> None:
    with pytest.raises(ValueError, match="expected 1 to 6"):
        rank_prefix.train_columns(trainer, start, prepared, RECIPE, columns=columns, seed=1)
