"""One party's training: a flat B goes in, a flat B comes out.

Knows the hyperparameters, batches and the optimizer. Knows nothing of rounds, other parties or
where examples come from.
Always: the same weights, examples, B, hyperparameters, seed and thread count give the same result
bit for bit; a gradient that is not finite ends the training with an error and leaves the given B
as it was.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import ModelError, TrainingError
from ..models.lora.adapter import AdapterShape
from ..models.weights import Weights
from . import frozen_layers
from .evaluate import Score, score
from .examples import Example
from .frozen_layers import OnProgress, Prepared
from .lora_layers import UpperLayers
from .loss import VocabularyHead
from .packing import fitting
from .precision import dtype_name, resolve_dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameters:
    """How one round trains. Measured: facts in the README; FFA wants five times the rate of full
    LoRA.
    """

    lr: float = 1e-2
    batch: int = 16  # examples of one step
    epochs: int = 1
    weight_decay: float = 0.01
    # of the optimizer, at most; the shuffle decides whose turn is another time; 0: all
    max_steps: int = 0
    # pull towards the B that training started from; Li et al. 2020, FedProx, equation 2
    proximal: float = 0.0

    def __post_init__(self) -> None:
        numbers = (
            math.isfinite(self.lr)
            and math.isfinite(self.proximal)
            and self.lr > 0
            and self.proximal >= 0
        )
        counts = self.batch >= 1 and self.epochs >= 1 and self.max_steps >= 0
        if not (numbers and counts and 0 <= self.weight_decay < 1):
            raise ValueError(
                f"lr {self.lr}, batch {self.batch}, epochs {self.epochs}, weight_decay "
                f"{self.weight_decay}, max_steps {self.max_steps}, "
                f"proximal {self.proximal}: out of range"
            )


@dataclass(frozen=True, slots=True)
class StepInfo:
    """What `on_step` is told."""

    step: int  # from 1
    steps: int
    loss: float  # mean over the step's answer tokens


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What one training gave."""

    flat_b: Tensor  # float32 [n]
    examples: int  # trained on, each counted once an epoch
    tokens: int  # answer tokens trained on
    loss: float  # mean over all answer tokens, each as it was met
    precision: str  # "float32" or "bfloat16"
    steps: int  # of the optimizer
    left: int  # examples, each counted once an epoch, for which there were not enough steps


