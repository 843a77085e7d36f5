"""Which of a library's subfolders a text belongs to: a linear head over the embeddings it has.

Knows paths, vectors and least squares. Knows nothing of encryption: the head is one more matrix
that a question is multiplied with.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..core.errors import DataError

Vectors = npt.NDArray[np.float32]

MAX_LABELS = 64
LARGEST = 0.5  # other texts may score more, and the cipher holds numbers below 4
RIDGE = 0.1  # of the mean square of a direction, added to each: few texts, many dimensions
HELD_OUT = 5  # every so many-th text judges a head that was fitted without it


@dataclass(frozen=True, slots=True)
class Classifier:
    """A head, and how often it is right."""

    labels: tuple[str, ...]
    weights: Vectors  # [labels, dimension]; its own texts score at most `LARGEST`
    accuracy: float  # on texts that were left out


def fit(folders: Sequence[str], embeddings: Vectors) -> Classifier:
    """Fit a head on the texts that lie in subfolders: each first folder of a path is a label.

    Args:
        folders: one for each row of `embeddings`; "" where a text lies in none and counts for none.

    Raises:
        DataError: fewer than two subfolders, or too many.
    """
    labels = labels_of(folders)
    rows = np.flatnonzero([bool(folder) for folder in folders])
    number = {label: at for at, label in enumerate(labels)}
    right = np.array([number[folder] for folder in folders if folder])
    vectors = np.asarray(embeddings, np.float64)[rows]
    judged = np.arange(len(rows)) % HELD_OUT == HELD_OUT - 1
    accuracy = 0.0
    if judged.any():
        tried = _solve(vectors[~judged], right[~judged], len(labels))
        accuracy = float(((vectors[judged] @ tried.T).argmax(axis=1) == right[judged]).mean())
    head = _solve(vectors, right, len(labels))
    largest = float(np.abs(vectors @ head.T).max())
    return Classifier(labels, (head * (LARGEST / largest)).astype(np.float32), accuracy)


def labels_of(folders: Sequence[str]) -> tuple[str, ...]:
    """The folders, each once, in order.

    Raises:
        DataError: fewer than two, or too many.
    """
    labels = tuple(sorted(set(folders) - {""}))
    if not 2 <= len(labels) <= MAX_LABELS:
        raise DataError(
            f"{len(labels)} subfolders with texts, 2 to {MAX_LABELS} are needed to tell apart; "
            f"sort the texts into one folder a label"
        )
    return labels


def _solve(
    vectors: npt.NDArray[np.float64], right: npt.NDArray[np.int64], labels: int
) -> npt.NDArray[np.float64]:
    """Ridge regression, a column a label; labels count alike however many texts they have."""
    wanted: npt.NDArray[np.float64] = 2.0 * np.eye(labels)[right] - 1.0
    counts = np.bincount(right, minlength=labels)
    weight = 1.0 / np.maximum(1, counts)[right]
    weighted = (vectors * weight[:, None]).T
    square = weighted @ vectors
    square += RIDGE * np.trace(square) / len(square) * np.eye(len(square))
    return np.asarray(np.linalg.solve(square, weighted @ wanted).T, np.float64)
