"""A member trains on what its owner's history lends at that moment, and on nothing else."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from quietchoir.core.assistant.context import Message
from quietchoir.core.errors import DataError
from quietchoir.core.history.redactor import Redactor
from quietchoir.core.history.store import NEVER, HistoryStore
from quietchoir.core.history.training_set import TrainingSet, training_set
from quietchoir.core.prompt import AS_IT_COMES
from quietchoir.core.training.examples import Example
from quietchoir.core.training.frozen_layers import Prepared
from quietchoir.federation.events import ConsentedEvent
from quietchoir.federation.training.consented import ConsentedExamples, ConsentedLearner

FED = f"federation:{'a' * 64}"
REDACTOR = Redactor()
FLAT = np.zeros(4, np.float32)


class Lending:
    """A history, lent."""

    def __init__(self, store: HistoryStore) -> None:
        self.store = store

    def current(self) -> TrainingSet:
        return training_set(self.store, FED, AS_IT_COMES, REDACTOR)

    def note_trained(self, examples: Any) -> None:
        self.store.note_trained(FED, examples)


class Seeing:
    """A trainer that only remembers what it was given."""

    def __init__(self) -> None:
        self.trained: list[list[str]] = []

    def train(self, flat: torch.Tensor, prepared: Prepared, recipe: object, **_: Any) -> Any:
        self.trained.append([str(one) for one in prepared.examples])
        return SimpleNamespace(flat_b=flat, examples=1, tokens=1, loss=1.0, steps=1, left=0)

    def evaluate(self, flat: torch.Tensor, prepared: Prepared) -> Any:
        return SimpleNamespace(correct=0, total=len(prepared), near=0)


@pytest.fixture
def store(tmp_path: Path) -> HistoryStore:
    """Twelve examples, given to a federation."""
    made = HistoryStore(tmp_path)
    for place in range(12):
        add(made, f"request {place}")
    return made


def add(store: HistoryStore, request: str) -> None:
    name = request.replace(" ", "-")
    store.keep(name, [Message("user", request), Message("assistant", "well")], source="page")
    store.approve(name)
    store.consent("conversation", name, FED)


def learner_of(store: HistoryStore) -> tuple[ConsentedLearner, Seeing, list[str], list[Any]]:
    """With what it prepared, and what it told."""
    told, prepared = list[Any](), list[str]()

    def prepare(what: str, given: list[Example]) -> Prepared:
        prepared.append(what)
        words: Any = tuple(one.request for one in given)
        return Prepared(words, 0, torch.zeros(0), tuple(torch.zeros(0) for _ in given))

    trainer = Seeing()
    consented = ConsentedExamples(Lending(store), prepare, told.append)
    learner = ConsentedLearner(trainer, consented, None)  # type: ignore[arg-type]
    return learner, trainer, prepared, told


def test_what_was_forgotten_between_two_rounds_is_not_in_the_second(store: HistoryStore) -> None:
    learner, trainer, prepared, told = learner_of(store)
    learner.train(FLAT, 1)
    first = trainer.trained[0]
    [gone] = [one for one in store.examples() if one.messages[-1].content == first[0]]
    store.forget([gone.id])
    learner.train(FLAT, 2)
    assert trainer.trained[1] == first[1:]
    assert prepared == ["training", "held-out"]  # nothing was computed again
    counts = [event.train for event in told if isinstance(event, ConsentedEvent)]
    assert counts == [len(first), len(first) - 1]
    assert store.marks() == {}
    store.note_adapter("shared", FED)
    assert store.marks() == {"shared": 1}  # it had learned it in the first round


def test_what_is_said_later_trains_later(store: HistoryStore) -> None:
    learner, trainer, *_ = learner_of(store)
    learner.train(FLAT, 1)
    for place in range(12, 20):
        add(store, f"request {place}")
    learner.train(FLAT, 2)
    assert set(trainer.trained[0]) < set(trainer.trained[1])


def test_a_consent_that_is_taken_back_ends_training_before_anything_is_computed(
    store: HistoryStore,
) -> None:
    learner, trainer, *_ = learner_of(store)
    store.consent("source", "page", NEVER)
    with pytest.raises(DataError, match="this node trains nothing and sends nothing"):
        learner.train(FLAT, 1)
    with pytest.raises(DataError, match="sends nothing"):
        learner.evaluate(FLAT)
    assert trainer.trained == []


def test_held_out_examples_are_never_trained_on(store: HistoryStore) -> None:
    learner, trainer, *_ = learner_of(store)
    learner.train(FLAT, 1)
    found = Lending(store).current()
    assert found.test and not {one.request for one in found.test} & set(trainer.trained[0])
    assert learner.evaluate(FLAT).total == len(found.test)
