"""A classifier of texts that learns in milliseconds: words and their pairs, hashed, one weight for
each and each label.

Knows texts, labels and arithmetic. Knows nothing of federations, messages or where examples come
from.
Always: the same examples, weights and seed give the same weights; parties' examples stay in the
few whole numbers that a text is hashed to.

Real learning on real texts, for questions about populations, drop-outs, noise and poison that need
hundreds of parties and no language model: what it shows of them is shown on this model.
Source: Weinberger et al. 2009, "Feature hashing for large scale multitask learning"; the local
steps are those of Adam (Kingma and Ba 2015), as the adapter's trainer takes them.
"""

import copy
import dataclasses
import itertools
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..core.errors import ConfigError
from ..core.training.examples import Example
from ..federation.spec.policy import Recipe
from ..federation.store.checkpoint import Vector
from ..federation.training.learner import Counts, Trained
from .population import PartyData, label_of

FEATURES = 512
SCALE = 10.0  # of the logits: so a step of the usual learning rate tells
MOST_LABELS = 500
BETAS, TINY = (0.9, 0.999), 1e-8
WORD = re.compile(r"\w+")
Ids = npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class LabelSet:
    """What all parties predict. Args: places: label → its column."""

    places: Mapping[str, int]

    @staticmethod
    def of(people: Sequence[PartyData], more: Sequence[str] = ()) -> "LabelSet":
        """Of everybody's examples.

        Raises:
            ConfigError: as many labels as free text has.
        """
        found = {label_of(one) for person in people for one in (*person.train, *person.test)}
        labels = sorted({*found, *more})
        if not 2 <= len(labels) <= MOST_LABELS:
            raise ConfigError(
                f'model = "linear" predicts one of 2 to {MOST_LABELS} labels, and these examples '
                f"have {len(labels)} different answers; train an adapter on them instead"
            )
        return LabelSet({label: place for place, label in enumerate(labels)})

    @property
    def size(self) -> int:
        """Values of the model."""
        return FEATURES * len(self.places)


def hashed(text: str) -> list[int]:
    """The features of a text: its words, and each two that follow each other."""
    words = WORD.findall(text.lower())
    pairs = (f"{one} {two}" for one, two in itertools.pairwise(words))
    return [zlib.crc32(one.encode()) % FEATURES for one in (*words, *pairs)]


@dataclass(frozen=True, slots=True)
class Texts:
    """Examples as a classifier sees them."""

    ids: Ids  # features of all texts, one text after the other
    rows: npt.NDArray[np.uint32]  # whose they are
    labels: npt.NDArray[np.uint16]  # [n]

    @staticmethod
    def of(examples: Sequence[Example], labels: LabelSet) -> "Texts":
        """What these ask, and the label of what they answer."""
        each = [hashed(one.request) for one in examples]
        return Texts(
            np.array([place for ids in each for place in ids], np.uint16),
            np.repeat(np.arange(len(each), dtype=np.uint32), [len(ids) for ids in each]),
            np.array([labels.places[label_of(one)] for one in examples], np.uint16),
        )

    def features(self) -> npt.NDArray[np.float32]:
        """[n, FEATURES], each row of length 1."""
        n = len(self.labels)
        flat = self.rows.astype(np.int64) * FEATURES + self.ids
        counts = np.bincount(flat, minlength=n * FEATURES).reshape(n, FEATURES).astype(np.float32)
        lengths = np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-6)
        whole: npt.NDArray[np.float32] = np.divide(counts, lengths, dtype=np.float32)
        return whole


class LinearLearner:
    """As `Learner`: softmax regression on one party's texts."""

    def __init__(self, train: Texts, test: Texts, labels: LabelSet, recipe: Recipe) -> None:
        self.texts, self.test, self.classes, self.recipe = train, test, len(labels.places), recipe
        self.max_steps = 0  # of one round; 0: all

    def tuned(self, share: float, max_steps: int, least_steps: int) -> "LinearLearner":
        """The same, at a share of its learning rate, in so many steps; its batches stay."""
        del least_steps
        other = copy.copy(self)
        other.recipe = dataclasses.replace(self.recipe, lr=self.recipe.lr * share)
        other.max_steps = max_steps
        return other

    def train(self, flat: Vector, seed: int) -> Trained:
        """As `Learner`."""
        recipe, rng = self.recipe, np.random.default_rng(seed)
        x, y, n = self.texts.features(), self.texts.labels, len(self.texts.labels)
        start = flat.astype(np.float32).reshape(FEATURES, self.classes)
        weights, first, second = start.copy(), np.zeros_like(start), np.zeros_like(start)
        losses, steps = list[float](), 0
        for _ in range(recipe.epochs):
            order = rng.permutation(n)
            for at in range(0, n, recipe.batch):
                if self.max_steps and steps == self.max_steps:
                    break
                rows = order[at : at + recipe.batch]
                slope, loss = gradient(weights, x[rows], y[rows])
                if recipe.proximal:
                    slope += np.float32(recipe.proximal) * (weights - start)
                losses.append(loss)
                steps += 1
                first = BETAS[0] * first + (1 - BETAS[0]) * slope
                second = BETAS[1] * second + (1 - BETAS[1]) * slope * slope
                along = first / (1 - BETAS[0] ** steps)
                across = np.sqrt(second / (1 - BETAS[1] ** steps)) + TINY
                weights -= np.float32(recipe.lr) * (along / across).astype(np.float32)
        return Trained(
            flat=weights.reshape(-1).astype(np.float32),
            examples=n * recipe.epochs,
            tokens=n * recipe.epochs,
            loss=float(np.mean(losses)),
            steps=steps,
        )

    def evaluate(self, flat: Vector) -> Counts:
        """As `Learner`."""
        if not len(self.test.labels):
            return Counts(0, 0)
        scores = self.test.features() @ flat.reshape(FEATURES, self.classes)
        return Counts(int(np.sum(scores.argmax(axis=1) == self.test.labels)), len(self.test.labels))


def losses(flat: Vector, texts: Texts, classes: int) -> npt.NDArray[np.float64]:
    """Of each text [n], under the classifier `flat`."""
    logits = np.float64(SCALE) * (texts.features() @ flat.reshape(FEATURES, classes))
    logits -= logits.max(axis=1, keepdims=True)
    whole: npt.NDArray[np.float64] = np.log(np.exp(logits).sum(axis=1))
    return whole - logits[np.arange(len(texts.labels)), texts.labels]


def gradient(
    weights: npt.NDArray[np.float32], x: npt.NDArray[np.float32], y: npt.NDArray[np.uint16]
) -> tuple[npt.NDArray[np.float32], float]:
    """Slope [FEATURES, classes] and mean loss of softmax regression on a batch [b, FEATURES]."""
    logits = np.float32(SCALE) * (x @ weights)
    logits -= logits.max(axis=1, keepdims=True)
    chances = np.exp(logits)
    chances /= chances.sum(axis=1, keepdims=True)
    rows = np.arange(len(y))
    loss = float(-np.log(np.maximum(chances[rows, y], 1e-12)).mean())
    chances[rows, y] -= 1.0
    return np.float32(SCALE / len(y)) * (x.T @ chances), loss
