"""Sealed rounds in one process: the members' adapter is exact, the coordinator has none, and
what is missed is handed on.
"""

import dataclasses
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quietchoir.core.errors import (
    DisagreementError,
    MessageError,
    ProtocolError,
    QuietchoirError,
    RoundAborted,
    ThresholdError,
)
from quietchoir.core.worker import Worker
from quietchoir.crypto import ring
from quietchoir.crypto.he.bfv import key_id
from quietchoir.crypto.he.encrypted_ring import open_sum
from quietchoir.federation.aggregation import encrypted, parts, secagg
from quietchoir.federation.aggregation.base import ClientSecrets, Contributors
from quietchoir.federation.aggregation.update import Codec
from quietchoir.federation.rounds.client import Client
from quietchoir.federation.store import checkpoint
from quietchoir.federation.store.checkpoint import Store
from quietchoir.federation.store.client_store import GROUP_KEY, ClientStore, model_of
from quietchoir.federation.store.member import FILE
from quietchoir.federation.training.synthetic_task import SyntheticLearner
from quietchoir.federation.wire import messages
from quietchoir.federation.wire.messages import RoundId
from quietchoir.simulations.inprocess import InProcessLink
from quietchoir.tests.fakes.federation import (
    ANY_MODE,
    FixedLearner,
    House,
    SilentLink,
    clients,
    coordinator,
    house,
)
from quietchoir.tests.fakes.sealed import (
    CrashingAdder,
    DriftingClientStore,
    LocalCryptoWorker,
    MarkingCryptoWorker,
    adapter_of,
    client_store_of,
    sealed_clients,
)
from quietchoir.tests.fakes.store import names

SIZE = 3000
ROUND_ID = RoundId("ab" * 16, 1, 1)


@pytest.fixture(scope="module")
def crypto_worker() -> LocalCryptoWorker:
    """One for all: keys come with each call."""
    return LocalCryptoWorker()


class ListeningLink(InProcessLink):
    """Keeps every byte that passes the coordinator, both ways."""

    def __init__(self, members: Mapping[str, Callable[[bytes], bytes]]) -> None:
        super().__init__(members)
        self.letters: list[bytes] = []
        self.answers: list[bytes] = []

    def ask(self, letters: Mapping[str, bytes], timeout_s: float) -> Iterator[tuple[str, bytes]]:
        self.letters += letters.values()
        for name, answer in super().ask(letters, timeout_s):
            self.answers.append(answer)
            yield name, answer


def stage_of(letter: bytes) -> str:
    """What a message asks for."""
    fields, _ = messages.split(letter)
    return str(fields["stage"])


def payload_of(letter: bytes) -> bytes:
    """What a message carries."""
    return messages.split(letter)[1]


def rehearsal(name: str) -> SyntheticLearner:
    return SyntheticLearner(SIZE, name)


def adapters(members: Mapping[str, Client], run: str) -> list[Any]:
    return [adapter_of(client, run) for client in members.values()]


