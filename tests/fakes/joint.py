"""Federations with a joint key in one process, and a link that keeps, changes or loses what
passes.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from quietchoir.core.errors import RoundAborted
from quietchoir.federation.aggregation import secagg
from quietchoir.federation.aggregation.base import Contributors
from quietchoir.federation.aggregation.encrypted import counters
from quietchoir.federation.aggregation.experimental import threshold
from quietchoir.federation.rounds.client import Client
from quietchoir.federation.wire import messages
from quietchoir.federation.wire.link import InProcessLink
from quietchoir.tests.fakes.federation import House, coordinator, house
from quietchoir.tests.fakes.sealed import LocalDesk, adapter_of, sealed_parties, vault_of

SIZE = 700
DESK = LocalDesk()


def joint_house(members: int = 4, **other: Any) -> House:
    return house(
        members, **{"mode": "sealed", "key": "threshold", "threshold": 3, "bits": 8, **other}
    )


def stage_of(letter: bytes) -> str:
    return str(messages.split(letter)[0]["stage"])


def adapters(members: Mapping[str, Client], run: str) -> list[Any]:
    return [adapter_of(party, run) for party in members.values()]


def same(vectors: list[Any]) -> bool:
    return all(np.array_equal(vectors[0], other) for other in vectors)


def keys(members: Mapping[str, Client]) -> list[bytes | None]:
    return [vault_of(party).key_name(party.policy.digest) for party in members.values()]


class KeepingLink(InProcessLink):
    """Keeps every byte that passes the coordinator, both ways, and lets a test change or lose
    letters.
    """

    def __init__(
        self,
        members: Mapping[str, Client],
        change: Callable[[str, bytes], bytes | None] = lambda name, letter: letter,
    ):
        super().__init__({name: party.handle for name, party in members.items()})
        self.change = change
        self.letters: list[tuple[str, bytes]] = []
        self.answers: list[tuple[str, str, bytes]] = []

    def stages(self) -> set[str]:
        return {stage_of(letter) for _, letter in self.letters}

    def payloads(self, stage: str) -> dict[str, bytes]:
        """The last letter of this stage to each member."""
        return {
            name: messages.split(letter)[1]
            for name, letter in self.letters
            if stage_of(letter) == stage
        }

    def ask(self, letters: Mapping[str, bytes], timeout_s: float) -> Iterator[tuple[str, bytes]]:
        changed = {name: self.change(name, letter) for name, letter in letters.items()}
        brought = {name: letter for name, letter in changed.items() if letter is not None}
        self.letters += brought.items()
        for name, answer in super().ask(brought, timeout_s):
            self.answers.append((name, stage_of(brought[name]), answer))
            yield name, answer


def config_of(home: House, place: messages.RoundId) -> Any:
    length = SIZE + counters(home.policy)
    names = tuple(sorted(home.members))
    group = secagg.BucketGroup.of(names, len(names), Contributors(names, names))
    return secagg.agree(home.policy, place, group, length, counted=True, context=b"")


def ongoing(
    home: House,
) -> tuple[dict[str, Client], dict[str, threshold.ThresholdClient], KeepingLink]:
    """A round up to the moment before the sum is opened: members, their halves, and what passed."""
    members = sealed_parties(home, SIZE, desk=DESK)
    link = KeepingLink(
        members, lambda name, letter: None if stage_of(letter) == threshold.OPEN else letter
    )
    with pytest.raises(RoundAborted):
        coordinator(home, members, SIZE, desk=DESK, link=link).train_round()
    halves = {
        name: party.attempt.aggregation
        for name, party in members.items()
        if party.attempt is not None
    }
    assert all(isinstance(half, threshold.ThresholdClient) for half in halves.values())
    return members, halves, link  # type: ignore[return-value]
