"""Modes compose: every combination of them gives the sum that its members' changes have, or is
refused with the sentence that names what forbids it.

`python -m quietchoir.tests.federation.rounds.test_modes_compose` prints how many cells work, are
refused by nature, and are refused otherwise.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.supercore.task_identity import TaskIdentity

from quietchoir.core.errors import ConfigError
from quietchoir.federation.aggregation.base import Sum
from quietchoir.federation.aggregation.registry import check_freezable
from quietchoir.federation.engines import apps, stateless_client
from quietchoir.federation.engines.apps import Settings
from quietchoir.federation.membership import roster
from quietchoir.federation.rounds.attempt import RoundAttempt
from quietchoir.federation.rounds.scheduler import FOR_NOBODY
from quietchoir.federation.rounds.server import RoundServer
from quietchoir.federation.spec.compatibility import CAPABILITIES, Axes, Exclusion, refused
from quietchoir.federation.spec.policy import AdapterTable, AggregationTable, Policy, ScheduleTable
from quietchoir.federation.store import checkpoint
from quietchoir.federation.store.client_store import ClientStore
from quietchoir.federation.store.member import open_member
from quietchoir.federation.training.learner import Counts, Trained
from quietchoir.simulations.cluster import Cluster, ClusterPlan
from quietchoir.simulations.inprocess import InProcessLink
from quietchoir.simulations.processes import ProcessGroup
from quietchoir.tests.fakes.federation import House, clients, house
from quietchoir.tests.fakes.grid import LocalGrid
from quietchoir.tests.fakes.sealed import LocalCryptoWorker, adapter_of, sealed_clients

RANK, FEW = 4, 2  # columns of the adapter, and those that a small member trains
SIZE = 16 * RANK
BITS, RANGE = 12, 0.2
ROUNDING = RANGE / (2 ** (BITS - 1) - 1)  # of one member's value, at most
MODES = ("plain", "masked", "sealed", "threshold")
# What this version refuses although nothing forbids it: this list only shrinks.
NOT_BUILT = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One combination."""

    mode: str
    schedule: str
    buckets: bool
    ranks: bool
    download: str  # "whole" or "change"
    transport: str  # "own" or "engines"

    @property
    def axes(self) -> Axes:
        return Axes(
            mode=self.mode,
            buffered=self.schedule == "buffered",
            rule="median" if self.buckets else "mean",
            ranked=self.ranks,
            download={"whole": "adapter", "change": "change"}[self.download],
            engines=self.transport == "engines",
        )

    @property
    def members(self) -> int:
        """As many as fill three buckets, with enough that train all columns in each."""
        return 4 + 8 * self.buckets + self.ranks * (1 + 2 * self.buckets)

    @property
    def small(self) -> int:
        """Members that train the first columns alone: the last ones, by name."""
        return 2 if self.ranks else 0

    @property
    def tables(self) -> dict[str, Any]:
        """Of the federation file, beside protection and recipe."""
        tables: dict[str, Any] = {}
        if self.buckets:
            tables["aggregation"] = AggregationTable(rule="median", buckets=3)
        if self.schedule == "buffered":
            tables["schedule"] = ScheduleTable(rounds="buffered", buffer=self.members)
        return tables

    @property
    def recipe(self) -> dict[str, Any]:
        return {
            "rounds": 1,
            "evaluate_every": 0,
            "server_optimizer": "fedavg",
            "update_range": RANGE,
            "download": self.axes.download,
        }

    @property
    def protection(self) -> dict[str, Any]:
        key = {"key": "threshold"} if self.mode == "threshold" else {}
        return {"mode": "sealed" if key else self.mode, "bits": BITS, "threshold": 3, **key}

    def __str__(self) -> str:
        words = (self.mode, self.schedule, "buckets" * self.buckets, "ranks" * self.ranks)
        return "-".join(filter(None, (*words, self.download, self.transport)))


CELLS = [
    Cell(
        mode=mode,
        schedule=schedule,
        buckets=buckets,
        ranks=ranks,
        download=download,
        transport=transport,
    )
    for mode, schedule, buckets, ranks, download, transport in itertools.product(
        MODES,
        ("synchronous", "buffered"),
        (False, True),
        (False, True),
        ("whole", "change"),
        ("own", "engines"),
    )
]


def against(cell: Cell) -> Exclusion | None:
    """What refuses a cell."""
    return refused(cell.axes)


class Mover:
    """Moves every coordinate by `step`."""

    def __init__(self, step: float) -> None:
        self.step = step

    def train(self, flat: np.ndarray, seed: int) -> Trained:
        del seed
        return Trained(flat=flat + np.float32(self.step), examples=5, tokens=100, loss=2.0)

    def evaluate(self, flat: np.ndarray) -> Counts:
        del flat
        return Counts(4, 10)


def step_of(names: Sequence[str], name: str) -> float:
    """Another one for each member."""
    return 0.01 * (1 + sorted(names).index(name))


