"""How the coordinator tells a cohort which adapter is meant: the steps from one that they hold, or
the whole.

Knows which states members hold, and the steps between states. Knows nothing of training or of what
is done with replies.
Always: every member of an attempt is told the name of one state, which the masks follow from; how
it got there (steps, or the whole) makes no difference to the bits. The steps are written down with
the state that they lead to (`logbook`); what members hold need not survive a kill: a coordinator
that starts again asks them.

Covered: a member that was away (it gets several steps), one that came late or lost its disk: the
steps from zeros while they are few, the whole after that. Who is told the whole takes part only if
more than a third of the cohort followed the steps, so steps are preferred up to `WAY` times the
whole.
What it shows: a member that missed rounds gets their sums one by one, and members get buckets'
sums, where the adapter alone would show what they add up to. Sums are every member's to read in
this mode (`crypto/README.md`).
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ...core import log
from ..aggregation.base import Sum
from ..aggregation.server_optimizer import ServerOptimizer, combine
from ..store.checkpoint import Logbook, ServerState, Vector, Walked
from ..wire import messages
from ..wire.link import Post
from ..wire.messages import Reply, RoundId
from . import delta_chain as steps
from .client_model import HOLDS, read_names
from .delta_chain import ALL, DeltaChain, Step, name_of, origin_of
from .global_model import ServerHeld

logger = log.get("federation.telling")
# the state that it starts from, if it needs one; and the bytes that lead from there
Way = tuple[tuple[str, ...], bytes]
# a way is told by steps up to so many times the whole, or so many bytes; else as the whole
WAY, SHORT_BYTES = 4, 1 << 20


class ServerHeldDelta(ServerHeld):
    """One run's: members follow the adapter by the sums that lead to it."""

    def __init__(
        self,
        post: Post,
        logbook: Logbook,
        optimizer: ServerOptimizer,
        size: int,
        stops: Sequence[int],
    ) -> None:
        super().__init__(post, logbook, optimizer, size, stops)
        self.origin = origin_of(size)
        self.left: dict[str, tuple[Way, str]] = {}  # member → the way that `letters` told it
        # oldest first
        self.ways: dict[str, Walked] = {one.name: one for one in logbook.state.steps}
        # made of the last sums; one of them may become the run's
        self.fresh: list[tuple[str, ServerState]] = []
        self.opened_at: tuple[RoundId, tuple[str, ...], tuple[Sum, ...]] | None = None
        self.means: tuple[Vector, ...] = ()  # of these sums
        self.known: tuple[ServerState, str] | None = None  # the last state that was named
        self.steps: dict[str, Step] = {}  # made of these sums, by the state that they lead to
        self.briefs: dict[tuple[str, tuple[bool, ...]], bytes] = {}  # as signers are told them
        self.forget()

    def forget(self) -> None:
        """Nothing is known of any member: as at the start, or under a later version of the
        federation file.

        What was made of the last sums stays: a file may change between a step and the vote on it.
        """
        self.version = self.post.policy.version
        self.held: dict[str, tuple[str, ...]] = {}  # member → names of states
        self.lacking: set[str] = set()  # who answered the last letter so
        self.relying: set[str] = set()  # who was told the whole, and has not been in a sum since
        self.keeping: set[str] = set()  # who signed the last sums, and has not said that they lack

    def opened(
        self, place: RoundId, asked: Sequence[str], sums: tuple[Sum, ...], means: tuple[Vector, ...]
    ) -> None:
        """The sums that the next steps are made of, their means [n], and who was asked for them."""
        self.opened_at, self.means, self.fresh = (place, tuple(asked), sums), means, []
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
        place, asked, sums = self.opened_at
        table, means = self.post.policy.aggregation, self.means
        changes = (combine(means, table.rule, table.trim), *(means if len(means) > 1 else ()))
        for bucket, one in enumerate(changes, start=ALL):
            if np.array_equal(one.view(np.uint32), change.view(np.uint32)):
                stepping = DeltaChain(
                    self.post.policy, self.size, self.logbook.state.run, self.stops
                )
                return stepping.of_sums(sums, place, asked, bucket)
        raise RuntimeError("a change that follows from no sum of this round")  # our bug

    def note(self, name: str, before: str, step: Step) -> None:
        """Keep the step, and forget the oldest once together they are longer than any way that
        is told.
        """
        if name == before:
            return
        self.ways[name] = Walked(name, before, step.encode())
        while (
            len(self.ways) > steps.MAX_STEPS
            or sum(len(one.body) for one in self.ways.values()) > self.longest()
        ):
            if len(self.ways) == 1:
                break
            del self.ways[next(iter(self.ways))]

    def walked(self, server: ServerState) -> tuple[Walked, ...]:
        """The steps that lead to `server`, oldest first: what must be on disk with it."""
        taken, at = list[Walked](), self.named(server)
        while at in self.ways and len(taken) < len(self.ways):
            taken.append(self.ways[at])
            at = taken[-1].before
        return tuple(reversed(taken))

    def longest(self) -> int:
        """Bytes of a way that is told by steps."""
        return max(SHORT_BYTES, WAY * 4 * self.size * len(self.logbook.state.server.vectors))

    def name(self, flat: Vector) -> str:
        """The state whose adapter is this very vector.

        Raises:
            RuntimeError: no state of this run.
        """
        if self.version != self.post.policy.version:
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
        place: RoundId,
        timeout_s: float,
    ) -> Iterator[Reply]:
        """Let the cohort work on `order`; yield what they answer. Whoever lacks the adapter is
        asked once more.
        """
        self.meet(cohort, order.state, place)
        yield from self.send(stage, order, self.ways_for(order, cohort), place, timeout_s)
        if lacking := [name for name in cohort if name in self.lacking]:
            yield from self.send(stage, order, self.ways_for(order, lacking), place, timeout_s)

    def letters(
        self, order: messages.Work, members: Sequence[str], place: RoundId
    ) -> dict[str, bytes]:
        """What each is told: its way from what it holds."""
        self.meet(members, order.state, place)
        ways = self.ways_for(order, members)
        self.left |= {name: (way, order.state) for name, way in ways.items()}
        return {name: messages.encode_told(order, way) for name, (_, way) in ways.items()}

    def worked(self, reply: Reply) -> bool:
        """As `heard`, of an answer to one of `letters`."""
        return self.heard(reply, *self.left[reply.sender])

    def at_once(self, member: str) -> bool:
        """It is told in another way at once, but not for ever."""
        return bool(self.left[member][0][0])

    def relies(self, member: str) -> bool:
        """Was it told the whole, and not summed since?"""
        return member in self.relying

    def ways_for(self, order: messages.Work, names: Sequence[str]) -> dict[str, Way]:
        """How each gets to the adapter that is meant, from what it is known to hold."""
        return {name: self.way(order, name, whole=self.held.get(name) == ()) for name in names}

    def send(
        self,
        stage: str,
        order: messages.Work,
        ways: Mapping[str, Way],
        place: RoundId,
        timeout_s: float,
    ) -> Iterator[Reply]:
        """One letter to each; what they hold afterwards is noted, and whoever does not answer is
        a stranger again.
        """
        self.lacking = set()
        letters = {name: messages.encode_told(order, way) for name, (_, way) in ways.items()}
        for name in ways:
            self.held.pop(name, None)
        for reply in self.post.ask(stage, letters, place, timeout_s):
            if self.heard(reply, ways[reply.sender], order.state):
                yield reply

    def heard(self, reply: Reply, way: Way, wanted: str) -> bool:
        """Note what a member holds now; False if it lacks what it was told a change of."""
        if (names := read_names(reply.payload)) is None:
            self.held[reply.sender] = tuple(dict.fromkeys((*way[0], wanted)))
            self.relying = (
                self.relying - {reply.sender} if way[0] else self.relying | {reply.sender}
            )
            return True
        logger.info("%s does not hold the adapter that it was told a change of", reply.sender)
        self.held[reply.sender] = names
        self.lacking.add(reply.sender)
        self.keeping.discard(reply.sender)
        return False

    def meet(self, cohort: Sequence[str], wanted: str, place: RoundId) -> None:
        """Ask those that nothing is known of what they hold; needless at the start, from where
        everybody knows the way.
        """
        strangers = [name for name in cohort if name not in self.held]
        if not strangers or wanted == self.origin:
            return
        timeout_s = self.post.policy.recipe.stage_timeout_s
        for reply in self.post.ask(HOLDS, dict.fromkeys(strangers, b""), place, timeout_s):
            self.held[reply.sender] = (*(read_names(reply.payload) or ()), self.origin)

    def way(self, order: messages.Work, member: str, *, whole: bool = False) -> Way:
        """A member's way to the state that is meant, by steps unless they are too long, or the
        whole is wanted.
        """
        taken, at, held = list[bytes](), order.state, self.held.get(member, ())
        while at not in (*held, self.origin) and at in self.ways and len(taken) < steps.MAX_STEPS:
            taken.insert(0, self.told(at, member))
            at = self.ways[at].before
        if not whole and at in (*held, self.origin) and sum(map(len, taken)) <= self.longest():
            return (at,), steps.join(at, taken)
        return (), steps.join(
            "", [Step(kind="whole", state=self.state(order.flat).encode()).encode()]
        )

    def told(self, name: str, member: str) -> bytes:
        """The step to the state called `name`, as this member is told it: without the sums that it
        signed.
        """
        step = self.steps.get(name) if member in self.keeping else None
        if step is None:
            return self.ways[name].body
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
