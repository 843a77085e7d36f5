"""A coordinator's run on disk: what a killed coordinator goes on from.

Knows one folder with one database in it. Knows nothing of parties or messages.
Always: a step is the whole old state or the whole new one; an attempt is on disk before anybody is
asked, so that no attempt's number is ever used twice. One process at a time holds the folder.

    records  "run": who it belongs to and where it is; "adapter": the server's vectors, written
             when they change
    history  one report a round
    steps    that lead to the adapter, oldest first
    charges  what it spends in privacy (`privacy_book`)

`Logbook` is the run in memory and on disk, on disk first: if the disk refuses, nothing has changed.

The federation file that it goes on under lies beside it.
"""

import dataclasses
import json
import secrets
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ...core.errors import FederationError
from ..spec.policy import Policy
from ..wire.messages import RoundId, bits_of
from . import former
from .database import Database, VersionError, hold
from .write_ahead_log import check_log

FILE, LOCK = "run.sqlite", "lock"
OLD_FILE = "run.checkpoint"  # of the first versions of this program
VERSION = 3
TABLES = """
CREATE TABLE history (place INTEGER PRIMARY KEY, entry TEXT NOT NULL) STRICT;
CREATE TABLE steps (
    place INTEGER PRIMARY KEY, name TEXT NOT NULL, before TEXT NOT NULL, body BLOB NOT NULL
) STRICT
"""
RUN, ADAPTER = "run", "adapter"  # records
APART = ("server", "history", "steps")  # fields of a state that have tables of their own


Vector = npt.NDArray[np.float32]


def nothing() -> Vector:
    """The empty vector."""
    return np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True)
class ServerState:
    """What the optimizer carries from round to round."""

    flat: Vector  # [n] the adapter's B matrices
    velocity: Vector  # [n]
    # [n] second moments; [0] if the optimizer has none, or no step was made
    spread: Vector = field(default_factory=nothing)

    @staticmethod
    def zeros(size: int) -> "ServerState":
        """B = 0: the adapter that changes nothing."""
        return ServerState(np.zeros(size, np.float32), np.zeros(size, np.float32))

    @property
    def vectors(self) -> tuple[Vector, ...]:
        """Everything, in the order in which it is written down."""
        return (self.flat, self.velocity, *([self.spread] if self.spread.size else []))

    def encode(self) -> bytes:
        """8 or 12 bytes a value, little-endian."""
        return b"".join(bits_of(vector) for vector in self.vectors)

    @staticmethod
    def decode(data: bytes, size: int) -> "ServerState":
        """Read what `encode` wrote of an adapter of `size` values.

        Raises:
            ValueError: another length.
        """
        if len(data) not in (8 * size, 12 * size):
            raise ValueError(
                f"an adapter and its optimizer of {len(data)} bytes, expected "
                f"{8 * size} or {12 * size}"
            )
        parts = np.frombuffer(data, "<f4").astype(np.float32)
        return ServerState(
            parts[:size].copy(), parts[size : 2 * size].copy(), parts[2 * size :].copy()
        )

    def at_rest(self) -> "ServerState":
        """The same adapter, with an optimizer that remembers nothing."""
        return ServerState(self.flat, np.zeros_like(self.velocity))


