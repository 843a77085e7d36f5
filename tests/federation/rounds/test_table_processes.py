"""`[privacy]`, `[guard]` and `[aggregation]` of a federation file, kept by real processes over
TLS on loopback.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quietchoir.federation.spec.policy import GuardTable, PrivacyTable
from quietchoir.simulations.cluster import PATIENCE_S, Cluster, ClusterPlan
from quietchoir.simulations.faults.hostile import POISONED
from quietchoir.simulations.processes import Child, ProcessGroup

SIZE = 400
BUDGET = 4.0
HOSTILE = "node-01"
PATIENT = {"stage_timeout_s": 60.0, "work_timeout_s": 60.0}
NOISY = ClusterPlan(
    nodes=3,
    rounds=50,
    size=SIZE,
    bits=16,
    recipe=PATIENT,
    tables={
        "privacy": PrivacyTable(
            mechanism="discrete-gaussian", noise_multiplier=2.0, epsilon=BUDGET, counters="exact"
        )
    },
)
WATCHED = ClusterPlan(
    nodes=4,
    min_cohort=4,
    rounds=POISONED + 3,
    size=SIZE,
    recipe={"server_momentum": 0.0, **PATIENT},
    tables={"guard": GuardTable(rule="vote")},
)


class Story:
    """One run, and what it left behind."""

    def __init__(self, stage: ProcessGroup, folder: Path, plan: ClusterPlan) -> None:
        self.stage, self.folder, self.plan = stage, folder, plan
        self.cluster = Cluster(stage, folder, plan)
        self.coordinator = self.cluster.coordinate(f"{folder.name}-coordinator", "--grace", "30")
        self.nodes: dict[str, Child] = {}

    def join(self, name: str, *before: str) -> None:
        """Start one member; `before` stands in place of `quietchoir`."""
        command = [
            sys.executable,
            "-m",
            *(before or ("quietchoir.cli",)),
            *self.cluster.joining(name),
        ]
        self.nodes[name] = self.stage.start_other(f"{self.folder.name}-{name}", command)

    def end(self) -> None:
        """Everybody leaves by itself, well."""
        for node in self.nodes.values():
            node.until("adopted", PATIENCE_S)
        for child in (self.coordinator, *self.nodes.values()):
            child.finish(PATIENCE_S)
        self.report: dict[str, Any] = self.cluster.read_report()
        self.status: dict[str, Any] = json.loads(
            self.stage.run("federation", "status", "--state", str(self.folder / "state"), "--json")
        )

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """The rounds that trained."""
        return [entry for entry in self.report["history"] if entry["kind"] == "train"]


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Story]]:
    """A run with noise, and one with a poisoner among the members, at the same time."""
    folder = tmp_path_factory.mktemp("tables")
    turns = folder / "hostile.txt"
    turns.write_text("poison", "ascii")
    with ProcessGroup(folder / "logs") as stage:
        noisy, watched = (
            Story(stage, folder / "noisy", NOISY),
            Story(stage, folder / "watched", WATCHED),
        )
        for name in NOISY.names:
            noisy.join(name)
        for name in WATCHED.names:
            watched.join(
                name,
                *(("quietchoir.simulations.faults.hostile", str(turns)) if name == HOSTILE else ()),
            )
        for story in (noisy, watched):
            story.end()
        yield {"noisy": noisy, "watched": watched}


def test_a_run_with_noise_stops_at_its_budget_and_says_so_in_report_and_status(
    stories: dict[str, Story],
) -> None:
    story = stories["noisy"]
    spent = [entry["epsilon"] for entry in story.rounds]
    assert (
        0 < len(spent) < NOISY.rounds
        and spent == sorted(spent)
        and spent[0] > 0
        and spent[-1] <= BUDGET
    )
    assert "budget" in story.report["stopped"]
    privacy = story.report["privacy"]
    assert (privacy["budget"], privacy["epsilon"]) == (BUDGET, pytest.approx(spent[-1]))
    status = story.status
    assert (status["round"], status["rounds"], status["finished"]) == (
        len(spent),
        NOISY.rounds,
        True,
    )
    assert (status["budget"], status["epsilon"]) == (BUDGET, pytest.approx(spent[-1]))
    table = story.stage.run("federation", "status", "--state", str(story.folder / "state"))
    assert f"epsilon {spent[-1]:.2f} of {BUDGET:g}" in table and "finished" in table


def test_no_member_trained_a_round_that_it_could_not_pay_for(stories: dict[str, Story]) -> None:
    story = stories["noisy"]
    # every attempt is paid for, also one that came to nothing
    paid = story.report["privacy"]["steps"]
    for node in story.nodes.values():
        assert (
            len(story.rounds) <= sum(event["event"] == "trained" for event in node.events) <= paid
        )


def test_a_round_that_one_member_poisons_is_undone_and_later_ones_are_kept(
    stories: dict[str, Story],
) -> None:
    story = stories["watched"]
    kept = [entry["guard"]["kept"] for entry in story.rounds]
    assert len(kept) == WATCHED.rounds and kept == sorted(kept) and not kept[0] and kept[-1]
    assert all(HOSTILE in entry["parties"] for entry in story.rounds)  # nobody sees who it was
    assert "more than 0.05 below the best" in story.rounds[0]["guard"]["reason"]
    began, after = story.rounds[0]["accuracy"], story.report["accuracy"]["after"]
    assert story.rounds[kept.index(True)]["accuracy"] in (None, began) and after > began
    assert [entry["kept"] for entry in story.status["history"] if entry["kind"] == "train"] == kept
    assert " undone" in story.stage.run(
        "federation", "status", "--state", str(story.folder / "state")
    )
