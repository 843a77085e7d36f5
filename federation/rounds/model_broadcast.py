"""How the adapter is told as the steps that lead to it, and followed.

Knows which states members hold, and the steps between states. Knows nothing of training, or of what
is done with replies.
Always: every member of an attempt is told the name of one state, which the masks follow from; how
it got there (steps, or the whole) makes no difference to the bits, for a state is used only if its
name, a hash of them, is the one that was asked for. The steps are written down with the state that
they lead to (`Logbook`); what members hold need not survive a kill: a coordinator that starts again
asks them. A member remembers nothing before the message was checked whole, and what is on its disk
is the whole old memory or the whole new one.

Covered: a member that was away (it gets several steps), one that came late or lost its disk: the
steps from zeros while they are few, the whole after that. Who is told the whole takes part only if
more than a third of the cohort followed the steps, so steps are preferred up to `LONGEST` times the
whole.
What it shows: a member that missed rounds gets their sums one by one, and members get buckets'
sums, where the adapter alone would show what they add up to. Sums are every member's to read in
this mode (`crypto/README.md`).

A state is *followed* if this member went to it from zeros, where every run starts, by opened sums
and the federation's own rules (`delta_chain`), or from a state that enough others signed to have
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

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...core import log
from ...core.errors import FederationError, MessageError, QuietchoirError
from ...crypto.identity.keys import SIGNATURE_BYTES
from ...crypto.ring import BitRing
from ..aggregation import delta_chain
from ..aggregation.base import Sum, WireCost
from ..aggregation.delta_chain import (
    ALL,
    KEPT,
    NAME_BYTES,
    DeltaChain,
    Integers,
    Step,
    Total,
    UnprovenError,
    attested,
    digest_of,
    name_of,
    origin_of,
)
from ..aggregation.server_optimizer import ServerOptimizer, combine
from ..spec.policy import Policy
from ..store.checkpoint import Logbook, ServerState, StoredStep, Vector
from ..store.database import Database, StoredRecord
from ..wire import messages
from ..wire.link import Messenger
from ..wire.messages import Reply, RoundId
from .global_model import ClientModel, Followed, LackingError, Resolved, ServerHeld

logger = log.get("federation.model_broadcast")
# the state that it starts from, if it needs one; and the bytes that lead from there
DeltaPath = tuple[tuple[str, ...], bytes]
# a path is told by steps up to so many times the whole, or so many bytes; else as the whole
LONGEST, SHORT_BYTES = 4, 1 << 20
# of a step's header; of each name in it, where members train different ranks
STEP_BYTES, MEMBER_BYTES = 200, 24


class ServerHeldDelta(ServerHeld):
    """One run's: members follow the adapter by the sums that lead to it."""

    def __init__(
        self,
        messenger: Messenger,
        logbook: Logbook,
        optimizer: ServerOptimizer,
        size: int,
        stops: Sequence[int],
    ) -> None:
        super().__init__(messenger, logbook, optimizer, size, stops)
        self.origin = origin_of(size)
        self.sent: dict[
            str, tuple[DeltaPath, str]
        ] = {}  # member → the path that `payloads` told it
        # oldest first
        self.deltas: dict[str, StoredStep] = {one.name: one for one in logbook.state.steps}
        # made of the last sums; one of them may become the run's
        self.fresh: list[tuple[str, ServerState]] = []
        self.opened_at: tuple[RoundId, tuple[str, ...], tuple[Sum, ...]] | None = None
        self.means: tuple[Vector, ...] = ()  # of these sums
        self.known: tuple[ServerState, str] | None = None  # the last state that was named
        self.steps: dict[str, Step] = {}  # made of these sums, by the state that they lead to
        self.briefs: dict[tuple[str, tuple[bool, ...]], bytes] = {}  # as signers are told them
        self.forget()

    @staticmethod
    def wire_cost(policy: Policy, size: int, cohort: int) -> WireCost:
        """What a round takes, and at most how much more for a member that was away.

        A member of every round gets the newest step, with the sum of each bucket that it did not
        sign; one that missed rounds gets their steps, up to `LONGEST` times the adapter with its
        optimizer. A vote costs nothing more, since what was voted on is what the next round starts
        from; where buckets are chosen from, each costs. What is undone or salvaged comes besides.
        """
        recipe, sums = policy.recipe, max(policy.aggregation.buckets, policy.trials)
        named = 2 * cohort * any(one.rank for one in policy.members)
        body = BitRing(length=size, bits=policy.protection.bits, parties=cohort).wire_bytes
        header = (STEP_BYTES + MEMBER_BYTES * named) * sums
        if attested(policy):  # the sum that it signed is only named
            header += 2 * (2 * SIGNATURE_BYTES + MEMBER_BYTES) * cohort * sums
            sums -= 1
        chosen = policy.guard.rule == "choose" or policy.trials > 1
        times = 1 + max(policy.aggregation.buckets, policy.trials) if chosen else 1
        vectors = 3 if recipe.server_optimizer in ("fedadam", "fedyogi") else 2
        change, whole = (
            (body * sums + header) * times,
            max(SHORT_BYTES, LONGEST * 4 * size * vectors),
        )
        some = cohort < len(policy.members) or policy.schedule.buffered
        down = max(change, whole) if some else change
        return WireCost(0, down, late_down=max(0, whole - down))

    def forget(self) -> None:
        """Nothing is known of any member: as at the start, or under a later version of the
        federation file.

        What was made of the last sums stays: a file may change between a step and the vote on it.
        """
        self.version = self.messenger.policy.version
        self.held: dict[str, tuple[str, ...]] = {}  # member → names of states
        self.lacking: set[str] = set()  # who answered the last message so
        self.relying: set[str] = set()  # who was told the whole, and has not been in a sum since
        self.keeping: set[str] = set()  # who signed the last sums, and has not said that they lack

    def opened(
        self,
        round_id: RoundId,
        asked: Sequence[str],
        sums: tuple[Sum, ...],
        means: tuple[Vector, ...],
    ) -> None:
        """The sums that the next steps are made of, their means [n], and who was asked for them."""
        self.opened_at, self.means, self.fresh = (round_id, tuple(asked), sums), means, []
        self.relying -= {name for one in sums for name in one.parties}
        self.keeping = {name for one in sums for name in one.proof}
        self.steps, self.briefs = {}, {}

    def step(self, state: ServerState, mean: Vector) -> ServerState:
        """As `ServerOptimizer`; the step is noted."""
        after = self.optimizer.step(state, mean)
        name = name_of(after)
        self.fresh.append((name, after))
        self.steps[name] = self.made(mean)
        self.note(name, self.named(state), self.steps[name])
        return after

    def rest(self, parent: ServerState) -> ServerState:
        """`parent` with an optimizer at rest, after a change was undone; the step is noted."""
        after = parent.at_rest()
        self.note(name_of(after), self.named(parent), Step(kind="rest"))
        return after

    def made(self, change: Vector) -> Step:
        """The step that gives `change` to the last bit, as members will go it.

        Raises:
            RuntimeError: a change that does not follow from the sums that were opened.
        """
        assert self.opened_at is not None  # a change is made of sums
        round_id, asked, sums = self.opened_at
        table, means = self.messenger.policy.aggregation, self.means
        changes = (combine(means, table.rule, table.trim), *(means if len(means) > 1 else ()))
        for bucket, one in enumerate(changes, start=ALL):
            if np.array_equal(one.view(np.uint32), change.view(np.uint32)):
                stepping = DeltaChain(
                    self.messenger.policy, self.size, self.logbook.state.run, self.stops
                )
                return stepping.of_sums(sums, round_id, asked, bucket)
        raise RuntimeError("a change that follows from no sum of this round")  # our bug

    def note(self, name: str, before: str, step: Step) -> None:
        """Keep the step, and forget the oldest once together they are longer than any path that
        is told.
        """
        if name == before:
            return
        self.deltas[name] = StoredStep(name, before, step.encode())
        while (
            len(self.deltas) > delta_chain.MAX_STEPS
            or sum(len(one.body) for one in self.deltas.values()) > self.longest()
        ):
            if len(self.deltas) == 1:
                break
            del self.deltas[next(iter(self.deltas))]

    def steps_to(self, server: ServerState) -> tuple[StoredStep, ...]:
        """The steps that lead to `server`, oldest first: what must be on disk with it."""
        taken, at = list[StoredStep](), self.named(server)
        while at in self.deltas and len(taken) < len(self.deltas):
            taken.append(self.deltas[at])
            at = taken[-1].before
        return tuple(reversed(taken))

    def longest(self) -> int:
        """Bytes of a path that is told by steps."""
        return max(SHORT_BYTES, LONGEST * 4 * self.size * len(self.logbook.state.server.vectors))

    def name(self, flat: Vector) -> str:
        """The state whose adapter is this very vector.

        Raises:
            RuntimeError: no state of this run.
        """
        if self.version != self.messenger.policy.version:
            self.forget()
        server = self.logbook.state.server
        if server.flat is flat:
            return self.named(server)
        for name, state in self.fresh:
            if state.flat is flat:
                return name
        raise RuntimeError("an adapter that belongs to no state of this run")  # our bug

    def named(self, state: ServerState) -> str:
        """Its name; of those just made, and of the last one that was asked for, it is known."""
        name = next((name for name, other in self.fresh if other is state), "")
        if self.known is None or self.known[0] is not state:
            self.known = state, name or name_of(state)
        return self.known[1]

    def ask(
        self,
        stage: str,
        order: messages.Work,
        cohort: Sequence[str],
        round_id: RoundId,
        timeout_s: float,
    ) -> Iterator[Reply]:
        """Let the cohort work on `order`; yield what they answer. Whoever lacks the adapter is
        asked once more.
        """
        self.meet(cohort, order.state, round_id)
        yield from self.send(stage, order, self.paths_for(order, cohort), round_id, timeout_s)
        if lacking := [name for name in cohort if name in self.lacking]:
            yield from self.send(stage, order, self.paths_for(order, lacking), round_id, timeout_s)

    def payloads(
        self, order: messages.Work, members: Sequence[str], round_id: RoundId
    ) -> dict[str, bytes]:
        """What each is told: its path from what it holds."""
        self.meet(members, order.state, round_id)
        paths = self.paths_for(order, members)
        self.sent |= {name: (path, order.state) for name, path in paths.items()}
        return {name: messages.encode_delta_work(order, path) for name, (_, path) in paths.items()}

    def worked(self, reply: Reply) -> bool:
        """As `heard`, of an answer to one of `payloads`."""
        return self.heard(reply, *self.sent[reply.sender])

    def at_once(self, member: str) -> bool:
        """It is told in another way at once, but not for ever."""
        return bool(self.sent[member][0][0])

    def relies(self, member: str) -> bool:
        """Was it told the whole, and not summed since?"""
        return member in self.relying

    def paths_for(self, order: messages.Work, names: Sequence[str]) -> dict[str, DeltaPath]:
        """How each gets to the adapter that is meant, from what it is known to hold."""
        return {name: self.path_to(order, name, whole=self.held.get(name) == ()) for name in names}

    def send(
        self,
        stage: str,
        order: messages.Work,
        paths: Mapping[str, DeltaPath],
        round_id: RoundId,
        timeout_s: float,
    ) -> Iterator[Reply]:
        """One message to each; what they hold afterwards is noted, and whoever does not answer is
        a stranger again.
        """
        self.lacking = set()
        payloads = {
            name: messages.encode_delta_work(order, path) for name, (_, path) in paths.items()
        }
        for name in paths:
            self.held.pop(name, None)
        for reply in self.messenger.ask(stage, payloads, round_id, timeout_s):
            if self.heard(reply, paths[reply.sender], order.state):
                yield reply

    def heard(self, reply: Reply, path: DeltaPath, wanted: str) -> bool:
        """Note what a member holds now; False if it lacks what it was told a change of."""
        if (names := read_names(reply.payload)) is None:
            self.held[reply.sender] = tuple(dict.fromkeys((*path[0], wanted)))
            self.relying = (
                self.relying - {reply.sender} if path[0] else self.relying | {reply.sender}
            )
            return True
        logger.info("%s does not hold the adapter that it was told a change of", reply.sender)
        self.held[reply.sender] = names
        self.lacking.add(reply.sender)
        self.keeping.discard(reply.sender)
        return False

    def meet(self, cohort: Sequence[str], wanted: str, round_id: RoundId) -> None:
        """Ask those that nothing is known of what they hold; needless at the start, from where
        everybody knows the way.
        """
        strangers = [name for name in cohort if name not in self.held]
        if not strangers or wanted == self.origin:
            return
        timeout_s = self.messenger.policy.recipe.stage_timeout_s
        for reply in self.messenger.ask(HOLDS, dict.fromkeys(strangers, b""), round_id, timeout_s):
            self.held[reply.sender] = (*(read_names(reply.payload) or ()), self.origin)

    def path_to(self, order: messages.Work, member: str, *, whole: bool = False) -> DeltaPath:
        """A member's path to the state that is meant, by steps unless they are too long, or the
        whole is wanted.
        """
        taken, at, held = list[bytes](), order.state, self.held.get(member, ())
        while (
            at not in (*held, self.origin)
            and at in self.deltas
            and len(taken) < delta_chain.MAX_STEPS
        ):
            taken.insert(0, self.delta_for(at, member))
            at = self.deltas[at].before
        if not whole and at in (*held, self.origin) and sum(map(len, taken)) <= self.longest():
            return (at,), delta_chain.join(at, taken)
        return (), delta_chain.join(
            "", [Step(kind="whole", state=self.state(order.flat).encode()).encode()]
        )

    def delta_for(self, name: str, member: str) -> bytes:
        """The step to the state called `name`, as this member is told it: without the sums that it
        signed.
        """
        step = self.steps.get(name) if member in self.keeping else None
        if step is None:
            return self.deltas[name].body
        signed = tuple(member in one.proof for one in step.totals)
        if (name, signed) not in self.briefs:
            self.briefs[name, signed] = step.kept_by(member).encode()
        return self.briefs[name, signed]

    def state(self, flat: Vector) -> ServerState:
        """The state whose adapter is this very vector."""
        server = self.logbook.state.server
        return (
            server
            if server.flat is flat
            else next(state for _, state in self.fresh if state.flat is flat)
        )


