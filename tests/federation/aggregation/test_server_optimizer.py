"""The server's step: each recipe's arithmetic, the same bits everywhere, and what survives on
disk.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from quietchoir.federation.aggregation.server_optimizer import (
    FedAdam,
    FedAvgM,
    combine,
    levelled,
    optimizer_of,
)
from quietchoir.federation.spec.policy import AggregationTable, Recipe
from quietchoir.federation.store.checkpoint import ServerState, Store
from quietchoir.federation.training.learner import Trained
from quietchoir.federation.training.synthetic_task import SyntheticLearner
from quietchoir.tests.fakes.federation import FixedLearner, clients, coordinator, house
from quietchoir.tests.fakes.sealed import LocalCryptoWorker, adapter_of, sealed_clients

SIZE = 120


def test_each_recipe_names_its_optimizer() -> None:
    assert optimizer_of(Recipe(server_optimizer="fedavg", server_momentum=0.7)) == FedAvgM(1.0, 0.0)
    assert optimizer_of(Recipe()) == FedAvgM(1.0, 0.7)
    adam = optimizer_of(Recipe(server_optimizer="fedadam", server_lr=0.03, server_momentum=0.9))
    assert (
        adam == FedAdam(0.03, 0.9, 0.99, 1e-3)
        and optimizer_of(Recipe(server_optimizer="fedyogi")).yogi  # type: ignore[attr-defined]
    )


@pytest.mark.parametrize("yogi", [False, True])
def test_an_adaptive_step_is_the_papers(yogi: bool) -> None:
    beta1, beta2, tau, lr = 0.9, 0.99, 1e-3, 0.1
    optimizer, state = FedAdam(lr, beta1, beta2, tau, yogi=yogi), ServerState.zeros(3)
    w, m, v = np.zeros(3), np.zeros(3), np.full(3, tau**2)
    for change in ([0.3, -0.2, 0.0], [0.1, 0.1, 1e-5]):
        delta = np.array(change)
        m = beta1 * m + (1 - beta1) * delta
        v = (
            v - (1 - beta2) * delta**2 * np.sign(v - delta**2)
            if yogi
            else beta2 * v + (1 - beta2) * delta**2
        )
        w = w + lr * m / (np.sqrt(v) + tau)
        state = optimizer.step(state, delta.astype(np.float32))
    assert np.allclose(state.flat, w, rtol=1e-5) and np.allclose(state.spread, v, rtol=1e-4)
    with pytest.raises(ValueError, match="finite"):
        optimizer.step(state, np.array([np.nan, 0, 0], np.float32))


def test_a_state_survives_its_bytes_with_and_without_second_moments() -> None:
    plain = ServerState(np.arange(4, dtype=np.float32), -np.arange(4, dtype=np.float32))
    full = ServerState(plain.flat, plain.velocity, np.full(4, 2.5, np.float32))
    for state, size in ((plain, 32), (full, 48)):
        data = state.encode()
        assert len(data) == size
        again = ServerState.decode(data, 4)
        assert all(
            np.array_equal(one, other)
            for one, other in zip(state.vectors, again.vectors, strict=True)
        )
        assert len(again.vectors) == len(state.vectors)
    with pytest.raises(ValueError, match="expected 32 or 48"):
        ServerState.decode(b"\0" * 40, 4)
    rest = full.at_rest()
    assert rest.flat.tolist() == [0, 1, 2, 3] and not rest.velocity.any() and rest.spread.size == 0


@pytest.mark.parametrize("optimizer", ["fedavg", "fedavgm", "fedadam", "fedyogi"])
def test_sealed_members_agree_on_every_optimizer_to_the_last_bit(
    optimizer: str, tmp_path: Path
) -> None:
    recipe = {"server_optimizer": optimizer, "server_lr": 0.05, "rounds": 3}
    home, crypto_worker = house(mode="sealed", bits=8, recipe=recipe), LocalCryptoWorker()
    members = sealed_clients(
        home,
        SIZE,
        lambda name: SyntheticLearner(SIZE, name),
        crypto_worker=crypto_worker,
        folder=tmp_path,
    )
    run = coordinator(home, members, SIZE, crypto_worker=crypto_worker)
    report = run.run(rounds=2)
    again = sealed_clients(
        home,
        SIZE,
        lambda name: SyntheticLearner(SIZE, name),
        crypto_worker=crypto_worker,
        folder=tmp_path,
    )
    adapters = [adapter_of(client, run.state.run) for client in again.values()]
    assert report.rounds == 2 and adapters[0].any()
    assert all(np.array_equal(adapters[0], other) for other in adapters[1:])
    kept = again["ann"].secrets.store.progress(run.state.run).server  # type: ignore[union-attr]
    assert len(kept.vectors) == (3 if optimizer in ("fedadam", "fedyogi") else 2)


def test_a_killed_coordinator_goes_on_with_its_second_moments(tmp_path: Path) -> None:
    home = house(recipe={"server_optimizer": "fedadam", "server_lr": 0.05})
    members, store = clients(home, SIZE), Store(tmp_path)
    run = coordinator(home, members, SIZE, store=store)
    run.train_round()
    store.close()
    store = Store(tmp_path)
    again = coordinator(home, members, SIZE, store=store)
    assert (
        np.array_equal(again.state.server.spread, run.state.server.spread)
        and run.state.server.spread.any()
    )
    again.train_round()
    store.close()


class HastyLearner(FixedLearner):
    """Takes as many steps as it is told, each moving by 0.01."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def train(self, flat: np.ndarray, seed: int) -> Trained:
        return Trained(
            flat=flat + np.float32(0.01 * self.steps),
            examples=5,
            tokens=100,
            loss=2.0,
            steps=self.steps,
        )


