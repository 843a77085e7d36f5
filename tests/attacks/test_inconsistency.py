"""A coordinator that tells its members different things, so that a sum gives one of them away.

Each attack has an arm without the binding, in which it must succeed: otherwise the test would show
nothing.
Source: Pasquini, Francati, Ateniese 2022, "Eluding secure aggregation in federated learning via
model inconsistency".
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from quietchoir.core.errors import RoundAborted
from quietchoir.federation.aggregation.secagg import BucketGroup
from quietchoir.federation.aggregation.update import Codec
from quietchoir.federation.rounds.client import Client
from quietchoir.federation.rounds.scheduler import FOR_NOBODY, Buffered
from quietchoir.federation.rounds.server import RoundServer
from quietchoir.federation.wire import messages
from quietchoir.simulations.inprocess import InProcessLink
from quietchoir.tests.fakes.buffered import buffered
from quietchoir.tests.fakes.federation import House, TickingClock, clients, coordinator, house
from quietchoir.tests.fakes.joint import CRYPTO_WORKER, joint_house
from quietchoir.tests.fakes.liar import (
    Liar,
    Secretive,
    other_work,
    without_floors,
    without_the_binding,
)
from quietchoir.tests.fakes.sealed import sealed_clients

SIZE = 400


@pytest.fixture(autouse=True)
def _one_guard_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    without_floors(monkeypatch)


FALSE = np.full(SIZE, 3000.0, np.float32)
RANGE = 0.2  # the recipe's update_range


def starts_whole(members: int = 4, **options: Any) -> House:
    """A federation whose members are told the adapter itself, as far as its mode lets it choose."""
    download = "auto" if options.get("mode") == "sealed" else "adapter"
    recipe = {"attempts": 1, "download": download}
    return house(members, recipe=recipe, **{"bits": 12, **options})


def secretive(home: House) -> dict[str, Client]:
    """Its members."""
    seeds = {name: number for number, name in enumerate(home.members)}
    return clients(home, SIZE, lambda name: Secretive(SIZE, seeds[name]))


def nothing_opened(members: Mapping[str, Client]) -> bool:
    """Did nobody help to open a sum?"""
    return all(b'"opened": []' in client.ledger.sums.snapshot() for client in members.values())


def stolen(run: RoundServer, others: int) -> np.ndarray:
    """The victim's update: the opened sum less the constants that the others were driven to."""
    (change,) = run.state.history[-1:]
    assert len(change["parties"]) == others + 1
    return (others + 1) * run.state.server.velocity - others * np.float32(RANGE)


def test_an_adapter_for_the_victim_and_another_for_the_rest_gives_the_victims_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_the_binding(monkeypatch)
    home = starts_whole(mode="masked")
    members = secretive(home)
    run = coordinator(home, members, SIZE)
    Liar(run, ("ben", "cat", "dan"), other_work(SIZE, flat=FALSE))
    run.train_round()
    step = RANGE / (2 ** (home.policy.protection.bits - 1) - 1)
    victim = members["ann"].learner.update  # type: ignore[attr-defined]
    assert np.abs(stolen(run, 3) - victim).max() < 1.01 * step  # to one rounding step


@pytest.mark.parametrize(
    "to", [("ben", "cat", "dan"), ("ann",)], ids=["the others are told of another", "the victim is"]
)
def test_members_that_were_told_different_adapters_are_in_no_sum_with_each_other(
    to: tuple[str, ...],
) -> None:
    """Whichever of the two stories the coordinator's own side takes."""
    home = starts_whole(mode="masked", threshold=3)
    members = secretive(home)
    run = coordinator(home, members, SIZE)
    liar = Liar(run, to, other_work(SIZE, flat=FALSE))
    if to == ("ann",):
        run.train_round()
        assert run.state.history[-1]["parties"] == ["ben", "cat", "dan"]
    else:
        with pytest.raises(RoundAborted):
            run.train_round()
        assert nothing_opened(members)
    assert liar.lied == len(to)


