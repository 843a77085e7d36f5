"""A linear head tells subfolders apart, and says how often it is right."""

import numpy as np
import pytest

from quietchoir.core.errors import DataError
from quietchoir.private_search import classifier
from quietchoir.tests.fakes.search import unit_rows


def test_subfolders_are_told_apart_and_accuracy_is_that_of_texts_left_out():
    centres = unit_rows(3, 32)
    right = np.arange(120) % 3
    rows = centres[right] + 0.5 * unit_rows(120, 32, seed=1)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    folders = ["abc"[label] for label in right]
    found = classifier.fit([*folders, ""], np.concatenate([rows, rows[:1]]))
    assert found.labels == ("a", "b", "c") and found.weights.shape == (3, 32)
    assert found.accuracy > 0.9 and np.isclose(
        np.abs(rows @ found.weights.T).max(), classifier.LARGEST
    )
    assert ((centres @ found.weights.T).argmax(axis=1) == np.arange(3)).all()
    # the control: labels without any sense are right by chance
    shuffled = list(np.random.default_rng(0).permutation(folders))
    assert classifier.fit(shuffled, rows).accuracy < 0.7


@pytest.mark.parametrize("folders", [[""] * 4, ["a"] * 4])
def test_fewer_than_two_subfolders_are_refused(folders):
    with pytest.raises(DataError, match="one folder a label"):
        classifier.fit(folders, unit_rows(4, 8))