def expected(cell: Cell, names: Sequence[str], small: Sequence[str], sums: list[Sum]) -> np.ndarray:
    """The adapter after one round whose sums were over these members, by columns."""
    columns = np.zeros(RANK)
    for column in range(RANK):
        means = [
            np.mean(
                [step_of(names, name) for name in one.parties if column < FEW or name not in small]
            )
            for one in sums
        ]
        columns[column] = np.median(means)
    return np.tile(columns, SIZE // RANK)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Sum]:
    """The sums that a run opens."""
    found, honest = list[Sum](), RoundAttempt.open

    def note(self: RoundAttempt, sums: tuple[Sum, ...], codec: Any) -> Any:
        if (
            codec.size
            or codec.length != next(iter(sums)).total.size
            or self.model.crypto_worker is not None
        ):
            found.extend(sums)
        return honest(self, sums, codec)

    monkeypatch.setattr(RoundAttempt, "open", note)
    return found


def founded(cell: Cell) -> House:
    """The cell's federation, in this process."""
    home = house(
        cell.members,
        recipe=cell.recipe,
        tables={"adapter": AdapterTable(rank=RANK), **cell.tables},
        **cell.protection,
    )
    members = home.policy.members
    small = members[len(members) - cell.small :]
    ranked = tuple(dataclasses.replace(one, rank=FEW) if one in small else one for one in members)
    return dataclasses.replace(home, policy=dataclasses.replace(home.policy, members=ranked))


def in_process(cell: Cell) -> tuple[list[str], list[np.ndarray]]:
    """One round over our own link: the members, and every copy of the adapter that came of it."""
    home, crypto_worker = founded(cell), LocalCryptoWorker()
    names = sorted(home.members)

    def learner(name: str) -> Mover:
        return Mover(step_of(names, name))

    held = home.policy.can.model_held_by == "members"
    members = (
        sealed_clients(home, SIZE, learner, crypto_worker=crypto_worker)
        if held
        else clients(home, SIZE, learner)
    )
    link = InProcessLink({name: client.handle for name, client in members.items()})
    run = RoundServer(
        home.policy,
        home.coordinator,
        link,
        size=SIZE,
        waiting=FOR_NOBODY,
        crypto_worker=crypto_worker if held else None,
    )
    run.learn(1)
    if held:
        return names, [adapter_of(client, run.state.run) for client in members.values()]
    return names, [run.state.server.flat]


def over_engines(
    cell: Cell, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], list[np.ndarray]]:
    """One round over Flower's apps, each message a member of its own process."""
    played = Cluster(
        ProcessGroup(folder / "logs"),
        folder / "choir",
        ClusterPlan(
            nodes=cell.members,
            size=SIZE,
            min_cohort=3,
            ranks=(0,) * (cell.members - cell.small) + (FEW,) * cell.small,
            rank=RANK,
            recipe={name: given for name, given in cell.recipe.items() if name != "rounds"},
            rounds=1,
            tables={"aggregation": cell.tables["aggregation"]} if cell.buckets else {},
            schedule=(
                {"rounds": "buffered", "buffer": cell.members}
                if cell.schedule == "buffered"
                else {}
            ),
            **cell.protection,
        ),
    )
    names = list(played.plan.names)

    def learner_of(own: Any, policy: Policy, name: str) -> tuple[Mover, int, None]:
        return Mover(step_of(names, name)), SIZE, None

    monkeypatch.setattr(stateless_client, "learner_of", learner_of)
    for key in ("_run_id", "_node_id", "_task_id"):  # whose process Flower's messages are in
        monkeypatch.setattr(TaskIdentity, key, 1)
    settings = {"federation": str(played.file), "state": str(folder / "state"), "rehearse": SIZE}
    nodes = [
        {"home": str(home), "federation": str(played.file), "config": str(played.settings)}
        for home in (played.folder / name for name in names)
    ]
    apps.conduct(LocalGrid(apps.client_app, nodes, settings), Settings.read(settings))
    state = checkpoint.read(folder / "state")
    assert state is not None and state.round == 1
    if CAPABILITIES[cell.mode].model_held_by == "server":
        return names, [state.server.flat]
    policy = roster.load(played.file)
    folders = [roster.folder(played.folder / name, policy) for name in names]
    return names, [
        ClientStore(open_member(one), SIZE).progress(state.run).server.flat for one in folders
    ]


@pytest.mark.parametrize("cell", [one for one in CELLS if against(one) is None], ids=str)
def test_a_combination_gives_the_sum_of_its_members(
    cell: Cell, opened: list[Sum], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, adapters = (
        in_process(cell) if cell.transport == "own" else over_engines(cell, tmp_path, monkeypatch)
    )
    sums = [one for one in opened if len(one.parties)][: 3 if cell.buckets else 1]
    assert sorted(name for one in sums for name in one.parties) == names
    assert len(sums) == (3 if cell.buckets else 1)
    small = names[len(names) - cell.small :]
    true = expected(cell, names, small, sums)
    for adapter in adapters:
        assert np.abs(adapter - true).max() <= 1.01 * ROUNDING


@pytest.mark.parametrize("cell", [one for one in CELLS if against(one) is not None], ids=str)
def test_a_combination_that_is_refused_says_why(cell: Cell) -> None:
    rule = against(cell)
    assert rule is not None
    own = dataclasses.replace(cell, transport="own")
    if (before := against(own)) is not None:
        with pytest.raises(ValueError) as told:
            founded(own)
        assert before.sentence(own.axes) in str(told.value)
    else:
        with pytest.raises(ConfigError) as refusal:
            check_freezable(founded(own).policy)
        assert rule.sentence(cell.axes) in str(refusal.value)


def counted() -> Iterator[tuple[str, int]]:
    """How many cells work, are refused by nature, and otherwise."""
    rules = [against(cell) for cell in CELLS]
    yield "work", sum(rule is None for rule in rules)
    yield "refused by nature", sum(rule is not None and bool(rule.nature) for rule in rules)
    yield "refused otherwise", sum(rule is not None and not rule.nature for rule in rules)


def test_what_is_refused_without_a_reason_in_its_nature_only_shrinks() -> None:
    assert dict(counted())["refused otherwise"] <= NOT_BUILT


if __name__ == "__main__":
    for words, number in counted():
        print(f"{number:4d} {words}")
