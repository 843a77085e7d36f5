"""A federation in one process: keys, a policy, parties with a learner whose answers are known."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quietchoir.core.config import ConsentConfig
from quietchoir.crypto.identity.keys import Identity
from quietchoir.federation.rounds.client import Client
from quietchoir.federation.rounds.model_broadcast import FollowedModel, ServerHeldDelta
from quietchoir.federation.rounds.scheduler import FOR_NOBODY
from quietchoir.federation.rounds.server import RoundServer
from quietchoir.federation.spec.policy import (
    CoordinatorTable,
    Member,
    ModelTable,
    Policy,
    ProtectionTable,
    Recipe,
)
from quietchoir.federation.store.ledger import AnsweredRounds
from quietchoir.federation.store.member import open_member
from quietchoir.federation.training.learner import Counts, Trained
from quietchoir.simulations.inprocess import InProcessLink

ANY_MODE = ConsentConfig(min_cohort=1, modes=("plain", "masked", "sealed"), open_ballots=True)
DIGEST = "ab" * 32


class FixedLearner:
    """Moves every coordinate by `step`; scores `correct` of 10."""

    def __init__(self, step: float = 0.1, correct: int = 4) -> None:
        self.step, self.correct = step, correct
        self.trained: list[np.ndarray] = []

    def train(self, flat: np.ndarray, seed: int) -> Trained:
        self.trained.append(flat.copy())
        return Trained(flat=flat + np.float32(self.step), examples=5, tokens=100, loss=2.0)

    def evaluate(self, flat: np.ndarray) -> Counts:
        return Counts(self.correct, 10)


def trainings(client: Client) -> list[np.ndarray]:
    """The adapters that a `FixedLearner`'s client trained from, in order."""
    learner = client.learner
    assert isinstance(learner, FixedLearner)
    return learner.trained


@dataclasses.dataclass
class House:
    """One federation's keys and file."""

    policy: Policy
    owner: Identity
    coordinator: Identity
    members: dict[str, Identity]


NAMES = ["ann", "ben", "cat", "dan", "eve", "fay", "gus", "hal", "ida", "jon", "kim", "lea", "max"]
NAMES += ["nia", "ola"]


def house(
    members: int = 4,
    *,
    mode: str = "plain",
    size: int = 0,
    recipe: Mapping[str, Any] | None = None,
    tables: Mapping[str, Any] | None = None,
    **protection: Any,
) -> House:
    """A federation of `members`, named ann, ben, … p0015, … in order; `tables` are whole ones,
    by name.
    """
    owner, coordinator = Identity.generate(), Identity.generate()
    names = [NAMES[number] if number < len(NAMES) else f"p{number:04}" for number in range(members)]
    keys = {name: Identity.generate() for name in names}
    policy = Policy(
        name="choir",
        nonce="01" * 16,
        owner=owner.public.raw.hex(),
        model=ModelTable(digest=DIGEST),
        protection=ProtectionTable(
            mode=mode,  # type: ignore[arg-type]
            **{"min_cohort": 3, "threshold": 2, "bits": 12, **protection},
        ),
        recipe=Recipe(
            **{"rounds": 3, "stage_timeout_s": 5.0, "work_timeout_s": 5.0, **(recipe or {})}
        ),
        **(tables or {}),
        coordinator=CoordinatorTable(address="127.0.0.1:8790", key=coordinator.public.raw.hex()),
        members=tuple(Member(name=name, key=key.public.raw.hex()) for name, key in keys.items()),
    )
    return House(policy, owner, coordinator, keys)


def clients(
    home: House,
    size: int,
    learner: Callable[[str], Any] = lambda name: FixedLearner(),
    folder: Path | None = None,
    stops: Sequence[int] = (),
) -> dict[str, Client]:
    """Every member as a `Client`."""
    return {
        name: Client(
            home.policy,
            key,
            learner(name),
            size=size,
            stops=stops,
            consent=ANY_MODE,
            ledger=AnsweredRounds(None if folder is None else open_member(folder / name)),
        )
        for name, key in home.members.items()
    }


class SilentLink(InProcessLink):
    """Loses the messages of chosen parties at chosen stages."""

    def __init__(
        self, members: Mapping[str, Callable[[bytes], bytes]], lose: Callable[[str, bytes], bool]
    ) -> None:
        super().__init__(members)
        self.lose = lose
        self.letters: list[tuple[str, bytes]] = []

    def ask(self, messages: Mapping[str, bytes], timeout_s: float) -> Iterator[tuple[str, bytes]]:
        self.letters += messages.items()
        return super().ask(
            {name: message for name, message in messages.items() if not self.lose(name, message)},
            timeout_s,
        )


def delta(run: RoundServer) -> ServerHeldDelta:
    """Where the adapter lives, in a run whose members follow it by sums."""
    assert isinstance(run.model, ServerHeldDelta)
    return run.model


def followed(member: Client) -> FollowedModel:
    """Where the adapter lives, at a member that follows it by sums."""
    assert isinstance(member.model, FollowedModel)
    return member.model


class TickingClock:
    """A second later each time it is read; nobody waits."""

    def __init__(self) -> None:
        self.seconds = 0

    def now(self) -> float:
        self.seconds += 1
        return float(self.seconds)

    def rest(self, at_most_s: float) -> None:
        """Nothing happens meanwhile."""


def coordinator(
    home: House, members: Mapping[str, Client], size: int, **options: Any
) -> RoundServer:
    """A coordinator over an `InProcessLink` that never waits."""
    link = options.pop("link", None) or InProcessLink(
        {name: client.handle for name, client in members.items()}
    )
    waiting = dataclasses.replace(FOR_NOBODY, patient=options.pop("patient", False))
    return RoundServer(
        home.policy, home.coordinator, link, size=size, **{"waiting": waiting, **options}
    )
