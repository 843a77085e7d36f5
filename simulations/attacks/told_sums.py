"""Attacks by a coordinator that tells its members sums which were never opened.

Knows where a coordinator keeps what it opened, and two adapters that are worth leading to. Knows
nothing of tags.
Always: in the unprotected arm members take the coordinator's word for a sum (no tags, no
signatures), and all else, the limits of a step among it, is the product.
"""

import dataclasses
from typing import Any

import numpy as np

from ...federation.rounds.server import RoundServer
from ...federation.store.checkpoint import Vector
from ...federation.training.learner import Counts, Trained
from .catalogue import Attack, Result
from .coordinators import MIDDLE, NO_TAGS, many_sums, sums_of
from .scene import (
    CLOSE,
    RANGE,
    VICTIM,
    AttackScene,
    Stub,
    alike,
    federation,
    party_of,
    refused,
    without,
)

ROWS, WIDTH = 24, 40  # of a layer whose weights and bias are the adapter
PARTIES = 6


def announce(run: RoundServer, mean: Vector) -> None:
    """From now on members are told sums that give this mean, whatever was opened."""
    honest = run.attempt.open

    def lying(sums: Any, codec: Any) -> Any:
        used, opened = honest(sums, codec)
        if not codec.size:
            return used, opened
        parties, total = len(used[0].parties), used[0].total.copy()
        moved = np.round(parties * MIDDLE * mean / RANGE).astype(np.int64)
        total[: codec.size] = parties * MIDDLE + moved
        announced = dataclasses.replace(used[0], total=total, packed=None)
        return (announced,), [codec.decode(total, parties, announced.parties)]

    run.attempt.open = lying  # type: ignore[method-assign]


class OneLayerLearner:
    """A member with one example x [WIDTH].

    One step down |relu(W x + b) - 1|^2 / 2 of each row, as any trainer would take it.
    """

    def __init__(self, number: int) -> None:
        self.example = np.random.default_rng(number).normal(0, 0.1, WIDTH)

    def train(self, flat: Vector, seed: int) -> Trained:
        """Only rows that the example reaches are moved, towards it."""
        del seed
        weights = flat[: ROWS * WIDTH].reshape(ROWS, WIDTH).astype(np.float64)
        before = weights @ self.example + flat[ROWS * WIDTH :]
        slope = np.where(before > 0, np.maximum(before, 0) - 1, 0.0)
        down = -0.15 * np.concatenate([np.outer(slope, self.example).ravel(), slope])
        return Trained(flat=(flat + down).astype(np.float32), examples=1, tokens=10, loss=1.0)

    def evaluate(self, flat: Vector) -> Counts:
        """Half of it is right."""
        del flat
        return Counts(5, 10)


def led_to_a_trap(*stubs: Stub) -> Result:
    """Weights whose rows ask how far an example reaches: the last row holds the farthest one
    alone.
    """
    scene: AttackScene = federation(PARTIES, size=ROWS * (WIDTH + 1))
    layers = {name: OneLayerLearner(number) for number, name in enumerate(scene.keys)}
    scene.voices = layers  # type: ignore[assignment]
    scene.clients = {name: party_of(scene, name, key) for name, key in scene.keys.items()}
    run = scene.run()
    direction = np.random.default_rng(99).choice((-0.19, 0.19), WIDTH)
    trap = np.concatenate([np.tile(direction, ROWS), -np.linspace(0.0, 0.19, ROWS)]).astype(
        np.float32
    )
    announce(run, trap)
    with without(*stubs):
        refused(run.train_round)
        found = sums_of(run)
        words = refused(run.train_round)
    if not found:
        return Result(False, words)
    whole = (found[-1].total[: scene.size] - PARTIES * MIDDLE) / MIDDLE * RANGE
    rows, ends = whole[: ROWS * WIDTH].reshape(ROWS, WIDTH), whole[ROWS * WIDTH :]
    reached = np.flatnonzero(np.abs(ends) > 0.05)
    last = int(reached[-1]) if reached.size else 0  # the row that only the farthest of them reaches
    farthest = max(layers.values(), key=lambda one: float(direction @ one.example)).example
    read = rows[last] / (ends[last] or 1.0)
    seen = alike(read.astype(np.float32), farthest.astype(np.float32))
    return Result(seen > CLOSE, f"correlation {seen:.3f} with one example of {PARTIES}")


def all_but_the_same(*stubs: Stub) -> Result:
    """Ten sums over different members from adapters that differ by one step of one value."""
    scene = federation(10)
    hardly = np.zeros(scene.size, np.float32)
    hardly[0] = RANGE / MIDDLE
    with without(*stubs):
        opened, read = many_sums(
            scene, lambda run, number: announce(run, hardly) if number == 0 else None
        )
    seen = alike(read[1:], scene.voices[VICTIM].secret[1:])
    return Result(seen > CLOSE, f"{opened} sums opened, correlation {seen:.3f}")


ATTACKS = (
    Attack(
        name="led to a trap by told sums",
        who="coordinator alone",
        mode="masked",
        promise="no step of the adapter is made of a sum that its members did not find to be "
        "theirs",
        unprotected=lambda: led_to_a_trap(*NO_TAGS),
        protected=led_to_a_trap,
    ),
    Attack(
        name="ten adapters that are all but the same",
        who="coordinator alone",
        mode="masked",
        promise="a coordinator chooses no two adapters so close that their sums can be subtracted",
        unprotected=lambda: all_but_the_same(*NO_TAGS),
        protected=all_but_the_same,
    ),
)
