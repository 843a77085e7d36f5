"""Rounds in one process: exact sums, clean aborts, nothing averaged in silence."""

import dataclasses
import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from quietchoir.core.errors import DataError, FederationError, QuietchoirError, RoundAborted
from quietchoir.crypto import ring
from quietchoir.federation.aggregation.server_optimizer import FedAvgM
from quietchoir.federation.aggregation.update import Codec, Statistics
from quietchoir.federation.events import AskedEvent, FederationEvent, TrainedEvent, WorkEvent
from quietchoir.federation.store import checkpoint
from quietchoir.federation.store.checkpoint import RunState, ServerState, Store
from quietchoir.federation.training.learner import Trained
from quietchoir.federation.training.synthetic_task import SyntheticLearner
from quietchoir.federation.wire import messages
from quietchoir.tests.fakes.federation import (
    FixedLearner,
    SilentLink,
    clients,
    coordinator,
    house,
    trainings,
)

SIZE = 200


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Callable[[], Store]]:
    """Take this test's state folder, as a restarted coordinator does; the one before lets it go."""
    taken: list[Store] = []

    def take() -> Store:
        for store in taken:
            store.close()
        taken.append(Store(tmp_path))
        return taken[-1]

    yield take
    for store in taken:
        store.close()


def stage_of(message: bytes) -> str:
    """What a message asks for."""
    fields, _ = messages.split(message)
    return str(fields["stage"])


def test_the_server_steps_with_momentum_exactly() -> None:
    optimizer, state = FedAvgM(lr=0.5, momentum=0.75), ServerState.zeros(2)
    state = optimizer.step(state, np.array([1.0, -2.0], np.float32))
    state = optimizer.step(state, np.array([1.0, 0.0], np.float32))
    assert state.velocity.tolist() == [1.75, -1.5]
    assert state.flat.tolist() == [0.5 * (1.0 + 1.75), 0.5 * (-2.0 - 1.5)]
    with pytest.raises(ValueError, match="finite"):
        optimizer.step(state, np.array([np.nan, 0.0], np.float32))


@pytest.mark.parametrize("bits", [2, 3, 8, 16])
def test_counters_survive_the_sum_exactly(bits: int) -> None:
    policy = house(bits=bits).policy
    codec = Codec(3, policy)
    counts = [
        Statistics(scored=1, score=20 * i, trained=1, loss_milli=(1 << 24) - 1 - i, clipped=3)
        for i in range(5)
    ]
    encoded = [codec.encode(np.zeros(3, np.float32), one) for one in counts]
    assert all(int(one.max()) < 1 << bits and one.size == codec.length for one in encoded)
    mean, total = codec.decode(np.sum(encoded, axis=0, dtype=np.int64), 5)
    assert total == Statistics(
        scored=5, score=200, trained=5, loss_milli=5 * ((1 << 24) - 1) - 10, clipped=15
    )
    assert np.all(mean == 0)
    with pytest.raises(ValueError, match="score = -1"):
        codec.spell(Statistics(score=-1))


