"""A simulated federation is the real one: same parties, same coordinator, same masks."""

import dataclasses
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from quietchoir.core.errors import ConfigError, RoundAborted
from quietchoir.federation.events import AbortedEvent, FederationEvent, RoundEvent, StoppedEvent
from quietchoir.federation.rounds.report import RunReport
from quietchoir.federation.spec.policy import (
    AdapterTable,
    GuardTable,
    PrivacyTable,
    ProtectionTable,
    Recipe,
)
from quietchoir.simulations import report
from quietchoir.simulations.compare import Comparison, summarize
from quietchoir.simulations.population import populate
from quietchoir.simulations.run import simulate
from quietchoir.simulations.scenario import Fault, Population, Scenario
from quietchoir.tests.fakes.training import tiny_pair

SCENARIO = Scenario(
    name="tiny",
    population=Population(households=4, train=6, test=4),
    adapter=AdapterTable(rank=2, alpha=4.0, upper_layers=2),
    protection=ProtectionTable(threshold=3, min_cohort=3),
    recipe=Recipe(rounds=2, batch=4, attempts=2),
)


def run(scenario: Scenario) -> tuple[RunReport, list[FederationEvent]]:
    """Simulate with a model of a few thousand weights; return the report and all events."""
    events: list[FederationEvent] = []
    return simulate(scenario, tiny_pair()[0], on_event=events.append), events


def test_masked_rounds_give_what_plain_rounds_give() -> None:
    masked, _ = run(SCENARIO)
    plain, _ = run(
        dataclasses.replace(
            SCENARIO, protection=dataclasses.replace(SCENARIO.protection, mode="plain")
        )
    )
    assert (
        [entry["scored"] for entry in masked.history]
        == [entry["scored"] for entry in plain.history]
        == [4, 4, 4]
    )
    losses = [[entry["loss"] for entry in one.history[:2]] for one in (masked, plain)]
    # rounding is random, so the second round starts a little apart
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert masked.held["kind"] == "masked"


def test_a_party_that_vanishes_is_missing_from_the_sum_and_nothing_else() -> None:
    fault = Fault(party="household-1", round=1, stage="mask")
    outcome, _ = run(dataclasses.replace(SCENARIO, faults=(fault,)))
    assert [entry["parties"] for entry in outcome.history[:2]] == [
        ["household-0", "household-2", "household-3"],
        ["household-0", "household-1", "household-2", "household-3"],
    ]
    assert outcome.history[0]["scored"] == 3


def test_a_round_below_its_minimum_is_abandoned_and_tried_again() -> None:
    faults = tuple(Fault(party=f"household-{index}", round=1, stage="mask") for index in (0, 1))
    outcome, events = run(dataclasses.replace(SCENARIO, faults=faults))
    assert len(outcome.aborted) == 1 and outcome.rounds == 2
    assert [event.round for event in events if isinstance(event, AbortedEvent)] == [1]


def test_parties_that_stay_away_end_the_run_with_a_reason() -> None:
    faults = tuple(
        Fault(party=f"household-{index}", round=1, stage="train", attempts=9) for index in (0, 1)
    )
    with pytest.raises(RoundAborted, match="2 of 4 members are ready, need 3"):
        run(dataclasses.replace(SCENARIO, faults=faults))


def test_a_population_can_be_read_from_folders(tmp_path: Path) -> None:
    for party in ("ann", "ben", "cleo"):
        (tmp_path / party).mkdir()
        for part in ("train", "test"):
            lines = [
                json.dumps(
                    {
                        "messages": [
                            {"role": "user", "content": f"{party} {n}"},
                            {"role": "assistant", "content": "yes"},
                        ]
                    }
                )
                for n in range(3)
            ]
            (tmp_path / party / f"{part}.jsonl").write_text("\n".join(lines))
    people = populate(Scenario(name="own", population=Population(kind="folder", folder=tmp_path)))
    assert [(person.name, len(person.train), len(person.test)) for person in people] == [
        ("ann", 3, 3),
        ("ben", 3, 3),
        ("cleo", 3, 3),
    ]


def test_an_empty_folder_is_refused_with_the_command_that_fills_it(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="no parties here; make some with `quietchoir data build jsonl`"
    ):
        populate(Scenario(name="own", population=Population(kind="folder", folder=tmp_path)))


def test_every_arm_of_a_comparison_sees_equally_many_examples() -> None:
    comparison = Comparison(SCENARIO, tiny_pair()[0], 1e-2)
    said: list[str] = []
    found = comparison.run(said.append)
    assert (
        set(found) == {"zero_shot", "alone_own", "alone_union", "together", "central"}
        and len(said) == 5
    )
    assert comparison.examples_seen == 4 * 6 * 2
    summary = summarize([found, {arm: accuracy + 0.5 for arm, accuracy in found.items()}])
    assert all(entry["low"] <= entry["median"] <= entry["high"] for entry in summary.values())


def test_a_run_is_shown_with_its_numbers() -> None:
    outcome, events = run(SCENARIO)
    console = Console(file=io.StringIO(), width=150)
    report.show_run(console, dataclasses.asdict(outcome))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "one node's update, masked" in shown and "the sum of all" in shown
    lines = [text for event in events if (text := report.line(event, 2)) is not None]
    assert any(line.startswith("  round  2/2") for line in lines) and lines[-1].startswith(
        "  all rounds done"
    )
    # as `make demo` has them, from another process
    told = [json.loads(json.dumps(event.table())) for event in events]
    own = {"preparing", "trained"}  # a simulation's alone
    heard = [report.line_of(table, 2) for table in told if table["event"] not in own]
    assert [text for text in heard if text is not None] == [
        line for line in lines if "requests to learn from" not in line
    ]
    stopped = StoppedEvent(round=1, reason="spent")
    assert report.line_of(stopped.table(), 2) == report.line(stopped, 2)


PRETENDED = Scenario(
    name="pretended",
    population=Population(kind="rehearsal", households=12, values=64),
    protection=ProtectionTable(mode="plain", bits=16, threshold=2, min_cohort=10),
    recipe=Recipe(rounds=9, ranges="tensor"),
    privacy=PrivacyTable(
        mechanism="skellam", clip=1.0, noise_multiplier=4.0, epsilon=3.0, counters="exact"
    ),
)


def test_a_rehearsed_population_needs_no_model_and_ends_at_its_budget() -> None:
    outcome = simulate(PRETENDED, None)
    assert (
        0 < outcome.rounds < 9 and outcome.privacy is not None and outcome.privacy["epsilon"] <= 3.0
    )
    console = Console(file=io.StringIO(), width=250)
    report.show_run(console, dataclasses.asdict(outcome))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert (
        "of 3 at delta 1e-05" in shown
        and ("one member: its whole update") in shown
        and "the budget is 3" in shown
    )
    line = report.line(RoundEvent(entry=outcome.history[0]), 9)
    assert line is not None and "epsilon" in line


def test_a_population_that_learns_in_earnest_needs_a_model() -> None:
    with pytest.raises(ConfigError, match="needs a model"):
        simulate(SCENARIO, None)


def test_a_scenario_whose_tables_do_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="votes are counters"):
        dataclasses.replace(
            PRETENDED, privacy=PrivacyTable(mechanism="skellam"), guard=GuardTable(rule="vote")
        )