@pytest.mark.parametrize("agreed, expected", [(0, 0.01 * (1 + 2 + 4 + 13) / 4), (4, 0.04)])
def test_who_takes_more_steps_counts_no_more_than_others_where_steps_are_agreed(
    agreed: int, expected: float
) -> None:
    home = house(bits=16, recipe={"agreed_steps": agreed})
    steps = dict(zip(home.members, (1, 2, 4, 13), strict=True))
    run = coordinator(home, clients(home, SIZE, lambda name: HastyLearner(steps[name])), SIZE)
    run.train_round()
    assert np.abs(run.state.server.flat - expected).max() < 1e-4


def test_the_middle_of_bucket_means_ignores_one_that_is_far_off() -> None:
    rows = [
        np.array(row, np.float32)
        for row in ([1.0, 1.0], [1.2, 0.8], [0.8, 1.2], [1.1, 0.9], [99.0, -99.0])
    ]
    assert combine(rows, "median").tolist() == pytest.approx([1.1, 0.9])
    assert combine(rows, "trimmed-mean", 1).tolist() == pytest.approx([1.1, 0.9])
    assert abs(combine(rows, "mean")[0]) > 20
    assert combine(rows[:2], "median").tolist() == pytest.approx([1.1, 0.9])  # two have no middle
    # one is always left
    assert combine(rows[:3], "trimmed-mean", 2).tolist() == pytest.approx([1.0, 1.0])
    assert combine(rows[:1], "mean") is not None


def test_buckets_of_one_length_show_where_they_go_and_not_how_loud_they_are() -> None:
    rng = np.random.default_rng(4)
    table = AggregationTable(rule="median", buckets=3, lengths="middle")
    rows = [rng.normal(0, 0.01, 500).astype(np.float32) for _ in range(3)]
    loud = [rows[0], 8 * rows[1], np.float32(1e-2) * rows[2]]
    found = levelled(loud, table, 0.2)
    lengths = [float(np.linalg.norm(one)) for one in found]
    assert lengths == pytest.approx([float(np.linalg.norm(rows[0]))] * 3, rel=1e-2)
    for one, row in zip(found, rows, strict=True):
        assert np.corrcoef(one, row)[0, 1] > 0.999
    # no coordinate leaves the range that everybody is held to, nothing is made of nothing
    spike = np.zeros(500, np.float32)
    spike[0] = 0.01
    held = levelled([8 * rows[0], 8 * rows[1], spike], table, 0.1)
    assert float(np.abs(held[2]).max()) == pytest.approx(0.1) and np.isfinite(held).all()
    assert not levelled([rows[0], rows[1], 0 * rows[2]], table, 0.2)[2].any()
    own = dataclasses.replace(table, lengths="own")
    assert all(one is row for one, row in zip(levelled(loud, own, 0.2), loud, strict=True))
