"""The global adapter where only members have it: the server knows its tag and their steps.

Knows who greets with which key and state, and that members step by themselves. Knows no adapter.
Always: an attempt goes on with members that hold the same key and the same adapter; the members'
number of steps is the run's; an undone step is one step more, so no number comes twice.
"""

from collections.abc import Sequence

from ...core import log
from ...core.errors import RoundAborted
from ...core.worker import Worker
from ...crypto.he.encrypted_ring import AdderService, Desk
from ..aggregation.server_optimizer import ServerOptimizer
from ..aggregation.setup import KeyAndStateSetup
from ..events import OnEvent, SteppedEvent
from ..store.checkpoint import Logbook, Vector
from ..wire import messages
from ..wire.link import Post
from ..wire.messages import RoundId
from .global_model import ServerHeld

logger = log.get("federation.coordinator")


class MemberHeld(ServerHeld):
    """One run's. Args: desk: adds ciphertexts; by default a new worker."""

    held_by_members = True

    def __init__(
        self,
        post: Post,
        logbook: Logbook,
        optimizer: ServerOptimizer,
        size: int,
        stops: Sequence[int],
        *,
        desk: Desk | None,
        on_event: OnEvent,
    ) -> None:
        super().__init__(post, logbook, optimizer, size, stops)
        self.desk, self.on_event = desk or Worker(AdderService), on_event

    def gather(self, cohort: tuple[str, ...], place: RoundId) -> tuple[str, ...]:
        """Those that share a key and an adapter when it returns. Raises RoundAborted: too few."""
        self.common = KeyAndStateSetup(self.post.policy, place, self.post.ask, self.size).gather(
            cohort
        )
        steps, known = self.common.steps, self.logbook.state.round
        if self.logbook.catch_up(steps):
            logger.warning(
                "members are at step %d, %d is written here; going on from theirs", steps, known
            )
            self.on_event(SteppedEvent(round=steps, expected=known))
        return self.common.members

    def name(self, flat: Vector) -> str:
        """The tag of the adapter that the gathered members hold."""
        del flat  # [0]
        assert self.common is not None  # nobody is asked before they are gathered
        return self.common.tag.hex()

    def ranges(self) -> messages.Ranges:
        """Nothing: they follow from the velocity that members hold."""
        return ()

    def rollback(self, steps: int) -> None:
        """Have members go back to the adapter before step `steps`, which is one step more.

        Raises:
            RoundAborted: fewer did than it takes for the others to believe them.
        """
        policy, place = self.post.policy, self.logbook.begin()
        members = self.gather(tuple(sorted(self.post.link.present())), place)
        if self.logbook.state.round > steps:
            return  # an attempt before this one was answered, and our note of it lost
        flat = self.logbook.state.server.flat
        order = messages.Work(flat=flat, state=self.name(flat), round=steps)
        payload = messages.encode_work(order)
        letters, timeout_s = dict.fromkeys(members, payload), policy.recipe.stage_timeout_s
        done = list(self.post.ask(messages.UNDO, letters, place, timeout_s))
        if len(done) < (need := policy.needed(len(members))):
            raise RoundAborted(
                f"{len(done)} of {len(members)} members went back to the adapter before, need "
                f"{need}"
            )
        self.logbook.catch_up(steps + 1)