class Trainer:
    """The base model's upper layers, held once, for any number of examples and adapters of one
    shape.
    """

    def __init__(
        self, weights: Weights, shape: AdapterShape, *, precision: str = "auto", threads: int = 0
    ) -> None:
        """Decode the upper layers and the head (for a 135M model 115 MB in bfloat16).

        Args:
            threads: of torch, for the whole program; 0 leaves them alone.

        Raises:
            ConfigError: an unknown precision.
            ValueError: the shape does not fit the model.
            ModelError: the model caps its logits or adds to them, which the loss does not follow.
        """
        if weights.architecture.logit_softcap or weights.architecture.head_bias:
            raise ModelError(
                f"this {weights.architecture.family} model caps its logits or adds to them, and "
                f"training does not follow that; train another model"
            )
        if threads > 0:
            torch.set_num_threads(threads)
        self.weights, self.shape = weights, shape
        self.dtype = resolve_dtype(precision)
        self.precision = dtype_name(self.dtype)
        self.upper = UpperLayers(weights, shape, self.dtype)

    @property
    def size(self) -> int:
        """n, the length of the flat B."""
        return self.upper.layout.size

    def prepare(
        self, examples: Sequence[Example], *, on_progress: OnProgress | None = None
    ) -> Prepared:
        """Tokenize and run the frozen lower layers, once for all rounds.

        Raises:
            DataError: examples that do not fit the model.
        """
        layers = self.weights.architecture.num_layers - self.shape.upper_layers
        return frozen_layers.prepare(
            examples, self.weights, layers=layers, dtype=self.dtype, on_progress=on_progress
        )

    def train(
        self,
        flat_b: Tensor,
        prepared: Prepared,
        hyperparameters: Hyperparameters,
        *,
        seed: int,
        on_step: Callable[[StepInfo], None] | None = None,
        anchor: Tensor | None = None,
    ) -> TrainResult:
        """Train B from `flat_b` (float32 [n], not changed), with an optimizer that starts afresh.

        Args:
            anchor: what `hyperparameters.proximal` pulls towards, float32 [n]; by default `flat_b`.

        Raises:
            TrainingError: a loss or gradient that is not finite.
            ValueError: `flat_b` has another length than n.
        """
        start = flat_b.detach().to(torch.float32)
        anchor = start if anchor is None else self.checked(anchor)
        master = start.clone()  # steps are too small for bfloat16 to hold
        optimizer = torch.optim.AdamW(
            [master], lr=hyperparameters.lr, weight_decay=hyperparameters.weight_decay, fused=True
        )
        batches = order(len(prepared), hyperparameters, seed)
        head = VocabularyHead(self.upper.head, prepared.targets)
        total, tokens = 0.0, 0
        for number, indices in enumerate(batches, start=1):
            self.upper.set(self.checked(master))
            loss, count = self.step(prepared, indices, head)
            if not (math.isfinite(loss) and bool(torch.isfinite(self.upper.grad).all())):
                raise TrainingError(
                    f"step {number} of {len(batches)}: loss {loss}, not finite; "
                    f"lower lr = {hyperparameters.lr}"
                )
            master.grad = self.upper.grad.float()
            if hyperparameters.proximal:
                master.grad += hyperparameters.proximal * (master.detach() - anchor)
            optimizer.step()
            total, tokens = total + loss * count, tokens + count
            if on_step is not None:
                on_step(StepInfo(number, len(batches), loss))
        trained = sum(map(len, batches))
        return TrainResult(
            master.detach(),
            trained,
            tokens,
            total / tokens,
            self.precision,
            len(batches),
            len(prepared) * hyperparameters.epochs - trained,
        )

    def step(
        self, prepared: Prepared, indices: Sequence[int], head: VocabularyHead | None = None
    ) -> tuple[float, int]:
        """Gradient of one batch into `upper.grad`; mean loss and number of answer tokens.

        Args:
            head: for whoever takes many steps; by default the whole vocabulary is asked.
        """
        examples = [prepared.examples[index] for index in indices]
        count, total = sum(len(one.answer) for one in examples), 0.0
        for places in fitting([one.rows for one in examples]):
            x, batch = prepared.batch([indices[place] for place in places])
            rows = self.upper.answers(x, batch)
            head = head or VocabularyHead(self.upper.head, prepared.targets)
            loss = head.loss(rows, batch.targets) / count
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total, count

    def evaluate(self, flat_b: Tensor, prepared: Prepared) -> Score:
        """How many answers the model would give exactly, with adapter `flat_b` (float32 [n])."""
        self.upper.set(self.checked(flat_b))
        return score(self.upper, prepared, self.weights.tensors["lm_head.weight"])

    def checked(self, flat_b: Tensor) -> Tensor:
        """`flat_b`, if it is of this shape."""
        if tuple(flat_b.shape) != (self.size,):
            raise ValueError(f"flat B is {tuple(flat_b.shape)}, expected ({self.size},)")
        return flat_b


def order(count: int, hyperparameters: Hyperparameters, seed: int) -> list[list[int]]:
    """Batches of all epochs, up to `max_steps`: every epoch a new shuffle that follows from
    `seed`.
    """
    rng = np.random.default_rng([seed])
    batches = []
    for _ in range(hyperparameters.epochs):
        shuffled = rng.permutation(count).tolist()
        batches += [
            shuffled[start : start + hyperparameters.batch]
            for start in range(0, count, hyperparameters.batch)
        ]
    return batches[: hyperparameters.max_steps or None]
