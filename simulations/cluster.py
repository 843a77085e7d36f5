"""A rehearsed federation of real processes on one machine: one coordinator, its nodes, TLS,
pretended values.

Knows how a federation is founded and which commands run it. Knows nothing of what is done to it:
benchmarks time it, faults break it.
Always: every process belongs to a `ProcessGroup`, which ends it; every file lies in one folder.
"""

import json
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core import paths
from ..federation.membership import founding
from ..federation.membership.keys import load_or_create
from ..federation.spec.policy import (
    AdapterTable,
    ModelTable,
    ProtectionTable,
    Recipe,
    ScheduleTable,
)
from .processes import Child, ProcessGroup

HOST = "127.0.0.1"
PATIENCE_S = 90.0  # for one event of a machine that may be busy
ANY_MODE = '[consent]\nmodes = ["plain", "masked", "sealed"]\nmin_cohort = 3\n'


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlan:
    """What federation it is."""

    nodes: int = 4
    mode: str = "masked"
    size: int = 20_000  # values of the adapter
    bits: int = 8  # of one of them in a message
    rounds: int = 3
    min_cohort: int = 3
    threshold: int = 3
    ranks: tuple[int, ...] = ()  # columns that the first nodes train; the others, and 0: all
    rank: int = 16  # of the adapter
    key: str = "shared"  # of sealed mode
    recipe: dict[str, Any] = field(default_factory=dict)  # besides `rounds`
    schedule: dict[str, Any] = field(default_factory=dict)
    # `privacy`, `guard`, `aggregation` of the federation file
    tables: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The members' names, sorted."""
        return tuple(f"node-{number:02}" for number in range(self.nodes))


class Cluster:
    """One federation, and the processes that play it."""

    def __init__(
        self,
        stage: ProcessGroup,
        folder: Path,
        plan: ClusterPlan,
        *,
        host: str = HOST,
        port: int = 0,
    ) -> None:
        self.stage, self.folder, self.plan = stage, paths.private_folder(folder), plan
        self.port = port or free_port()
        self.file = folder / founding.FILE
        self.settings = folder / "config.toml"
        self.settings.write_text(ANY_MODE, "utf-8")
        founding.create_federation(
            folder,
            founding.Founding(
                name="rehearsal",
                address=f"{host}:{self.port}",
                model=ModelTable(digest="ab" * 32),
                adapter=AdapterTable(rank=plan.rank),
                protection=ProtectionTable(
                    mode=plan.mode,  # type: ignore[arg-type]
                    key=plan.key,  # type: ignore[arg-type]
                    bits=plan.bits,
                    min_cohort=plan.min_cohort,
                    threshold=plan.threshold,
                ),
                recipe=Recipe(**{"rounds": plan.rounds, "evaluate_every": 0, **plan.recipe}),
                schedule=ScheduleTable(**plan.schedule),
                **plan.tables,
            ),
        )
        for number, name in enumerate(plan.names):
            rank = plan.ranks[number] if number < len(plan.ranks) else 0
            founding.enroll(
                self.file,
                folder / founding.OWNER_KEY,
                name,
                load_or_create(folder / name).card,
                rank=rank,
            )

    def coordinate(
        self, name: str = "coordinator", *more: str, state: str = "state", file: Path | None = None
    ) -> Child:
        """Start a coordinator; `more` go to its command line."""
        return self.stage.start(name, *self.coordinating(*more, state=state, file=file))

    def coordinating(self, *more: str, state: str = "state", file: Path | None = None) -> list[str]:
        """The arguments that start a coordinator."""
        return [
            "coordinate",
            str(file or self.file),
            "--state",
            str(self.folder / state),
            "--keys",
            str(self.folder),
            "--home",
            str(self.folder / "coordinator-home"),
            "--report",
            str(self.report),
            "--wait",
            "60",
            *self.rehearsed,
            *more,
        ]

    def join(self, name: str, *more: str, file: Path | None = None) -> Child:
        """Start a node; it leaves once it has a finished adapter."""
        return self.stage.start(name, *self.joining(name, *more, file=file))

    def joining(self, name: str, *more: str, file: Path | None = None) -> list[str]:
        """The arguments that start a node."""
        return [
            "--config",
            str(self.settings),
            "join",
            str(file or self.file),
            "--home",
            str(self.folder / name),
            "--once",
            *self.rehearsed,
            *more,
        ]

    def join_all(self, *more: str, file: Path | None = None) -> dict[str, Child]:
        """Start every node."""
        return {name: self.join(name, *more, file=file) for name in self.plan.names}

    @property
    def rehearsed(self) -> tuple[str, ...]:
        """No model, no data; progress as events."""
        return ("--rehearse", str(self.plan.size), "--json-lines")

    @property
    def report(self) -> Path:
        """Where the coordinator writes what happened."""
        return self.folder / "report.json"

    def read_report(self) -> dict[str, Any]:
        """The finished run's report."""
        return dict(json.loads(self.report.read_text("utf-8")))


def free_port() -> int:
    """A TCP port of loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
