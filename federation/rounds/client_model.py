"""What a member remembers of the adapters that it was told, so that it follows the next one by
steps.

Knows the states it holds, the steps between them, and which of them it followed itself. Knows
nothing of the coordinator's side or of training.
Always: a state is used only if its name, a hash of all its bits, is the one that was asked for, so
that everybody who trains in a round trains from the very same bits; nothing is remembered before
the letter was checked whole; what is on disk is the whole old file or the whole new one, mode 0600.

A state is *followed* if this member went to it from zeros, where every run starts, by opened sums
and the federation's own rules (`steps`), or from a state that enough others signed to have
followed. Whoever takes a state whole has followed nothing: it says so, and takes part only with
enough others that have (`crypto.secagg`, `KeyCard.vouch`), from when on its state counts as
followed too. So a coordinator that hands over an adapter of its own finds nobody who would vouch
for it. Above 32 members, where sums carry no tags, that a told sum is the opened one is its word.

    recall.kept     magic and header length, 4 bytes each | header, JSON | states | sha256 of it all

Two states are held: the last one, and the one it was reached from (a change may be undone, or
another one judged); a third where the last one was told whole. That is 16 bytes a value, 24 with
second moments.

Not covered: a member whose file is lost or put back relies on others until it is vouched for.
Hazard: the file holds adapters in clear, which every member has.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...core import log, paths
from ...core.errors import MessageError, QuietchoirError
from ..aggregation.server_optimizer import ServerState
from ..spec.policy import canonical
from . import global_model as steps
from .global_model import NAME_BYTES, Stepping, UnprovenError, name_of, origin_of

logger = log.get("federation.recall")
HOLDS = "holds"  # the stage that asks for the names of what a member holds
LACKS = b"lacks"  # an answer instead of work: with the names of what is here
FILE, MAGIC, HASH_BYTES = "recall.kept", b"QCR1", 32
MAX_TRAIL = 4096  # names; older ones are forgotten


class LackingError(MessageError):
    """The way to the state that is meant starts from one that is not here, or does not end at
    it.
    """

    def __init__(self, reply: bytes) -> None:
        super().__init__("this member does not hold the adapter that the way starts from")
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Led:
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

    def encode(self) -> bytes:
        """As it lies on disk."""
        bodies = [state.encode() for _, state in self.held]
        size = self.held[0][1].flat.size if self.held else 0
        held = [[name, len(body)] for (name, _), body in zip(self.held, bodies, strict=True)]
        header = canonical({"held": held, "run": self.run, "size": size, "trail": list(self.trail)})
        whole = MAGIC + len(header).to_bytes(4, "big") + header + b"".join(bodies)
        return whole + hashlib.sha256(whole).digest()

    @staticmethod
    def decode(data: bytes) -> "Memory":
        """Read what `encode` wrote.

        Raises:
            ValueError: damaged.
        """
        body, at = data[:-HASH_BYTES], len(MAGIC) + 4
        if not body.startswith(MAGIC) or hashlib.sha256(body).digest() != data[-HASH_BYTES:]:
            raise ValueError("not what was written")
        length = int.from_bytes(body[len(MAGIC) : at], "big")
        header, at = json.loads(body[at : at + length]), at + length
        held = list[tuple[str, ServerState]]()
        for name, size in header["held"]:
            held.append((name, ServerState.decode(body[at : at + size], header["size"])))
            at += size
        return Memory(header["run"], tuple(held), tuple(header["trail"]))


class Recall:
    """One member's memory. In memory only if `folder` is None (simulations)."""

    def __init__(self, folder: Path | None = None) -> None:
        self.path = None if folder is None else folder / FILE
        self._memory: Memory | None = None  # read when it is first needed

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

    def follow(self, stepping: Stepping, wanted: str, way: bytes) -> Led:
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
                state = stepping.go(state, step, passed[-1] if passed else start)
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
            return Led(stepping.run, wanted, state, first, tuple(passed), True)
        return Led(
            stepping.run, wanted, state, first, (), wanted == origin or wanted in memory.trail
        )

    def follows(self, name: str, run: str, size: int) -> bool:
        """Did this member follow to the state called `name`?"""
        return name == origin_of(size) or name in self.memory(run).trail

    def keep(self, led: Led) -> None:
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
        if self.path is None or named[0] == named[1]:
            return
        try:
            paths.private_folder(self.path.parent)
            paths.write_atomically(self.path, memory.encode(), mode=0o600)
        except (OSError, QuietchoirError) as error:
            logger.warning("the adapter that was followed is kept in memory alone: %s", error)

    def _read(self) -> Memory:
        if self.path is None or not self.path.exists():
            return Memory()
        try:
            return Memory.decode(self.path.read_bytes())
        except (OSError, ValueError, LookupError, TypeError) as error:
            logger.warning(
                "%s: damaged (%s); this member relies on others until they vouch for an adapter",
                self.path,
                error,
            )
            return Memory()


def trail(before: tuple[str, ...], *names: str) -> tuple[str, ...]:
    """With `names` at its end that are not in it."""
    return (*before, *(name for name in names if name not in before))[-MAX_TRAIL:]


def read_names(payload: bytes) -> tuple[str, ...] | None:
    """The names in a member's answer; None if it is no such answer."""
    rest = payload[len(LACKS) :]
    if not payload.startswith(LACKS) or len(rest) % NAME_BYTES or len(rest) > 8 * NAME_BYTES:
        return None
    return tuple(rest[at : at + NAME_BYTES].hex() for at in range(0, len(rest), NAME_BYTES))
