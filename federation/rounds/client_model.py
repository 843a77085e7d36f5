"""What a member remembers of the adapters that it was told, so that it follows the next one by
steps.

Knows the states it holds, the steps between them, and which of them it followed itself. Knows
nothing of the coordinator's side or of training.
Always: a state is used only if its name, a hash of all its bits, is the one that was asked for, so
that everybody who trains in a round trains from the very same bits; nothing is remembered before
the letter was checked whole; what is on disk is the whole old memory or the whole new one.

A state is *followed* if this member went to it from zeros, where every run starts, by opened sums
and the federation's own rules (`steps`), or from a state that enough others signed to have
followed. Whoever takes a state whole has followed nothing: it says so, and takes part only with
enough others that have (`crypto.secagg`, `KeyCard.vouch`), from when on its state counts as
followed too. So a coordinator that hands over an adapter of its own finds nobody who would vouch
for it. Above 32 members, where sums carry no tags, that a told sum is the opened one is its word.

    followed models        run, names of the states that are held and of all that were followed
    followed model NAME    one state
    signed sum             the last opened sum that this member signed: it need not come twice

Each state is written once, whatever follows from it. Whoever reads the sum asks for a digest, and
is told the sum again if it is not there.

Two states are held: the last one, and the one it was reached from (a change may be undone, or
another one judged); a third where the last one was told whole. That is 16 bytes a value, 24 with
second moments.

Not covered: a member whose record is lost or put back relies on others until it is vouched for.
Hazard: it holds adapters in clear, which every member has.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...core import log
from ...core.errors import FederationError, MessageError, QuietchoirError
from ..aggregation.attested_sum import KEPT, Integers, Total, digest_of
from ..store.checkpoint import ServerState
from ..store.database import Database, StoredRecord
from . import delta_chain as steps
from .delta_chain import NAME_BYTES, DeltaChain, Step, UnprovenError, name_of, origin_of

logger = log.get("federation.recall")
HOLDS = "holds"  # the stage that asks for the names of what a member holds
LACKS = b"lacks"  # an answer instead of work: with the names of what is here
NAME, STATE, SUM = "followed models", "followed model {}", "signed sum"  # records
MAX_TRAIL = 4096  # names; older ones are forgotten


class LackingError(MessageError):
    """The way to the state that is meant starts from one that is not here, or does not end at
    it.
    """

    def __init__(self, reply: bytes) -> None:
        super().__init__("this member does not hold the adapter that the way starts from")
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Followed:
    """Where a way led; not remembered yet."""

    run: str
    name: str
    state: ServerState
    first: Mapping[str, ServerState]  # where it started
    # names of the states that were followed on the way, this one among them
    passed: tuple[str, ...]
    followed: bool


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one run."""

    run: str = ""
    held: tuple[tuple[str, ServerState], ...] = ()
    trail: tuple[str, ...] = ()  # names of the states that were followed, in order

    @property
    def size(self) -> int:
        """Values of an adapter; 0 where none is held."""
        return self.held[0][1].flat.size if self.held else 0

    @property
    def fields(self) -> dict[str, Any]:
        """Everything but the states, as it lies on disk."""
        held = [name for name, _ in self.held]
        return {"held": held, "run": self.run, "size": self.size, "trail": list(self.trail)}


