"""A learner over what this node's owner said may train: it is read anew before every training.

Knows the node's history and prepared examples. Knows nothing of rounds, messages or protection.
Always: what is trained on is what the history allows at that moment: a conversation that was
forgotten, or whose consent was taken back, is in no training after that; where nothing is allowed
any more, none is made and nothing is sent.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from ...core.errors import DataError
from ...core.history.training_set import TrainingSet
from ..events import ConsentedEvent, OnEvent
from ..store.checkpoint import Vector
from .learner import Counts, Trained, TrainerLearner

if TYPE_CHECKING:
    from ...core.training.examples import Example
    from ...core.training.frozen_layers import Prepared
    from ...core.training.trainer import Hyperparameters, StepInfo, Trainer

Prepare = Callable[[str, "list[Example]"], "Prepared"]  # what they are for, and the examples


class Lent(Protocol):
    """What a node's history lends."""

    def current(self) -> TrainingSet:
        """What may train now."""
        ...

    def note_trained(self, examples: Sequence[str]) -> None:
        """These were trained on, by their ids."""
        ...


class ConsentedExamples:
    """Prepared examples that follow the history.

    Args:
        prepare: runs examples through the frozen layers; asked only for sets with new ones.
    """

    def __init__(self, lent: Lent, prepare: Prepare, on_event: OnEvent) -> None:
        self.lent, self.prepare, self.on_event = lent, prepare, on_event
        self.set: TrainingSet | None = None  # that is prepared
        self.train: Prepared | None = None
        self.test: Prepared | None = None

    def renewed(self) -> "tuple[Prepared, Prepared | None, tuple[str, ...]]":
        """Those to learn, those held out, and the ids of the former, as the history stands.

        Raises:
            DataError: nothing may train.
        """
        newest = self.lent.current()
        if not newest.train:
            raise DataError(
                f"nothing that was said here may train {newest.destination} any more: this node "
                f"trains nothing and sends nothing"
            )
        before = self.set
        if before is None or newest.digest != before.digest or self.train is None:
            old_train, old_test = (before.train, before.test) if before else ([], [])
            self.train = self.subset("training", self.train, old_train, newest.train)
            self.test = (
                self.subset("held-out", self.test, old_test, newest.test) if newest.test else None
            )
            self.set = newest
            self.on_event(
                ConsentedEvent(
                    train=len(newest.train),
                    test=len(newest.test),
                    digest=newest.digest,
                    withheld=newest.left_out["not consented"],
                )
            )
        return self.train, self.test, newest.ids

    def subset(
        self, what: str, prepared: "Prepared | None", old: "Sequence[Example]", new: "list[Example]"
    ) -> "Prepared":
        """Some of what is prepared, if that is all that is wanted; else prepared anew."""
        place = {example: index for index, example in enumerate(map(key, old))}
        wanted = [place.get(key(example)) for example in new]
        if prepared is None or None in wanted:
            return self.prepare(what, new)
        kept = [index for index in wanted if index is not None]
        return dataclasses.replace(
            prepared,
            examples=tuple(prepared.examples[index] for index in kept),
            own=tuple(prepared.own[index] for index in kept),
        )


def key(example: "Example") -> tuple[tuple[str, str], ...]:
    """An example's words, by which two are the same."""
    return tuple((one["role"], one["content"]) for one in example.messages)


class ConsentedLearner(TrainerLearner):
    """As `TrainerLearner`, over examples that follow the history."""

    def __init__(
        self,
        trainer: "Trainer",
        consented: ConsentedExamples,
        recipe: "Hyperparameters",
        on_step: "Callable[[StepInfo], None] | None" = None,
        *,
        whole: bool = True,
    ) -> None:
        train, test, _ = consented.renewed()
        super().__init__(trainer, train, test, recipe, on_step, whole=whole)
        self.consented = consented

    def train(self, flat: Vector, seed: int) -> Trained:
        """As `Learner`. Raises: DataError: nothing may train any more."""
        self.prepared, self.test, ids = self.consented.renewed()
        self.consented.lent.note_trained(ids)  # first: what is forgotten meanwhile is marked
        return super().train(flat, seed)

    def evaluate(self, flat: Vector) -> Counts:
        """As `Learner`. Raises: DataError: as `train`."""
        self.prepared, self.test, _ = self.consented.renewed()
        return super().evaluate(flat)
