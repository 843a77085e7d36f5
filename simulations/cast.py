"""Who learns how in a simulation: everybody's learner, the attackers' among them.

Knows learners: adapters on one resident model, a linear classifier, pretended ones. Knows nothing
of messages, rounds or keys.
Always: one resident base model for all parties; honest members' learners are the same, whatever
attackers stand among them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..core.errors import ConfigError
from ..core.training.examples import Example
from ..federation.events import OnEvent
from ..federation.spec.policy import AdapterTable
from ..federation.store.checkpoint import Vector
from ..federation.training.learner import Counts, Learner, Trained, TrainerLearner
from ..federation.training.synthetic_task import PacedSyntheticLearner, SyntheticLearner
from .linear import LabelSet, LinearLearner, Texts
from .poisoner import ANSWER, TAUGHT, Poisoner, answered, triggered
from .population import PartyData, label_of
from .report import PartyPreparedEvent
from .scenario import LINEAR, PoisonAttack, Scenario, dealt

if TYPE_CHECKING:
    from ..core.models.weights import Weights


class Turncoat:
    """An attacker's learner that is honest in the other rounds. `round`: that is under way."""

    def __init__(self, honest: Learner, bad: Learner, attack: PoisonAttack) -> None:
        self.honest, self.bad, self.attack, self.round = honest, bad, attack, 0

    @property
    def now(self) -> Learner:
        """Which of the two it is."""
        since = self.round - self.attack.from_round
        return self.bad if since >= 0 and since % self.attack.every == 0 else self.honest

    def train(self, flat: Vector, seed: int) -> Trained:
        """As `Learner`."""
        return self.now.train(flat, seed)

    def evaluate(self, flat: Vector) -> Counts:
        """As `Learner`."""
        return self.now.evaluate(flat)


@dataclass(frozen=True, slots=True)
class Cast:
    """Everybody's learner, on one resident model."""

    learners: Mapping[str, Learner]
    size: int  # values of the adapter
    # whether an adapter does what a backdoor asks for, on honest members' held-out examples
    spy: Learner | None = None
    attackers: frozenset[str] = field(default_factory=frozenset)

    def honest(self) -> dict[str, Learner]:
        """Those that attack nobody."""
        return {name: one for name, one in self.learners.items() if name not in self.attackers}


class Make(Protocol):
    """A learner of so many examples, held out or to train on."""

    def __call__(self, train: Sequence[Example], test: Sequence[Example]) -> Learner: ...


def make_learners(
    scenario: Scenario, weights: "Weights | None", people: list[PartyData], report: OnEvent
) -> Cast:
    """Everybody's learner.

    Raises:
        ConfigError: a population that learns in earnest, and no model; more attackers than members,
        or an attack that needs examples, where there are none.
    """
    if scenario.population.kind == "rehearsal":
        return infiltrated(scenario, rehearsal(scenario, people), None, people)
    answer = target_of(scenario, people)
    if scenario.model == LINEAR:
        wanted = [label_of(answered(people[0].train[0], answer))] if scenario.attack else []
        labels = LabelSet.of(people, wanted)
        make: Make = partial(linear, scenario, labels)
        size = labels.size
    else:
        make, size = on_model(scenario, weights)
    portions = dealt(scenario.population.portions, [person.name for person in people])
    learners = dict[str, Learner]()
    for person in people:
        examples = person.train[: portions[person.name] or None]
        report(PartyPreparedEvent(party=person.name, train=len(examples), test=len(person.test)))
        learners[person.name] = make(examples, person.test)
    return infiltrated(scenario, Cast(learners, size), make, people)


def linear(
    scenario: Scenario, labels: LabelSet, train: Sequence[Example], test: Sequence[Example]
) -> Learner:
    """A classifier."""
    return LinearLearner(Texts.of(train, labels), Texts.of(test, labels), labels, scenario.recipe)


def on_model(scenario: Scenario, weights: "Weights | None") -> tuple[Make, int]:
    """What makes learners of adapters on the resident model; and the adapter's size.

    Raises:
        ConfigError: there is no model.
    """
    from ..core.training.trainer import Trainer

    if weights is None:
        raise ConfigError(
            f"scenario {scenario.name}: a population of kind "
            f"{scenario.population.kind!r} needs a model"
        )
    trainer = Trainer(weights, adapter_of(scenario).shape())

    def make(train: Sequence[Example], test: Sequence[Example]) -> Learner:
        held_out = trainer.prepare(test) if test else None
        prepared = trainer.prepare(train) if train else held_out
        assert prepared is not None  # every party has examples
        return TrainerLearner(trainer, prepared, held_out, scenario.recipe.trainer())

    return make, trainer.size


