"""Coordinators that die, come back with an old state, are two, or run out of disk.

Always: a fault ends with a round that has every member in its sum again, and with a number above
all before it.
"""

import socket
import time
from pathlib import Path

from ...federation.store import checkpoint
from ..cluster import HOST, PATIENCE_S, free_port
from ..processes import family
from .members import STAGES, Fault
from .scene import FaultScene, require

# no file of the coordinator may grow past it: its log of messages is shorter, its database is not
FULL_BYTES = 64 << 10
GONE_S = 20.0


def killed(stage: str) -> Fault:
    """kill -9 of the coordinator at the moment when a member's answer in `stage` reaches it."""

    def fault(scene: FaultScene) -> None:
        run = run_of(scene)
        trap = scene.trap(stage, lambda name: scene.coordinator.kill())
        trap.wait()
        scene.proxy.rule = None
        scene.start_coordinator()
        scene.whole()
        require(run_of(scene) == run, "another run began")

    return fault


def older_state(scene: FaultScene) -> None:
    """The coordinator comes back with a copy of its state from some rounds ago: members refuse
    it, and it says why.
    """
    scene.coordinator.kill()
    scene.copy_state("state", "old")
    scene.start_coordinator()
    for _ in range(2):
        scene.whole()
    scene.coordinator.kill()
    scene.copy_state("state", "newest")
    scene.copy_state("old", "state")
    older = scene.start_coordinator()
    older.until("refusal", PATIENCE_S, kind="StaleError")
    older.until("aborted", PATIENCE_S)
    require(
        all(event["event"] != "round" for event in older.events),
        "members worked for a coordinator with an older state",
    )
    older.kill()
    require(
        "older than the run" in older.log.read_text("utf-8"),
        f"it did not say why: {older.last_words()}",
    )
    scene.copy_state("newest", "state")
    scene.start_coordinator()
    scene.whole()


def two_coordinators(scene: FaultScene) -> None:
    """A second coordinator with the same keys and a state of its own gets no member that the
    first one has.
    """
    lured = scene.plan.names[:4]  # more than two thirds of five, or nobody is asked anything
    rival = scene.start_coordinator(state="rival", port=(port := free_port()), name="rival")
    rival.until("open", PATIENCE_S)
    scene.proxy.elsewhere = dict.fromkeys(lured, port)
    rival.until("refusal", PATIENCE_S, kind="RivalError")
    rival.until("aborted", PATIENCE_S)
    scene.proxy.elsewhere = {}
    require(
        all(event["event"] != "round" for event in rival.events),
        "members worked for a second coordinator",
    )
    rival.kill()
    require(
        "a second coordinator has this identity" in rival.log.read_text("utf-8"),
        f"it said: {rival.last_words()}",
    )
    scene.whole()


def disk_full(scene: FaultScene) -> None:
    """The coordinator's disk is full: it ends in a sentence, and goes on once there is room."""
    scene.limit_files(scene.coordinator, FULL_BYTES)
    code = scene.coordinator.process.wait(PATIENCE_S)
    words = scene.coordinator.last_words()
    require(code == 1 and "disk is full" in words, f"it ended with code {code}: {words}")
    scene.start_coordinator()
    scene.whole()


def all_die(scene: FaultScene) -> None:
    """kill -9 of everybody at once leaves no process and no port behind, and all of them go on
    when they come back.
    """
    running = [scene.coordinator, *scene.nodes.values()]
    pids = [pid for child in running for pid in family(child.process.pid)]
    for child in running:
        child.kill()
    deadline = time.monotonic() + GONE_S
    while left := [pid for pid in pids if alive(pid)]:
        require(time.monotonic() < deadline, f"{len(left)} processes are left")
        time.sleep(0.1)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, scene.inner))  # raises if somebody still listens
    scene.start_coordinator()
    for name in scene.plan.names:
        scene.start_node(name)
    scene.whole()


def alive(pid: int) -> bool:
    """Does a process run? One that only waits for the system to note its end does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def run_of(scene: FaultScene) -> str:
    """The run's name, from the coordinator's state."""
    state = checkpoint.read(scene.cluster.folder / "state")
    return "" if state is None else state.run


FAULTS: dict[str, Fault] = {
    **{f"the coordinator is killed in stage {stage}": killed(stage) for stage in STAGES},
    "the coordinator comes back with an older state": older_state,
    "two coordinators with one identity": two_coordinators,
    "the coordinator's disk is full": disk_full,
    "everybody is killed at once": all_die,
}