@dataclass(frozen=True, slots=True)
class StoredStep:
    """One step of the adapter, as members are told it (`steps`)."""

    name: str  # of the state that it leads to
    before: str  # of the state that it starts from
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Everything that must survive a kill."""

    federation: str  # hex
    model: str  # digest of the frozen model
    run: str  # 32 hex digits
    version: int  # of the federation file
    server: ServerState
    round: int = 0  # rounds that are done
    attempt: int = 0  # attempts begun in the next round
    # numbers of rounds that were opened and then lost: members never open one twice
    skipped: int = 0
    opening: bool = False  # shares are being asked for: after a kill this number is lost
    finished: bool = False  # scored and delivered
    # name of the finished adapter, and what is told with it; empty where none is kept
    adapter: str = ""
    card: str = ""
    delivered: tuple[str, ...] = ()  # members that have it
    history: tuple[dict[str, Any], ...] = field(default=())  # one report a round, as JSON types
    # that lead to `server`; without them members could not follow it after a kill
    steps: tuple[StoredStep, ...] = ()

    @staticmethod
    def fresh(policy: Policy, size: int, run: str = "") -> "RunState":
        """The state before the first round. Args: run: its number, by default drawn."""
        return RunState(
            federation=policy.federation.hex(),
            model=policy.model.digest,
            run=run or secrets.token_hex(16),
            version=policy.version,
            server=ServerState.zeros(size),
        )


class Store:
    """One run's folder. In memory only if `folder` is None (simulations).

    Args:
        run: number of a new run, 32 hex digits; by default it is drawn. Members' training seeds
        follow from it.
    """

    def __init__(self, folder: Path | None, *, run: str = "") -> None:
        """Take the folder for this process.

        Raises:
            FederationError: another coordinator runs on it, or its database is damaged or of an
            unknown version. QuietchoirError: no space or no permission.
        """
        self.path, self.run = None if folder is None else folder / FILE, run
        self.lock: IO[bytes] | None = None
        self.database: Database | None = None
        self.written: RunState | None = None  # what is on disk, as far as this process knows
        if folder is None:
            return
        self.lock = hold_run(folder)
        try:
            self.database = open_run(folder)
        except BaseException:
            self.lock.close()
            raise

    def close(self) -> None:
        """Let the folder go."""
        if self.database is not None:
            self.database.close()
        if self.lock is not None:
            self.lock.close()

    def load(self, policy: Policy, size: int) -> RunState:
        """The state to go on from; a fresh one in an empty folder.

        Raises:
            FederationError: damaged, or of another federation, model, adapter shape or a newer
            federation file.
        """
        state = None if self.database is None else read_state(self.database)
        if state is None:
            if self.path is not None and self.path.with_name(OLD_FILE).exists():
                raise FederationError(
                    f"{self.path.with_name(OLD_FILE)}: a run that an earlier version of quietchoir "
                    f"began; finish it with that "
                    "one, or choose another --state"
                )
            return RunState.fresh(policy, size, self.run)
        if (state.federation, state.model) != (policy.federation.hex(), policy.model.digest):
            raise FederationError(
                f"{self.path}: a run of another federation or model; choose another --state"
            )
        if state.server.flat.size != size:
            raise FederationError(
                f"{self.path}: an adapter of {state.server.flat.size} values, expected {size}; "
                f"choose another --state"
            )
        if state.version > policy.version:
            raise FederationError(
                f"{self.path}: written under version {state.version} of the file, found "
                f"{policy.version}; get the newest one"
            )
        self.written = state
        return dataclasses.replace(state, version=policy.version)

    def save(self, state: RunState) -> None:
        """Make `state` the one to go on from, in one step.

        Raises:
            QuietchoirError: the disk refuses; the old state is the one to go on from.
        """
        if self.database is None:
            return
        before = self.written
        with self.database.step() as connection:
            self.database.put(RUN, fields_of(state))
            if before is None or before.server is not state.server:
                size = state.server.flat.size
                self.database.put(ADAPTER, {"size": size}, state.server.encode())
            write_steps(connection, () if before is None else before.steps, state.steps)
            write_history(connection, () if before is None else before.history, state.history)
        self.written = state


def fields_of(state: RunState) -> dict[str, Any]:
    """What stands in the record `run`."""
    names = [one.name for one in dataclasses.fields(state) if one.name not in APART]
    return {name: getattr(state, name) for name in names}


def write_steps(
    connection: sqlite3.Connection, before: tuple[StoredStep, ...], after: tuple[StoredStep, ...]
) -> None:
    """The steps that are new; those that are not told any more go."""
    if before == after:
        return
    kept = {one.name: place for place, one in enumerate(before)}
    first = kept.get(after[0].name, len(before)) if after else len(before)
    # some at the beginning went, some came at the end
    if before[first:] == after[: len(before) - first]:
        start = connection.execute("SELECT coalesce(min(place), 0) FROM steps").fetchone()[0]
        connection.execute("DELETE FROM steps WHERE place < ?", (start + first,))
        rows = [
            (start + first + at, one.name, one.before, one.body)
            for at, one in enumerate(after)
            if at >= len(before) - first
        ]
    else:
        connection.execute("DELETE FROM steps")
        rows = [(at, one.name, one.before, one.body) for at, one in enumerate(after)]
    connection.executemany("INSERT INTO steps VALUES (?, ?, ?, ?)", rows)


def write_history(
    connection: sqlite3.Connection,
    before: tuple[dict[str, Any], ...],
    after: tuple[dict[str, Any], ...],
) -> None:
    """The entries that are new, in place of those that are gone."""
    same = 0
    while same < min(len(before), len(after)) and before[same] is after[same]:
        same += 1
    connection.execute("DELETE FROM history WHERE place >= ?", (same,))
    rows = [(place, json.dumps(after[place])) for place in range(same, len(after))]
    connection.executemany("INSERT INTO history VALUES (?, ?)", rows)


def hold_run(folder: Path) -> IO[bytes]:
    """Take a run's folder for this process. Raises FederationError: another one has it."""
    return hold(
        folder, LOCK, "another coordinator runs on this state; stop it or choose another --state"
    )


