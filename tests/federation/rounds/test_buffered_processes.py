"""Buffered rounds as real processes over TLS: a member that sleeps most of the time, killed
members, a killed coordinator.

A frozen process (SIGSTOP) is what a closed laptop is to the others: it holds its connection and
answers nothing.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quietchoir.federation.store import checkpoint
from quietchoir.federation.store.member import FILE
from quietchoir.simulations.cluster import PATIENCE_S, Cluster, ClusterPlan
from quietchoir.simulations.processes import Child, ProcessGroup

SLEEPER = "node-03"
PLAN = ClusterPlan(
    nodes=4,
    rounds=1_000_000,
    size=2_000,
    recipe={"attempts": 40, "stage_timeout_s": 4.0, "work_timeout_s": 60.0},
    schedule={"rounds": "buffered", "max_staleness": 1_000_000},
)


class Night:
    """One federation, whose steps are listened to."""

    def __init__(self, folder: Path) -> None:
        self.stage = ProcessGroup(folder / "logs")
        self.cluster = Cluster(self.stage, folder, PLAN)
        self.coordinator = self.cluster.coordinate("coordinator", "--grace", "5")
        self.nodes = {name: self.start(name) for name in PLAN.names}
        self.last = 0

    def start(self, name: str, number: int = 1) -> Child:
        """Start a member, the `number`-th time."""
        return self.stage.start(f"{name}-{number}", *self.cluster.joining(name))

    def step(self, *, among: str = "", without: str = "-") -> dict[str, Any]:
        """The next step with one member in its sum, and without another."""
        while True:
            event = self.coordinator.until("round", PATIENCE_S)
            assert event["round"] > self.last
            self.last = event["round"]
            if (not among or among in event["parties"]) and without not in event["parties"]:
                return event


@pytest.fixture
def night(tmp_path: Path) -> Iterator[Night]:
    night = Night(tmp_path)
    with night.stage:
        yield night


def test_rounds_wait_for_nobody_who_sleeps_and_outlive_kill_9_of_members_and_coordinator(
    night: Night,
) -> None:
    night.step(among=SLEEPER)
    night.nodes[SLEEPER].freeze()
    night.coordinator.forget()
    first = night.step(without=SLEEPER)
    for number in range(1, 4):
        step = night.step()
        # none was left out, none was abandoned for long
        assert step["round"] == first["round"] + number
        assert SLEEPER not in step["parties"] and len(step["parties"]) == 3
    night.nodes[SLEEPER].thaw()
    night.step(among=SLEEPER)

    night.nodes["node-00"].kill()
    night.step(without="node-00")
    night.nodes["node-00"] = night.start("node-00", 2)
    night.step(among="node-00")

    night.coordinator.kill()
    state = checkpoint.read(night.cluster.folder / "state")
    assert state is not None and state.round >= night.last
    night.coordinator = night.cluster.coordinate(
        "coordinator-2", "--grace", "5", "--rounds", str(state.round + 2)
    )
    night.coordinator.until("delivered", PATIENCE_S)
    night.coordinator.finish(PATIENCE_S)
    report = night.cluster.read_report()
    trained = [entry for entry in report["history"] if entry["kind"] == "train"]
    assert [entry["round"] for entry in trained] == list(range(1, state.round + 3)) and report[
        "rounds"
    ] == state.round + 2
    assert all(len(entry["parties"]) >= 3 for entry in trained)
    assert report["accuracy"]["after"] is not None and len(report["delivered"]) >= 3
    for path in night.cluster.folder.glob(f"node-*/**/{FILE}*"):
        assert path.stat().st_mode & 0o077 == 0