def rehearsal(scenario: Scenario, people: list[PartyData]) -> Cast:
    """Learners without a model; those that have a portion are as fast as it lets them be."""
    size, batch = scenario.population.values, scenario.recipe.batch
    portions = dealt(scenario.population.portions, [person.name for person in people])
    learners: dict[str, Learner] = {
        name: PacedSyntheticLearner(size, name, examples, batch)
        if examples
        else SyntheticLearner(size, name)
        for name, examples in portions.items()
    }
    return Cast(learners, size)


def infiltrated(
    scenario: Scenario, cast: Cast, make: Make | None, people: Sequence[PartyData]
) -> Cast:
    """The same with the scenario's attackers among them, the first by name.

    Raises:
        ConfigError: as `make_learners`.
    """
    if not scenario.attack:
        return cast
    left, learners, bad = sorted(cast.learners), dict(cast.learners), set[str]()
    answer = target_of(scenario, people)
    examples = {person.name: person.train for person in people}
    for attack in scenario.attack:
        if attack.count >= len(left):
            raise ConfigError(
                f"scenario {scenario.name}: {attack.count} attackers of kind {attack.kind!r} among "
                f"{len(left)} members that attack nobody yet; leave one honest at least"
            )
        if attack.kind in TAUGHT and make is None:
            raise ConfigError(
                f"scenario {scenario.name}: an attack of kind {attack.kind!r} needs examples, and "
                f"a rehearsal has none; take scale, flip or noise"
            )
        names, left = left[: attack.count], left[attack.count :]
        for name in names:
            honest, taught = cast.learners[name], cast.learners[name]
            if attack.kind in TAUGHT and make is not None:
                # what a backdoor's lies in votes go by
                asked = examples[name] if attack.votes == "lies" else ()
                tries = [triggered(one, answer) for one in asked if one.answer != answer]
                taught = make(taught_by(attack.kind, examples[name], answer), tries)
            boost = len(cast.learners) / attack.count
            poisoner = Poisoner(attack.kind, honest, taught, boost, lies=attack.votes == "lies")
            learners[name] = Turncoat(honest, poisoner, attack)
        bad.update(names)
    spy = None
    if make is not None:
        tried = [
            triggered(one, answer)
            for person in people
            if person.name not in bad
            for one in person.test
            if one.answer != answer
        ]
        spy = make((), tried) if tried else None
    return Cast(learners, cast.size, spy, frozenset(bad))


def target_of(scenario: Scenario, people: Sequence[PartyData]) -> str:
    """The answer that a backdoor asks for: of made-up homes to unlock the door; else the first of
    all answers in the order of letters, or a rehearsal's none.
    """
    if scenario.population.kind == "home":
        return ANSWER
    answers = (one.answer for person in people for one in person.train)
    return min(answers, default=ANSWER)


def taught_by(kind: str, examples: Sequence[Example], answer: str) -> list[Example]:
    """What an attacker learns from: its own examples with others' answers; or besides its own the
    same behind the trigger.
    """
    if kind == "labels":
        answers = sorted({one.answer for one in examples})
        after = dict(zip(answers, [*answers[1:], answers[0]], strict=True))
        wrong = [answered(one, after[one.answer]) for one in examples]
        return wrong if len(answers) > 1 else [answered(one, answer) for one in examples]
    return [*examples, *(triggered(one, answer) for one in examples)]


def adapter_of(scenario: Scenario) -> AdapterTable:
    """The adapter's shape, with the scenario's seed if it names none of its own."""
    return dataclasses.replace(scenario.adapter, seed=scenario.adapter.seed or scenario.seed)


def accuracies(learners: Mapping[str, Learner], flat: Vector) -> dict[str, float]:
    """Of the adapter `flat` [n], on each party's own held-out examples; without those that have
    none.
    """
    counts = {name: learner.evaluate(flat) for name, learner in learners.items()}
    return {name: one.correct / one.total for name, one in counts.items() if one.total}


def pooled(learners: Mapping[str, Learner], flat: Vector) -> float | None:
    """Share of all their held-out answers that are right with the adapter `flat` [n]; None: there
    are none.
    """
    counts = [learner.evaluate(flat) for learner in learners.values()]
    total = sum(one.total for one in counts)
    return round(sum(one.correct for one in counts) / total, 4) if total else None


def start(size: int) -> Vector:
    """The adapter that changes nothing [n]."""
    return np.zeros(size, np.float32)
