"""Where the global adapter lives: what members are told of it, what they make of that, how it
steps, is undone and is handed over. Two sides, three ways:

    the server's       a member's
    ServerHeld         ClientModel      the server has it, and tells it whole (here)
    ServerHeldDelta    FollowedModel    it tells the sums that lead to it (`model_broadcast`)
    MemberHeld         OwnModel         members have it; the server knows its tag (`member_held`)

Knows one run's state and the messages that name it. Knows nothing of how sums are protected, of
training, or of who is asked.
Always: every member of an attempt is told the name of one state, or is handed the very same bits;
what is worked on is what the broadcast digest is of; nothing of a member is remembered that it did
not answer, and nothing of a message that was not checked whole.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...core.errors import MessageError, RoundAborted
from ...crypto.he.encrypted_ring import CryptoWorker
from ..aggregation.base import Common, Sum, WireCost
from ..aggregation.delta_chain import Integers
from ..aggregation.ranges import spans
from ..aggregation.server_optimizer import ServerOptimizer
from ..aggregation.update import SumContext
from ..spec.policy import Policy
from ..store.checkpoint import Logbook, ServerState, StoredStep, Vector
from ..wire import messages
from ..wire.link import Messenger
from ..wire.messages import Reply, RoundId


class ServerHeld:
    """The server has it, and tells it whole; the others are this one with a difference.

    Args:
        optimizer: what it steps with; size: values of the adapter; stops: where its tensors end.
    """

    held_by_members = False
    # of this attempt, where members hold it: what they have in common, and who adds ciphertexts
    common: Common | None = None
    crypto_worker: CryptoWorker | None = None

    def __init__(
        self,
        messenger: Messenger,
        logbook: Logbook,
        optimizer: ServerOptimizer,
        size: int,
        stops: Sequence[int],
    ) -> None:
        self.messenger, self.logbook, self.optimizer = messenger, logbook, optimizer
        self.size, self.stops = size, tuple(stops)

    @staticmethod
    def wire_cost(policy: Policy, size: int, cohort: int) -> WireCost:
        """How the adapter of `size` values comes to a member of a cohort of so many: once, and once
        more where it is voted on.
        """
        del cohort
        return WireCost(0, 4 * size * (2 if policy.guard.on else 1))

    def gather(self, cohort: tuple[str, ...], round_id: RoundId) -> tuple[str, ...]:
        """Who of `cohort` can take part. Raises RoundAborted: too few."""
        del round_id
        return cohort

    def name(self, flat: Vector) -> str:
        """The state whose adapter is this very vector; empty where states have no names."""
        del flat
        return ""

    def ranges(self) -> messages.Ranges:
        """Of the next round's tensors, as members are told them; nothing where they follow from
        what members hold, or the file names one range for all.
        """
        recipe = self.messenger.policy.recipe
        if recipe.ranges != "tensor":
            return ()
        return spans(self.logbook.state.server.velocity, self.stops, recipe.update_range)

    def payloads(
        self, order: messages.Work, members: Sequence[str], round_id: RoundId
    ) -> dict[str, bytes]:
        """What each of these is told to work on."""
        del round_id
        return dict.fromkeys(members, messages.encode_work(order))

    def ask(
        self,
        stage: str,
        order: messages.Work,
        cohort: Sequence[str],
        round_id: RoundId,
        timeout_s: float,
    ) -> Iterator[Reply]:
        """Let the cohort work on `order`; yield what they answer."""
        yield from self.messenger.ask(
            stage, self.payloads(order, cohort, round_id), round_id, timeout_s
        )

    def worked(self, reply: Reply) -> bool:
        """Does this answer to one of `payloads` hold work? Else its sender lacks what it was told
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
        self,
        round_id: RoundId,
        asked: Sequence[str],
        sums: tuple[Sum, ...],
        means: tuple[Vector, ...],
    ) -> None:
        """The sums that the next steps are made of, their means [n], and who was asked for them."""

    def step(self, state: ServerState, mean: Vector) -> ServerState:
        """The state after a mean change [n]."""
        return self.optimizer.step(state, mean)

    def rest(self, parent: ServerState) -> ServerState:
        """`parent` with an optimizer at rest, after a change was undone."""
        return parent.at_rest()

    def steps_to(self, server: ServerState) -> tuple[StoredStep, ...]:
        """The steps that lead to `server`, oldest first: what must be on disk with it."""
        del server
        return ()

    def rollback(self, steps: int) -> None:
        """Have members go back to the adapter before step `steps`.

        Raises:
            RoundAborted: too few did.
        """
        raise RoundAborted(f"members have no step {steps} of their own to undo")  # our bug


