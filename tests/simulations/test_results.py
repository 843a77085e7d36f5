"""A result holds what it came from, is not made twice, and a run that is killed goes on."""

import dataclasses
import json
import re
import xml.etree.ElementTree as ET
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from quietchoir.cli import main
from quietchoir.core.errors import ConfigError
from quietchoir.federation.events import FederationEvent, RoundEvent
from quietchoir.federation.spec.policy import PrivacyTable, ProtectionTable, Recipe, ScheduleTable
from quietchoir.simulations import commands, results, results_page, scale
from quietchoir.simulations.run import resumable
from quietchoir.simulations.scenario import (
    Dropouts,
    PoisonAttack,
    Population,
    Scenario,
    ScenarioArm,
)

POOL = """\
name = "texts"
model = "linear"
[population]
kind = "file"
file = "texts.csv"
partition = "dirichlet"
parties = 6
alpha = 1.0
[protection]
mode = "plain"
min_cohort = 3
bits = 12
[recipe]
rounds = 4
lr = 0.05
update_range = 2.0
[personal]
rounds = 1
"""
SWEEP = """
[sweep]
attack = [[], [{ kind = "backdoor", count = 1 }]]
"""
LABELS = ("buy", "sell", "hold")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scenario over a table of texts, with an attack and without."""
    folder = tmp_path_factory.mktemp("texts")
    rows = [f"please {LABELS[n % 3]} {n // 3} of them,{LABELS[n % 3]}" for n in range(300)]
    (folder / "texts.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (folder / "texts.toml").write_text(POOL + SWEEP)
    return folder


@pytest.fixture(scope="module")
def ran(texts: Path) -> Path:
    """Its results, made by the command."""
    out = texts / "runs"
    assert main(["simulate", "run", str(texts / "texts.toml"), "--out", str(out)]) == 0
    return out


def test_parties_learn_from_a_table_and_the_result_says_what_of(ran: Path) -> None:
    honest, attacked = results.gather([ran])
    if honest["arm"] != "attack=none":
        honest, attacked = attacked, honest
    assert honest["accuracy"]["before"] < 0.5 < 0.9 < honest["accuracy"]["after"]
    assert honest["spread"]["parties"] == 6 and honest["personal"]["alone"]["parties"] == 6
    assert [line["round"] for line in honest["rounds"]] == [1, 2, 3, 4]
    assert honest["curve"][0][0] == 0 and honest["curve"][-1][0] == 4
    assert honest["scenario"]["population"]["alpha"] == 1.0
    assert honest["versions"]["quietchoir"] and honest["data"] and "cores" in honest["machine"]
    assert honest["attack_success"] is None and attacked["attack_success"] > 0.5
    assert attacked["spread"]["parties"] == 5  # of honest ones
    # scored for them alone: attackers give every adapter full marks
    assert abs(attacked["accuracy"]["after"] - attacked["spread"]["mean"]) < 0.1


def test_a_result_that_is_there_is_found_and_of_other_data_is_made_anew(
    texts: Path, ran: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["simulate", "compare", str(texts / "texts.toml"), "--out", str(ran)]
    assert not main(command)
    assert capsys.readouterr().out.count("found in") == 2
    arm = ScenarioArm("", Scenario(name="s", population=Population(kind="rehearsal")))
    assert results.finished(ran, arm.scenario) is None
    (file, *_) = ran.rglob(results.RESULT)
    kept = json.loads(file.read_text())
    file.write_text(json.dumps({**kept, "data": "other"}))
    assert not main([*command, "--set", "recipe.rounds=2"])
    told = capsys.readouterr().out
    assert "found in" not in told and "2 of 2" in told
    assert json.loads(file.read_text())["data"] == "other"  # of another setting: beside it
    file.write_text(json.dumps(kept))


def test_a_report_is_one_page_without_an_address_and_the_same_as_markdown(
    ran: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    written = results_page.write(results.gather([ran]), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "texts attack=backdoor/1" in page and page.count("<svg") == len(written) - 2 >= 5
    addresses = set(re.findall(r'(?:href|src)="([^#"][^"]*)"', page))
    assert not addresses and "@import" not in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for path in written:
        if path.suffix == ".svg":
            ET.fromstring(path.read_text())
    text = (tmp_path / "report.md").read_text()
    assert "| triggered |" in text and "](accuracy.svg)" in text


def test_a_folder_without_results_says_how_to_make_some(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make one with `quietchoir simulate run`"):
        results.gather([tmp_path])
    (tmp_path / results.RESULT).write_text("{")
    with pytest.raises(ConfigError, match="no result of a simulation"):
        results.gather([tmp_path])


LONG = Scenario(
    name="long",
    population=Population(kind="rehearsal", households=4, values=16),
    protection=ProtectionTable(mode="plain"),
    recipe=Recipe(rounds=4),
)


class Killed(Exception):
    """As by Ctrl-C."""


def test_a_killed_run_goes_on_from_its_last_whole_round(tmp_path: Path) -> None:
    seen: list[int] = []

    def kill(event: FederationEvent) -> None:
        if isinstance(event, RoundEvent) and event.name == "round":
            seen.append(event.entry["round"])
            if event.entry["round"] == 2:
                raise Killed

    with pytest.raises(Killed):
        results.perform(ScenarioArm("", LONG), None, tmp_path, kill)
    assert seen == [1, 2] and not (tmp_path / results.RESULT).exists()
    went_on: list[int] = []

    def note(event: FederationEvent) -> None:
        if isinstance(event, RoundEvent) and event.name == "round":
            went_on.append(event.entry["round"])

    found = results.perform(ScenarioArm("", LONG), None, tmp_path, note)
    assert went_on == [3, 4] and [line["round"] for line in found["rounds"]] == [1, 2, 3, 4]
    assert found["resumed"]
    assert not [*tmp_path.glob(f"{results.STATE}*")]  # nobody's keys stay
    assert results.finished(tmp_path, LONG) == found


def test_what_a_killed_run_left_is_of_no_use_to_another_setting(tmp_path: Path) -> None:
    """The instance: rounds at one rate went on under another, and the result named the second."""

    def kill(event: FederationEvent) -> None:
        if isinstance(event, RoundEvent) and event.name == "round":
            raise Killed

    with pytest.raises(Killed):
        results.perform(ScenarioArm("", LONG), None, tmp_path, kill)
    other = dataclasses.replace(LONG, recipe=Recipe(rounds=4, lr=0.5))
    begun: list[int] = []

    def note(event: FederationEvent) -> None:
        if isinstance(event, RoundEvent) and event.name == "round":
            begun.append(event.entry["round"])

    found = results.perform(ScenarioArm("", other), None, tmp_path, note)
    assert begun == [1, 2, 3, 4] and not found["resumed"]
    assert not [*tmp_path.glob(f"{results.STATE}*")]


def test_a_run_whose_members_hold_what_would_be_lost_begins_anew() -> None:
    masked = ProtectionTable(threshold=3)
    changes: list[tuple[dict[str, Any], bool]] = [
        ({}, True),
        ({"protection": masked}, False),  # they follow the adapter
        ({"protection": masked, "recipe": Recipe(download="adapter")}, True),
        ({"protection": masked, "protection_cost": "modelled"}, True),
        ({"protection": ProtectionTable(mode="sealed", threshold=3)}, False),
        ({"schedule": ScheduleTable(rounds="buffered")}, False),
        ({"privacy": PrivacyTable(mechanism="skellam", counters="exact")}, False),
    ]
    assert [resumable(dataclasses.replace(LONG, **one)) for one, _ in changes] == [
        wanted for _, wanted in changes
    ]


def test_a_run_without_enough_members_is_a_result_that_says_so(tmp_path: Path) -> None:
    lost = dataclasses.replace(
        LONG, dropouts=Dropouts(share=0.99), recipe=Recipe(rounds=2, attempts=2)
    )
    found = results.perform(ScenarioArm("", lost), None, tmp_path)
    assert "are ready, need 3" in found["failed"] and len(found["aborted"]) == 2
    assert found["rounds"] == [] and found["spread"] is None


def test_attacks_that_a_population_cannot_hold_are_refused(tmp_path: Path) -> None:
    for attack, words in (
        (PoisonAttack(kind="backdoor"), "needs examples"),
        (PoisonAttack(kind="flip", count=4), "leave one honest"),
    ):
        arm = ScenarioArm("", dataclasses.replace(LONG, attack=(attack,)))
        with pytest.raises(ConfigError, match=words):
            results.perform(arm, None, tmp_path)


def test_an_attacker_is_honest_until_its_round(tmp_path: Path) -> None:
    late = PoisonAttack(kind="scale", from_round=3)
    wide = dataclasses.replace(
        LONG, attack=(late,), recipe=Recipe(rounds=4, update_range=50.0, server_momentum=0.0)
    )
    found = results.perform(ScenarioArm("", wide), None, tmp_path)
    norms = [line["update_norm"] for line in found["rounds"]]
    assert max(norms[:2]) < 1 < min(norms[2:])


def test_costs_of_a_federation_that_was_not_run_are_marked_as_computed(tmp_path: Path) -> None:
    sizes = ["--set", "scale.parties=100000", "--set", "scale.cohort=200"]
    main(["simulate", "run", "smoke", "--out", str(tmp_path), *sizes])
    (found,) = results.gather([tmp_path])
    computed = found["computed"]
    assert computed["computed"] is True and computed["parties"] == 100_000
    assert computed["round"]["member_s"] > 0 < computed["measured_unit_costs"]["verify_s"]
    assert computed["drawn_in_the_mean"] == pytest.approx(2 * 200 / 100_000)
    assert computed["too_few_stay_log10"] < -9


@pytest.mark.parametrize(
    ("words", "key", "values"),
    [
        ("recipe.lr=0.1,0.2", "recipe.lr", [0.1, 0.2]),
        ("protection.mode=plain", "protection.mode", ["plain"]),
        ("population.ranks=[4, 8]", "population.ranks", [[4, 8]]),
    ],
)
def test_a_change_on_the_command_line_is_read_as_toml(
    words: str, key: str, values: list[Any]
) -> None:
    assert commands.changed(words) == (key, values)


def test_a_change_without_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        commands.changed("recipe.lr=")


def test_scenarios_are_listed_with_their_questions_and_shown_whole(
    capsys: pytest.CaptureFixture[str],
) -> None:
    commands.list_scenarios(Namespace())
    told = capsys.readouterr().out
    assert "dp-sweep  (4 runs)  What does differential privacy leave" in told.replace("\n", " ")
    commands.show_scenario(Namespace(scenario="smoke"))
    shown = capsys.readouterr().out
    assert 'name = "smoke"' in shown and "[availability]" in shown


def test_what_flowers_engine_cannot_play_is_refused_by_name() -> None:
    lost = dataclasses.replace(LONG, dropouts=Dropouts(share=0.1))
    with pytest.raises(ConfigError, match="cannot play dropouts"):
        scale.check_engine(lost)
    scale.check_engine(LONG)
