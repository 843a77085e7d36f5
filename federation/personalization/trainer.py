"""Where a personal change is trained and judged: the owner's examples over the shared adapter,
which stays as it is.

Knows training and scores. Knows nothing of files, cards or federations.
Always: the shared B is not changed; the same change, examples, settings and seed give the same
result, bit for bit; what is judged was never trained on here.

Source: Li et al. 2021, "Ditto", arXiv 2012.04221, equation 1: each member minimises its own loss
plus proximal / 2 ‖B - B_s‖². It is trained after the shared adapter came, not beside every round;
proximal = 0 is fine-tuning.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from ...core.training.evaluate import BATCH, Score
from ...core.training.frozen_layers import Prepared
from ...core.training.trainer import Hyperparameters, StepInfo, Trainer
from .change import PersonalChange
from .settings import PersonalSettings


@dataclass(frozen=True, slots=True)
class PersonalVerdict:
    """Both adapters on the owner's own held-out examples."""

    shared: Score
    personal: Score

    @property
    def accepted(self) -> bool:
        """A guard of one: a personal adapter is used if it gets no fewer answers right than the
        shared one does.
        """
        return self.personal.correct >= self.shared.correct and self.personal.total > 0


class PersonalTrainer:
    """One owner's examples and a trainer of its own: the federation's is never touched.

    Args:
        rest: called before every step and every piece of scoring; it may wait, or raise to give the
        work up.
    """

    def __init__(
        self,
        trainer: Trainer,
        train: Prepared,
        test: Prepared,
        rest: Callable[[], None] = lambda: None,
    ) -> None:
        self.trainer, self.train, self.test, self.rest = trainer, train, test, rest

    def learn(
        self,
        shared: Tensor,
        change: PersonalChange,
        settings: PersonalSettings,
        *,
        seed: int,
        on_step: Callable[[StepInfo], None] | None = None,
    ) -> PersonalChange:
        """Train a change further over `shared` [n]; no epochs: the change as it is.

        Raises:
            TrainingError: a loss or gradient that is not finite.
            ValueError: lengths that do not fit.
        """

        def step(info: StepInfo) -> None:
            if on_step is not None:
                on_step(info)
            self.rest()

        if not settings.epochs:
            return change
        self.rest()
        result = self.trainer.train(
            change.upon(shared),
            self.train,
            recipe(settings),
            seed=seed,
            on_step=step,
            anchor=shared,
        )
        return PersonalChange.between(shared, result.flat_b)

    def judge(self, shared: Tensor, change: PersonalChange) -> PersonalVerdict:
        """Score the shared adapter alone, and with the change."""
        return PersonalVerdict(self.score(shared), self.score(change.upon(shared)))

    def score(self, flat: Tensor) -> Score:
        """One adapter [n] on the held-out examples."""
        found = Score(0, 0)
        for part in pieces(self.test, BATCH):
            self.rest()
            found += self.trainer.evaluate(flat, part)
        return found


def recipe(settings: PersonalSettings) -> Hyperparameters:
    """As the trainer wants it.

    Weight decay is off: it would pull the shared part towards zero too, and that is frozen.
    """
    return Hyperparameters(
        lr=settings.lr,
        batch=settings.batch,
        epochs=settings.epochs,
        proximal=settings.proximal,
        weight_decay=0.0,
    )


def pieces(prepared: Prepared, count: int) -> Iterator[Prepared]:
    """The same examples, `count` at a time."""
    for piece in range(math.ceil(len(prepared) / count)):
        part = slice(piece * count, (piece + 1) * count)
        yield dataclasses.replace(
            prepared, examples=prepared.examples[part], own=prepared.own[part]
        )
