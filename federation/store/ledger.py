"""What a member has already answered and opened, so that nothing is answered or opened twice, and
no run in another's place.

Knows places, the masks' own ledger, and a member's database. Knows nothing of payloads.
Always: a place is on disk before any work for it begins, and a round that is about to be opened
before its shares leave; within a run, only later attempts are new, also after a restart of the node
and also when a coordinator comes back with an older state.

One run at a time. While the coordinator of one run is heard, messages of another run are refused:
two coordinators with one identity would train on half of the members each. The other run is taken
up once the first is finished, or has been silent for `LEASE_S`; from then on the first one is
refused for good, whoever brings it back.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

from ...core.errors import FederationError, MessageError
from ...crypto.secagg import RevealLedger
from ..wire.messages import RoundId
from .database import Database

GOING, FINISHED, REPLACED = "going", "finished", "replaced"
HEARD, SUMS = "last heard", "opened sums"  # records
# of silence, until a run may be replaced by another; other members may train for an hour
LEASE_S = 7200.0


class StaleError(MessageError):
    """A place that was answered already: a replay, or a coordinator with an older state."""


class RivalError(MessageError):
    """A message of another run than the one that this member is in."""


class AnsweredRounds:
    """High-water marks, one for each run; in memory only if there is no database (simulations).

    Args:
        now: seconds of the wall clock, which survive a restart. A clock that was set back makes the
            lease longer, never shorter than `LEASE_S` of silence seen from then on.
    """

    def __init__(
        self, database: Database | None = None, *, now: Callable[[], float] = time.time
    ) -> None:
        """Read the marks.

        Raises:
            FederationError: a record is damaged; without it old rounds could be replayed.
            ConfigError: the part about sums is damaged.
        """
        self.database, self.now = database, now
        self.marks: dict[str, tuple[int, int]] = {}
        self.standing: dict[str, str] = {}
        self.heard_at = 0.0
        self.written = b""  # the masks' ledger, as it is on disk
        self.sums = RevealLedger()  # handed to every attempt under masks
        if database is None:
            return
        self.read()
        database.forget.append(self.read)
        if self.written:
            self.sums = RevealLedger.restore(self.written)

    def read(self) -> None:
        """From the disk; what the masks' ledger has noted since stays noted."""
        assert self.database is not None
        rows = self.database.rows("SELECT run, round, attempt, standing FROM runs")
        self.marks = {run: (round_, attempt) for run, round_, attempt, _ in rows}
        self.standing = {run: standing for run, *_, standing in rows}
        heard, sums = self.database.get(HEARD), self.database.get(SUMS)
        self.heard_at = 0.0 if heard is None else heard.fields["at"]
        # rows have no digest of their own; a database of before this has none
        if heard is not None and heard.fields.get("rows", (now := named(rows))) != now:
            raise FederationError(
                f"{self.database.path}: damaged (the places that were answered are not those that "
                "were written); restore it from a copy, without them old rounds could be replayed"
            )
        self.written = b"" if sums is None else sums.body

    def step(self) -> AbstractContextManager[object]:
        """What is written inside, by whoever shares the database, is written whole or not at all.

        Raises:
            QuietchoirError: the disk refuses; then nothing is written.
        """
        return nullcontext() if self.database is None else self.database.step()

    def check(self, round_id: RoundId) -> None:
        """Require that `place` is later than all that was answered in its run, and that no other
        run is going on.

        Raises:
            StaleError, RivalError: it is not.
        """
        mark = self.marks.get(round_id.run)
        if mark is not None and (round_id.round, round_id.attempt) <= mark:
            raise StaleError(
                f"round {round_id.round}, attempt {round_id.attempt} was already answered (this "
                f"node is at round {mark[0]}, attempt {mark[1]}); a replay, "
                f"or a coordinator with an older state; refused"
            )
        if self.standing.get(round_id.run) == REPLACED:
            raise RivalError(
                f"run {round_id.run[:8]} was given up for a later one; its coordinator "
                f"must stop; refused"
            )
        going = self.going()
        if going is not None and going != round_id.run and self.silence() < LEASE_S:
            raise RivalError(
                f"found run {round_id.run[:8]}, but this node is in run {going[:8]}, heard "
                f"{self.silence():.0f} s ago: two "
                "coordinators with one identity, or one that lost its state; stop one of them. "
                "Another run is taken up "
                f"after {LEASE_S / 60:.0f} minutes of silence; refused"
            )

    def going(self) -> str | None:
        """The run that this member is in, if it is in one."""
        return next((run for run, standing in self.standing.items() if standing == GOING), None)

    def silence(self) -> float:
        """Seconds since that run's coordinator was last heard."""
        return max(0.0, self.now() - self.heard_at)

    def record(self, round_id: RoundId) -> None:
        """Write down that work for `place` begins, and that its run is the one that this member is
        in.

        Raises:
            MessageError: as `check`.
            QuietchoirError: the disk refuses; then nothing is recorded.
        """
        self.check(round_id)
        standing = {
            run: REPLACED if old == GOING else old for run, old in self.standing.items()
        } | {round_id.run: GOING}
        marks, now = {**self.marks, round_id.run: (round_id.round, round_id.attempt)}, self.now()
        self.write(marks, standing, now)
        self.marks, self.standing, self.heard_at = marks, standing, now

    def release(self) -> None:
        """The run is finished: another one may begin at once.

        Raises:
            QuietchoirError: the disk refuses; then nothing is recorded.
        """
        standing = {run: FINISHED if old == GOING else old for run, old in self.standing.items()}
        self.write(self.marks, standing, self.heard_at)
        self.standing = standing

    def save(self) -> None:
        """Write down what the masks' ledger has noted; call it before an answer leaves.

        Raises:
            QuietchoirError: the disk refuses; then the answer must not leave.
        """
        if self.sums.snapshot() != self.written:
            self.write(self.marks, self.standing, self.heard_at)

    def write(
        self, marks: dict[str, tuple[int, int]], standing: dict[str, str], heard_at: float
    ) -> None:
        """All of it, in one step."""
        if self.database is None:
            return
        snapshot = self.sums.snapshot()
        with self.database.step() as connection:
            rows = [(run, *mark, standing[run]) for run, mark in marks.items()]
            connection.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?)", rows)
            self.database.put(HEARD, {"at": heard_at, "rows": named(rows)})
            if snapshot != self.written:
                self.database.put(SUMS, {}, snapshot)
        self.written = snapshot


def named(rows: Iterable[tuple[object, ...]]) -> str:
    """A digest of rows, in whichever order, hex."""
    return hashlib.sha256(json.dumps(sorted(map(list, rows))).encode()).hexdigest()
