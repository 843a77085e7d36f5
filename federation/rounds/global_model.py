"""Where the global adapter lives, as the server sees it: what members are told of it, and how it
steps, is undone and is handed over.

Knows one run's state and the letters that name it. Knows nothing of how sums are protected, of
training, or of who is asked.
Always: every member of an attempt is told the name of one state, or is handed the very same bits;
nothing of a member is remembered that it did not answer.

    ServerHeld          the server has it and tells it whole (here)
    ServerHeldDelta     the server has it and tells the sums that lead to it (`model_broadcast`)
    MemberHeld          members have it; the server knows its tag (`member_held`)
"""

from collections.abc import Iterator, Sequence

from ...core.errors import RoundAborted
from ...crypto.he.encrypted_ring import Desk
from ..aggregation.base import Common, Sum
from ..aggregation.ranges import spans
from ..aggregation.server_optimizer import ServerOptimizer
from ..store.checkpoint import Logbook, ServerState, Vector, Walked
from ..wire import messages
from ..wire.link import Post
from ..wire.messages import Reply, RoundId


class ServerHeld:
    """The server has it, and tells it whole; the others are this one with a difference.

    Args:
        optimizer: what it steps with; size: values of the adapter; stops: where its tensors end.
    """

    held_by_members = False
    # of this attempt, where members hold it: what they have in common, and who adds ciphertexts
    common: Common | None = None
    desk: Desk | None = None

    def __init__(
        self,
        post: Post,
        logbook: Logbook,
        optimizer: ServerOptimizer,
        size: int,
        stops: Sequence[int],
    ) -> None:
        self.post, self.logbook, self.optimizer = post, logbook, optimizer
        self.size, self.stops = size, tuple(stops)

    def gather(self, cohort: tuple[str, ...], place: RoundId) -> tuple[str, ...]:
        """Who of `cohort` can take part. Raises RoundAborted: too few."""
        del place
        return cohort

    def name(self, flat: Vector) -> str:
        """The state whose adapter is this very vector; empty where states have no names."""
        del flat
        return ""

    def ranges(self) -> messages.Ranges:
        """Of the next round's tensors, as members are told them; nothing where they follow from
        what members hold, or the file names one range for all.
        """
        recipe = self.post.policy.recipe
        if recipe.ranges != "tensor":
            return ()
        return spans(self.logbook.state.server.velocity, self.stops, recipe.update_range)

    def letters(
        self, order: messages.Work, members: Sequence[str], place: RoundId
    ) -> dict[str, bytes]:
        """What each of these is told to work on."""
        del place
        return dict.fromkeys(members, messages.encode_work(order))

    def ask(
        self,
        stage: str,
        order: messages.Work,
        cohort: Sequence[str],
        place: RoundId,
        timeout_s: float,
    ) -> Iterator[Reply]:
        """Let the cohort work on `order`; yield what they answer."""
        yield from self.post.ask(stage, self.letters(order, cohort, place), place, timeout_s)

    def worked(self, reply: Reply) -> bool:
        """Does this answer to one of `letters` hold work? Else its sender lacks what it was told
        a change of.
        """
        del reply
        return True

    def at_once(self, member: str) -> bool:
        """May a member that lacked something be told again at once?"""
        del member
        return True

    def relies(self, member: str) -> bool:
        """Did this member not follow the adapter itself, so that others must vouch for it?"""
        del member
        return False

    def opened(
        self, place: RoundId, asked: Sequence[str], sums: tuple[Sum, ...], means: tuple[Vector, ...]
    ) -> None:
        """The sums that the next steps are made of, their means [n], and who was asked for them."""

    def step(self, state: ServerState, mean: Vector) -> ServerState:
        """The state after a mean change [n]."""
        return self.optimizer.step(state, mean)

    def rest(self, parent: ServerState) -> ServerState:
        """`parent` with an optimizer at rest, after a change was undone."""
        return parent.at_rest()

    def walked(self, server: ServerState) -> tuple[Walked, ...]:
        """The steps that lead to `server`, oldest first: what must be on disk with it."""
        del server
        return ()

    def rollback(self, steps: int) -> None:
        """Have members go back to the adapter before step `steps`.

        Raises:
            RoundAborted: too few did.
        """
        raise RoundAborted(f"members have no step {steps} of their own to undo")  # our bug
