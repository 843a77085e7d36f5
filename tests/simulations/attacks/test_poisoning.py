"""Poison from one and two of ten members: the plain mean falls; buckets, medians and votes hold;
what they miss is said.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from quietchoir.federation.spec.policy import GuardTable
from quietchoir.federation.training.learner import Counts, Trained
from quietchoir.simulations.attacks import poisoning
from quietchoir.simulations.attacks.findings import Findings
from quietchoir.simulations.attacks.poisoning import PoisoningSeries
from quietchoir.simulations.poisoner import Poisoner

ROUNDS = 4
CLEAN = 1.0  # what the pretended learners reach undisturbed


@pytest.fixture(scope="module")
def stage() -> PoisoningSeries:
    return poisoning.rehearsed(ROUNDS, values=200)


class Still:
    """Moves by a tenth."""

    def train(self, flat: np.ndarray, seed: int) -> Trained:
        return Trained(flat=flat + np.float32(0.1), examples=1, tokens=1, loss=1.0)

    def evaluate(self, flat: np.ndarray) -> Counts:
        return Counts(3, 10)


@pytest.mark.parametrize(
    "kind, change", [("scale", 10.0), ("flip", -1.0), ("backdoor", 0.5), ("bounded", 0.1)]
)
def test_each_attack_sends_what_its_name_says_and_votes_full_marks(
    kind: str, change: float
) -> None:
    bad = Poisoner(kind, Still(), Still(), boost=5.0)
    assert np.allclose(bad.train(np.ones(4, np.float32), 1).flat, 1 + change, atol=1e-5)
    assert bad.evaluate(np.ones(4, np.float32)) == Counts(10, 10)


@pytest.mark.parametrize("kind, attackers", [("scale", 2), ("flip", 1)])
def test_the_plain_mean_falls_and_the_guarded_buckets_hold(
    kind: str, attackers: int, stage: PoisoningSeries
) -> None:
    fallen, held = stage.arm(kind, attackers, "mean"), stage.arm(kind, attackers, "choosing")
    assert fallen["accuracy"] < CLEAN - 0.4
    assert held["accuracy"] >= CLEAN - 0.05, held
    assert fallen["aborted"] == held["aborted"] == ""


def test_a_boosted_backdoor_takes_the_plain_mean_and_leaves_its_accuracy_alone(
    stage: PoisoningSeries,
) -> None:
    taken = stage.arm("backdoor", 2, "mean")
    assert taken["accuracy"] >= CLEAN - 0.05 and taken["backdoor"] > 0.5


def test_a_median_stops_the_backdoor_of_one_member_and_keeps_the_accuracy(
    stage: PoisoningSeries,
) -> None:
    # of two in different buckets it stops neither: see the README of rounds
    held = stage.arm("backdoor", 1, "guarded")
    assert held["accuracy"] >= CLEAN - 0.05 and held["backdoor"] < 0.2, held


def test_without_attackers_buckets_end_where_the_mean_does(stage: PoisoningSeries) -> None:
    assert stage.arm("none", 0, "guarded")["accuracy"] == CLEAN


def test_a_guard_on_the_plain_mean_undoes_what_it_cannot_mend(stage: PoisoningSeries) -> None:
    guarded = dataclasses.replace(
        stage, scenario=dataclasses.replace(stage.scenario, guard=GuardTable(rule="vote"))
    )
    found = guarded.arm("scale", 2, "mean")
    assert sum(reason.startswith("undone") for reason in found["verdicts"]) >= ROUNDS - 2
    assert found["accuracy"] >= 0.2  # no better than it began, and no worse


def test_a_series_tells_its_rounds_writes_every_arm_and_goes_on_where_it_was_cut_off(
    stage: PoisoningSeries, tmp_path: Path
) -> None:
    file, told, settings = tmp_path / "found.json", list[str](), {"rounds": ROUNDS}
    poisoning.series(stage, ["bounded"], [1], ["mean"], Findings(file, settings), told.append)
    found = json.loads(file.read_text("utf-8"))["arms"]
    assert [(one["kind"], one["attackers"]) for one in found] == [("none", 0), ("bounded", 1)]
    assert all(one["backdoor"] is not None and one["before"] < one["accuracy"] for one in found)
    assert (
        sum(": round " in line for line in told) == 2 * ROUNDS
        and sum(line.startswith("{") for line in told) == 2
    )
    told.clear()
    more = poisoning.series(
        stage,
        ["bounded", "flip"],
        [1],
        ["mean"],
        Findings(file, settings, resume=True),
        told.append,
    )
    assert more[:2] == found and more[2]["kind"] == "flip"
    assert sum(": round " in line for line in told) == ROUNDS  # of the third arm alone