def same(vectors: list[Any]) -> bool:
    return all(np.array_equal(vectors[0], other) for other in vectors)


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_members_end_with_the_plain_adapter_to_the_last_bit(
    bits: int, crypto_worker: LocalCryptoWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, dice = ring.encode, bytes(32)  # the same dice for both
    monkeypatch.setattr(
        ring, "encode", lambda values, ranges, bits: original(values, ranges, bits, key=dice)
    )
    open_, closed = house(mode="plain", bits=bits), house(mode="sealed", bits=bits)
    plain = coordinator(open_, clients(open_, SIZE, rehearsal), SIZE)
    expected = plain.run()
    members = sealed_clients(closed, SIZE, rehearsal, crypto_worker=crypto_worker)
    run = coordinator(closed, members, SIZE, crypto_worker=crypto_worker)
    report = run.run()
    for vector in adapters(members, run.state.run):
        assert np.array_equal(vector, plain.state.server.flat)
    assert report.accuracy == expected.accuracy
    assert [entry["loss"] for entry in report.history] == [
        entry["loss"] for entry in expected.history
    ]
    assert (report.protection, report.delivered, report.aborted, report.adapter) == (
        "sealed",
        sorted(members),
        [],
        "",
    )


def test_nothing_that_passes_the_coordinator_opens_without_a_members_key(
    crypto_worker: LocalCryptoWorker, tmp_path: Path
) -> None:
    home = house(mode="sealed", bits=8)
    members = sealed_clients(home, SIZE, crypto_worker=crypto_worker)
    link, store = (
        ListeningLink({name: client.handle for name, client in members.items()}),
        Store(tmp_path),
    )
    run = coordinator(home, members, SIZE, crypto_worker=crypto_worker, link=link, store=store)
    run.train_round()
    store.close()
    seed = client_store_of(members["ann"]).seed(home.policy.digest)
    assert seed is not None
    adapter, everything = (
        adapter_of(members["ann"], run.state.run),
        b"".join(link.letters + link.answers),
    )
    written = (tmp_path / checkpoint.FILE).read_bytes()
    for held in (everything, written):
        assert seed not in held and seed.hex().encode() not in held
        assert adapter[:8].tobytes() not in held
    assert run.state.server.flat.size == 0
    sums = {payload_of(letter) for letter in link.letters if stage_of(letter) == encrypted.WITNESS}
    assert len(sums) == 1
    total = sums.pop()
    names = tuple(sorted(members))
    group = secagg.BucketGroup.of(names, 4, Contributors(names, names))
    config = secagg.agree(
        home.policy,
        ROUND_ID,
        group,
        SIZE + encrypted.counters(home.policy),
        counted=True,
        context=b"",
    )
    seal = encrypted.make_seal(home.policy, config, key_id(seed))
    assert seal is not None
    for _ in range(3):
        with pytest.raises(ProtocolError, match="noise budget"):
            open_sum(seal, secrets.token_bytes(32), total, crypto_worker)
    # the unprotected arm: with the key
    mean = Codec(SIZE, home.policy).mean(open_sum(seal, seed, total, crypto_worker), 4)
    assert np.array_equal(mean, adapter)  # the first step from zero is the mean itself


def test_what_the_coordinator_reports_that_it_held_is_noise(
    crypto_worker: LocalCryptoWorker,
) -> None:
    home = house(mode="sealed")
    held = (
        coordinator(
            home,
            sealed_clients(home, SIZE, crypto_worker=crypto_worker),
            SIZE,
            crypto_worker=crypto_worker,
        )
        .run(rounds=1)
        .held
    )
    assert held["kind"] == "sealed" and held["chi_square_per_degree"] < 1.6


@pytest.mark.parametrize(
    "stage",
    [
        "greet",
        "take",
        "train",
        "advertise",
        "share",
        "mask",
        "consistency",
        "unmask",
        "witness",
        "apply",
    ],
)
def test_a_member_that_falls_silent_is_survived_and_catches_up(
    stage: str, crypto_worker: LocalCryptoWorker
) -> None:
    home, silent = house(4, mode="sealed", threshold=3), [True]
    members = sealed_clients(home, SIZE, crypto_worker=crypto_worker)
    link = SilentLink(
        {name: client.handle for name, client in members.items()},
        lambda name, letter: silent[0] and name == "dan" and stage_of(letter) == stage,
    )
    run = coordinator(home, members, SIZE, link=link, crypto_worker=crypto_worker)
    run.train_round()
    summed = stage in ("consistency", "unmask", "witness", "apply")
    assert run.state.history[0]["parties"] == ["ann", "ben", "cat", *["dan"] * summed]
    # the survivors' mean
    assert np.abs(adapter_of(members["ann"], run.state.run) - 0.1).max() < 0.01
    assert not adapter_of(members["dan"], run.state.run).any()
    silent[0] = False
    report = run.run()
    assert same(adapters(members, run.state.run))
    assert report.history[1]["parties"] == sorted(members) and report.delivered == sorted(members)


@pytest.mark.parametrize("stage", ["greet", "mask", "unmask", "witness", "apply"])
def test_below_the_minimum_a_round_aborts_and_the_run_goes_on_later(
    stage: str, crypto_worker: LocalCryptoWorker
) -> None:
    home, silent = house(4, mode="sealed", threshold=3, recipe={"attempts": 2}), [True]
    members = sealed_clients(home, SIZE, crypto_worker=crypto_worker)
    link = SilentLink(
        {name: client.handle for name, client in members.items()},
        lambda name, letter: silent[0] and name in ("cat", "dan") and stage_of(letter) == stage,
    )
    run = coordinator(home, members, SIZE, link=link, crypto_worker=crypto_worker)
    with pytest.raises(RoundAborted):
        run.run()
    silent[0] = False
    report = run.run()
    assert report.rounds == 3 and same(adapters(members, run.state.run))
    # also if two had stepped while others could not
    assert client_store_of(members["ann"]).progress(run.state.run).steps == 3


def test_a_new_version_of_the_file_has_a_new_key_and_goes_on_with_the_adapter(
    crypto_worker: LocalCryptoWorker, tmp_path: Path
) -> None:
    home = house(5, mode="sealed")
    four = dataclasses.replace(home.policy, members=home.policy.members[:4])
    before = House(
        four,
        home.owner,
        home.coordinator,
        {name: home.members[name] for name in ("ann", "ben", "cat", "dan")},
    )
    members = sealed_clients(before, SIZE, rehearsal, folder=tmp_path, crypto_worker=crypto_worker)
    store = Store(tmp_path / "coordinator")
    run = coordinator(before, members, SIZE, crypto_worker=crypto_worker, store=store)
    run.train_round()
    store.close()
    old = client_store_of(members["ann"]).seed(four.digest)
    after = House(
        dataclasses.replace(home.policy, version=2), home.owner, home.coordinator,
        {name: key for name, key in home.members.items() if name != "dan"},
    )  # fmt: skip
    after.policy = dataclasses.replace(
        after.policy, members=tuple(one for one in home.policy.members if one.name != "dan")
    )
    later = sealed_clients(after, SIZE, rehearsal, folder=tmp_path, crypto_worker=crypto_worker)
    # the old key serves no other epoch
    assert client_store_of(later["ann"]).seed(after.policy.digest) is None
    store = Store(tmp_path / "coordinator")
    go_on = coordinator(after, later, SIZE, crypto_worker=crypto_worker, store=store)
    go_on.train_round()
    store.close()
    new = {client_store_of(client).seed(after.policy.digest) for client in later.values()}
    assert len(new) == 1 and old not in new and None not in new
    # eve was handed the first
    assert [client_store_of(client).progress(run.state.run).steps for client in later.values()] == [
        2
    ] * 4
    assert same(adapters(later, run.state.run)) and go_on.state.round == 2
    # dan has the old key and file, and gets nowhere with them
    with pytest.raises(QuietchoirError, match="version"):
        members["dan"].handle(
            messages.encode_task(
                messages.Task(round_id=ROUND_ID, stage="greet", recipient="dan", payload=b""),
                after.policy,
                home.coordinator,
            )
        )


def test_a_member_and_the_coordinator_go_on_after_a_restart(
    crypto_worker: LocalCryptoWorker, tmp_path: Path
) -> None:
    home = house(4, mode="sealed")
    members = sealed_clients(home, SIZE, folder=tmp_path, crypto_worker=crypto_worker)
    first = Store(tmp_path / "coordinator")
    half = coordinator(home, members, SIZE, crypto_worker=crypto_worker, store=first)
    half.train_round()
    first.close()
    kept = adapter_of(members["ben"], half.state.run).copy()
    assert {GROUP_KEY, model_of(half.state.run)} < names(tmp_path / "ben")
    assert stat.S_IMODE((tmp_path / "ben" / FILE).stat().st_mode) == 0o600
    again = sealed_clients(home, SIZE, folder=tmp_path, crypto_worker=crypto_worker)
    assert np.array_equal(adapter_of(again["ben"], half.state.run), kept)
    second = Store(tmp_path / "coordinator")
    rest = coordinator(home, again, SIZE, crypto_worker=crypto_worker, store=second)
    report = rest.run()
    second.close()
    assert report.rounds == 3 and report.aborted == [] and same(adapters(again, rest.state.run))


def test_a_coordinator_killed_after_the_members_stepped_takes_their_word(
    crypto_worker: LocalCryptoWorker, tmp_path: Path
) -> None:
    home = house(4, mode="sealed")
    members = sealed_clients(home, SIZE, crypto_worker=crypto_worker)
    first = Store(tmp_path)
    doomed = coordinator(home, members, SIZE, crypto_worker=crypto_worker, store=first)
    doomed.commit = lambda server, entry: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        doomed.train_round()
    first.close()
    second = Store(tmp_path)
    again = coordinator(home, members, SIZE, crypto_worker=crypto_worker, store=second)
    assert again.state.round == 0
    report = again.run()
    second.close()
    assert report.rounds == 3 and report.aborted == []
    assert client_store_of(members["ann"]).progress(again.state.run).steps == 3


def test_members_that_end_with_different_adapters_stop_the_round(
    crypto_worker: LocalCryptoWorker,
) -> None:
    home = house(4, mode="sealed", threshold=3, recipe={"attempts": 2})

    def drifting(who: set[str]) -> dict[str, Client]:
        members = sealed_clients(home, SIZE, crypto_worker=crypto_worker)
        for name in who:
            members[name] = Client(
                home.policy, home.members[name], FixedLearner(), size=SIZE, consent=ANY_MODE,
                secrets=ClientSecrets(DriftingClientStore(None, SIZE), crypto_worker),
            )  # fmt: skip
        return members

    members = drifting({"dan"})
    run = coordinator(home, members, SIZE, crypto_worker=crypto_worker)
    run.train_round()  # three agree: the fourth is handed theirs in the next round
    assert run.state.round == 1
    members = drifting({"cat", "dan"})
    run = coordinator(home, members, SIZE, crypto_worker=crypto_worker)
    with pytest.raises(DisagreementError, match="3 different adapters, 3 must agree"):
        run.run()
    assert len(run.aborted) == 2  # all went back to where they had agreed, and disagreed again
    assert (
        run.state.round == 0 and client_store_of(members["ann"]).progress(run.state.run).steps == 1
    )


def test_members_that_are_shown_different_sums_decrypt_none(
    crypto_worker: LocalCryptoWorker,
) -> None:
    """The coordinator adds a known plaintext for one half of the members, to compare their tags."""
    home = house(4, mode="sealed", threshold=3, recipe={"attempts": 1})
    members = sealed_clients(home, SIZE, crypto_worker=crypto_worker)

    class Equivocator(InProcessLink):
        def ask(
            self, letters: Mapping[str, bytes], timeout_s: float
        ) -> Iterator[tuple[str, bytes]]:
            out = {}
            for name, letter in letters.items():
                if stage_of(letter) == encrypted.WITNESS and name in ("cat", "dan"):
                    task = messages.decode_task(letter, home.policy, name)
                    changed = (
                        task.payload[:300] + bytes((task.payload[300] ^ 1,)) + task.payload[301:]
                    )
                    letter = messages.encode_task(
                        dataclasses.replace(task, payload=changed), home.policy, home.coordinator
                    )
                out[name] = letter
            return super().ask(out, timeout_s)

    link = Equivocator({name: client.handle for name, client in members.items()})
    asked = crypto_worker.asked.count("decrypt")
    run = coordinator(home, members, SIZE, crypto_worker=crypto_worker, link=link)
    with pytest.raises(RoundAborted):
        run.train_round()
    assert crypto_worker.asked.count("decrypt") == asked
    assert not any(vector.any() for vector in adapters(members, run.state.run))


def witnessed(
    home: House, crypto_worker: LocalCryptoWorker
) -> tuple[dict[str, Client], dict[str, encrypted.EncryptedClient], bytes]:
    """A round up to the moment before `apply`: members, their halves, and the sum they signed."""
    members, caught = sealed_clients(home, SIZE, crypto_worker=crypto_worker), []
    link = SilentLink(
        {name: client.handle for name, client in members.items()},
        lambda name, letter: stage_of(letter) == encrypted.APPLY,
    )
    with pytest.raises(RoundAborted):
        coordinator(home, members, SIZE, crypto_worker=crypto_worker, link=link).train_round()
    caught = [
        payload_of(letter) for _, letter in link.letters if stage_of(letter) == encrypted.WITNESS
    ]
    halves = {
        name: client.attempt.aggregation
        for name, client in members.items()
        if client.attempt is not None
    }
    assert all(isinstance(half, encrypted.EncryptedClient) for half in halves.values())
    return members, halves, caught[0]  # type: ignore[return-value]


def test_a_sum_is_applied_only_with_enough_signatures_of_its_own_members(
    crypto_worker: LocalCryptoWorker,
) -> None:
    home = house(4, mode="sealed", threshold=3)
    members, halves, total = witnessed(home, crypto_worker)
    signatures = {name: half.sum.witness(total) for name, half in halves.items()}
    ann, asked = halves["ann"], crypto_worker.asked.count("decrypt")
    fewer = dict(list(signatures.items())[:2])
    with pytest.raises(ThresholdError, match="2 members were shown this sum, need 3"):
        ann.apply(parts.join(fewer))
    for wrong in (
        {**signatures, "ben": signatures["cat"]},
        {**signatures, "mallory": signatures["cat"]},
        {**fewer, "dan": b""},
    ):
        with pytest.raises(MessageError):
            ann.apply(parts.join(wrong))
    for bad in (b"", total[:-1], bytes(32) + total[32:]):
        with pytest.raises(ProtocolError):
            ann.sum.witness(bad)
    assert crypto_worker.asked.count("decrypt") == asked
    ann.apply(parts.join(signatures))
    assert client_store_of(members["ann"]).progress(ann.context.round_id.run).steps == 1


def test_a_hostile_ciphertext_costs_its_sender_its_place_in_the_sum(
    crypto_worker: LocalCryptoWorker,
) -> None:
    home = house(4, mode="sealed", threshold=3)
    members = sealed_clients(home, SIZE, crypto_worker=crypto_worker)
    hostile = ClientSecrets(ClientStore(None, SIZE), MarkingCryptoWorker())
    members["dan"] = Client(
        home.policy,
        home.members["dan"],
        FixedLearner(),
        size=SIZE,
        consent=ANY_MODE,
        secrets=hostile,
    )
    worker = Worker(CrashingAdder)
    try:
        run = coordinator(home, members, SIZE, crypto_worker=worker)
        run.train_round()
    finally:
        worker.close()
    assert worker.starts == 2
    assert run.state.history[0]["parties"] == ["ann", "ben", "cat"]
    assert np.abs(adapter_of(members["ann"], run.state.run) - 0.1).max() < 0.01


def test_work_on_another_adapter_than_the_members_own_is_refused(
    crypto_worker: LocalCryptoWorker,
) -> None:
    home = house(4, mode="sealed")
    members = sealed_clients(home, SIZE, crypto_worker=crypto_worker)
    ann = members["ann"]
    for order in (
        messages.Work(flat=np.zeros(0, np.float32), state="00" * 32),
        messages.Work(flat=np.zeros(SIZE, np.float32)),
    ):
        task = messages.Task(
            round_id=ROUND_ID,
            stage=messages.TRAIN,
            recipient="ann",
            payload=messages.encode_work(order),
        )
        with pytest.raises(MessageError):
            ann.handle(messages.encode_task(task, home.policy, home.coordinator))
    assert ann.learner.trained == [] and ann.ledger.marks == {}  # type: ignore[attr-defined]


def test_a_finished_adapter_is_kept_by_members_and_named_to_nobody(
    crypto_worker: LocalCryptoWorker,
) -> None:
    home, kept = house(4, mode="sealed"), {}

    def adopt(name: str) -> Callable[[Any, str], str]:
        def keep(flat: Any, text: str) -> str:
            kept[name] = (flat.copy(), text)
            return "a hash of the content"

        return keep

    members = sealed_clients(home, SIZE, crypto_worker=crypto_worker, adopt=adopt)
    link = ListeningLink({name: client.handle for name, client in members.items()})
    run = coordinator(home, members, SIZE, crypto_worker=crypto_worker, link=link)
    run.run(rounds=1)
    assert kept.keys() == members.keys() and same([flat for flat, _ in kept.values()])
    assert '"after": 0.4' in kept["ann"][1]
    assert not any(b"a hash of the content" in answer for answer in link.answers)
