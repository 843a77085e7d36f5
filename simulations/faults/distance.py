"""Federations whose members are far from their coordinator, in network namespaces of their own.

Knows the line between the namespaces and which processes stand at its ends. Knows nothing of other
faults.
Always: a run is survived only if every sum held every member, packets were lost, and the adapter
is, within the rounding, what the members' own values lead to: a wrong mask anywhere would have made
noise of it.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np

from ...federation.membership import roster
from ...federation.store import checkpoint
from ...federation.store.checkpoint import Vector
from ...federation.training.synthetic_task import SyntheticLearner
from ..cluster import PATIENCE_S, Cluster, ClusterPlan
from ..processes import Child, ProcessGroup
from .line import LineProcess, address
from .scene import require

# of one packet in one direction: a question and its answer take twice as long
DELAY_S, LOSS = 0.1, 0.01
PORT = 9443  # in a namespace of its own every port is free
BITS = 8
ROUNDS = 1
FAR = ClusterPlan(
    nodes=3, rounds=ROUNDS, size=2_000, recipe={"server_momentum": 0.0, "attempts": 10}
)


class Distance:
    """The line. Use as a context.

    Raises:
        NoNamespacesError: this machine, or this user, cannot make network namespaces.
    """

    def __init__(self, folder: Path, plan: ClusterPlan) -> None:
        self.folder, self.plan, self.stage = folder, plan, ProcessGroup(folder / "logs")

    def __enter__(self) -> "Distance":
        """Lay it: the coordinator's end and one for each member."""
        try:
            self.line = LineProcess(self.stage, 1 + self.plan.nodes, delay_s=DELAY_S, loss=LOSS)
        except BaseException:
            self.stage.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End everybody; the namespaces end with them."""
        self.stage.__exit__(kind, error, trace)

    def start(self, name: str, end: int, arguments: list[str]) -> Child:
        """Start `quietchoir ARGUMENTS` at one end."""
        return self.stage.start_other(
            name, self.line.at(end, [sys.executable, "-m", "quietchoir.cli", *arguments])
        )


def whole_run(mode: str) -> Callable[[Distance], None]:
    """A run from the first connection to the adapter in everybody's hands."""

    def fault(distance: Distance) -> None:
        plan = dataclasses.replace(distance.plan, mode=mode)
        cluster = Cluster(distance.stage, distance.folder / mode, plan, host=address(0), port=PORT)
        coordinator = distance.start(
            f"{mode}-coordinator", 0, cluster.coordinating("--grace", "20")
        )
        nodes = {
            name: distance.start(f"{mode}-{name}", end, cluster.joining(name))
            for end, name in enumerate(plan.names, start=1)
        }
        coordinator.until("delivered", PATIENCE_S)
        coordinator.finish(PATIENCE_S)
        for node in nodes.values():
            node.until("adopted", PATIENCE_S)
            node.finish(PATIENCE_S)
        check(cluster, nodes)
        carried, lost = distance.line.counts()
        require(
            carried > 0 and lost > 0,
            f"the line carried {carried} packets and lost {lost}: it was no bad line",
        )

    return fault


def check(cluster: Cluster, nodes: dict[str, Child]) -> None:
    """Everybody in every sum, and the sums exact.

    Raises:
        QuietchoirError: they are not.
    """
    *trained, score = cluster.read_report()["history"]
    for entry in (*trained, score):
        require(entry["parties"] == list(cluster.plan.names), f"a sum has {entry['parties']}")
    state = checkpoint.read(cluster.folder / "state")
    require(
        state is not None and len(trained) == ROUNDS, f"{len(trained)} rounds are in the report"
    )
    assert state is not None  # the line above
    adapter, own = (
        state.server.flat,
        [values_of(name, node, cluster.plan.size) for name, node in nodes.items()],
    )
    step = 2 * roster.load(cluster.file).recipe.update_range / ((1 << BITS) - 1)
    off = float(np.abs(adapter - np.mean(own, axis=0)).max())
    require(
        off <= step,
        f"the adapter is {off:.4f} off the members' mean, one rounding step is {step:.4f}",
    )
    counts = SyntheticLearner(cluster.plan.size).evaluate(adapter)
    found, expected = (
        (score["scored"], score["accuracy"]),
        (len(nodes), round(100 * counts.correct / counts.total) / 100),
    )
    require(
        found == expected, f"members that scored, and their mean, are {found}, expected {expected}"
    )


def values_of(name: str, node: Child, size: int) -> Vector:
    """What a member trained in the one round: with another noise in each attempt of it, the last
    one counts.
    """
    learner, zero = SyntheticLearner(size, name), np.zeros(size, np.float32)
    times = sum(event["event"] == "trained" for event in node.events)
    require(times > 0, f"{name} never trained")
    return [learner.train(zero, 0) for _ in range(times)][-1].flat


FAULTS: dict[str, Callable[[Distance], None]] = {
    f"{mode} rounds in network namespaces, over 100 ms and 1 % loss": whole_run(mode)
    for mode in ("masked", "plain")
}
