"""A member whose model is its own: what is summed is what it says of a public set, not an adapter.

Knows the seam of `Learner`: the vector that the rounds carry is the mean of all members' scores of
public answers, [items × answers], and a member's contribution the distance of its own from that.
Knows nothing of messages or protection: a sum of scores is protected, counted and paid for as one
of updates is.
Always: the member's adapter stays here; a score lies within half the federation's `update_range`,
so that no contribution is cut; the adapter of the last training is on the disk before anything of
it is sent; what it learns from a finished run's scores is in no later sum.

Source: Jeong et al. 2018 (federated distillation); Li and Wang 2019 (FedMD), whose members compare
scores of a public set.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ...core.errors import DataError
from ...core.models.lora.adapter import Adapter, assemble
from ...core.paths import write_atomically
from ...core.training.distillation.candidates import CandidateScorer, PublicSet
from ...core.training.frozen_layers import Prepared
from ...core.training.trainer import Hyperparameters, StepInfo, Trainer
from ..spec.policy import Policy
from ..store.checkpoint import Vector
from .learner import Counts, Trained

# What a federation whose members' models differ names as its model; no file has this hash.
ANY_MODEL = "any-model"
ANY_DIGEST = hashlib.sha256(b"quietchoir distillation, any model").hexdigest()
OWN_FILE = "own-adapter.npy"  # in the member's folder of the federation: its flat B
LEARNED_EPOCHS = 2  # over the public set, of what the others say, in a round


def read_public(path: Path, policy: Policy) -> PublicSet:
    """The public set of a federation.

    Raises:
        DataError: another file than the one that its owner signed.
    """
    found, agreed = PublicSet.read(path), policy.distillation
    shape = (len(found.items), found.answers)
    if found.digest != agreed.public:
        raise DataError(
            f"{path}: has sha256 {found.digest[:16]}…, {policy.name} agreed on "
            f"{agreed.public[:16]}…; get the file from its owner"
        )
    if shape != (agreed.items, agreed.answers):
        raise DataError(
            f"{path}: {shape[0]} items of {shape[1]} answers, {policy.name} was signed for "
            f"{agreed.items} of {agreed.answers}; its owner founds it anew from the file"
        )
    return found


def score_limit(policy: Policy) -> float:
    """How far a score may be from 0: two that are as far apart as can be are in `update_range` of
    each other, with what a mean is rounded by.
    """
    return 0.48 * policy.recipe.update_range


class DistillationLearner:
    """See the head of this file; as `Learner`."""

    def __init__(
        self,
        scorer: CandidateScorer,
        train: Prepared,
        test: Prepared | None,
        recipe: Hyperparameters,
        *,
        folder: Path | None = None,
        learned_epochs: int = LEARNED_EPOCHS,
        on_step: Callable[[StepInfo], None] | None = None,
    ) -> None:
        """
        Args:
            folder: where its adapter is kept from round to round; None: in memory alone.
            learned_epochs: over the public set, of what the others say, in a round.

        Raises:
            DataError: what is kept there is another model's.
        """
        self.scorer, self.train_set, self.test, self.recipe = scorer, train, test, recipe
        self.folder, self.on_step, self.learned_epochs = folder, on_step, learned_epochs
        self.now = recipe  # this round's
        self.own = self._read()

    @property
    def trainer(self) -> Trainer:
        """What holds this member's model."""
        return self.scorer.trainer

    def tuned(self, share: float, max_steps: int, least_steps: int) -> "DistillationLearner":
        """As `Tunable`, for the next training; the own adapter is one, so this is no copy."""
        del least_steps  # of a recipe that goes by votes, which scores have none of
        self.now = replace(self.recipe, lr=self.recipe.lr * share, max_steps=max_steps)
        return self

    def train(self, flat: Vector, seed: int) -> Trained:
        """Learn what the others say, then from the own examples; say what the model says now."""
        self.learn(flat, seed)
        result = self.trainer.train(
            self.own, self.train_set, self.now, seed=seed, on_step=self.on_step
        )
        self._keep(result.flat_b)
        return Trained(
            flat=self.scorer.scores(self.own).numpy().reshape(-1).astype(np.float32),
            examples=result.examples,
            tokens=result.tokens,
            loss=result.loss,
            left=result.left,
        )

    def learn(self, flat: Vector, seed: int) -> None:
        """Move the own adapter towards the scores [n] that members agreed on; before the first
        round they agreed on nothing.
        """
        if flat.any():
            self._keep(self._learned(flat, self.now.lr, seed))

    def evaluate(self, flat: Vector) -> Counts:
        """The own adapter on the own held-out examples; `flat` is nobody's adapter."""
        del flat
        if self.test is None:
            return Counts(0, 0)
        score = self.trainer.evaluate(self.own, self.test)
        return Counts(score.correct, score.total, score.near)

    def finished(self, flat: Vector) -> tuple[Adapter, bool]:
        """An adapter that learned the scores [n] of a finished run, and True; the own one as it is,
        and False, where it answers more of the own held-out examples.

        Whoever hands out `flat` may have made it up: it is the coordinator's word. So the own one,
        from which later rounds go on, stays as it is.

        Hazard: without held-out examples whatever is handed out is learned.
        """
        own, learned = self.own, self._learned(flat, self.recipe.lr, 0) if flat.any() else self.own
        if self.test is not None:
            before, after = (self.trainer.evaluate(one, self.test) for one in (own, learned))
            if (after.correct, after.near) < (before.correct, before.near):
                return self._assembled(own), False
        return self._assembled(learned), True

    def _learned(self, flat: Vector, lr: float, seed: int) -> torch.Tensor:
        """The own adapter, moved towards scores [n], cut to what a score can be."""
        agreed = torch.from_numpy(np.array(flat, np.float32)).view(-1, self.scorer.public.answers)
        limit = self.scorer.limit
        learned, _ = self.scorer.learn(
            self.own, agreed.clamp(-limit, limit), lr=lr / 2, epochs=self.learned_epochs, seed=seed
        )
        return learned

    def _assembled(self, flat_b: torch.Tensor) -> Adapter:
        weights = self.trainer.weights
        return assemble(self.trainer.shape, weights.architecture, weights.digest, flat_b)

    def _keep(self, flat_b: torch.Tensor) -> None:
        self.own = flat_b
        if self.folder is not None:
            held = io.BytesIO()
            np.save(held, flat_b.numpy(), allow_pickle=False)
            write_atomically(self.folder / OWN_FILE, held.getvalue(), mode=0o600)

    def _read(self) -> torch.Tensor:
        path = None if self.folder is None else self.folder / OWN_FILE
        if path is None or not path.exists():
            return torch.zeros(self.trainer.size)
        try:
            found = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: damaged ({error!s:.120}); delete it") from error
        if found.shape != (self.trainer.size,) or found.dtype != np.float32:
            raise DataError(
                f"{path}: an adapter of {found.shape}, this model's has {self.trainer.size} "
                f"values; join with the model that it was trained with, or delete it"
            )
        return torch.from_numpy(found)
