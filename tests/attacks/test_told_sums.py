"""How far a coordinator gets that tells its members sums which were never opened: stated as not covered.

Each attack is the coordinator's alone, against the product as it is. Where one of them stops working, `crypto/README.md` may
promise more.
"""

import dataclasses
from typing import Any

import numpy as np

from quietchoir.federation.learning.aggregate import Vector
from quietchoir.federation.learning.learner import Counts, Trained
from quietchoir.federation.rounds.coordinator import Coordinator
from quietchoir.simulations.attacks.coordinators import MIDDLE, TRAP, adopted_first, many_sums, sums_of
from quietchoir.simulations.attacks.scene import CLOSE, RANGE, VICTIM, alike, federation, party_of

ROWS, WIDTH = 24, 40  # of a layer whose weights and bias are the adapter


def tell(run: Coordinator, mean: Vector) -> None:
    """From now on members are told sums that give this mean, whatever was opened."""
    honest = run.assembly.open

    def lying(sums: Any, codec: Any) -> Any:
        used, opened = honest(sums, codec)
        if not codec.size:
            return used, opened
        parties, total = len(used[0].parties), used[0].total.copy()
        total[: codec.size] = parties * MIDDLE + np.round(parties * MIDDLE * mean / RANGE).astype(np.int64)
        told = dataclasses.replace(used[0], total=total)
        return (told,), [codec.decode(total, parties, told.parties)]

    run.assembly.open = lying  # type: ignore[method-assign]


class Layer:
    """A member with one example x [WIDTH]: one step down |relu(W x + b) - 1|^2 / 2 of each row, as any trainer would."""

    def __init__(self, number: int) -> None:
        self.example = np.random.default_rng(number).normal(0, 0.1, WIDTH)

    def train(self, flat: Vector, seed: int) -> Trained:
        del seed
        weights, bias = flat[: ROWS * WIDTH].reshape(ROWS, WIDTH).astype(np.float64), flat[ROWS * WIDTH :]
        before = weights @ self.example + bias
        slope = np.where(before > 0, np.maximum(before, 0) - 1, 0.0)
        down = -0.15 * np.concatenate([np.outer(slope, self.example).ravel(), slope])
        return Trained(flat=(flat + down).astype(np.float32), examples=1, tokens=10, loss=1.0)

    def evaluate(self, flat: Vector) -> Counts:
        del flat
        return Counts(5, 10)


def test_a_trap_that_is_led_to_by_told_sums_gives_one_members_example_in_a_sum_of_six() -> None:
    scene = federation(6, size=ROWS * (WIDTH + 1))
    layers = {name: Layer(number) for number, name in enumerate(scene.keys)}
    scene.voices = layers  # type: ignore[assignment]
    scene.parties = {name: party_of(scene, name, key) for name, key in scene.keys.items()}
    run = scene.run()
    way = np.random.default_rng(99).choice((-0.19, 0.19), WIDTH)  # each row asks: does x reach so far this way?
    trap = np.concatenate([np.tile(way, ROWS), -np.linspace(0.0, 0.19, ROWS)]).astype(np.float32)
    tell(run, trap)
    run.train_round()
    assert np.abs(run.state.server.flat - trap).max() < 1e-3
    found = sums_of(run)
    run.train_round()  # nobody finds anything odd
    (one,) = found
    assert len(one.parties) == 6
    whole = (one.total[: scene.size] - 6 * MIDDLE) / MIDDLE * RANGE
    rows, ends = whole[: ROWS * WIDTH].reshape(ROWS, WIDTH), whole[ROWS * WIDTH :]
    last = max(at for at in range(ROWS) if abs(ends[at]) > 0.05)  # the row that only the farthest of them reaches
    read = rows[last] / ends[last]
    farthest = max(layers.values(), key=lambda one: float(way @ one.example)).example
    assert alike(read.astype(np.float32), farthest.astype(np.float32)) > CLOSE
    assert adopted_first().succeeded is False and np.abs(TRAP.flat).max() > RANGE  # handed over at once, it is refused


def test_adapters_that_differ_by_one_step_of_one_value_are_not_the_same_to_a_ledger() -> None:
    scene = federation(10)
    hardly = np.zeros(scene.size, np.float32)
    hardly[0] = RANGE / MIDDLE
    opened, read = many_sums(scene, lambda run, number: tell(run, hardly) if number == 0 else None)
    assert opened == 10 and alike(read[1:], scene.voices[VICTIM].secret[1:]) > CLOSE
