"""One rehearsed federation of real processes, timed from outside: rounds, bytes, memory.

Knows what the coordinator's report says of each round. Knows nothing of other frameworks or of
aims.
Always: the first round is not counted (nodes meet the network and allocate), every other one is; a
round whose sum lacks a member fails the measurement.
"""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import QuietchoirError
from ..cluster import PATIENCE_S, Cluster, ClusterPlan
from ..processes import ProcessGroup
from .stopwatch import Sample

BITS = 8
ROUND_S = 120.0  # patience with one round, starts included
DOWN_BYTES = 4  # of one value of the adapter, in plain and masked mode


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundCost:
    """What a mode costs in one federation."""

    seconds: Sample  # of each round after the first
    up: float  # bytes of messages that one node sends in a round
    down: float  # and gets
    up_bound: float  # bytes that its contribution alone needs
    coordinator_mb: float  # peak resident memory, with the processes it started
    node_mb: float  # the largest


def measure(plan: ClusterPlan) -> RoundCost:
    """Play `plan` to its end.

    Raises:
        QuietchoirError: a process failed, or a round went without a member.
    """
    with (
        tempfile.TemporaryDirectory(prefix="quietchoir-bench-") as name,
        ProcessGroup(Path(name) / "logs") as stage,
    ):
        cluster = Cluster(stage, Path(name), plan)
        coordinator = cluster.coordinate("coordinator", "--grace", "60")
        nodes = cluster.join_all()
        # memory is read while all are there
        coordinator.until("round", ROUND_S * plan.rounds, round=plan.rounds)
        memory = [child.memory_mb() for child in (coordinator, *nodes.values())]
        coordinator.finish(PATIENCE_S)
        for node in nodes.values():
            node.finish(PATIENCE_S)
        history = [entry for entry in cluster.read_report()["history"] if entry["kind"] == "train"]
    if any(entry["parties"] != list(plan.names) for entry in history):
        raise QuietchoirError(
            f"{plan.mode}: a round's sum lacks a member; the machine is too busy "
            f"to measure anything"
        )
    counted = history[1:]
    return RoundCost(
        seconds=Sample(tuple(entry["seconds"] for entry in counted)),
        up=per_node(counted, "bytes_up"),
        down=per_node(counted, "bytes_down"),
        up_bound=plan.size * width(plan) / 8,
        coordinator_mb=memory[0],
        node_mb=max(memory[1:]),
    )


def per_node(history: list[dict[str, dict[str, int]]], direction: str) -> float:
    """Mean bytes of one node in one round."""
    sizes = [size for entry in history for size in entry[direction].values()]
    return sum(sizes) / len(sizes)


def width(plan: ClusterPlan) -> int:
    """Bits that one value needs on the wire: its own in plain mode, those of the sum under
    masks.
    """
    return (
        BITS if plan.mode == "plain" else math.ceil(math.log2(plan.nodes * ((1 << BITS) - 1) + 1))
    )
