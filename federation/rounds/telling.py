"""How the coordinator tells a cohort which adapter is meant: whole, or as the way from one that they hold.

Knows which states members hold, and the steps between states. Knows nothing of training or of what is done with replies.
Always: every member of an attempt is told the name of one state, which the masks are bound to; how it got there (steps, or the
whole) makes no difference to the bits. Nothing here must survive a kill: a coordinator that starts again asks members what they
hold.

Covered: a member that was away (it gets several steps, or the whole where that is less), one that came late or was restarted.
What it shows: a member that missed rounds gets their sums one by one, where the whole adapter would show what they add up
to. Sums are every member's to read in this mode (`crypto/README.md`), and no more is told than differences of adapters say.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ...core import log
from ..exchange import work
from ..exchange.messages import Place, Reply
from ..learning.aggregate import ServerOptimizer, ServerState, Vector
from ..protection.seam import Sum
from . import steps
from .logbook import Logbook
from .post import Post
from .recall import HOLDS, read_names
from .steps import Step, Stepping, name_of

logger = log.get("federation.telling")
Way = tuple[tuple[str, ...], bytes]  # the state that it starts from, if it needs one; and the bytes that lead from there


class Telling:
    """One run's. Also the optimizer that the coordinator steps with, so that no step goes unnoticed."""

    def __init__(self, post: Post, logbook: Logbook, optimizer: ServerOptimizer, size: int) -> None:
        self.post, self.logbook, self.optimizer, self.size = post, logbook, optimizer, size
        self.on = post.policy.recipe.download == "change"
        self.origin = name_of(ServerState.zeros(size)) if self.on else ""
        self.forget()

    def forget(self) -> None:
        """Nothing is known of anybody: as at the start, or under a later version of the federation file."""
        self.version = self.post.policy.version
        self.held: dict[str, tuple[str, ...]] = {}  # member → names of states
        self.lacking: set[str] = set()  # who answered the last letter so
        self.ways: dict[str, tuple[str, bytes]] = {}  # state → the one before it, and the step; oldest first
        self.fresh: list[tuple[str, ServerState]] = []  # made of the last sums; one of them may become the run's
        self.parent: tuple[str, ServerState] | None = None
        self.sums: tuple[Place, work.Ranges, tuple[Sum, ...]] | None = None

    def opened(self, place: Place, ranges: work.Ranges, sums: tuple[Sum, ...]) -> None:
        """The sums that the next steps are made of."""
        self.sums, self.fresh = (place, ranges, sums), []

    def step(self, state: ServerState, mean: Vector) -> ServerState:
        """As `ServerOptimizer`; the step is noted."""
        after = self.optimizer.step(state, mean)
        if self.on:
            self.parent, name = (self.named(state), state), name_of(after)
            self.fresh.append((name, after))
            self.note(name, self.parent[0], self.made(mean))
        return after

    def made(self, change: Vector) -> Step:
        """The smallest step that gives `change` to the last bit: one of the sums, or the vector itself."""
        stepping = Stepping(self.post.policy, self.size, self.logbook.state.run, self.optimizer)
        if self.sums is not None:
            place, ranges, sums = self.sums
            for one in sums:
                step = stepping.of_sum(one.total, len(one.parties), ranges, place.round)
                if np.array_equal(stepping.change(step).view(np.uint32), change.view(np.uint32)):
                    return step
        return stepping.of_vector(change)

    def note(self, name: str, before: str, step: Step) -> None:
        """Keep the step, as long as a way with it is shorter than the whole."""
        if name == before:
            return
        self.ways[name] = (before, step.encode())
        while len(self.ways) > steps.MAX_STEPS or sum(len(one) for _, one in self.ways.values()) > 2 * self.whole_bytes():
            if len(self.ways) == 1:
                break
            del self.ways[next(iter(self.ways))]

    def whole_bytes(self) -> int:
        """Of a state that is told whole."""
        return 4 * self.size * len(self.logbook.state.server.vectors)

    def name(self, flat: Vector) -> str:
        """The state whose adapter is this very vector; empty where adapters are told whole, without a name.

        Raises:
            RuntimeError: no state of this run.
        """
        if not self.on:
            return ""
        if self.version != self.post.policy.version:
            self.forget()
        server = self.logbook.state.server
        if server.flat is flat:
            name = self.named(server)
            if self.parent is not None and name not in self.ways and flat is self.parent[1].flat and not server.velocity.any():
                self.note(name, self.parent[0], Step(kind="rest"))
            return name
        for name, state in self.fresh:
            if state.flat is flat:
                return name
        raise RuntimeError("an adapter that belongs to no state of this run")  # our bug

    def named(self, state: ServerState) -> str:
        """Its name; of those just made it is known already."""
        known = next((name for name, other in self.fresh if other is state), None)
        return known or name_of(state)

    def ask(self, stage: str, order: work.Work, cohort: Sequence[str], place: Place, timeout_s: float) -> Iterator[Reply]:
        """Let the cohort work on `order`; yield what they answer. Whoever lacks the adapter is asked once more."""
        if not self.on:
            yield from self.post.ask(stage, dict.fromkeys(cohort, work.encode(order)), place, timeout_s)
            return
        self.meet([name for name in cohort if name not in self.held], order.state, place)
        ways = {name: self.way(order, self.held.get(name, ())) for name in cohort}
        yield from self.send(stage, order, ways, place, timeout_s)
        if lacking := [name for name in cohort if name in self.lacking]:
            again = {name: self.way(order, self.held[name], whole=not self.held[name]) for name in lacking}
            yield from self.send(stage, order, again, place, timeout_s)

    def send(self, stage: str, order: work.Work, ways: Mapping[str, Way], place: Place, timeout_s: float) -> Iterator[Reply]:
        """One letter to each; what they hold afterwards is noted, and whoever does not answer is a stranger again."""
        self.lacking = set()
        letters = {name: work.encode_told(order, way) for name, (_, way) in ways.items()}
        for name in ways:
            self.held.pop(name, None)
        for reply in self.post.ask(stage, letters, place, timeout_s):
            if (names := read_names(reply.payload)) is None:
                self.held[reply.sender] = tuple(dict.fromkeys((*ways[reply.sender][0], order.state)))
                yield reply
                continue
            logger.info("%s does not hold the adapter that it was told a change of", reply.sender)
            self.held[reply.sender] = names
            self.lacking.add(reply.sender)

    def meet(self, strangers: Sequence[str], wanted: str, place: Place) -> None:
        """Ask those that nothing is known of what they hold; needless at the start, from where everybody knows the way."""
        if not strangers or wanted == self.origin:
            return
        timeout_s = self.post.policy.recipe.stage_timeout_s
        for reply in self.post.ask(HOLDS, dict.fromkeys(strangers, b""), place, timeout_s):
            self.held[reply.sender] = read_names(reply.payload) or ()

    def way(self, order: work.Work, held: Sequence[str], *, whole: bool = False) -> Way:
        """A way to the state that is meant, unless the whole is less or wanted."""
        taken, at = list[bytes](), order.state
        while at not in (*held, self.origin) and at in self.ways and len(taken) < steps.MAX_STEPS:
            at, step = self.ways[at]
            taken.insert(0, step)
        if not whole and at in (*held, self.origin) and sum(map(len, taken)) < self.whole_bytes():
            return (at,), steps.join(at, taken)
        return (), steps.join("", [Step(kind="whole", body=self.state(order.flat).encode()).encode()])

    def state(self, flat: Vector) -> ServerState:
        """The state whose adapter is this very vector."""
        server = self.logbook.state.server
        return server if server.flat is flat else next(state for _, state in self.fresh if state.flat is flat)
