"""Sealed rounds with buckets: every member decrypts each bucket's sum, and only one that enough of
that bucket's members signed.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from quietchoir.core.errors import RoundAborted
from quietchoir.federation.aggregation import parts
from quietchoir.federation.aggregation.encrypted import APPLY
from quietchoir.federation.rounds.client import Client
from quietchoir.federation.spec.policy import AggregationTable
from quietchoir.federation.wire import messages
from quietchoir.simulations.inprocess import InProcessLink
from quietchoir.tests.fakes.federation import FixedLearner, House, coordinator, house
from quietchoir.tests.fakes.sealed import LocalCryptoWorker, adapter_of, sealed_clients

SIZE = 40
Lie = Callable[[dict[str, bytes]], dict[str, bytes]]


def twelve() -> House:
    """Three buckets of four."""
    median = AggregationTable(rule="median", buckets=3, lengths="middle")
    return house(
        12,
        mode="sealed",
        recipe={"rounds": 1, "evaluate_every": 0, "server_optimizer": "fedavg", "attempts": 1},
        tables={"aggregation": median},
    )


class Lying(InProcessLink):
    """Shows members other sums than were signed."""

    def __init__(self, home: House, members: dict[str, Client], lie: Lie) -> None:
        self.home, self.told = home, list[dict[str, bytes]]()

        def lied_to(client: Client, letter: bytes) -> bytes:
            task = messages.decode_task(letter, home.policy, client.name)
            if task.stage == APPLY:
                self.told.append(parts.split(task.payload))
                payload = parts.join(lie(parts.split(task.payload)))
                changed = dataclasses.replace(task, payload=payload)
                other = messages.encode_task(changed, home.policy, home.coordinator)
                reply = messages.decode_reply(client.handle(other), home.policy, other)
                answer = dataclasses.replace(reply, task=messages.fingerprint(letter))
                return messages.encode_reply(answer, home.policy, client.identity)
            return client.handle(letter)

        super().__init__(
            {
                name: (lambda letter, party=client: lied_to(party, letter))  # type: ignore[misc]
                for name, client in members.items()
            }
        )


def swapped(told: dict[str, bytes]) -> dict[str, bytes]:
    """One bucket's sum in place of another's."""
    return {**told, "0/sum": told["1/sum"]}


def fewer(told: dict[str, bytes]) -> dict[str, bytes]:
    """A bucket's sum with one signature under it."""
    names = sorted(name for name in told if name.startswith("2/says/"))
    return {name: one for name, one in told.items() if name not in names[1:]}


def of_others(told: dict[str, bytes]) -> dict[str, bytes]:
    """A bucket's sum that is said to be over other members."""
    return {**told, "0/in": told["1/in"]}


def alone(told: dict[str, bytes]) -> dict[str, bytes]:
    """Nobody's own sum: a bucket that there is not."""
    return {name.replace("0/", "7/"): one for name, one in told.items() if name.startswith("0/")}


def repeated(told: dict[str, bytes]) -> dict[str, bytes]:
    """A bucket that stands for all: the same sum in each place."""
    one = {name[2:]: part for name, part in told.items() if name.startswith("0/")}
    return {f"{number}/{name}": part for number in range(3) for name, part in one.items()}


def test_too_few_for_two_buckets_make_one_sum_and_step_from_it() -> None:
    """As in masked mode: the file asks for buckets, and five members fill none but one."""
    home, crypto_worker = (
        house(
            5,
            mode="sealed",
            recipe={"rounds": 1, "evaluate_every": 0, "server_optimizer": "fedavg", "attempts": 1},
            tables={"aggregation": AggregationTable(rule="median", buckets=3)},
        ),
        LocalCryptoWorker(),
    )
    members = sealed_clients(
        home, SIZE, lambda name: FixedLearner(0.01), crypto_worker=crypto_worker
    )
    run = coordinator(home, members, SIZE, crypto_worker=crypto_worker)
    run.train_round()
    assert run.state.round == 1
    for client in members.values():
        assert np.abs(adapter_of(client, run.state.run) - 0.01).max() < 2e-4


@pytest.mark.parametrize("lie", [swapped, fewer, of_others, alone, repeated])
def test_a_sum_that_its_bucket_did_not_sign_is_not_decrypted(lie: Lie) -> None:
    home, crypto_worker = twelve(), LocalCryptoWorker()
    members = sealed_clients(home, SIZE, crypto_worker=crypto_worker)
    link = Lying(home, members, lie)
    run = coordinator(home, members, SIZE, crypto_worker=crypto_worker, link=link)
    asked = len(crypto_worker.asked)
    with pytest.raises(RoundAborted):
        run.insist(run.train_round)
    assert link.told and "decrypt" not in crypto_worker.asked[asked:]
    assert all(not adapter_of(client, run.state.run).any() for client in members.values())
    assert run.state.round == 0


def test_one_household_of_twelve_that_pulls_hard_moves_nobody() -> None:
    """What buckets are for; the mean would have moved by a twelfth of its pull."""
    home, crypto_worker = twelve(), LocalCryptoWorker()
    members = sealed_clients(
        home,
        SIZE,
        lambda name: FixedLearner(0.2 if name == "ann" else 0.01),
        crypto_worker=crypto_worker,
    )
    run = coordinator(home, members, SIZE, crypto_worker=crypto_worker)
    run.train_round()
    assert run.state.history[-1]["buckets"] == 3
    for client in members.values():
        moved = adapter_of(client, run.state.run)
        assert np.abs(moved - 0.01).max() < 2e-4
