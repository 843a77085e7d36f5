"""The study of personal adapters: what it measures, and on what."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from quietchoir.federation.personalization.settings import PersonalSettings
from quietchoir.federation.spec.policy import AdapterTable, ProtectionTable, Recipe
from quietchoir.simulations.personal import ARMS, Study, share, show
from quietchoir.simulations.scenario import Population, Scenario
from quietchoir.tests.fakes.training import tiny_pair

SCENARIO = Scenario(
    name="tiny",
    seed=7,
    population=Population(households=3, train=6, test=5),
    adapter=AdapterTable(rank=2, alpha=4.0, upper_layers=2),
    protection=ProtectionTable(threshold=3, min_cohort=3),
    recipe=Recipe(rounds=1, batch=4),
)


@pytest.fixture(scope="module")
def study() -> Study:
    return Study(SCENARIO, tiny_pair()[0], PersonalSettings(epochs=1), alone_lr=1e-2)


def test_what_the_guard_sees_is_not_what_is_measured(study: Study) -> None:
    for home in study.homes:
        assert (len(home.train), len(home.guard), len(home.measured)) == (6, 3, 2)
        assert not {example.prompt for example in home.guard.examples} & {
            example.prompt for example in home.measured.examples
        }


def test_personal_training_stands_on_the_federations_own_public_a(study: Study) -> None:
    assert study.trainer.shape.seed == SCENARIO.seed


def test_every_arm_is_told_and_shown(study: Study, tmp_path: Path) -> None:
    said: list[str] = []
    found = study.run(said.append)
    assert (
        {*ARMS, "taken", "households"} == found.keys()
        and found["households"] == 3
        and len(said) == 4
    )
    assert all(0.0 <= found[arm] <= 1.0 for arm in ARMS)
    console = Console(file=io.StringIO(), width=120)
    summary = show(console, [found, {**found, "personal": found["shared"] + 0.25}])
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert (
        "+25.0 points" in told
        and "elsewhere: personal" in told
        and summary["shared"]["median"] == found["shared"]
    )
    assert share([]) == 0.0
