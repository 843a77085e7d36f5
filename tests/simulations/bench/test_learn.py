"""The suite `learn` on a tiny random network: tasks are what they say, every figure is there, and a
run that was cut off goes on with the arm that is missing.
"""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quietchoir.core.models.weights import Weights
from quietchoir.core.toolcall import parse_all
from quietchoir.simulations.bench import learn
from quietchoir.simulations.bench.figures import look_up
from quietchoir.tests.fakes.training import tiny_pair

SMALL = replace(learn.QUICK, train=dict.fromkeys(learn.TASKS, 12), test=6)


def texts(examples: tuple[Any, ...]) -> set[str]:
    return {one.request for one in examples}


@pytest.mark.parametrize("task", learn.TASKS)
def test_members_of_a_task_have_what_it_says_and_nobody_trains_on_what_is_asked(task: str) -> None:
    parties = learn.TASKS[task](1, SMALL)
    assert learn.TASKS[task](1, SMALL) == parties != learn.TASKS[task](2, SMALL)
    assert [(len(one.train), len(one.test)) for one in parties] == [(12, 6)] * learn.MEMBERS
    learned = set.union(*(texts(one.train) for one in parties))
    asked = set.union(*(texts(one.test) for one in parties))
    assert len(learned) == 12 * learn.MEMBERS and not learned & asked
    answers = [{one.answer for one in (*party.train, *party.test)} for party in parties]
    calls = [parse_all(answer) for several in answers for answer in several]
    assert all(calls) if task == "tools" else not any(calls)
    apart = sum(map(len, answers)) == len(set.union(*answers))
    assert apart or task == "intents_de"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = tiny_pair()[0]
    model = Weights(
        replace(found.architecture, context_length=4096), found.tensors, found.tokenizer, "0" * 64
    )
    monkeypatch.setattr("quietchoir.core.models.weights.load", lambda path: model)
    monkeypatch.setattr("quietchoir.core.models.hub.catalog.find", lambda name: tmp_path)
    monkeypatch.setattr("quietchoir.core.paths.home", lambda: tmp_path)


@pytest.mark.usefixtures("tiny")
def test_a_report_has_every_figure_and_a_run_that_was_cut_off_goes_on() -> None:
    kept: list[dict[str, Any]] = []

    def run(earlier: dict[str, Any] | None) -> tuple[dict[str, Any], list[str]]:
        told: list[str] = []
        report = learn.measure(
            quick=True,
            tell=told.append,
            keep=lambda part: kept.append(copy.deepcopy(part)),
            earlier=earlier,
        )
        return report, told

    report, told = run(None)
    for row in learn.figures(report):
        assert isinstance(look_up(report, row.key), int | float), row.key
    for task in learn.TASKS:
        run_ = report["runs"][task]["1"]
        assert set(run_) == set(learn.ARMS)
        assert run_["auto"]["bytes"] > run_["fixed"]["bytes"] > 0  # each round is voted on
        assert run_["auto"]["knobs"]["rates"][0] == [1.0]
        assert report[task]["knobs"]["1"]["central"] in (
            {"lr": one.lr, "batch": one.batch} for one in learn.QUICK.grid
        )
    assert report["train"]["examples_per_s"] > 0 and len(told) == 1 + 3 * len(learn.ARMS)
    # all but the last arm was kept when it was cut off
    again, told = run(kept[-2])
    assert len(told) == 1 and told[0].startswith("tools, seed 1, auto")
    assert again["intents"] == report["intents"]
    other, told = run(kept[-1] | {"sizes": "of another model"})
    assert len(told) > 1 and other["intents"]["zero_shot"] == report["intents"]["zero_shot"]