class ClientModelCache:
    """One member's memory. In memory only if there is no database (simulations)."""

    def __init__(self, database: Database | None = None) -> None:
        self.database = database
        self._memory: Memory | None = None  # read when it is first needed
        self._written = frozenset[str]()  # names of states that are on disk
        # the last sum that was signed [n], by its digest; read when it is first needed
        self._sum: tuple[bytes, Integers] | None = None

    def __repr__(self) -> str:
        return "Recall()"

    def memory(self, run: str) -> Memory:
        """What is remembered of `run`."""
        if self._memory is None:
            self._memory = self._read()
        return self._memory if self._memory.run == run else Memory(run)

    def names(self, run: str) -> bytes:
        """What is held of `run`, as an answer."""
        return LACKS + b"".join(bytes.fromhex(name) for name, _ in self.memory(run).held)

    def follow(self, stepping: DeltaChain, wanted: str, way: bytes) -> Followed:
        """Go from a state that is held to the one called `wanted`; it is remembered by `keep`.

        Raises:
            LackingError: the state to start from is not here, or the end is another one; say so,
            and be told otherwise. MessageError: malformed, or a whole state that is not the one
            meant; refused.
        """
        start, taken = steps.split(way)
        memory, origin = self.memory(stepping.run), origin_of(stepping.size)
        whole = steps.told_whole(taken)
        state = (
            ServerState.zeros(stepping.size)
            if whole or start == origin
            else dict(memory.held).get(start)
        )
        if state is None or state.flat.size != stepping.size:
            raise LackingError(self.names(stepping.run))
        first, passed = {} if whole else {start: state}, list[str]()
        try:
            for step in taken:
                going = self._whole(step, stepping)
                state = stepping.go(state, going, passed[-1] if passed else start)
                passed.append(name_of(state))
        except UnprovenError as error:  # also where signers have left since: then others vouch
            logger.warning("%s", error)
            raise LackingError(LACKS) from error
        if (passed[-1] if passed else start) != wanted:
            if whole:
                raise MessageError(
                    "the adapter that was told is not the one that is named; refused"
                )
            raise LackingError(LACKS)  # what is here leads nowhere: whole, please
        if not whole and start in (*memory.trail, origin):
            return Followed(stepping.run, wanted, state, first, tuple(passed), True)
        return Followed(
            stepping.run, wanted, state, first, (), wanted == origin or wanted in memory.trail
        )

    def keep_sum(self, digest: bytes, whole: Integers) -> None:
        """Remember a sum [n] that was signed: the step that is made of it names it by its
        digest.
        """
        word = "<u2" if int(whole.max(initial=0)) < 1 << 16 else "<u4"
        self._sum = digest, whole.astype(word)
        if self.database is None:
            return
        try:
            self.database.put(SUM, {"word": word}, self._sum[1].tobytes())
        except QuietchoirError as error:
            logger.warning("the sum that was signed is kept in memory alone: %s", error)

    def _whole(self, step: Step, stepping: DeltaChain) -> Step:
        """A step with the sums that this member has, where it only names them.

        Raises:
            LackingError: not here; they must be told.
        """
        if all(one.packing != KEPT for one in step.totals):
            return step
        digest, whole = self._sum or self._read_sum()
        totals = list[Total]()
        for one in step.totals:
            if one.packing == KEPT and (one.body != digest or len(whole) != stepping.size):
                raise LackingError(self.names(stepping.run))
            kept = whole.astype(np.uint32) if one.packing == KEPT else None
            totals.append(replace(one, whole=kept))
        return replace(step, totals=tuple(totals))

    def _read_sum(self) -> tuple[bytes, Integers]:
        """The sum on disk by its digest: whatever is there, for nobody asks for one that is
        damaged.
        """
        record: StoredRecord | None = None
        with suppress(FederationError):
            record = None if self.database is None else self.database.get(SUM)
        if record is None:
            return b"", np.zeros(0, np.uint32)
        whole = np.frombuffer(record.body, record.fields["word"]).astype(np.uint32)
        self._sum = digest_of(whole), whole
        return self._sum

    def follows(self, name: str, run: str, size: int) -> bool:
        """Did this member follow to the state called `name`?"""
        return name == origin_of(size) or name in self.memory(run).trail

    def keep(self, led: Followed) -> None:
        """Remember where a way led."""
        memory = self.memory(led.run)
        held = {**led.first, led.name: led.state}
        # what was followed stays, until others vouch for this
        if not led.followed and not held.keys() & set(memory.trail):
            held = {**dict([one for one in memory.held if one[0] in memory.trail][-1:]), **held}
        self._write(Memory(led.run, tuple(held.items()), trail(memory.trail, *led.passed)))

    def trust(self, name: str, run: str) -> None:
        """Enough others signed that they followed to the state called `name`."""
        memory = self.memory(run)
        if name not in memory.trail:
            self._write(Memory(run, memory.held, trail(memory.trail, name)))

    def _write(self, memory: Memory) -> None:
        """If the disk refuses, it is kept in memory: after a restart this member then relies on
        others once.
        """
        before, self._memory = self._memory, memory
        named = [
            (one.run, [name for name, _ in one.held], one.trail)
            for one in (before or Memory(), memory)
        ]
        if self.database is None or named[0] == named[1]:
            return
        # where every run starts is nowhere on disk
        states = {name: state for name, state in memory.held if name != origin_of(memory.size)}
        try:
            with self.database.step():
                for name in states.keys() - self._written:
                    self.database.put(STATE.format(name), {}, states[name].encode())
                self.database.put(NAME, memory.fields)
                self.database.drop(*(STATE.format(name) for name in self._written - states.keys()))
            self._written = frozenset(states)
        except QuietchoirError as error:
            logger.warning("the adapter that was followed is kept in memory alone: %s", error)

    def _read(self) -> Memory:
        try:
            record = None if self.database is None else self.database.get(NAME)
            if record is None:
                return Memory()
            run, size = record.fields["run"], record.fields["size"]
            found = {name: self._read_state(name, size) for name in record.fields["held"]}
            trail = tuple(record.fields["trail"])
        except (FederationError, LookupError, TypeError, ValueError) as error:
            logger.warning(
                "the adapter that was followed is damaged (%s); this member relies on others until "
                "they vouch for one",
                error,
            )
            return Memory()
        held = tuple((name, state) for name, state in found.items() if state is not None)
        self._written = frozenset(name for name, _ in held if name != origin_of(size))
        return Memory(run, held, trail)

    def _read_state(self, name: str, size: int) -> ServerState | None:
        """One state from the disk; None, and a warning, if it is lost."""
        if name == origin_of(size):
            return ServerState.zeros(size)
        try:
            assert self.database is not None
            record = self.database.get(STATE.format(name))
            return None if record is None else ServerState.decode(record.body, size)
        except (FederationError, ValueError) as error:
            logger.warning("an adapter that was followed is lost: %s; it is told again", error)
            return None


def trail(before: tuple[str, ...], *names: str) -> tuple[str, ...]:
    """With `names` at its end that are not in it."""
    return (*before, *(name for name in names if name not in before))[-MAX_TRAIL:]


def read_names(payload: bytes) -> tuple[str, ...] | None:
    """The names in a member's answer; None if it is no such answer."""
    rest = payload[len(LACKS) :]
    if not payload.startswith(LACKS) or len(rest) % NAME_BYTES or len(rest) > 8 * NAME_BYTES:
        return None
    return tuple(rest[at : at + NAME_BYTES].hex() for at in range(0, len(rest), NAME_BYTES))