class LackingError(MessageError):
    """The adapter that is meant cannot be reached from what is here."""

    def __init__(self, reply: bytes) -> None:
        super().__init__("this member does not hold the adapter that the path starts from")
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Followed:
    """Where a path led; not remembered yet."""

    run: str
    name: str
    state: ServerState
    first: Mapping[str, ServerState]  # where it started
    # names of the states that were followed on the way, this one among them
    passed: tuple[str, ...]
    followed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What a member is to do, as it was told or arrived at it."""

    order: messages.Work  # with the adapter to work on
    broadcast_digest: bytes  # the broadcast digest
    # by somebody else's word: to be measured against what any rounds can have made
    claimed: ServerState | Vector | None = None
    velocity: Vector | None = None  # [n] what the tensors' ranges follow from, where it is here
    reached: Followed | None = None  # how it was reached, where adapters are followed


class ClientModel:
    """The message brings it, whole; the others are this one with a difference."""

    stages: tuple[str, ...] = ()  # messages that are about the model alone

    def __init__(self, policy: Policy, size: int) -> None:
        self.policy, self.size = policy, size

    def answer(self, round_id: RoundId, stage: str, payload: bytes) -> bytes:
        """One of `stages`. Raises MessageError and others: refused; nothing was changed."""
        raise MessageError(f"{stage!r} with {len(payload)} bytes at {round_id}; refused")

    def resolve(self, round_id: RoundId, stage: str, payload: bytes) -> Resolved:
        """What is to be done, and with which adapter; nothing is remembered yet.

        Raises:
            MessageError: malformed, or another adapter than any that can be meant.
            LackingError: told as a change of an adapter that is not here.
        """
        del round_id
        order = messages.decode_work(payload, self.size)
        if self.policy.can.server_reads_updates:
            return Resolved(
                order=order, broadcast_digest=b"", claimed=order.flat
            )  # no masks to follow from it
        broadcast_digest = messages.work_digest(stage, order.header(), order.flat)
        return Resolved(order=order, broadcast_digest=broadcast_digest, claimed=order.flat)

    def keep(self, found: Resolved) -> None:
        """Remember what was resolved: its message was checked whole."""

    def vouching(self, run: str, states: Sequence[tuple[int, str]], own: int) -> tuple[int, int]:
        """What this member says, and asks, of the states that a sum's contributions come from.

        Args:
            states: versions, ascending, each with its name; own: this member's version.

        Returns:
            One more than the newest version of which it followed that and every older one; and one
            more than its own, if it did not follow that: then enough others must vouch for it.
        """
        del run, states, own
        return 0, 0

    def trust(self, run: str, state: str) -> None:
        """Enough others signed that they followed to the state called this."""

    def bound(self, round_id: RoundId) -> bytes:
        """What masks are bound to besides what was told, which holds the adapter's bits."""
        del round_id
        return b""

    def keep_sum(self, digest: bytes, whole: Integers) -> None:
        """Remember a sum [n] that this member signed: a step may be made of it."""

    def apply(self, round_id: RoundId, sum_context: SumContext, sums: Sequence[Sum]) -> bytes:
        """Step with the sums that this member opened; answer what names the adapter after that.

        Raises:
            DataError: a sum that so many members cannot have; nothing was changed.
        """
        raise RuntimeError(
            f"{len(sums)} sums at {round_id} for the server, under {sum_context}"
        )  # our bug

    def rollback(self, round_id: RoundId) -> None:
        """Go back to the adapter before the last step, with an optimizer at rest, as one step more.

        The coordinator's signed word is enough: it can stop a run anyway, and undoing tells it
        nothing.

        Raises:
            MessageError: there is none; nothing was changed.
        """
        raise MessageError(f"there is no step here to undo at {round_id}; refused")

    def freeze(self) -> bytes:
        """What it needs to go on in another process; nothing where that is on disk already."""
        return b""

    def thaw(self, kept: bytes) -> None:
        """Go on where `freeze` left it."""
