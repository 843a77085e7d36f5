"""A side's database: steps that are whole, records that are theirs, nothing left of what was
wiped; and what former versions kept, taken over.

`vectors/state-of-0.tar.gz` was written by commit fc254ba, the last with files beside each other:
one member's folder, two coordinators' (one account for any member, one for each), and what is in
them.
"""

import hashlib
import json
import shutil
import sqlite3
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quietchoir.core.errors import BudgetError, ConfigError, FederationError, QuietchoirError
from quietchoir.crypto.experimental.threshold import ThresholdMemory
from quietchoir.crypto.identity.keys import digest
from quietchoir.crypto.privacy.accountant import Account, Budget, PrivacyStep
from quietchoir.federation.engines.stateless_client import AttemptSnapshot
from quietchoir.federation.personalization.worker import Pending
from quietchoir.federation.rounds.contribution_buffer import ContributionBuffer
from quietchoir.federation.rounds.model_broadcast import ClientModelCache
from quietchoir.federation.store import checkpoint, former
from quietchoir.federation.store.checkpoint import Store
from quietchoir.federation.store.client_store import SHARE, SHARE_MEMORY, ClientStore, KeyShareStore
from quietchoir.federation.store.database import Database
from quietchoir.federation.store.ledger import AnsweredRounds, StaleError
from quietchoir.federation.store.member import FILE, open_member
from quietchoir.federation.store.privacy_book import PrivacyBook
from quietchoir.federation.wire.messages import RoundId
from quietchoir.tests.fakes.federation import coordinator
from quietchoir.tests.fakes.joint import CRYPTO_WORKER, SIZE, joint_house
from quietchoir.tests.fakes.sealed import client_store_of, sealed_clients
from quietchoir.tests.fakes.store import contents, damage, everywhere, names, query

FORMER = Path(__file__).parents[2] / "vectors" / "state-of-0.tar.gz"
RUN, OTHER = "ab" * 16, "cd" * 16
STEP = PrivacyStep(multiplier=4.0)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """State as the former version left it."""
    with tarfile.open(FORMER) as archive:
        archive.extractall(tmp_path, filter="data")
    for path in tmp_path.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return tmp_path


def expected(old: Path) -> dict[str, Any]:
    return dict(json.loads((old / "expected.json").read_text()))


def check_member(folder: Path, told: dict[str, Any]) -> None:
    """Everything in it is what the former version wrote."""
    database = open_member(folder)
    ledger = AnsweredRounds(database)
    assert {run: list(mark) for run, mark in ledger.marks.items()} == told["ledger"]["marks"]
    assert ledger.standing == told["ledger"]["standing"]
    assert ledger.heard_at == told["ledger"]["heard"]
    assert ledger.sums.snapshot().decode() == told["ledger"]["sums"]
    client_store = ClientStore(database, 4)
    assert client_store.seed(bytes.fromhex(told["vault"]["epoch"])) == bytes.fromhex(
        told["vault"]["seed"]
    )
    for run in (RUN, OTHER):
        now, last = told["vault"][run]
        earlier = client_store.before(run)
        assert client_store.progress(run).encode().hex() == now
        assert (None if earlier is None else earlier.encode().hex()) == last
    kept = ContributionBuffer(database).look(RUN, told["contribution"]["rules"])
    assert kept is not None
    before = told["contribution"]
    counters = {**before["statistics"], "near": 0}  # which the former version did not count
    found = {**kept.record().fields, "update": kept.update.tolist()}
    assert found == {**before, "statistics": counters}
    memory = ClientModelCache(database).memory(RUN)
    assert [[name, state.encode().hex()] for name, state in memory.held] == told["recall"]["held"]
    assert list(memory.trail) == told["recall"]["trail"]
    assert Pending(database).read() == tuple(told["pending"])
    history = PrivacyBook(database).read(told["privacy"]["scope"])
    assert [[name, vars_of(step)] for name, step in history] == told["privacy"]["history"]
    database.close()