HOLDS = "holds"  # the stage that asks for the names of what a member holds
LACKS = b"lacks"  # an answer instead of work: with the names of what is here
NAME, STATE, SUM = "followed models", "followed model {}", "signed sum"  # records
MAX_TRAIL = 4096  # names; older ones are forgotten


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


class FollowedModel(ClientModel):
    """As `ClientModel`: the adapter is here, and follows by the sums that the message brings.

    Args:
        stops: where the adapter's tensors end; cache: what is held of it.
    """

    stages = (HOLDS,)

    def __init__(
        self, policy: Policy, size: int, stops: Sequence[int], cache: "ClientModelCache"
    ) -> None:
        super().__init__(policy, size)
        self.stops, self.cache = stops, cache

    def answer(self, round_id: RoundId, stage: str, payload: bytes) -> bytes:
        """The names of what is held."""
        if payload:
            raise MessageError(f"found {len(payload)} bytes in stage {stage!r}; refused")
        return self.cache.names(round_id.run)

    def resolve(self, round_id: RoundId, stage: str, payload: bytes) -> Resolved:
        """As `ClientModel`; raises as `ClientModelCache.follow`."""
        named, path = messages.split_work(payload)
        chain = DeltaChain(self.policy, self.size, round_id.run, self.stops)
        reached = self.cache.follow(chain, named.state, path)
        order = replace(named, flat=reached.state.flat)
        broadcast_digest, velocity = (
            messages.work_digest(stage, order.header(), order.flat),
            reached.state.velocity,
        )
        return Resolved(
            order=order,
            broadcast_digest=broadcast_digest,
            claimed=reached.state,
            velocity=velocity,
            reached=reached,
        )

    def keep(self, found: Resolved) -> None:
        """As `ClientModel`."""
        if found.reached is not None:
            self.cache.keep(found.reached)

    def vouching(self, run: str, states: Sequence[tuple[int, str]], own: int) -> tuple[int, int]:
        """As `ClientModel`."""
        vouch = 0
        for version, state in states:
            if not self.cache.follows(state, run, self.size):
                break
            vouch = version + 1
        return vouch, 0 if vouch > own else own + 1

    def trust(self, run: str, state: str) -> None:
        """As `ClientModel`."""
        self.cache.trust(state, run)

    def keep_sum(self, digest: bytes, whole: Integers) -> None:
        """As `ClientModel`."""
        self.cache.keep_sum(digest, whole)


