"""What is on disk after a kill, a damage and a full disk: the coordinator's run and a member's
answers.
"""

import dataclasses
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quietchoir.core.errors import FederationError, QuietchoirError
from quietchoir.federation.rounds.validation import parents_score
from quietchoir.federation.store import checkpoint, member
from quietchoir.federation.store.checkpoint import RunState, ServerState, Store
from quietchoir.federation.store.database import Database
from quietchoir.federation.store.ledger import LEASE_S, AnsweredRounds, RivalError, StaleError
from quietchoir.federation.store.member import open_member
from quietchoir.federation.wire.messages import RoundId
from quietchoir.tests.fakes.federation import house

SIZE = 300
ONE, OTHER = "ab" * 16, "cd" * 16


def grown(state: RunState, rounds: int) -> RunState:
    """`state` after so many more rounds."""
    for number in range(rounds):
        vectors = np.full(SIZE, state.round + 1, np.float32)
        server = ServerState(vectors, 2 * vectors)
        state = dataclasses.replace(
            state,
            server=server,
            round=state.round + 1,
            attempt=0,
            history=(*state.history, {"kind": "train", "round": number}),
        )
    return state


def same(one: RunState, other: RunState) -> bool:
    return (
        one.server.encode() == other.server.encode()
        and dataclasses.replace(one, server=other.server) == other
    )


def test_what_was_saved_is_what_a_restarted_coordinator_goes_on_from(tmp_path: Path) -> None:
    policy, store = house().policy, Store(tmp_path)
    state = store.load(policy, SIZE)
    store.save(state)
    for _ in range(3):
        state = grown(state, 1)
        store.save(state)
        store.save(state := dataclasses.replace(state, attempt=1, opening=True))
    # a score takes the place of the last one
    state = dataclasses.replace(state, history=state.history[:1])
    store.save(state)
    store.close()
    again = Store(tmp_path)
    assert same(again.load(policy, SIZE), state)
    again.close()


def test_a_run_can_be_read_while_its_coordinator_works(tmp_path: Path) -> None:
    assert checkpoint.read(tmp_path) is None
    store = Store(tmp_path)
    state = grown(store.load(house().policy, SIZE), 2)
    store.save(state)
    seen = checkpoint.read(tmp_path)
    assert seen is not None and same(seen, state)
    store.save(grown(state, 1))
    store.close()


READER = """
import sys
from pathlib import Path
from quietchoir.federation.store import checkpoint
checkpoint.read(Path(sys.argv[1]))
"""


def test_no_reader_takes_the_log_away_that_the_coordinator_still_writes(tmp_path: Path) -> None:
    """The fault suite found it: a reader in the coordinator's own process dropped its locks, the
    next reader its last steps.
    """
    policy, store = house().policy, Store(tmp_path)
    state = grown(store.load(policy, SIZE), 1)
    store.save(state)
    assert checkpoint.read(tmp_path) is not None
    subprocess.run([sys.executable, "-c", READER, str(tmp_path)], check=True, timeout=60)
    store.save(state := dataclasses.replace(state, attempt=1, opening=True))
    copy = tmp_path / "as-after-a-kill"
    copy.mkdir()
    for path in (tmp_path / checkpoint.FILE, tmp_path / f"{checkpoint.FILE}-wal"):
        (copy / path.name).write_bytes(path.read_bytes())  # the store is not used after this
    seen = checkpoint.read(copy)
    assert seen is not None and same(seen, state)
    store.close()


KILLED = """
import sys
from pathlib import Path
from quietchoir.federation.store.database import Database
disk = Database(Path(sys.argv[1]), "CREATE TABLE steps (number INTEGER, half INTEGER)", 1)
number = 0
while True:
    number += 1
    with disk.step() as connection:
        connection.execute("INSERT INTO steps VALUES (?, 1)", (number,))
        connection.execute("INSERT INTO steps VALUES (?, 2)", (number,))
    print(number, flush=True)
"""


@pytest.mark.parametrize("after", [1, 7])
def test_a_step_that_returned_survives_kill_9_and_none_is_there_by_half(
    tmp_path: Path, after: int
) -> None:
    path = tmp_path / "steps.sqlite"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    told = [int(next(process.stdout)) for _ in range(after)][-1]
    process.kill()
    process.wait()
    process.stdout.close()
    disk = Database(path, "", 1)
    rows = disk.connection.execute("SELECT number, COUNT(*) FROM steps GROUP BY number").fetchall()
    disk.close()
    assert len(rows) >= told and {count for _, count in rows} == {2}
    assert [number for number, _ in rows] == list(range(1, len(rows) + 1))