def open_run(folder: Path) -> Database:
    """The database in a folder that this process holds.

    Raises:
        FederationError: damaged, of an unknown version, or what a former version kept is.
        ConfigError: a history of privacy that cannot be read.
    """
    check_log(folder / FILE)
    database = Database(folder / FILE, TABLES, VERSION, partial(former.run, folder))
    try:
        former.put_away(database, former.RUN)
    except BaseException:
        database.close()
        raise
    return database


def read(folder: Path) -> RunState | None:
    """The run in a coordinator's folder, which may be at work meanwhile; None if there is none.

    Raises:
        FederationError: damaged, or of another version.
    """
    if not (folder / FILE).exists():
        return None
    try:
        return read_now(folder)
    except VersionError:
        with hold_run(folder):
            open_run(folder).close()  # takes over what a former version wrote
    return read_now(folder)


def read_now(folder: Path) -> RunState | None:
    """As `read`, of this version."""
    with closing(Database(folder / FILE, TABLES, VERSION)) as database:
        return read_state(database)


def as_now(entry: dict[str, Any]) -> dict[str, Any]:
    """A line of history as it is written now: earlier ones counted answers, where these count
    the members that scored.
    """
    for counts in (entry, entry.get("guard") or {}):
        if "correct" in counts:
            scored = 0 if counts["accuracy"] is None else len(entry["parties"])
            for gone in ("correct", "total", "examples", "tokens"):
                counts.pop(gone, None)
            counts["scored"] = scored
    return entry


def read_state(database: Database) -> RunState | None:
    """What `Store.save` wrote last; None if it never did.

    Raises:
        FederationError: damaged.
    """
    with database.moment():
        run, adapter = database.get(RUN), database.get(ADAPTER)
        history = database.rows("SELECT entry FROM history ORDER BY place")
        steps = database.rows("SELECT name, before, body FROM steps ORDER BY place")
    if run is None or adapter is None:
        return None
    try:
        entries = tuple(as_now(json.loads(entry)) for (entry,) in history)
        delivered = tuple(run.fields.pop("delivered", ()))
        server = ServerState.decode(adapter.body, adapter.fields["size"])
        stored = tuple(StoredStep(*step) for step in steps)
        return RunState(
            **run.fields, delivered=delivered, server=server, history=entries, steps=stored
        )
    except (ValueError, LookupError, RecursionError, TypeError) as error:
        raise FederationError(
            f"{database.path}: damaged ({error}); restore it from a copy, or choose another --state"
        ) from error


class Logbook:
    """One run: which numbers are used up, and which adapter is the one to go on from.

    The number of an attempt is written down before anybody is asked, and one under which a sum was
    opened is never used again.

    Args:
        size: values of the adapter that are held here; 0 where only members have it.
    """

    def __init__(self, store: Store, policy: Policy, size: int) -> None:
        """Take up the run where its store left it.

        Raises:
            FederationError: the store belongs to something else.
        """
        self.store = store
        self.state: RunState = store.load(policy, size)
        self.skip_opened()

    def keep(self, **changes: Any) -> None:
        """Change the state, on disk first."""
        state = dataclasses.replace(self.state, **changes)
        self.store.save(state)
        self.state = state

    def begin(self) -> RoundId:
        """Take the next attempt's number."""
        self.keep(attempt=self.state.attempt + 1)
        return RoundId(
            self.state.run, self.state.round + 1 + self.state.skipped, self.state.attempt
        )

    def skip_opened(self) -> None:
        """If contributions had left in the last attempt when it ended, give its number up: members
        mask nothing twice.

        Attempts go on being counted: with them, fewer columns are asked for
        (`..aggregation.rank_masks`).
        """
        if self.state.opening:
            self.keep(opening=False, skipped=self.state.skipped + 1)

    def skip(self) -> None:
        """The number is used up, and the adapter stays as it is."""
        self.keep(opening=False, skipped=self.state.skipped + 1, attempt=0)

    def commit(
        self, server: ServerState, entry: dict[str, Any], steps: tuple[StoredStep, ...]
    ) -> None:
        """A whole round is done; `steps` lead to its state."""
        self.keep(
            server=server,
            round=self.state.round + 1,
            attempt=0,
            opening=False,
            finished=False,
            adapter="",
            card="",
            delivered=(),
            history=(*self.state.history, entry),
            steps=steps,
        )

    def catch_up(self, steps: int) -> bool:
        """Sealed mode: go on from the members' number of steps. True if another one was written
        here.

        They differ if one side was killed between the members' last step and our noting it; no
        number of a round comes twice.
        """
        known = self.state.round
        if steps != known:
            self.keep(round=steps, skipped=self.state.skipped + max(0, known - steps))
        return steps != known
