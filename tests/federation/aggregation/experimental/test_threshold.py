"""Sealed rounds whose sums t members open together: exact, closed to fewer, and what is left of
them on disks.
"""

import dataclasses
import stat
from pathlib import Path

import numpy as np
import pytest

from quietchoir.core.errors import ProtocolError, RoundAborted, ThresholdError
from quietchoir.crypto import ring
from quietchoir.crypto.experimental.threshold import (
    Contributor,
    Holder,
    PartialReader,
    opened_bytes,
    request,
)
from quietchoir.federation import costs
from quietchoir.federation.aggregation import parts
from quietchoir.federation.aggregation.encrypted import WITNESS
from quietchoir.federation.aggregation.experimental import dkg_client, threshold
from quietchoir.federation.aggregation.experimental.key_group import round_number
from quietchoir.federation.store.checkpoint import Store
from quietchoir.federation.store.client_store import SHARE, SHARE_MEMORY
from quietchoir.federation.store.member import FILE
from quietchoir.federation.training.synthetic_task import SyntheticLearner
from quietchoir.federation.wire import messages
from quietchoir.tests.fakes.federation import House, clients, coordinator, house
from quietchoir.tests.fakes.joint import (
    CRYPTO_WORKER,
    SIZE,
    KeepingLink,
    adapters,
    config_of,
    joint_house,
    keys,
    same,
    stage_of,
)
from quietchoir.tests.fakes.sealed import adapter_of, client_store_of, sealed_clients
from quietchoir.tests.fakes.store import everywhere, names, query

BODY = "SELECT body FROM records WHERE name = ?"


def test_members_end_with_the_plain_adapter_to_the_last_bit_and_make_one_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, dice = ring.encode, bytes(32)  # the same dice for both
    monkeypatch.setattr(
        ring, "encode", lambda values, ranges, bits: original(values, ranges, bits, key=dice)
    )
    open_, closed = house(mode="plain", bits=8), joint_house()
    plain = coordinator(
        open_, clients(open_, SIZE, lambda name: SyntheticLearner(SIZE, name)), SIZE
    )
    expected = plain.run()
    members = sealed_clients(
        closed, SIZE, lambda name: SyntheticLearner(SIZE, name), crypto_worker=CRYPTO_WORKER
    )
    link = KeepingLink(members)
    run = coordinator(closed, members, SIZE, crypto_worker=CRYPTO_WORKER, link=link)
    report = run.run()
    for vector in adapters(members, run.state.run):
        assert np.array_equal(vector, plain.state.server.flat)
    assert (
        report.accuracy == expected.accuracy
        and report.aborted == []
        and report.delivered == sorted(members)
    )
    assert len(set(keys(members))) == 1
    stages = [stage_of(message) for _, message in link.letters]
    assert stages.count(dkg_client.COMMIT) == len(members)  # one ceremony for all rounds
    told, second = costs.round_cost(closed.policy, SIZE), report.history[1]
    for found, promised in ((second["bytes_up"], told.up), (second["bytes_down"], told.down)):
        assert 0.9 * promised < max(found.values()) <= promised
    assert report.held["kind"] == "sealed" and report.held["chi_square_per_degree"] < 1.6