def vars_of(step: PrivacyStep) -> dict[str, Any]:
    return {name: getattr(step, name) for name in step.__slots__}


def test_what_a_member_of_the_former_version_kept_is_taken_over_and_its_files_are_gone(
    old: Path,
) -> None:
    folder, told = old / "member", expected(old)
    secret = (folder / former.KEY).read_bytes()
    for _ in range(2):
        check_member(folder, told)
    assert {path.name for path in folder.iterdir()} == {FILE, former.ANSWERED}
    assert secret not in b"".join(path.read_bytes() for path in folder.iterdir())
    snapshot, key = (
        AttemptSnapshot(open_member(folder), b"federation", "ann"),
        told["attempt"]["key"],
    )
    assert snapshot.take(bytes.fromhex(key)) == told["attempt"]["content"].encode()
    # the former version is told, and answers nothing twice
    with pytest.raises(FederationError, match=r"version 2; expected .* version 1: .*use that one"):
        Database(folder / former.ANSWERED, "", 1)


@pytest.mark.parametrize("when", ["before the files are gone", "while they go"])
def test_a_kill_while_it_is_taken_over_loses_nothing(
    old: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, told, unlink = old / "member", expected(old), Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        if when == "before the files are gone" or path.name == former.KEY:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            open_member(folder)
    check_member(folder, told)
    assert {path.name for path in folder.iterdir()} == {FILE, former.ANSWERED}


DAMAGE: dict[str, bytes] = {
    former.PRIVACY: b'{"format": "quietchoir privacy account 1", "steps": 7}',
    former.KEY: b"{}",
    f"sealed-{RUN}.state": b"QCV1 and what does not fit" + bytes(40),
    former.ANSWERED: b"no database" * 100,
    former.PERSONAL: b"[",
}


@pytest.mark.parametrize("name", sorted(DAMAGE))
def test_a_damaged_file_refuses_the_whole_and_is_left_as_it_is(old: Path, name: str) -> None:
    folder = old / "member"
    (folder / name).write_bytes(DAMAGE[name])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for _ in range(2):
        with pytest.raises(QuietchoirError, match=name):
            open_member(folder)
    assert {name: (folder / name).read_bytes() for name in before} == before
    shutil.rmtree(folder)
    with tarfile.open(FORMER) as archive:  # the right one is put back
        archive.extractall(old, filter="data")
    (folder / former.KEY).chmod(0o600)
    check_member(folder, expected(old))


def test_a_key_that_others_may_read_is_refused_as_before(old: Path) -> None:
    (old / "member" / former.KEY).chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        open_member(old / "member")


def test_what_others_have_is_gone_without_where_it_is_damaged(old: Path) -> None:
    for name in (former.CONTRIBUTION, former.MODELS):
        path = old / "member" / name
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    database = open_member(old / "member")
    assert (
        ContributionBuffer(database).look(RUN, "ee" * 32) is None
        and ClientModelCache(database).memory(RUN).held == ()
    )
    assert AnsweredRounds(database).marks[RUN] == (2, 3)


def test_a_former_file_beside_the_database_is_refused(old: Path, tmp_path: Path) -> None:
    book = (old / "member" / former.PRIVACY).read_bytes()
    open_member(old / "member").close()
    (old / "member" / former.PRIVACY).write_bytes(book)
    with pytest.raises(FederationError, match=r"privacy\.json: written by a former version"):
        open_member(old / "member")
    assert (old / "member" / former.PRIVACY).read_bytes() == book
    (old / "member" / FILE).unlink()  # and a tombstone alone is no fresh start
    with pytest.raises(FederationError, match="old rounds could be replayed"):
        open_member(old / "member")


def test_what_an_earlier_program_had_answered_in_json_stays_answered(tmp_path: Path) -> None:
    content = {"marks": {RUN: [4, 1]}, "sums": AnsweredRounds().sums.snapshot().decode("ascii")}
    for folder, text in (("one", json.dumps(content)), ("two", "{"), ("three", '{"marks": 1}')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / former.ANSWERED_BEFORE).write_text(text, "ascii")
    for time in (1, 2):
        ledger = AnsweredRounds(open_member(tmp_path / "one"))
        with pytest.raises(StaleError):
            ledger.record(RoundId(RUN, 4, 1))
        ledger.record(RoundId(OTHER, time, 1))
        ledger.release()
    for folder in ("two", "three"):
        with pytest.raises(QuietchoirError, match="damaged"):
            open_member(tmp_path / folder)


@pytest.mark.parametrize("memory", ["right", "another's", "none"])
def test_a_share_is_taken_over_with_its_memory_or_given_up(tmp_path: Path, memory: str) -> None:
    home = joint_house(4)
    members = sealed_clients(home, SIZE, crypto_worker=CRYPTO_WORKER)
    coordinator(home, members, SIZE, crypto_worker=CRYPTO_WORKER).train_round()
    share = client_store_of(members["ann"]).key_shares.key_share(home.policy.digest)
    assert share is not None

    def write(name: str, label: bytes, content: bytes) -> None:
        """As the former version did."""
        body = b"QCH1" + label + content
        (tmp_path / name).write_bytes(body + hashlib.sha256(body).digest())
        (tmp_path / name).chmod(0o600)

    write(former.SHARE, home.policy.digest, share.encode())
    if memory != "none":
        whose = digest(
            "quietchoir holding 1", share.key_id, share.name if memory == "right" else b"ben"
        )
        write(former.DONE, whose, share.memory.encode())
    database = open_member(tmp_path)
    found = KeyShareStore(database).key_share(home.policy.digest)
    if memory == "right":
        assert found is not None and found.encode() == share.encode()
        assert found.memory.encode() == share.memory.encode() != ThresholdMemory().encode()
    else:
        assert found is None and not {SHARE, SHARE_MEMORY} & names(tmp_path)
    assert {path.name for path in tmp_path.iterdir() if "sqlite" not in path.name} == set()


@pytest.mark.parametrize("kind", ["any", "each"])
@pytest.mark.parametrize("by", ["the next coordinator", "a reader"])
def test_a_run_of_the_former_version_goes_on(old: Path, kind: str, by: str) -> None:
    told, folder = expected(old)[kind], old / kind
    if by == "the next coordinator":
        Store(folder).close()
    for _ in range(2):
        state = checkpoint.read(folder)
        assert state is not None
        fields = {**checkpoint.fields_of(state), "history": list(state.history)}
        fields |= {"delivered": list(state.delivered), "server": state.server.encode().hex()}
        fields["steps"] = [[one.name, one.before, one.body.hex()] for one in state.steps]
        assert fields == told["state"]
    database = checkpoint.open_run(folder)
    book = PrivacyBook(database, alone=False)
    history = {
        scope: [[name, vars_of(step)] for name, step in book.read(scope)]
        for scope in told["privacy"]
    }
    assert history == told["privacy"]
    assert {path.name for path in folder.iterdir() if "sqlite" not in path.name} == {"lock"}


def test_a_damaged_run_of_the_former_version_is_refused_and_left_as_it_is(old: Path) -> None:
    folder = old / "any"
    query(folder / checkpoint.FILE, "UPDATE adapter SET body = zeroblob(length(body))")
    for _ in range(2):
        with pytest.raises(FederationError, match="damaged"):
            Store(folder)
    assert query(folder / checkpoint.FILE, "PRAGMA user_version") == [(2,)]
    (found,) = query(folder / checkpoint.FILE, "SELECT COUNT(*) FROM run")[0]
    assert found == 1 and (folder / former.PRIVACY).exists()


def test_a_step_is_whole_whoever_writes_in_it_and_memory_follows(tmp_path: Path) -> None:
    database = open_member(tmp_path)
    ledger, client_store = AnsweredRounds(database), ClientStore(database, 4)
    account = Account(Budget(epsilon=9.0), scope="ann", book=PrivacyBook(database))
    database.forget.append(account.reread)
    ledger.record(RoundId(RUN, 1, 1))
    before = contents(tmp_path)
    moved = client_store.progress(RUN)

    def all_of_it() -> None:
        with ledger.step():
            ledger.record(RoundId(RUN, 2, 1))
            account.charge(f"{RUN}/2/1", STEP)
            client_store.keep_progress(RUN, type(moved)(1, moved.server))
            database.drop("nothing")
            raise BudgetError("no more")

    with pytest.raises(BudgetError):
        all_of_it()
    assert (ledger.marks, account.history) == ({RUN: (1, 1)}, ())
    assert client_store.progress(RUN).steps == 0 and contents(tmp_path) == before
    ledger.record(RoundId(RUN, 2, 1))  # the same place: it never was
    again = AnsweredRounds(open_member(tmp_path))
    assert again.marks == {RUN: (2, 1)}


def test_nothing_is_left_of_what_was_wiped_or_written_over(tmp_path: Path) -> None:
    database, secret = open_member(tmp_path), np.random.default_rng(3).bytes(300_000)
    pieces = [secret[at : at + 64] for at in range(0, len(secret) - 64, 4096)]
    database.put("one", {}, secret)
    database.put("other", {"a": 1}, b"short")
    assert all(piece in everywhere(tmp_path) for piece in pieces)
    database.wipe("one")
    assert not any(piece in everywhere(tmp_path) for piece in pieces)
    assert names(tmp_path) == {"other"}
    database.put("one", {}, secret)
    database.put("one", {}, b"")
    database.wipe()
    assert not any(piece in everywhere(tmp_path) for piece in pieces)
    copy = tmp_path / "as-after-a-kill"
    copy.mkdir()
    for path in tmp_path.glob(f"{FILE}*"):
        if not path.name.endswith("-shm"):
            (copy / path.name).write_bytes(path.read_bytes())
            (copy / path.name).chmod(0o600)
    again = open_member(copy)
    assert again.get("other") == database.get("other") and again.get("one") is not None


def test_a_key_whose_epoch_is_over_is_nowhere_on_the_disk(tmp_path: Path) -> None:
    database = open_member(tmp_path)
    client_store = ClientStore(database, 4)
    before = client_store.make_seed(bytes(32))
    assert before in everywhere(tmp_path)
    after = client_store.make_seed(b"\1" * 32)
    assert before not in everywhere(tmp_path) and after in everywhere(tmp_path)
    assert ClientStore(database, 4).seed(b"\1" * 32) == after


def test_a_share_that_could_not_be_wiped_is_wiped_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = open_member(tmp_path)
    key_shares = KeyShareStore(database)
    key_shares._held = (bytes(32), object())  # type: ignore[assignment]  # what it is plays no part
    database.put(SHARE, {"epoch": bytes(32).hex()}, b"the share itself")

    def full(*names: str) -> None:
        raise QuietchoirError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(database, "wipe", full)
        with pytest.raises(QuietchoirError, match="full"):
            key_shares.key_share(b"\1" * 32)
    assert key_shares.key_share(b"\1" * 32) is None
    assert b"the share itself" not in everywhere(tmp_path)


def test_what_another_program_reads_is_not_said_to_be_wiped(tmp_path: Path) -> None:
    database = open_member(tmp_path)
    database.put("one", {}, b"secret")
    database.connection.execute("PRAGMA busy_timeout = 50")
    reader = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM records").fetchall()
    with pytest.raises(QuietchoirError, match="not wiped"):
        database.wipe("one")
    reader.close()
    database.wipe("one")
    assert b"secret" not in everywhere(tmp_path)


def test_a_place_that_is_not_the_one_that_was_written_refuses_the_node(tmp_path: Path) -> None:
    database = open_member(tmp_path)
    ledger = AnsweredRounds(database)
    ledger.record(RoundId(RUN, 5, 2))
    AnsweredRounds(database)
    for change in (
        "UPDATE runs SET round = 1", "UPDATE runs SET attempt = 1",
        "UPDATE runs SET standing = 'finished'", "DELETE FROM runs",
        f"UPDATE runs SET run = '{OTHER}'",
    ):  # fmt: skip
        query(tmp_path / FILE, change)
        with pytest.raises(FederationError, match="not those that were written"):
            AnsweredRounds(database)
        ledger.write(ledger.marks, ledger.standing, 1.0)
        query(tmp_path / FILE, "DELETE FROM runs WHERE run = ?", OTHER)
        assert AnsweredRounds(database).marks == {RUN: (5, 2)}


def test_a_charge_that_is_not_the_one_that_was_written_is_an_error(tmp_path: Path) -> None:
    database, budget = open_member(tmp_path), Budget(epsilon=50.0, delta=1e-5)
    book = PrivacyBook(database)
    account = Account(budget, scope="f ann", book=book)
    for number in range(3):
        account.charge(f"{RUN}/{number}/1", STEP)
    for change in (
        "UPDATE charges SET step = replace(step, '4.0', '9.0') WHERE place = 2",
        "DELETE FROM charges WHERE place = 3",
        "UPDATE charges SET round = 'x' WHERE place = 1",
        "DELETE FROM charges",
    ):
        lines = query(tmp_path / FILE, "SELECT * FROM charges")
        query(tmp_path / FILE, change)
        with pytest.raises(ConfigError, match="Never delete it"):
            Account(budget, scope="f ann", book=book)
        query(tmp_path / FILE, "DELETE FROM charges")
        for line in lines:
            query(tmp_path / FILE, "INSERT INTO charges VALUES (?, ?, ?, ?)", *line)
        assert len(Account(budget, scope="f ann", book=book).history) == 3


def test_a_database_of_another_federation_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    open_member(tmp_path, "aa" * 32).close()
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(FederationError, match=r"of federation aaaa.*expected bbbb"):
        open_member(tmp_path, "bb" * 32)
    assert (tmp_path / FILE).read_bytes() == before
    open_member(tmp_path, "aa" * 32).close()


def test_a_damaged_record_is_told_and_others_are_read(tmp_path: Path) -> None:
    database = open_member(tmp_path)
    database.put("one", {"a": 1}, b"body")
    database.put("two", {}, b"")
    damage(tmp_path, "one")
    with pytest.raises(FederationError, match="one is not what was written"):
        database.get("one")
    query(tmp_path / FILE, "UPDATE records SET fields = '{\"a\": 2}' WHERE name = 'two'")
    with pytest.raises(FederationError, match="two is not what was written"):
        database.get("two")
    assert database.get("three") is None


CHANGES: list[Callable[[dict[str, Any]], Any]] = [
    lambda step: step.update(multiplier=0.0),
    lambda step: step.update(multiplier="4"),
    lambda step: step.update(extra=1),
    lambda step: step.pop("multiplier"),
]


@pytest.mark.parametrize("number", range(len(CHANGES) + 1))
def test_a_changed_account_is_an_error_never_a_fresh_start(tmp_path: Path, number: int) -> None:
    database = open_member(tmp_path)
    book = PrivacyBook(database)
    Account(Budget(epsilon=9.0), scope="ann", book=book).charge("run/1", STEP)
    ((text,),) = database.rows("SELECT step FROM charges")
    step = json.loads(text)
    if number < len(CHANGES):
        CHANGES[number](step)
    query(
        tmp_path / FILE,
        "UPDATE charges SET step = ?",
        json.dumps(step) if number < len(CHANGES) else text[:-1],
    )
    with pytest.raises(ConfigError, match="what was spent stays spent"):
        Account(Budget(epsilon=9.0), scope="ann", book=book)
    with pytest.raises(ConfigError, match="not the privacy history of ben"):
        book.read("ben")