class ClientModelCache:
    """One member's memory. In memory only if there is no database (simulations)."""

    def __init__(self, database: Database | None = None) -> None:
        self.database = database
        self._memory: Memory | None = None  # read when it is first needed
        self._written = frozenset[str]()  # names of states that are on disk
        # the last sum that was signed [n], by its digest; read when it is first needed
        self._sum: tuple[bytes, Integers] | None = None

    def __repr__(self) -> str:
        return "ClientModelCache()"

    def memory(self, run: str) -> Memory:
        """What is remembered of `run`."""
        if self._memory is None:
            self._memory = self._read()
        return self._memory if self._memory.run == run else Memory(run)

    def names(self, run: str) -> bytes:
        """What is held of `run`, as an answer."""
        return LACKS + b"".join(bytes.fromhex(name) for name, _ in self.memory(run).held)

    def follow(self, stepping: DeltaChain, wanted: str, path: bytes) -> Followed:
        """Go from a state that is held to the one called `wanted`; it is remembered by `keep`.

        Raises:
            LackingError: the state to start from is not here, or the end is another one; say so,
            and be told otherwise. MessageError: malformed, or a whole state that is not the one
            meant; refused.
        """
        start, taken = delta_chain.split(path)
        memory, origin = self.memory(stepping.run), origin_of(stepping.size)
        whole = delta_chain.starts_whole(taken)
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

    def keep(self, reached: Followed) -> None:
        """Remember where a path led."""
        memory = self.memory(reached.run)
        held = {**reached.first, reached.name: reached.state}
        # what was followed stays, until others vouch for this
        if not reached.followed and not held.keys() & set(memory.trail):
            held = {**dict([one for one in memory.held if one[0] in memory.trail][-1:]), **held}
        self._write(Memory(reached.run, tuple(held.items()), trail(memory.trail, *reached.passed)))

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