def test_the_coordinator_with_t_minus_1_members_opens_nothing_and_t_members_open_the_sum(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    home = joint_house()
    members = sealed_clients(home, SIZE, crypto_worker=CRYPTO_WORKER)
    link = KeepingLink(members)
    run = coordinator(home, members, SIZE, crypto_worker=CRYPTO_WORKER, link=link)
    run.train_round()
    everything = b"".join(
        [message for _, message in link.letters] + [answer for _, _, answer in link.answers]
    )
    holdings = {
        name: client_store_of(client).key_shares.key_share(home.policy.digest)
        for name, client in members.items()
    }
    adapter = adapter_of(members["ann"], run.state.run)
    for name, key_share in holdings.items():
        assert key_share is not None, name
        for secret in (
            key_share.readers,
            *key_share.pairs.values(),
            key_share.secret[0, :8].tobytes(),
            key_share.shares[1][0, :8].tobytes(),
        ):
            assert (
                secret not in everything
                and secret.hex() not in caplog.text
                and str(secret) not in caplog.text
            )
    assert adapter[:8].tobytes() not in everything and run.state.server.flat.size == 0
    total = set(link.payloads(WITNESS).values()).pop()
    given = parts.split(link.payloads(threshold.OPEN)["ann"])
    asked, summed = given[dkg_client.REQUEST], given[threshold.SUMMED]
    ann = holdings["ann"]
    assert ann is not None and ann.plan.threshold == 3
    assert len(summed) < len(total) + 1000  # one vector, whatever the number of parts
    round_id = messages.RoundId(run.state.run, 1, 1)
    joint = threshold.make_joint_ring(
        home.policy, config_of(home, round_id), ann.plan, ann.key_id, round_number(round_id), b""
    )
    reader = PartialReader(ann, asked, opened_bytes(joint.sealing, total))
    with pytest.raises(ThresholdError, match="no part from"):
        reader.result()
    reader.receive_sum(summed)  # the arm with t members
    sums = joint.sealing.packing.unpack(reader.result())
    assert (
        np.abs(ring.decode_sum(sums, 4, [ring.Range(0, SIZE, 0.2)], 8) / 4 - adapter).max() < 1e-6
    )


@pytest.mark.parametrize("stage", [*dkg_client.STAGES, "mask", "witness", "open"])
def test_a_member_that_falls_silent_is_survived_and_catches_up(stage: str) -> None:
    home, silent = joint_house(4), [True]
    members = sealed_clients(home, SIZE, crypto_worker=CRYPTO_WORKER)
    link = KeepingLink(
        members,
        lambda name, message: (
            None if silent[0] and name == "dan" and stage_of(message) == stage else message
        ),
    )
    run = coordinator(home, members, SIZE, link=link, crypto_worker=CRYPTO_WORKER)
    run.train_round()
    summed = stage in ("witness", "open")
    assert run.state.history[0]["parties"] == ["ann", "ben", "cat", *["dan"] * summed]
    # the survivors' mean
    assert np.abs(adapter_of(members["ann"], run.state.run) - 0.1).max() < 0.01
    assert not adapter_of(members["dan"], run.state.run).any()
    silent[0] = False
    run.train_round()
    assert same(adapters(members, run.state.run)) and len(set(keys(members))) == 1
    assert run.state.history[1]["parties"] == sorted(members)


@pytest.mark.parametrize("stage", ["reveal", "open"])
def test_with_fewer_than_t_members_nothing_is_opened_and_the_run_goes_on_later(stage: str) -> None:
    home, silent = joint_house(4, recipe={"attempts": 2}), [True]
    members = sealed_clients(home, SIZE, crypto_worker=CRYPTO_WORKER)
    link = KeepingLink(
        members,
        lambda name, message: (
            None if silent[0] and name in ("cat", "dan") and stage_of(message) == stage else message
        ),
    )
    run = coordinator(home, members, SIZE, link=link, crypto_worker=CRYPTO_WORKER)
    with pytest.raises(RoundAborted, match="members are left to"):
        run.run()
    for client in members.values():
        assert client_store_of(client).progress(run.state.run).steps == 0
    assert not any(
        threshold.SUMMED in parts.split(payload)
        for payload in link.payloads(threshold.OPEN).values()
    )
    silent[0] = False
    report = run.run(rounds=1)
    assert report.rounds == 1 and same(adapters(members, run.state.run))


def test_a_late_member_gets_a_share_of_a_new_key_and_an_old_key_serves_without_it() -> None:
    home, here = joint_house(5), {"ann", "ben", "cat", "dan"}
    members = sealed_clients(home, SIZE, crypto_worker=CRYPTO_WORKER)
    link = KeepingLink(members, lambda name, message: message if name in here else None)
    run = coordinator(home, members, SIZE, link=link, crypto_worker=CRYPTO_WORKER)
    run.train_round()
    first = keys(members)
    assert len(set(first[:4])) == 1 and first[4] is None
    run.train_round()
    assert keys(members) == first  # nobody new: the same key
    here.add("eve")
    run.train_round()
    second = keys(members)
    assert (
        len(set(second)) == 1 and second[0] not in first and same(adapters(members, run.state.run))
    )
    assert run.state.history[2]["parties"] == sorted(members)
    client_store_of(
        members["eve"]
    ).key_shares.wipe()  # eve loses its disk, and then cannot finish a ceremony
    link.change = lambda name, message: (
        None if name == "eve" and stage_of(message) == dkg_client.FINISH else message
    )
    run.train_round()
    assert run.state.history[3]["parties"] == ["ann", "ben", "cat", "dan"]


def test_a_new_version_of_the_file_wipes_the_shares_and_goes_on_with_the_adapter_under_a_new_key(
    tmp_path: Path,
) -> None:
    home = joint_house(4)
    members = sealed_clients(home, SIZE, folder=tmp_path, crypto_worker=CRYPTO_WORKER)
    store = Store(tmp_path / "coordinator")
    run = coordinator(home, members, SIZE, crypto_worker=CRYPTO_WORKER, store=store)
    run.train_round()
    store.close()
    old, held = keys(members)[0], adapter_of(members["ann"], run.state.run).copy()
    ((secret,),) = query(tmp_path / "ann" / FILE, BODY, SHARE)
    assert secret[-64:] in everywhere(tmp_path / "ann")
    after = House(
        dataclasses.replace(home.policy, version=2), home.owner, home.coordinator, home.members
    )
    later = sealed_clients(after, SIZE, folder=tmp_path, crypto_worker=CRYPTO_WORKER)
    assert keys(later) == [None] * 4
    assert not any({SHARE, SHARE_MEMORY} & names(tmp_path / name) for name in later)
    left = everywhere(tmp_path / "ann")  # nor in what was deleted, nor in the log
    assert not any(secret[at : at + 64] in left for at in range(0, len(secret) - 64, 4096))
    store = Store(tmp_path / "coordinator")
    go_on = coordinator(after, later, SIZE, crypto_worker=CRYPTO_WORKER, store=store)
    assert np.array_equal(adapter_of(later["ann"], run.state.run), held)
    go_on.train_round()
    store.close()
    assert go_on.state.round == 2 and len(set(keys(later))) == 1 and old not in keys(later)
    assert query(tmp_path / "ann" / FILE, BODY, SHARE) != [(secret,)]


def test_members_and_coordinator_go_on_after_a_restart_with_the_same_key_and_open_no_round_twice(
    tmp_path: Path,
) -> None:
    home = joint_house(4)
    members = sealed_clients(home, SIZE, folder=tmp_path, crypto_worker=CRYPTO_WORKER)
    store = Store(tmp_path / "coordinator")
    first = KeepingLink(members)
    run = coordinator(home, members, SIZE, crypto_worker=CRYPTO_WORKER, store=store, link=first)
    run.train_round()
    store.close()
    assert {SHARE, SHARE_MEMORY} < names(tmp_path / "ben")
    assert stat.S_IMODE((tmp_path / "ben" / FILE).stat().st_mode) == 0o600
    before = keys(members)
    again = sealed_clients(home, SIZE, folder=tmp_path, crypto_worker=CRYPTO_WORKER)
    assert keys(again) == before
    link, store = KeepingLink(again), Store(tmp_path / "coordinator")
    rest = coordinator(home, again, SIZE, crypto_worker=CRYPTO_WORKER, store=store, link=link)
    rest.train_round()
    store.close()
    assert (
        not link.stages() & set(dkg_client.STAGES) and keys(again) == before
    )  # no second ceremony
    key_share = client_store_of(again["ben"]).key_shares.key_share(home.policy.digest)
    assert key_share is not None
    number = round_number(messages.RoundId(rest.state.run, 1, 1))  # of the round before the restart
    with pytest.raises(ProtocolError, match="encrypted for before"):
        slots = key_share.plan.packing.pack(np.zeros(SIZE, np.uint64))
        Contributor(key_share, home.members["ben"]).encrypt(number, slots)
    sharers = key_share.plan.names
    with pytest.raises(ProtocolError, match="opened over others"):
        Holder(key_share, home.members["ben"]).respond(
            request(key_share.plan, number, sharers[:3], sharers[:3])
        )


def test_a_ceremony_cut_off_by_a_kill_starts_again_under_a_new_attempt(tmp_path: Path) -> None:
    home = joint_house(4)
    doomed = sealed_clients(home, SIZE, folder=tmp_path, crypto_worker=CRYPTO_WORKER)
    members = dict(doomed)

    def kill_at_finish(name: str, message: bytes) -> bytes:
        if stage_of(message) == dkg_client.FINISH and members["ben"] is doomed["ben"]:
            # everybody restarts at once
            members.update(sealed_clients(home, SIZE, folder=tmp_path, crypto_worker=CRYPTO_WORKER))
            link.parties = {name: client.handle for name, client in members.items()}
        return message

    link = KeepingLink(members, kill_at_finish)
    run = coordinator(home, members, SIZE, crypto_worker=CRYPTO_WORKER, link=link)
    run.insist(run.train_round)
    assert len(set(keys(members))) == 1 and None not in keys(members)
    assert run.state.history[0]["attempt"] == 2 and same(adapters(members, run.state.run))
