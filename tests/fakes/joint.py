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
from quietchoir.simulations.inprocess import InProcessLink
from quietchoir.tests.fakes.federation import House, coordinator, house
from quietchoir.tests.fakes.sealed import (
    LocalCryptoWorker,
    adapter_of,
    client_store_of,
    sealed_clients,
)

SIZE = 700
CRYPTO_WORKER = LocalCryptoWorker()


def joint_house(members: int = 4, **other: Any) -> House:
    return house(
        members, **{"mode": "sealed", "key": "threshold", "threshold": 3, "bits": 8, **other}
    )


def stage_of(message: bytes) -> str:
    return str(messages.split(message)[0]["stage"])


def adapters(members: Mapping[str, Client], run: str) -> list[Any]:
    return [adapter_of(client, run) for client in members.values()]


def same(vectors: list[Any]) -> bool:
    return all(np.array_equal(vectors[0], other) for other in vectors)


def keys(members: Mapping[str, Client]) -> list[bytes | None]:
    return [client_store_of(client).key_name(client.policy.digest) for client in members.values()]


class KeepingLink(InProcessLink):
    """Keeps every byte that passes the coordinator, both ways, and lets a test change or lose
    messages.
    """

    def __init__(
        self,
        members: Mapping[str, Client],
        change: Callable[[str, bytes], bytes | None] = lambda name, message: message,
    ):
        super().__init__({name: client.handle for name, client in members.items()})
        self.change = change
        self.letters: list[tuple[str, bytes]] = []
        self.answers: list[tuple[str, str, bytes]] = []

    def stages(self) -> set[str]:
        return {stage_of(message) for _, message in self.letters}

    def payloads(self, stage: str) -> dict[str, bytes]:
        """The last message of this stage to each member."""
        return {
            name: messages.split(message)[1]
            for name, message in self.letters
            if stage_of(message) == stage
        }

    def ask(self, messages: Mapping[str, bytes], timeout_s: float) -> Iterator[tuple[str, bytes]]:
        changed = {name: self.change(name, message) for name, message in messages.items()}
        brought = {name: letter for name, letter in changed.items() if letter is not None}
        self.letters += brought.items()
        for name, answer in super().ask(brought, timeout_s):
            self.answers.append((name, stage_of(brought[name]), answer))
            yield name, answer


def config_of(home: House, round_id: messages.RoundId) -> Any:
    length = SIZE + counters(home.policy)
    names = tuple(sorted(home.members))
    group = secagg.BucketGroup.of(names, len(names), Contributors(names, names))
    return secagg.agree(home.policy, round_id, group, length, counted=True, context=b"")


def ongoing(
    home: House,
) -> tuple[dict[str, Client], dict[str, threshold.ThresholdClient], KeepingLink]:
    """A round up to the moment before the sum is opened: members, their halves, and what passed."""
    members = sealed_clients(home, SIZE, crypto_worker=CRYPTO_WORKER)
    link = KeepingLink(
        members, lambda name, message: None if stage_of(message) == threshold.OPEN else message
    )
    with pytest.raises(RoundAborted):
        coordinator(home, members, SIZE, crypto_worker=CRYPTO_WORKER, link=link).train_round()
    halves = {
        name: client.attempt.aggregation
        for name, client in members.items()
        if client.attempt is not None
    }
    assert all(isinstance(half, threshold.ThresholdClient) for half in halves.values())
    return members, halves, link  # type: ignore[return-value]
