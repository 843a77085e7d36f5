"""Buffered rounds in one process: members that nap, and messages of a coordinator that says what
a test wants it to.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quietchoir.federation.aggregation import delta_chain
from quietchoir.federation.aggregation.delta_chain import origin_of
from quietchoir.federation.rounds.client import Client
from quietchoir.federation.rounds.contribution_buffer import ContributionBuffer
from quietchoir.federation.rounds.scheduler import FOR_NOBODY, Buffered
from quietchoir.federation.rounds.server import RoundServer
from quietchoir.federation.spec.policy import ScheduleTable
from quietchoir.federation.store.ledger import AnsweredRounds
from quietchoir.federation.store.member import open_member
from quietchoir.federation.wire import messages
from quietchoir.federation.wire.messages import Group, Reply, RoundId, Task
from quietchoir.simulations.inprocess import InProcessLink
from quietchoir.tests.fakes.federation import ANY_MODE, FixedLearner, House, house

SIZE = 50
RUN = "0a" * 16
# where every run starts, as followers are told it
ZEROS = messages.Work(flat=np.zeros(SIZE, np.float32), state=origin_of(SIZE))
PLAINLY = {"server_optimizer": "fedavg", "server_momentum": 0.0}  # the mean is the step


def buffered(
    members: int = 4, *, schedule: Mapping[str, Any] | None = None, **options: Any
) -> House:
    """A federation of buffered rounds; `options` as `house`."""
    recipe = {**PLAINLY, **options.pop("recipe", {})}
    tables = {
        "schedule": ScheduleTable(**{"rounds": "buffered", **(schedule or {})}),
        **options.pop("tables", {}),
    }
    return house(members, recipe=recipe, tables=tables, **options)


class NapLink(InProcessLink):
    """Parties that are asleep are not there, and do not work on their messages; each is asked in
    the order it was left one.
    """

    def __init__(self, clients: Mapping[str, Client]) -> None:
        super().__init__({name: client.handle for name, client in clients.items()})
        self.asleep: set[str] = set()
        self.letters: list[tuple[str, bytes]] = []

    def present(self) -> frozenset[str]:
        return super().present() - self.asleep

    def ask(self, messages: Mapping[str, bytes], timeout_s: float) -> Iterator[tuple[str, bytes]]:
        self.letters += messages.items()
        return super().ask(
            {name: message for name, message in messages.items() if name not in self.asleep},
            timeout_s,
        )

    def collect(self, wait_s: float) -> Iterator[tuple[str, bytes]]:
        resting = {name: self.left.pop(name) for name in self.asleep & self.left.keys()}
        yield from super().collect(wait_s)
        self.left |= resting


def run_of(
    home: House, members: Mapping[str, Client], link: InProcessLink | None = None, **options: Any
) -> RoundServer:
    """A coordinator that never waits."""
    link = link or NapLink(members)
    size = next(iter(members.values())).size
    given = {name: options.pop(name) for name in ("patient", "clock") if name in options}
    waiting = dataclasses.replace(FOR_NOBODY, **given)
    return RoundServer(home.policy, home.coordinator, link, size=size, waiting=waiting, **options)


def buffered_schedule(run: RoundServer) -> Buffered:
    """Who is ready, in a run whose schedule is buffered."""
    assert isinstance(run.scheduler, Buffered)
    return run.scheduler


def member(home: House, name: str, folder: Path, learner: Any = None) -> Client:
    """One member, as it starts on its disk."""
    database = open_member(folder / name)
    return Client(
        home.policy, home.members[name], learner or FixedLearner(), size=SIZE, consent=ANY_MODE,
        ledger=AnsweredRounds(database), buffer=ContributionBuffer(database),
    )  # fmt: skip


def group_of(version: int, members: Sequence[tuple[str, int]], **more: Any) -> Group:
    """A group whose members were all told zeros, as `train_letter` tells them."""
    versions = sorted({one for _, one in members if one >= 0})
    adapters = tuple((one, messages.version_digest(one, ZEROS), ZEROS.state) for one in versions)
    return Group(version=version, members=tuple(members), **{"adapters": adapters, **more})


def train_letter(
    home: House, name: str, round_id: RoundId, version: int, flat: np.ndarray | None = None
) -> bytes:
    """Train from this version."""
    told = (
        messages.encode_delta_work(ZEROS, delta_chain.join(ZEROS.state, []))
        if flat is None
        else messages.encode_work(messages.Work(flat=flat))
    )
    payload = messages.encode_train(version, told)
    return messages.encode_task(
        Task(round_id=round_id, stage=messages.TRAIN, recipient=name, payload=payload),
        home.policy,
        home.coordinator,
    )


def group_letter(home: House, name: str, round_id: RoundId, group: Group) -> bytes:
    """You are summed with these."""
    task = Task(
        round_id=round_id,
        stage=messages.GROUP,
        recipient=name,
        payload=messages.encode_group(group),
    )
    return messages.encode_task(task, home.policy, home.coordinator)


def stage_letter(home: House, name: str, round_id: RoundId, stage: str, payload: bytes) -> bytes:
    """One stage of a protection."""
    return messages.encode_task(
        Task(round_id=round_id, stage=stage, recipient=name, payload=payload),
        home.policy,
        home.coordinator,
    )


def answer(home: House, client: Client, message: bytes) -> bytes:
    """What a member says to a message."""
    reply: Reply = messages.decode_reply(client.handle(message), home.policy, message)
    return reply.payload
