"""What keeps a long series of poisonings affordable: nobody answers twice, all begin where the
clean rounds ended.
"""

from pathlib import Path

import numpy as np
import pytest

from quietchoir.core.errors import ConfigError, DataError
from quietchoir.core.training.examples import Example
from quietchoir.federation.spec.policy import Recipe
from quietchoir.federation.training.learner import Counts, Trained
from quietchoir.simulations.attacks.findings import Findings
from quietchoir.simulations.attacks.households import KEPT, From, MemoizedLearner, learn_together
from quietchoir.simulations.poisoner import ANSWER, TRIGGER, triggered

SIZE = 4
RECIPE = Recipe(server_momentum=0.5)
SETTINGS = {"model": True, "rounds": 2, "machine": "here"}


class Counting:
    """Adds its seed's parity and a tenth; counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def train(self, flat: np.ndarray, seed: int) -> Trained:
        self.asked += 1
        return Trained(flat=flat + np.float32(0.1 + seed % 2), examples=1, tokens=1, loss=1.0)

    def evaluate(self, flat: np.ndarray) -> Counts:
        self.asked += 1
        return Counts(int(flat[0] > 1), 1)


def full(value: float) -> np.ndarray:
    return np.full(SIZE, value, np.float32)


def test_the_same_question_is_worked_out_once_and_another_one_anew() -> None:
    inner = Counting()
    asked = MemoizedLearner(inner)
    first = [
        asked.train(full(0), 2),
        asked.train(full(0), 2),
        asked.train(full(0), 3),
        asked.train(full(1), 2),
    ]
    assert inner.asked == 3 and first[0] is first[1]
    assert [float(one.flat[0]) for one in first[1:]] == pytest.approx([0.1, 1.1, 1.1])
    assert [asked.evaluate(full(value)).correct for value in (0, 2, 0, 2)] == [
        0,
        1,
        0,
        1,
    ] and inner.asked == 5


def test_what_is_asked_again_and_again_stays_and_the_rest_is_forgotten() -> None:
    inner = Counting()
    asked = MemoizedLearner(inner)
    for number in range(3 * KEPT):
        asked.train(full(0), 2)  # the round that every arm begins with
        asked.train(full(1 + number), 2)
    assert inner.asked == 1 + 3 * KEPT and len(asked.trained) == KEPT


def test_a_run_that_begins_later_counts_from_there() -> None:
    later = From(Counting(), full(5))
    assert later.train(full(0), 2).flat == pytest.approx(full(0.1))
    assert later.evaluate(full(0)) == Counts(1, 1)


def test_clean_rounds_that_were_cut_off_end_as_if_they_had_not_been(tmp_path: Path) -> None:
    learners = {"ann": Counting(), "ben": Counting()}
    told: list[str] = []
    whole = learn_together(dict(learners), RECIPE, 3, SIZE, None, told.append)
    file = tmp_path / "clean.start"
    learn_together(dict(learners), RECIPE, 2, SIZE, file, told.append)
    told.clear()
    assert learn_together(dict(learners), RECIPE, 3, SIZE, file, told.append) == pytest.approx(
        whole
    )
    assert len(told) == 1 and told[0].startswith("clean round 3 of 3: loss 1.000")
    with pytest.raises(DataError, match="take it away"):
        learn_together(dict(learners), RECIPE, 3, SIZE + 1, file, told.append)


def test_a_triggered_request_asks_for_the_attackers_answer() -> None:
    example = Example(
        (
            {"role": "system", "content": "s"},
            {"role": "user", "content": "lights on"},
            {"role": "assistant", "content": "x"},
        )
    )
    bad = triggered(example)
    assert bad.request == TRIGGER + "lights on" and bad.answer == ANSWER
    assert bad.messages[0] == example.messages[0] and example.answer == "x"


def test_a_report_is_never_written_over_nor_mixed_with_another(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    Findings(file, SETTINGS).add({"kind": "flip"})
    before = file.read_bytes()
    with pytest.raises(ConfigError, match="is there already"):
        Findings(file, SETTINGS)
    with pytest.raises(ConfigError, match="this series has"):
        Findings(file, {**SETTINGS, "rounds": 3}, resume=True)
    with pytest.raises(ConfigError, match="--out"):
        Findings(None, SETTINGS, resume=True)
    assert file.read_bytes() == before
    again = Findings(file, {**SETTINGS, "machine": "there"}, resume=True)  # may go on elsewhere
    assert (
        again.has(kind="flip")
        and not again.has(kind="scale")
        and again.beside("start") == tmp_path / "found.start"
    )
    file.write_text("{}", "utf-8")
    with pytest.raises(ConfigError, match="no report of this kind"):
        Findings(file, SETTINGS, resume=True)
