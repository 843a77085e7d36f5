"""A member whose model is its own: what is summed is what it says of a public set, not an adapter.

Knows the seam of `Learner`: the vector that the rounds carry is the mean of all members' scores of
public answers, [items × answers], and a member's contribution the distance of its own from that.
Knows nothing of messages or protection: a sum of scores is protected, counted and paid for as one
of updates is.
Always: the member's adapter stays here; a score lies within half the federation's `update_range`,
so that no contribution is cut; the adapter of the last training is on the disk before anything of
it is sent.

Source: Jeong et al. 2018 (federated distillation); Li and Wang 2019 (FedMD), whose members compare
scores of a public set.
"""

import hashlib
import io
from collections.abc import Callable
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
    if found.digest != agreed.public:
        raise DataError(
            f"{path}: has sha256 {found.digest[:16]}…, {policy.name} agreed on "
            f"{agreed.public[:16]}…; get the file from its owner"
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
        self.own = self._read()

    @property
    def trainer(self) -> Trainer:
        """What holds this member's model."""
        return self.scorer.trainer

    def train(self, flat: Vector, seed: int) -> Trained:
        """Learn what the others say, then from the own examples; say what the model says now."""
        self.learn(flat, seed)
        result = self.trainer.train(
            self.own, self.train_set, self.recipe, seed=seed, on_step=self.on_step
        )
        self._keep(result.flat_b)
        return Trained(
            flat=self.scorer.scores(self.own).numpy().reshape(-1).astype(np.float32),
            examples=result.examples,
            tokens=result.tokens,
            loss=result.loss,
        )

    def learn(self, flat: Vector, seed: int) -> None:
        """Move the own adapter towards the scores [n] that members agreed on; before the first
        round they agreed on nothing.
        """
        if not flat.any():
            return
        agreed = torch.from_numpy(np.array(flat, np.float32)).view(-1, self.scorer.public.answers)
        own, _ = self.scorer.learn(
            self.own, agreed, lr=self.recipe.lr / 2, epochs=self.learned_epochs, seed=seed
        )
        self._keep(own)

    def evaluate(self, flat: Vector) -> Counts:
        """The own adapter on the own held-out examples; `flat` is nobody's adapter."""
        del flat
        if self.test is None:
            return Counts(0, 0)
        score = self.trainer.evaluate(self.own, self.test)
        return Counts(score.correct, score.total)

    def adapter(self) -> Adapter:
        """The own adapter, as it is now."""
        weights = self.trainer.weights
        return assemble(self.trainer.shape, weights.architecture, weights.digest, self.own)

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
