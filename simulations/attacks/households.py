"""The stage of `poisoning` with a real model: ten made-up households that have already learned
together.

Knows the trainer and made-up homes. Knows nothing of attacks or defences.
Always: all arms begin from the same adapter, learned without attackers; what a household would
answer to a question that it has been asked before is not worked out again, which changes nothing
because training follows from adapter and seed.

What makes it feasible on two cores: the frozen layers run once for all arms (`Trainer.prepare`),
the clean rounds once, the first round after them once, and attackers come when there is something
to ruin.
"""

import dataclasses
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...core.errors import DataError
from ...core.paths import write_atomically
from ...federation.aggregation.server_optimizer import adapter_digest, optimizer_of
from ...federation.rounds.client import training_seed
from ...federation.spec.policy import Recipe
from ...federation.store.checkpoint import ServerState, Vector
from ...federation.training.learner import Counts, Learner, Trained, TrainerLearner
from ...federation.wire.messages import RoundId
from ..cast import Cast, adapter_of
from ..poisoner import triggered
from ..population import PartyData, populate
from ..scenario import Scenario

if TYPE_CHECKING:
    from ...core.models.weights import Weights
    from ...core.training.examples import Example
    from ...core.training.trainer import Trainer

NO_RUN = "00" * 16  # these rounds are in no run
# adapters whose training one household remembers: an arm has few rounds, and its first is
# everybody's
KEPT = 8
# at most, the first by name; the two after them are whose requests the backdoor is tried on
ATTACKERS = 2
Progress = Callable[[str], None]


class MemoizedLearner:
    """A learner that is not asked twice. Hazard: only for learners whose answer follows from
    what they are given.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.trained: OrderedDict[tuple[bytes, int], Trained] = OrderedDict()
        self.scored: dict[bytes, Counts] = {}

    def train(self, flat: Vector, seed: int) -> Trained:
        """As `Learner`."""
        key = fingerprint(flat), seed
        if key not in self.trained:
            self.trained[key] = self.learner.train(flat, seed)
        self.trained.move_to_end(key)
        while len(self.trained) > KEPT:
            self.trained.popitem(last=False)
        return self.trained[key]

    def evaluate(self, flat: Vector) -> Counts:
        """As `Learner`."""
        key = fingerprint(flat)
        if key not in self.scored:
            self.scored[key] = self.learner.evaluate(flat)
        return self.scored[key]


class From:
    """A learner in whose federation the adapter `start` counts as zero, which is where every run
    begins.
    """

    def __init__(self, learner: Learner, start: Vector) -> None:
        self.learner, self.start = learner, start

    def train(self, flat: Vector, seed: int) -> Trained:
        """As `Learner`."""
        trained = self.learner.train(flat + self.start, seed)
        return dataclasses.replace(trained, flat=trained.flat - self.start)

    def evaluate(self, flat: Vector) -> Counts:
        """As `Learner`."""
        return self.learner.evaluate(flat + self.start)


@dataclass(frozen=True, slots=True)
class Households:
    """Everybody's learner, at the adapter that they have learned together."""

    honest: Cast
    taught: dict[str, Learner]  # the attackers', on their own examples and those with the trigger
    success: Callable[[Vector], float]
    weights: "Weights"


def gather(
    scenario: Scenario, clean: int, start_file: Path | None, progress: Progress
) -> Households:
    """Load the model, make everybody up, learn `clean` rounds without attackers.

    Args:
        start_file: where the clean rounds are kept as they come, and taken from; None: nowhere.
    """
    from ...core.models import weights
    from ...core.models.hub import catalog
    from ...core.training.trainer import Trainer

    model = weights.load(catalog.find(scenario.model))
    people, trainer = populate(scenario), Trainer(model, adapter_of(scenario).shape())
    learners: dict[str, Learner] = {}
    for person in people:
        progress(f"the frozen layers, {person.name}")
        learners[person.name] = learner_of(trainer, person.train, person.test, scenario.recipe)
    taught = {
        person.name: learner_of(
            trainer, [*person.train, *map(triggered, person.train)], (), scenario.recipe
        )
        for person in people[:ATTACKERS]
    }
    spy = learner_of(trainer, (), victims(people), scenario.recipe)
    start = learn_together(learners, scenario.recipe, clean, trainer.size, start_file, progress)

    def success(flat: Vector) -> float:
        counts = spy.evaluate(flat + start)
        return counts.correct / counts.total

    honest: dict[str, Learner] = {name: From(learner, start) for name, learner in learners.items()}
    return Households(
        Cast(honest, trainer.size),
        {name: From(learner, start) for name, learner in taught.items()},
        success,
        model,
    )


def learner_of(
    trainer: "Trainer", train: "Sequence[Example]", test: "Sequence[Example]", recipe: Recipe
) -> MemoizedLearner:
    """A household that remembers; one without examples to train on only scores, and the other
    way round.
    """
    held_out = trainer.prepare(test) if test else None
    prepared = trainer.prepare(train) if train else held_out
    if prepared is None:
        raise DataError("a household needs examples to train on, or to score on")
    return MemoizedLearner(TrainerLearner(trainer, prepared, held_out, recipe.trainer()))


def victims(people: Sequence[PartyData]) -> "list[Example]":
    """What the backdoor is tried on: requests that nobody trained on, of households that attack
    nobody.
    """
    return [
        triggered(example)
        for person in people[ATTACKERS : ATTACKERS + 2]
        for example in person.test
    ]


def learn_together(
    learners: dict[str, Learner],
    recipe: Recipe,
    rounds: int,
    size: int,
    file: Path | None,
    progress: Progress,
) -> Vector:
    """The adapter [n] after so many rounds of the plain mean, without keys or messages.

    Raises:
        DataError: `file` holds another adapter's rounds.
    """
    optimizer, state, done = optimizer_of(recipe), ServerState.zeros(size), 0
    if file is not None and file.exists():
        done, state = read_start(file, size)
    for number in range(done + 1, rounds + 1):
        began, changes, losses = time.monotonic(), np.zeros(size, np.float32), []
        for name, learner in learners.items():
            trained = learner.train(
                state.flat,
                training_seed(RoundId(NO_RUN, number, 1), adapter_digest(state.flat), name),
            )
            changes += trained.flat - state.flat
            losses.append(trained.loss)
        state = optimizer.step(state, changes / np.float32(len(learners)))
        if file is not None:
            write_atomically(file, number.to_bytes(4, "little") + state.encode())
        progress(
            f"clean round {number} of {rounds}: loss {np.mean(losses):.3f}, "
            f"{time.monotonic() - began:.0f} s"
        )
    return state.flat


def read_start(file: Path, size: int) -> tuple[int, ServerState]:
    """Rounds done, and where they led.

    Raises:
        DataError: another adapter's.
    """
    data = file.read_bytes()
    try:
        return int.from_bytes(data[:4], "little"), ServerState.decode(data[4:], size)
    except ValueError as error:
        raise DataError(
            f"{file}: {error}; take it away, and the clean rounds are learned again"
        ) from error


def fingerprint(flat: Vector) -> bytes:
    """Equal for equal adapters, and only for them."""
    return hashlib.sha256(np.ascontiguousarray(flat, np.float32).tobytes()).digest()