def scored(mode: str, key: str = "shared") -> tuple[House, dict[str, Client]]:
    """A federation in this mode; every member scores another number."""
    home = joint_house() if key == "threshold" else starts_whole(mode=mode, bits=8)
    seeds = {name: number for number, name in enumerate(home.members)}
    learner = lambda name: Secretive(SIZE if key == "shared" else 700, seeds[name])  # noqa: E731
    if mode == "masked":
        return home, clients(home, SIZE, learner)
    return home, sealed_clients(
        home, SIZE if key == "shared" else 700, learner, crypto_worker=CRYPTO_WORKER
    )


MODES = [("masked", "shared"), ("sealed", "shared"), ("sealed", "threshold")]


def one_voice(home: House, members: dict[str, Client], size: int) -> RoundServer:
    """Everybody but ann is told to train without scoring first."""

    def lie(stage: str, payload: bytes) -> bytes | None:
        if stage != messages.TRAIN:
            return None
        told, rest = messages.split_work(payload)
        return messages.encode_work(dataclasses.replace(told, evaluate=False)) + rest

    sealed = {"crypto_worker": CRYPTO_WORKER} if members["ann"].secrets is not None else {}
    run = coordinator(home, members, size, **sealed)
    Liar(run, ("ben", "cat", "dan"), lie)
    return run


@pytest.mark.parametrize("mode, key", MODES)
def test_a_score_that_one_member_alone_is_asked_for_is_its_own(
    mode: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_the_binding(monkeypatch)
    monkeypatch.setattr(
        BucketGroup, "scores", lambda group, policy: True
    )  # nor a floor under who scores
    home, members = scored(mode, key)
    run = one_voice(home, members, 700 if key == "threshold" else SIZE)
    run.train_round()
    told = run.state.history[-1]["scored"], run.state.history[-1]["accuracy"]
    assert told == (1, members["ann"].learner.right / 10)  # type: ignore[attr-defined]


@pytest.mark.parametrize("mode, key", MODES)
def test_no_score_of_one_member_alone_is_ever_summed(mode: str, key: str) -> None:
    home, members = scored(mode, key)
    run = one_voice(home, members, 700 if key == "threshold" else SIZE)
    with pytest.raises(RoundAborted):
        run.insist(run.train_round)
    assert nothing_opened(members) and run.state.history == ()


def behind_an_older_version(home: House, members: dict[str, Client]) -> RoundServer:
    """Version 0 is zeros for ann, and something else for the others."""

    def lie(stage: str, payload: bytes) -> bytes | None:
        if stage != messages.TRAIN:
            return None
        version, order = messages.split_train(payload)
        return messages.encode_train(
            version,
            messages.encode_work(
                dataclasses.replace(messages.decode_work(order, SIZE), flat=FALSE)
            ),
        )

    link = InProcessLink({name: members[name].handle for name in ("ann", "ben", "cat")})
    run = RoundServer(
        home.policy,
        home.coordinator,
        link,
        size=SIZE,
        waiting=dataclasses.replace(FOR_NOBODY, clock=TickingClock()),
    )
    Liar(run, ("ben", "cat"), lie)
    return run


def test_a_false_adapter_behind_an_older_version_gives_a_member_of_the_group_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_the_binding(monkeypatch)
    home = buffered(mode="masked", bits=12, recipe={"attempts": 1, "download": "adapter"})
    members = secretive(home)
    run = behind_an_older_version(home, members)
    run.learn(1)
    victim = members["ann"].learner.update  # type: ignore[attr-defined]
    assert np.abs(stolen(run, 2) - victim).max() < 1.01 * RANGE / 2047


def test_a_group_whose_members_were_told_different_adapters_is_never_summed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = buffered(
        mode="masked",
        bits=12,
        recipe={"attempts": 1, "download": "adapter"},
        schedule={"patience_s": 200.0},
    )
    members = secretive(home)
    run = behind_an_older_version(home, members)
    with pytest.raises(RoundAborted):  # an honest coordinator's group is never complete
        run.learn(1)
    monkeypatch.setattr(Buffered, "alike", lambda self, names: names)
    members = secretive(home)
    run = behind_an_older_version(home, members)
    # and the members refuse the call of one that is not
    with pytest.raises(RoundAborted, match="members are ready"):
        run.learn(1)
    assert (
        nothing_opened(members)
        and run.state.history == ()
        and Codec(SIZE, home.policy).length > SIZE
    )