@pytest.mark.parametrize("spelling", ["ours", "lowest"])
def test_digits_of_summed_counters_tell_no_more_than_the_counters(
    spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two losses are 256 together: 256 and 0, or 255 and 1? Lowest digits say so every time."""
    if spelling == "lowest":
        monkeypatch.setattr(
            ring, "spell", lambda value, _, bits: [value >> 8 * at & 255 for at in range(32)]
        )
    codec, right = Codec(0, house(bits=8).policy), 0
    place = codec.names.index("loss_milli") * codec.digits
    for _ in range(400):
        far = secrets.randbelow(2) == 1
        losses = (256, 0) if far else (255, 1)
        spelled = [codec.spell(Statistics(loss_milli=loss)) for loss in losses]
        total = np.vstack(spelled).astype(np.int64).sum(axis=0)
        assert codec.counters(total).loss_milli == 256
        right += far == (total[place] < 256)
    assert right == 400 if spelling == "lowest" else 100 < right < 300


@pytest.mark.parametrize("mode", ["plain", "masked"])
def test_a_run_steps_to_where_the_arithmetic_says(mode: str) -> None:
    home = house(mode=mode, bits=12)
    steps = dict(zip(home.members, (0.05, 0.10, 0.15, -0.02), strict=True))
    members = clients(home, SIZE, lambda name: FixedLearner(steps[name], correct=6))
    run = coordinator(home, members, SIZE)
    report = run.run()
    mean, momentum = np.mean(list(steps.values())), home.policy.recipe.server_momentum
    expected = mean * (1 + (1 + momentum) + (1 + momentum + momentum**2))
    step = home.policy.recipe.update_range / (2**11 - 1)  # of one party's rounding
    assert np.abs(run.state.server.flat - expected).max() < 3 * 2.2 * step
    assert np.abs(run.state.server.flat.mean() - expected) < step / 4  # rounding is unbiased
    assert report.accuracy == {"before": 0.6, "after": 0.6}
    assert [
        (entry["kind"], entry["round"], entry["scored"], entry["loss"]) for entry in report.history
    ] == [("train", 1, 4, 2.0), ("train", 2, 4, 2.0), ("train", 3, 4, 2.0), ("score", 4, 4, None)]
    assert report.history[0]["bytes_up"].keys() == set(steps)
    assert report.protection == mode


def test_masked_sums_are_the_plain_ones_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ring.encode
    key = bytes(32)  # the same dice for both
    monkeypatch.setattr(
        ring, "encode", lambda values, ranges, bits: original(values, ranges, bits, key=key)
    )
    results = []
    for mode in ("plain", "masked"):
        home = house(mode=mode)
        run = coordinator(
            home, clients(home, SIZE, lambda name: SyntheticLearner(SIZE, name)), SIZE
        )
        run.run()
        results.append(run.state.server.flat)
    assert np.array_equal(results[0], results[1])


def test_a_rehearsal_arrives_at_its_target() -> None:
    home = house(mode="masked", recipe={"rounds": 8})
    report = coordinator(
        home, clients(home, SIZE, lambda name: SyntheticLearner(SIZE, name)), SIZE
    ).run()
    before, after = report.accuracy["before"], report.accuracy["after"]
    assert before < 0.5 < 0.95 < after  # type: ignore[operator]


def test_what_the_coordinator_held_is_noise_under_masks_and_an_update_without() -> None:
    held = {}
    for mode in ("plain", "masked"):
        home = house(mode=mode)
        held[mode] = coordinator(home, clients(home, 4000), 4000).run().held
    assert (
        held["masked"]["chi_square_per_degree"] < 1.6 < 50 < held["plain"]["chi_square_per_degree"]
    )
    assert len(held["masked"]["words"]) == len(held["masked"]["sum_words"]) == 16


@pytest.mark.parametrize("stage", ["train", "advertise", "share", "mask", "consistency", "unmask"])
def test_a_party_that_falls_silent_is_survived_or_the_round_aborts_cleanly(stage: str) -> None:
    home = house(4, mode="masked", min_cohort=3, threshold=3)
    members = clients(home, SIZE)
    link = SilentLink(
        {name: client.handle for name, client in members.items()},
        lambda name, message: name == "dan" and stage_of(message) == stage,
    )
    run = coordinator(home, members, SIZE, link=link)
    report = run.run(rounds=1)
    expected = (
        ["ann", "ben", "cat", "dan"]
        if stage in ("consistency", "unmask")
        else ["ann", "ben", "cat"]
    )
    assert report.history[0]["parties"] == expected
    # the survivors' mean, never a fourth too small
    assert np.abs(run.state.server.flat - 0.1).max() < 0.01
    assert report.aborted == []


@pytest.mark.parametrize(
    "mode, stage",
    [("masked", "train"), ("masked", "mask"), ("masked", "unmask"), ("plain", "send")],
)
def test_below_the_minimum_a_round_aborts_and_the_adapter_is_unchanged(
    mode: str, stage: str, open_store: Callable[[], Store]
) -> None:
    home = house(4, mode=mode, min_cohort=3, recipe={"attempts": 2})
    members, silent = clients(home, SIZE), [True]
    link = SilentLink(
        {name: client.handle for name, client in members.items()},
        lambda name, message: silent[0] and name in ("cat", "dan") and stage_of(message) == stage,
    )
    store = open_store()
    run = coordinator(home, members, SIZE, link=link, store=store)
    with pytest.raises(RoundAborted):
        run.run()
    assert run.state.round == 0 and not run.state.server.flat.any()
    assert len(run.aborted) == 2
    # they are back: the same run goes on, with numbers that nobody has answered yet
    silent[0] = False
    again = coordinator(home, members, SIZE, link=link, store=open_store())
    assert again.state.run == run.state.run
    assert again.run().rounds == 3


def test_nobody_is_asked_below_the_minimum() -> None:
    home = house(4, recipe={"attempts": 1})
    members = clients(home, SIZE)
    del members["ann"], members["ben"]
    with pytest.raises(RoundAborted, match="2 members came within 0 s, need 3"):
        coordinator(home, members, SIZE).run()
    assert all(trainings(client) == [] for client in members.values())


def test_a_party_whose_training_fails_is_missing_and_says_nothing() -> None:
    class Broken(FixedLearner):
        def train(self, flat: np.ndarray, seed: int) -> Trained:
            return Trained(flat=flat * np.float32(np.nan), examples=1, tokens=1, loss=1.0)

    home = house(4, mode="masked")
    members = clients(home, SIZE, lambda name: Broken() if name == "ben" else FixedLearner())
    report = coordinator(home, members, SIZE).run(rounds=1)
    assert report.history[0]["parties"] == ["ann", "cat", "dan"]
    with pytest.raises(DataError, match="not finite"):
        Codec(1, home.policy).encode(np.array([np.nan], np.float32), Statistics())


def test_a_run_goes_on_where_its_store_left_it(
    tmp_path: Path, open_store: Callable[[], Store]
) -> None:
    home = house(mode="masked")
    members = clients(home, SIZE)
    first = open_store()
    half = coordinator(home, members, SIZE, store=first)
    half.train_round()
    flat = half.state.server.flat.copy()
    with pytest.raises(FederationError, match="another coordinator"):
        Store(tmp_path)
    rest = coordinator(home, members, SIZE, store=open_store())
    assert (rest.state.round, rest.state.run) == (1, half.state.run)
    assert np.array_equal(rest.state.server.flat, flat)
    report = rest.run()
    assert [entry["round"] for entry in report.history] == [1, 2, 3, 4]
    assert report.accuracy["before"] == 0.4


@pytest.mark.parametrize("mode", ["plain", "masked"])
def test_members_name_a_round_as_the_coordinator_does_when_numbers_were_lost(mode: str) -> None:
    home, told = house(mode=mode), list[FederationEvent]()
    members = clients(home, SIZE)
    members["ann"].on_event = told.append
    run = coordinator(home, members, SIZE, on_event=told.append)
    run.logbook.skip()  # a sum was opened under it, and the step lost
    run.run()
    numbers = {"train": [1, 2, 3], "score": [4], "trained": [1, 2, 3]}
    for name, rounds in numbers.items():
        assert [
            event.round
            for event in told
            if isinstance(event, WorkEvent | TrainedEvent) and event.name == name
        ] == rounds
    assert [event.round for event in told if isinstance(event, AskedEvent)] == [1, 2, 3, 4]
    assert members["ann"].ledger.marks[run.state.run] > (5, 0)


def test_a_coordinator_killed_while_a_sum_was_open_never_has_it_opened_twice(
    open_store: Callable[[], Store],
) -> None:
    home = house(mode="masked")
    members = clients(home, SIZE)
    store = open_store()
    doomed = coordinator(home, members, SIZE, store=store)
    killed = mock.Mock(side_effect=KeyboardInterrupt)
    doomed.commit = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        doomed.run()
    again = coordinator(home, members, SIZE, store=open_store())
    assert (again.state.round, again.state.skipped, again.state.opening) == (0, 1, False)
    report = again.run()
    assert report.rounds == 3 and report.aborted == []


def test_members_refuse_a_coordinator_with_an_older_state(
    tmp_path: Path, open_store: Callable[[], Store]
) -> None:
    home = house(recipe={"attempts": 1})
    members = clients(home, SIZE)
    store = open_store()
    coordinator(home, members, SIZE, store=store).train_round()
    store.close()
    old = (tmp_path / checkpoint.FILE).read_bytes()
    store = open_store()
    run = coordinator(home, members, SIZE, store=store)
    run.train_round()
    run.train_round()
    store.close()
    (tmp_path / checkpoint.FILE).write_bytes(old)
    with pytest.raises(RoundAborted, match="0 of 4 members are ready"):
        coordinator(home, members, SIZE, store=open_store()).run()


def test_a_foreign_checkpoint_is_refused(open_store: Callable[[], Store]) -> None:
    home = house()
    store = open_store()
    store.save(RunState.fresh(home.policy, SIZE))
    with pytest.raises(FederationError, match="adapter of 200 values, expected 7"):
        store.load(home.policy, 7)
    with pytest.raises(FederationError, match="another federation"):
        store.load(dataclasses.replace(home.policy, nonce="03" * 16), SIZE)


def test_a_full_disk_stops_the_run_before_anything_changes(open_store: Callable[[], Store]) -> None:
    home = house()
    members = clients(home, SIZE)
    store = open_store()
    run = coordinator(home, members, SIZE, store=store)
    run.train_round()
    assert store.database is not None
    room = store.database.number("page_size") - len(json.dumps(run.state.history[0])) - 500
    run.logbook.keep(history=({**run.state.history[0], "note": "x" * room},))
    pages = store.database.number("page_count")
    # as full as a disk can be
    store.database.connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(QuietchoirError, match="disk is full"):
        for _ in range(8):  # there may still be room for some attempts' numbers
            run.train_round()
    written = open_store().load(home.policy, SIZE)
    assert written.server.encode() == run.state.server.encode()
    # what memory says is what is on disk
    assert dataclasses.replace(written, server=run.state.server) == run.state
    assert run.state.round == len(run.state.history) >= 1


def test_the_cohort_is_drawn_from_a_seed_that_members_can_compute() -> None:
    home = house(8, recipe={"cohort": 3})
    members = clients(home, SIZE)
    run = coordinator(home, members, SIZE)
    cohorts = []
    for _ in range(6):
        run.train_round()
        cohorts.append(tuple(run.state.history[-1]["asked"]))
    assert {len(cohort) for cohort in cohorts} == {3}
    assert len(set(cohorts)) > 1
