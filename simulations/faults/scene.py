"""One federation to which faults are done, one after another, while it goes on with its rounds.

Knows which processes there are and how they are started again. Knows nothing of single faults.
Always: all messages pass the proxy; two members have wrong clocks and one may turn hostile; a fault
mends what it broke.
"""

import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...core.errors import QuietchoirError
from ...federation.membership import roster
from ...federation.membership.founding import TLS_KEY
from ..cluster import HOST, PATIENCE_S, Cluster, ClusterPlan, free_port
from ..processes import Child, ProcessGroup
from .proxy import PASS, PULL, PUSH, Act, ProxiedBody, Proxy

HERE = "quietchoir.simulations.faults"
CLOCKS = {"node-02": 3600, "node-03": -2 * 86400}  # seconds off
HOSTILE = "node-04"
# the time limit of a stage: busy machines need it, faults that must wait for it pay it
STAGE_S = 12.0
PATIENT = {"attempts": 40, "stage_timeout_s": STAGE_S, "work_timeout_s": STAGE_S}
MANY = ClusterPlan(nodes=10, rounds=1_000_000, size=2_000, recipe=PATIENT)
FEW = ClusterPlan(nodes=5, rounds=1_000_000, size=2_000, recipe=PATIENT)


class FaultScene:
    """The federation. Use as a context."""

    def __init__(self, folder: Path, plan: ClusterPlan) -> None:
        self.stage, self.plan = ProcessGroup(folder / "logs"), plan
        self.inner = free_port()  # where the coordinator listens
        self.cluster = Cluster(self.stage, folder, plan)
        self.policy = roster.load(self.cluster.file)
        self.proxy = Proxy(self.policy, folder / TLS_KEY, port=self.cluster.port, behind=self.inner)
        self.turns = folder / "hostile.txt"  # what the hostile member does
        self.nodes: dict[str, Child] = {}
        self.starts = 0
        self.last = 0  # number of the last round that ended

    def __enter__(self) -> "FaultScene":
        """Start everybody; a round with all of them has ended when it returns."""
        self.proxy.__enter__()
        try:
            self.start_coordinator()
            for name in self.plan.names:
                self.start_node(name)
            self.whole()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        """End everybody."""
        self.proxy.rule = None
        self.stage.__exit__(None, None, None)
        self.proxy.__exit__(None, None, None)

    def start_coordinator(
        self, *, state: str = "state", port: int = 0, name: str = "coordinator"
    ) -> Child:
        """Start a coordinator, by default the one."""
        self.starts += 1
        listen = f"{HOST}:{port or self.inner}"
        child = self.cluster.coordinate(
            f"{name}-{self.starts}", "--listen", listen, "--grace", "1", state=state
        )
        if name == "coordinator":
            self.coordinator = child
        return child

    def start_node(self, name: str) -> Child:
        """Start a member, with its clock and its character."""
        self.starts += 1
        arguments = self.cluster.joining(name)
        if name in CLOCKS:
            command = [sys.executable, "-m", f"{HERE}.clock", str(CLOCKS[name]), *arguments]
        elif name == HOSTILE:
            command = [sys.executable, "-m", f"{HERE}.hostile", str(self.turns), *arguments]
        else:
            command = [sys.executable, "-m", "quietchoir.cli", *arguments]
        self.nodes[name] = self.stage.start_other(f"{name}-{self.starts}", command)
        return self.nodes[name]

    def round(
        self, *, without: frozenset[str] = frozenset(), among: frozenset[str] = frozenset()
    ) -> dict[str, Any]:
        """The next round that ends with all of `among` and none of `without` in its sum.

        Raises:
            QuietchoirError: no such round ends in time.
        """
        end = time.monotonic() + PATIENCE_S
        while True:
            event = self.coordinator.until("round", max(0.1, end - time.monotonic()))
            if event["round"] <= self.last:
                raise QuietchoirError(
                    f"round {event['round']} ended after round {self.last}: the run went back"
                )
            self.last = event["round"]
            parties = set(event["parties"])
            if among <= parties and not parties & without:
                return event

    def whole(self) -> dict[str, Any]:
        """The next round with every member in its sum."""
        return self.round(among=frozenset(self.plan.names))

    def trap(
        self, stage: str, then: Callable[[str], None], *, node: str = "", cut: bool = True
    ) -> "Trap":
        """Do something once, at the moment a member's answer in `stage` is about to reach the
        coordinator.
        """
        trap = Trap(stage, then, node, cut)
        self.proxy.rule = trap
        return trap

    def refuses(self, name: str, words: str) -> None:
        """Wait until a member refuses something in these words.

        Raises:
            QuietchoirError: it does not.
        """
        while words not in self.nodes[name].until("refused", PATIENCE_S)["reason"]:
            pass

    def limit_files(self, child: Child, size: int | None) -> None:
        """Let no file of a process grow past `size` bytes, as if its disk were full; None: as
        before.
        """
        _, hard = resource.prlimit(child.process.pid, resource.RLIMIT_FSIZE)
        soft = hard if size is None else size
        resource.prlimit(child.process.pid, resource.RLIMIT_FSIZE, (soft, hard))

    def copy_state(self, source: str, target: str) -> None:
        """A copy of a coordinator's folder; it must not run."""
        shutil.rmtree(self.cluster.folder / target, ignore_errors=True)
        shutil.copytree(self.cluster.folder / source, self.cluster.folder / target)


class Trap:
    """A rule that waits for one moment."""

    def __init__(self, stage: str, then: Callable[[str], None], node: str, cut: bool) -> None:
        self.stage, self.then, self.node, self.cut = stage, then, node, cut
        self.lock, self.sprung = threading.Lock(), threading.Event()

    def __call__(self, passage: ProxiedBody) -> Act:
        """The rule."""
        if not is_answer(passage, self.stage) or self.node not in ("", passage.node):
            return PASS
        with self.lock:
            if self.sprung.is_set():
                return PASS
            self.then(passage.node)
            self.sprung.set()
        return Act(cut=self.cut)

    def wait(self) -> None:
        """Until it has sprung.

        Raises:
            QuietchoirError: nothing went into it.
        """
        if not self.sprung.wait(PATIENCE_S):
            raise QuietchoirError(f"no answer in stage {self.stage} came by")


def is_answer(passage: ProxiedBody, stage: str = "") -> bool:
    """Is it a member's answer, in this stage if one is named?"""
    return (
        passage.up and passage.path == PUSH and passage.stage != "" and stage in ("", passage.stage)
    )


def is_letter(passage: ProxiedBody, stage: str = "") -> bool:
    """Is it a message to a member, in this stage if one is named?"""
    return (
        not passage.up
        and passage.path == PULL
        and passage.stage != ""
        and stage in ("", passage.stage)
    )


def require(condition: bool, sentence: str) -> None:
    """Raises QuietchoirError(sentence) unless `condition`: the fault was not survived as
    promised.
    """
    if not condition:
        raise QuietchoirError(sentence)
