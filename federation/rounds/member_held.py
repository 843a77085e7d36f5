"""The global adapter where only members have it: it steps at each of them, by the sums that they
opened; the server knows its tag and the number of their steps.

Knows who greets with which key and state, a member's store, and the stages that bring it to the
others' key and adapter. Knows no ciphertext; the server's side no adapter.
Always: an attempt goes on with members that hold the same key and the same adapter; what a member
works on is its own, if its keyed tag is the one that the message names; a step is on disk before
its tag leaves; the members' number of steps is the run's, and an undone step is one step more, so
no number comes twice.
"""

import dataclasses
from collections.abc import Sequence

from ...core import log
from ...core.errors import MessageError, RoundAborted
from ...core.worker import Worker
from ...crypto.he.encrypted_ring import AdderService, CryptoWorker
from ...crypto.identity.keys import Identity
from ..aggregation.base import ClientSecrets, Sum, WireCost
from ..aggregation.clipping import stepper_of
from ..aggregation.server_optimizer import ServerOptimizer, combine, levelled
from ..aggregation.setup import KeyAndStateSetup
from ..aggregation.state_transfer import STAGES, StateTransfer
from ..aggregation.update import Codec, SumContext
from ..events import OnEvent, SteppedEvent
from ..spec.policy import Policy
from ..store.checkpoint import Logbook, Vector
from ..store.client_store import Progress
from ..wire import messages
from ..wire.link import Messenger
from ..wire.messages import RoundId
from .global_model import ClientModel, Resolved, ServerHeld

logger = log.get("federation.coordinator")


class MemberHeld(ServerHeld):
    """One run's. Args: crypto_worker: adds ciphertexts; by default a new worker."""

    held_by_members = True

    def __init__(
        self,
        messenger: Messenger,
        logbook: Logbook,
        optimizer: ServerOptimizer,
        size: int,
        stops: Sequence[int],
        *,
        crypto_worker: CryptoWorker | None,
        on_event: OnEvent,
    ) -> None:
        super().__init__(messenger, logbook, optimizer, size, stops)
        self.crypto_worker, self.on_event = crypto_worker or Worker(AdderService), on_event

    @staticmethod
    def wire_cost(policy: Policy, size: int, cohort: int) -> WireCost:
        """Nothing: what members have does not travel, but to one that lacks it."""
        del policy, size, cohort
        return WireCost(0, 0)

    def gather(self, cohort: tuple[str, ...], round_id: RoundId) -> tuple[str, ...]:
        """Those that share a key and an adapter when it returns. Raises RoundAborted: too few."""
        self.common = KeyAndStateSetup(
            self.messenger.policy, round_id, self.messenger.ask, self.size
        ).gather(cohort)
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
        policy, round_id = self.messenger.policy, self.logbook.begin()
        members = self.gather(tuple(sorted(self.messenger.link.present())), round_id)
        if self.logbook.state.round > steps:
            return  # an attempt before this one was answered, and our note of it lost
        flat = self.logbook.state.server.flat
        order = messages.Work(flat=flat, state=self.name(flat), round=steps)
        payload = messages.encode_work(order)
        payloads, timeout_s = dict.fromkeys(members, payload), policy.recipe.stage_timeout_s
        done = list(self.messenger.ask(messages.UNDO, payloads, round_id, timeout_s))
        if len(done) < (need := policy.needed(len(members))):
            raise RoundAborted(
                f"{len(done)} of {len(members)} members went back to the adapter before, need "
                f"{need}"
            )
        self.logbook.catch_up(steps + 1)


class OwnModel(ClientModel):
    """One member's. Args: secrets: its store, and the worker for ciphertexts."""

    stages = STAGES

    def __init__(
        self, policy: Policy, size: int, name: str, identity: Identity, secrets: ClientSecrets
    ) -> None:
        super().__init__(policy, size)
        self.store = secrets.store
        self.setup = StateTransfer(policy, name, identity, self.store)

    def answer(self, round_id: RoundId, stage: str, payload: bytes) -> bytes:
        """As `StateTransfer.answer`."""
        return self.setup.answer(round_id, stage, payload)

    def resolve(self, round_id: RoundId, stage: str, payload: bytes) -> Resolved:
        """As `ClientModel`."""
        order, progress = messages.decode_work(payload, 0), self.store.progress(round_id.run)
        if (tag := self.tag(round_id)) is None or tag.hex() != order.state:
            raise MessageError(
                f"this member is at step {progress.steps} of the run, another "
                f"adapter is meant; refused"
            )
        # of the tag: the adapter is not the coordinator's
        broadcast_digest, server = (
            messages.work_digest(stage, order.header(), order.flat),
            progress.server,
        )
        order = dataclasses.replace(order, flat=server.flat)
        return Resolved(order=order, broadcast_digest=broadcast_digest, velocity=server.velocity)

    def apply(self, round_id: RoundId, sum_context: SumContext, sums: Sequence[Sum]) -> bytes:
        """As `ClientModel`: on disk first; answers the adapter's tag.

        Raises:
            DataError: a sum that so many members cannot have; nothing was changed.
        """
        policy, progress = self.policy, self.store.progress(round_id.run)
        codec = Codec(self.size, policy, sum_context)
        means = [codec.mean(one.total, len(one.parties), one.parties) for one in sums]
        means = levelled(means, policy.aggregation, codec.largest)
        change = combine(means, policy.aggregation.rule, policy.aggregation.trim)
        server = stepper_of(policy, self.size).step(progress.server, change)
        self.store.keep_progress(round_id.run, Progress(progress.steps + 1, server))
        return self.tag(round_id) or b""

    def tag(self, round_id: RoundId) -> bytes | None:
        """What others are told of the adapter; None without the members' key."""
        seed = self.store.seed(self.policy.digest)
        return None if seed is None else self.store.progress(round_id.run).tag(seed, round_id.run)

    def bound(self, round_id: RoundId) -> bytes:
        """Steps and tag."""
        steps = self.store.progress(round_id.run).steps
        return steps.to_bytes(8, "big") + (self.tag(round_id) or b"")

    def rollback(self, round_id: RoundId) -> None:
        """As `ClientModel`."""
        if (before := self.store.before(round_id.run)) is None:
            raise MessageError("there is no step here to undo; refused")
        steps = self.store.progress(round_id.run).steps + 1
        self.store.keep_progress(round_id.run, Progress(steps, before.server.at_rest()))

    def freeze(self) -> bytes:
        """As `StateTransfer.freeze`."""
        return self.setup.freeze()

    def thaw(self, kept: bytes) -> None:
        """As `StateTransfer.thaw`."""
        self.setup.thaw(kept)