def test_a_damaged_run_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    policy, store = house().policy, Store(tmp_path)
    store.save(grown(store.load(policy, SIZE), 1))
    store.close()
    path = tmp_path / checkpoint.FILE
    connection = sqlite3.connect(path)
    connection.execute("UPDATE records SET body = zeroblob(length(body)) WHERE name = 'adapter'")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    store = Store(tmp_path)
    with pytest.raises(FederationError, match="damaged"):
        store.load(policy, SIZE)
    store.close()
    for stump in (b"{", before[:10], b"not a database " * 500, before[:5000]):
        path.write_bytes(stump)
        with pytest.raises(FederationError, match="damaged"):
            Store(tmp_path)
    path.write_bytes(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    Store(tmp_path).close()  # the lock was let go each time


def test_a_database_of_an_unknown_version_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.database is not None
    store.database.connection.execute("PRAGMA user_version = 7")
    store.close()
    with pytest.raises(FederationError, match=r"version 7; expected .* version 3"):
        Store(tmp_path)


def test_a_run_of_an_earlier_program_is_not_begun_again_in_silence(tmp_path: Path) -> None:
    (tmp_path / checkpoint.OLD_FILE).write_bytes(b"QCS1")
    store = Store(tmp_path)
    with pytest.raises(FederationError, match="an earlier version"):
        store.load(house().policy, SIZE)
    store.close()


def test_a_full_disk_leaves_memory_and_database_as_they_were(tmp_path: Path) -> None:
    ledger = AnsweredRounds(open_member(tmp_path))
    ledger.record(RoundId(ONE, 1, 1))
    disk = ledger.database
    assert disk is not None
    disk.connection.execute(f"PRAGMA max_page_count = {disk.number('page_count')}")
    ledger.sums.begin(b"f" * 50000, 1, 1)  # longer than a page
    before = dict(ledger.marks), dict(ledger.standing)
    with pytest.raises(QuietchoirError, match="disk is full"):
        ledger.record(RoundId(ONE, 2, 1))
    assert (ledger.marks, ledger.standing) == before
    again = AnsweredRounds(open_member(tmp_path))
    assert again.marks == {ONE: (1, 1)}


def test_an_older_place_is_stale_also_after_a_restart(tmp_path: Path) -> None:
    ledger = AnsweredRounds(open_member(tmp_path))
    ledger.record(RoundId(ONE, 2, 3))
    ledger.sums.begin(b"federation", 2, 3)
    ledger.sums.open(b"federation", 2, 3)
    ledger.save()
    again = AnsweredRounds(open_member(tmp_path))
    for round_id in (RoundId(ONE, 2, 3), RoundId(ONE, 2, 1), RoundId(ONE, 1, 9)):
        with pytest.raises(StaleError, match="older state"):
            again.record(round_id)
    assert again.sums.snapshot() == ledger.sums.snapshot()
    again.record(RoundId(ONE, 2, 4))


def test_a_second_run_is_refused_while_the_first_is_heard_and_replaces_it_after_the_lease(
    tmp_path: Path,
) -> None:
    clock = [1000.0]
    ledger = AnsweredRounds(open_member(tmp_path), now=lambda: clock[0])
    ledger.record(RoundId(ONE, 1, 1))
    clock[0] += LEASE_S - 1
    with pytest.raises(RivalError, match="two coordinators with one identity"):
        ledger.record(RoundId(OTHER, 1, 1))
    ledger.record(RoundId(ONE, 1, 2))  # heard again
    clock[0] += LEASE_S - 1
    ledger = AnsweredRounds(open_member(tmp_path), now=lambda: clock[0])
    with pytest.raises(RivalError):
        ledger.record(RoundId(OTHER, 1, 1))
    clock[0] -= 10 * LEASE_S  # a clock that is set back makes nothing shorter
    with pytest.raises(RivalError):
        ledger.record(RoundId(OTHER, 1, 1))
    clock[0] += 11 * LEASE_S + 1
    ledger.record(RoundId(OTHER, 1, 1))
    with pytest.raises(RivalError, match="given up for a later one"):
        ledger.record(RoundId(ONE, 5, 1))


def test_a_node_takes_part_in_one_process_at_a_time(tmp_path: Path) -> None:
    held = member.hold(tmp_path)
    with pytest.raises(FederationError, match="in another process"):
        member.hold(tmp_path)
    held.close()
    member.hold(tmp_path).close()


def test_after_a_finished_run_another_may_begin_at_once(tmp_path: Path) -> None:
    ledger = AnsweredRounds(open_member(tmp_path))
    ledger.record(RoundId(ONE, 1, 1))
    ledger.release()
    ledger.record(RoundId(OTHER, 1, 1))


def test_a_history_of_counted_answers_is_read_as_one_of_members_that_scored(tmp_path: Path) -> None:
    verdict = {
        "accuracy": 0.5,
        "correct": 6,
        "total": 12,
        "best": None,
        "kept": True,
        "reason": "kept",
    }
    before = {
        "kind": "train",
        "round": 1,
        "accuracy": None,
        "correct": 0,
        "total": 0,
        "examples": 15,
        "tokens": 300,
        "parties": ["ann", "ben", "cat"],
        "guard": verdict,
    }
    policy, store = house().policy, Store(tmp_path)
    store.save(dataclasses.replace(RunState.fresh(policy, 4), history=(before,), round=1))
    store.close()
    found = checkpoint.read(tmp_path)
    assert found is not None
    assert found.history[0]["scored"] == 0 and "tokens" not in found.history[0]
    assert parents_score(found.history) == {"accuracy": 0.5, "scored": 3}
