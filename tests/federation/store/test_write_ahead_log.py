"""A log that was damaged is refused, as SQLite alone would not; one that a kill left is not."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from quietchoir.core.errors import FederationError
from quietchoir.federation.store.database import PAGE_BYTES, Database
from quietchoir.federation.store.ledger import AnsweredRounds
from quietchoir.federation.store.member import FILE, open_member
from quietchoir.federation.store.write_ahead_log import FRAME_BYTES, HEADER_BYTES
from quietchoir.federation.wire.messages import RoundId

RUN = "ab" * 16
LOG = f"{FILE}-wal"
FRAME = FRAME_BYTES + PAGE_BYTES


def copy(folder: Path, to: Path) -> Path:
    """What lies on the disk, as after a kill."""
    to.mkdir(mode=0o700)
    for name in (FILE, LOG):
        shutil.copy2(folder / name, to / name)
    return to


def round_of(folder: Path) -> int:
    """The last round that a member remembers, with its database opened anew."""
    database = open_member(folder)
    try:
        return AnsweredRounds(database).marks.get(RUN, (0, 0))[0]
    finally:
        database.close()


@pytest.fixture
def member(tmp_path: Path) -> Iterator[tuple[Path, Database]]:
    """One that has answered ten rounds, and runs."""
    folder = tmp_path / "member"
    database = open_member(folder)
    ledger = AnsweredRounds(database)
    for number in range(1, 11):
        ledger.record(RoundId(RUN, number, 1))
    yield folder, database
    database.close()


@pytest.mark.parametrize("place", ["page", "salt", "checksum", "size"])
def test_a_bit_in_any_step_but_the_last_is_refused_and_nothing_changes(
    member: tuple[Path, Database], tmp_path: Path, place: str
) -> None:
    where = {"page": FRAME_BYTES + 5000, "salt": 9, "checksum": 17, "size": 6}[place]
    log = (member[0] / LOG).read_bytes()
    frames = (len(log) - HEADER_BYTES) // FRAME
    for frame in range(0, frames - 8, 5):
        folder = copy(member[0], tmp_path / f"{place}-{frame}")
        damaged = bytearray(log)
        damaged[HEADER_BYTES + frame * FRAME + where] ^= 4
        (folder / LOG).write_bytes(damaged)
        before = (folder / FILE).read_bytes()
        with pytest.raises(FederationError, match="steps in it cannot be read"):
            open_member(folder)
        assert (folder / LOG).read_bytes() == damaged and (folder / FILE).read_bytes() == before


def test_a_damaged_header_is_refused(member: tuple[Path, Database], tmp_path: Path) -> None:
    for at in range(0, HEADER_BYTES, 3):
        folder = copy(member[0], tmp_path / str(at))
        damaged = bytearray((folder / LOG).read_bytes())
        damaged[at] ^= 1
        (folder / LOG).write_bytes(damaged)
        with pytest.raises(FederationError, match="damaged"):
            open_member(folder)


def test_a_log_that_ends_anywhere_is_one_that_a_kill_left(
    member: tuple[Path, Database], tmp_path: Path
) -> None:
    log, dice = (member[0] / LOG).read_bytes(), np.random.default_rng(5)
    rounds = []
    for end in sorted(int(one) for one in dice.integers(0, len(log), 12)):
        folder = copy(member[0], tmp_path / str(end))
        (folder / LOG).write_bytes(log[:end])
        rounds.append(round_of(folder))
    assert rounds == sorted(rounds) and rounds[0] < rounds[-1]


def test_what_a_kill_leaves_is_never_refused_though_the_log_begins_anew(tmp_path: Path) -> None:
    folder = tmp_path / "member"
    database, dice = open_member(folder), np.random.default_rng(6)
    database.connection.execute("PRAGMA wal_autocheckpoint = 12")
    ledger, begun = AnsweredRounds(database), set[bytes]()
    for number in range(1, 41):
        ledger.record(RoundId(RUN, number, 1))
        if number % 3 == 0:
            database.put("other", {}, dice.bytes(int(dice.integers(1, 200_000))))
        if number % 7 == 0:
            database.wipe("other")
        begun.add((folder / LOG).read_bytes()[16:24])
        assert round_of(copy(folder, tmp_path / str(number))) == number
    database.close()
    assert len(begun) > 5  # salts: so often did it begin anew


def test_a_log_is_wiped_from_its_header_on(
    member: tuple[Path, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, database = member
    seen, before = list[bytes](), b""
    honest = os.fsync

    def noted(file: int) -> None:
        seen.append((folder / LOG).read_bytes())
        honest(file)

    database.put("secret", {}, b"s" * 1000)
    before = (folder / LOG).read_bytes()
    monkeypatch.setattr(os, "fsync", noted)
    database.wipe("secret")
    assert not any(seen[0][:HEADER_BYTES]) and seen[0][HEADER_BYTES:][:FRAME] in before
    assert not any(seen[1])


def test_a_file_with_nothing_in_it_is_damaged_and_not_new(
    member: tuple[Path, Database], tmp_path: Path
) -> None:
    member[1].close()
    folder = tmp_path / "emptied"
    folder.mkdir(mode=0o700)
    (folder / FILE).touch(mode=0o600)
    with pytest.raises(FederationError, match="damaged, no database"):
        open_member(folder)
    assert not (folder / FILE).stat().st_size
    (folder / FILE).rename(folder / f"{FILE}-new")  # what a kill leaves before there is one
    open_member(folder).close()
    assert {path.name for path in folder.iterdir()} == {FILE}
    assert (folder / FILE).stat().st_mode & 0o777 == 0o600
