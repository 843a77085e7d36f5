"""One member of a federation, without any network: letters in, answers out.

Knows the order of one attempt's stages. Knows nothing of Flower, files of examples or the engine.
Always: a letter is checked whole (signature, federation, version, model, receiver, order) before
anything changes; a refused letter leaves memory and disk as they were. No code is ever taken from a
letter.

    train | score  →  the protection's stages, one by one        adopt and undo stand alone
    sealed: before them, the stages of `handover`, any number of times
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...core import log
from ...core.config import ConsentConfig
from ...core.errors import BudgetError, DataError, MessageError, RosterError
from ...core.worker import Worker
from ...crypto.he.encrypted_ring import MemberService
from ...crypto.identity.keys import Identity
from ..aggregation import state_transfer as handover
from ..aggregation.attested_sum import Integers
from ..aggregation.base import AggregationClient, ClientContext, ClientSecrets
from ..aggregation.ranges import read_spans, spans
from ..aggregation.rank_masks import narrowed, rank_masks_of
from ..aggregation.registry import AGGREGATIONS
from ..aggregation.server_optimizer import adapter_digest, check_reach
from ..aggregation.state_transfer import StateTransfer
from ..aggregation.survivor_sets import subjects
from ..aggregation.update import (
    LARGEST_LOSS,
    LOSS_UNIT,
    Codec,
    Statistics,
    Terms,
    check_clipped,
    seed_of,
)
from ..events import OnEvent, SpentEvent, TrainedEvent, WorkEvent
from ..membership.consent import check_consent
from ..spec.policy import Policy
from ..store.checkpoint import ServerState, Vector
from ..store.client_store import ClientStore, Progress
from ..store.ledger import AnsweredRounds
from ..training.learner import Counts, Learner, Trained
from ..wire import broadcast_digest as broadcast
from ..wire import messages
from ..wire.messages import Reply, RoundId, Task
from . import buffered_client as offering
from .buffered_client import BufferedClient
from .client_model import HOLDS, ClientModelCache, Followed, LackingError
from .contribution_buffer import ContributionBuffer
from .delta_chain import DeltaChain
from .privacy_accountant import PrivacyAccountant
from .selection import Draw, check

logger = log.get("federation.party")


@dataclass(slots=True)
class Attempt:
    """The one attempt that this party is in."""

    place: RoundId
    half: AggregationClient
    done: int = 0  # stages answered
    # the state that this member did not follow itself: it counts as followed once enough others
    # vouched
    relies_on: str = ""
    # buffered: the contribution is the one that is kept, and wiped, on disk first, before it leaves
    leaves: bool = False

    @property
    def expects(self) -> str | None:
        """The stage that must come next; None when all are answered."""
        return self.half.stages[self.done] if self.done < len(self.half.stages) else None


@dataclass(frozen=True, slots=True)
class Meant:
    """What a member is to do, as it was told or arrived at it."""

    order: messages.Work  # with the adapter to work on: in sealed mode this member's own
    told: bytes  # the broadcast digest
    led: Followed | None = None  # where adapters are followed: how this one was reached


class Client:
    """A member: trains, protects, answers.

    Args:
        size: length n of the adapter's flat vector; stops: where its tensors end, by default only
        at n. consent: the owner's floor; a federation below it is refused at once.
        adopt: takes a finished adapter [n] and its signed card, returns the adapter's name. In
            sealed mode, instead of a card, the evaluation as JSON: the coordinator has no adapter
            to sign.
        safe: in sealed mode, this member's secrets and the worker for ciphertexts; by default in
        memory, and a new one. purse: this member's privacy spent so far; by default in memory.
        Hazard: a node that runs again needs it on disk. drawer: in buffered rounds, where its
        contribution waits; by default in memory. recall: where adapters are followed, what it holds
        of them; by default in memory.
    """

    def __init__(
        self,
        policy: Policy,
        identity: Identity,
        learner: Learner,
        *,
        size: int,
        stops: Sequence[int] = (),
        consent: ConsentConfig | None = None,
        ledger: AnsweredRounds | None = None,
        adopt: Callable[[Vector, str], str] | None = None,
        safe: ClientSecrets | None = None,
        purse: PrivacyAccountant | None = None,
        drawer: ContributionBuffer | None = None,
        recall: ClientModelCache | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        """Take part.

        Raises:
            RosterError: this identity is not in the roster.
            ConfigError: the federation is below the owner's floor.
        """
        name = policy.name_of(identity.public.raw)
        if name is None:
            raise RosterError(
                f"this node's key {identity.public.raw.hex()[:16]}… is not in the roster of "
                f"{policy.name}; "
                "send the line of `quietchoir federation identity` to the federation's owner, then "
                "take the new file"
            )
        self.consent = consent or ConsentConfig()
        check_consent(policy, self.consent)
        self.policy, self.identity, self.learner, self.name, self.size = (
            policy,
            identity,
            learner,
            name,
            size,
        )
        self.stops = tuple(stops) or (size,)
        self.ledger = ledger or AnsweredRounds()
        self.purse = purse or PrivacyAccountant(policy, size, name)
        self.adopt = adopt
        self.on_event = on_event or (lambda event: None)
        self.attempt: Attempt | None = None
        self.offering = (
            BufferedClient(self, drawer or ContributionBuffer())
            if policy.schedule.buffered
            else None
        )
        self.recall = (recall or ClientModelCache()) if policy.followed else None
        self.safe: ClientSecrets | None = None
        self.handover: StateTransfer | None = None
        if policy.protection.mode == "sealed":
            self.safe = safe or ClientSecrets(ClientStore(None, size), Worker(MemberService))
            self.handover = StateTransfer(policy, name, identity, self.safe.vault)

    def handle(self, letter: bytes) -> bytes:
        """Answer one letter.

        Raises:
            MessageError: refused; nothing was changed.
            ProtocolError, AuthenticationError, ThresholdError: the protection refused this stage;
            nothing was revealed. DataError and others of the tree: training failed; this attempt is
            over for this party.
        """
        task = messages.decode_task(letter, self.policy, self.name)
        payload = self.answer(task)
        reply = Reply(
            place=task.place,
            stage=task.stage,
            sender=self.name,
            task=messages.fingerprint(letter),
            payload=payload,
        )
        return messages.encode_reply(reply, self.policy, self.identity)

    def answer(self, task: Task) -> bytes:
        """One stage of whatever it belongs to."""
        # whoever adds a stage says what binds it, or why nothing need
        if task.stage not in broadcast.KNOWN:
            raise MessageError(f"found stage {task.stage!r}, which no member answers; refused")
        try:
            if self.offering is not None and task.stage in offering.STAGES:
                return self.offering.answer(task)
            if task.stage in messages.STAGES:
                return self.open(task)
        # nothing was changed; told once more, in another way, this member works
        except LackingError as lacking:
            return lacking.reply
        if self.recall is not None and task.stage == HOLDS and not task.payload:
            return self.recall.names(task.place.run)
        if self.handover is not None and task.stage in handover.STAGES:
            self.ledger.check(task.place)  # `train` and `score` record it
            return self.handover.answer(task.place, task.stage, task.payload)
        return self.go_on(task)

    def meant(self, task: Task) -> Meant:
        """What is to be done, and with which adapter.

        Raises:
            MessageError: malformed; in sealed mode, another adapter than this member's is meant.
            LackingError: told as a change of an adapter that is not here.
        """
        if self.recall is not None:
            named, way = messages.split_work(task.payload)
            led = self.follow(named, way, task.place)
            order = dataclasses.replace(named, flat=led.state.flat)
            return Meant(order, broadcast.of_work(task.stage, order.header(), order.flat), led)
        if self.safe is None:
            order = messages.decode_work(task.payload, self.size)
            self.check_reach(order.flat, task.place)
            if self.policy.can.server_reads_updates:
                return Meant(order, b"")  # no masks could follow from it
            return Meant(order, broadcast.of_work(task.stage, order.header(), order.flat))
        order, seed = (
            messages.decode_work(task.payload, 0),
            self.safe.vault.seed(self.policy.digest),
        )
        progress = self.safe.vault.progress(task.place.run)
        if seed is None or progress.tag(seed, task.place.run).hex() != order.state:
            raise MessageError(
                f"this member is at step {progress.steps} of the run, another "
                f"adapter is meant; refused"
            )
        # of the tag: the adapter is not the coordinator's
        told = broadcast.of_work(task.stage, order.header(), order.flat)
        return Meant(dataclasses.replace(order, flat=progress.server.flat), told)

    def follow(self, named: messages.Work, way: bytes, place: RoundId) -> Followed:
        """Go to the adapter that `named` means; nothing is remembered yet. Raises as
        `ClientModelCache.follow`.
        """
        assert self.recall is not None  # adapters are followed
        self.ledger.check(place)
        led = self.recall.follow(
            DeltaChain(self.policy, self.size, place.run, self.stops), named.state, way
        )
        self.check_reach(led.state, place)
        return led

    def check_reach(self, found: ServerState | Vector, place: RoundId) -> None:
        """Require what the rounds before `place` can have produced.

        Raises:
            MessageError: it lies farther out.
        """
        largest = Codec(self.size, self.policy).largest
        check_reach(self.policy.recipe, found, place.round - 1, largest)

    def open(self, task: Task) -> bytes:
        """Begin an attempt: train or score, or keep a finished adapter."""
        meant, training = self.meant(task), task.stage == messages.TRAIN
        order, led = meant.order, meant.led
        if task.stage in (messages.TRAIN, messages.SCORE):
            check(
                self.policy,
                task.place,
                Draw(order.cohort, order.absent),
                self.name,
                everybody=not training,
            )
        terms = self.terms(
            order, meant.told, task.place, training=training, start=led.state if led else None
        )
        parent = self.parent(task.place) if task.stage == messages.UNDO else None
        unpaid = self.begin(task.place, pays=training, parent=parent)
        if self.recall is not None and led is not None:
            self.recall.keep(led)
        self.on_event(WorkEvent(stage=task.stage, round=order.round, attempt=task.place.attempt))
        if task.stage == messages.ADOPT:
            name = (
                self.adopt(order.flat, order.card).encode("utf-8")
                if self.adopt is not None
                else b""
            )
            # a sealed adapter's name is a hash of its content
            return name if self.safe is None else b""
        if parent is not None:
            return messages.DONE
        if unpaid:
            return self.spent(order.round, unpaid)
        update, statistics, tokens = (
            self.train(order, task.place, terms) if training else self.score(order)
        )
        values = Codec(update.size, self.policy, terms).encode(update, statistics)
        vouch, relies = (
            int(led is not None and led.followed),
            int(led is not None and not led.followed),
        )
        scores, scored = (
            self.policy.privacy.counts and statistics.scored > 0,
            order.evaluate or not training,
        )
        about = (
            ()  # nobody signs for a sum where each contribution is read
            if self.policy.can.server_reads_updates
            else subjects(self.policy, terms.adapter, training=training, scored=scored)
        )
        context = ClientContext(
            self.policy,
            self.name,
            self.identity,
            self.ledger.sums,
            task.place,
            self.safe,
            terms,
            order.cohort,
            vouch,
            relies,
            scores,
            about,
            keep_sum=self.keep_sum,
        )
        self.enter(
            task.place,
            AGGREGATIONS[self.policy.protection.kind].client(context, values, tokens, training),
            order.state if relies else "",
        )
        return self.ready(context)

    def ready(self, context: ClientContext) -> bytes:
        """What the coordinator is told of a contribution, and nothing of how the work went: that
        travels inside the sum.
        """
        before = {
            earlier for subject in context.subjects for earlier in self.ledger.sums.before(subject)
        }
        return messages.encode_ready(
            messages.Ready(scores=context.scores, before=tuple(sorted(before)))
        )

    def terms(
        self,
        order: messages.Work,
        told: bytes,
        place: RoundId,
        *,
        training: bool,
        start: ServerState | None = None,
    ) -> Terms:
        """What this member's contribution has in common with the others'.

        Args:
            start: the state that it trains from, where members follow them: ranges are what follows
            from it.

        Raises:
            MessageError: ranges that the federation does not allow.
        """
        recipe, given = self.policy.recipe, order.ranges
        wanted = training and recipe.ranges == "tensor"
        if bool(given) != (wanted and self.safe is None):
            raise MessageError(
                f"{len(given)} ranges came for a federation whose ranges are "
                f"{recipe.ranges!r}; refused"
            )
        # the same in every member: the masks are bound to the velocity they follow from
        if wanted and self.safe is not None:
            given = spans(
                self.safe.vault.progress(place.run).server.velocity, self.stops, recipe.update_range
            )
        if (
            wanted
            and start is not None
            and given != spans(start.velocity, self.stops, recipe.update_range)
        ):
            raise MessageError(
                "ranges came that do not follow from the adapter's last steps; refused"
            )
        ranges = read_spans(given, self.size, recipe.update_range) if wanted else ()
        ranked = training and self.policy.ranked
        shares = rank_masks_of(self.policy, order.cohort, place.attempt) if ranked else None
        named = order.state if self.recall is not None else ""
        return Terms(
            ranges, seed_of(self.policy, place), told, named, shares, adapter_digest(order.flat)
        )

    def begin(self, place: RoundId, *, pays: bool, parent: Progress | None = None) -> str:
        """Write down in one step, before any work, that `place` is worked, so that none is twice;
        what it costs in privacy; and the adapter that this member goes back to, if it does.

        Returns: why it cannot be paid; then nothing is trained.

        Raises:
            MessageError: as `AnsweredRounds.record`; nothing was changed.
            QuietchoirError: the disk refuses; nothing was changed.
        """
        unpaid = ""
        with self.ledger.step():
            self.ledger.record(place)
            if parent is not None and self.safe is not None:
                self.safe.vault.keep_progress(place.run, parent)
            if pays and self.policy.privacy.on:
                try:
                    self.purse.pay(place)
                except BudgetError as error:
                    unpaid = str(error)
        self.attempt = None
        return unpaid

    def spent(self, number: int, reason: str) -> bytes:
        """The answer instead of a contribution that cannot be paid."""
        self.on_event(SpentEvent(round=number, reason=reason))
        return messages.SPENT

    def parent(self, place: RoundId) -> Progress:
        """Sealed mode, to undo a step: the adapter before it, with an optimizer at rest, as one
        step more.

        The coordinator's signed word is enough: it can stop a run anyway, and undoing tells it
        nothing.

        Raises:
            MessageError: not in sealed mode, or this member has no adapter before; the others will
            hand it theirs.
        """
        before = None if self.safe is None else self.safe.vault.before(place.run)
        if self.safe is None or before is None:
            raise MessageError("there is no step here to undo; refused")
        return Progress(self.safe.vault.progress(place.run).steps + 1, before.server.at_rest())

    def keep_sum(self, digest: bytes, whole: Integers) -> None:
        """Remember a sum [n] that this member signed, where it follows the adapter by them."""
        if self.recall is not None:
            self.recall.keep_sum(digest, whole)

    def enter(
        self, place: RoundId, half: AggregationClient, relies_on: str = "", *, leaves: bool = False
    ) -> None:
        """Take part in the protection's stages at `place`."""
        self.attempt = Attempt(place, half, relies_on=relies_on, leaves=leaves)

    def go_on(self, task: Task) -> bytes:
        """Answer the next stage of the protection."""
        attempt = self.attempt
        if attempt is None or task.place != attempt.place or task.stage != attempt.expects:
            expected = (
                "no stage"
                if attempt is None
                else (f"{attempt.expects} of round {attempt.place.round}")
            )
            raise MessageError(
                f"found stage {task.stage!r} of round {task.place.round}, expected "
                f"{expected}; refused"
            )
        with self.ledger.step():
            answer = attempt.half.answer(task.stage, task.payload)
            if attempt.leaves and self.offering is not None and task.stage in offering.LEAVES_AT:
                self.offering.drawer.wipe()  # or nothing leaves
            self.ledger.save()  # a round that is being opened is on disk before its shares leave
        # the half found enough that vouch
        if task.stage == "share" and attempt.relies_on and self.recall is not None:
            self.recall.trust(attempt.relies_on, attempt.place.run)
        attempt.done += 1
        if attempt.done == len(attempt.half.stages):
            self.attempt = None  # the contribution is gone from memory
        return answer

    def train(
        self, order: messages.Work, place: RoundId, terms: Terms
    ) -> tuple[Vector, Statistics, int]:
        """Score if asked, then train; return the change [n], the counters, and the answer tokens
        trained on.
        """
        counts = self.learner.evaluate(order.flat) if order.evaluate else Counts(0, 0)
        columns = self.policy.adapter.rank if terms.shares is None else terms.shares.of(self.name)
        learner = self.learner
        if terms.shares is not None:
            learner = narrowed(learner, columns, self.policy.adapter.rank)
        trained: Trained = learner.train(order.flat, training_seed(place, terms.adapter, self.name))
        if not (np.isfinite(trained.flat).all() and math.isfinite(trained.loss)):
            raise DataError(
                "training ended in values that are not finite; nothing is sent, a lower lr may help"
            )
        update = trained.flat.astype(np.float32) - order.flat
        # a coordinate's sum is divided by those who train it, so nobody else may move it
        if terms.shares is not None:
            update[~terms.shares.trained(self.name, update.size)] = 0.0
        if (agreed := self.policy.recipe.agreed_steps) and trained.steps:
            # Wang et al. 2020, FedNova: nobody counts more for more steps
            update *= np.float32(agreed / trained.steps)
        statistics = dataclasses.replace(
            Statistics.scores(counts.correct, counts.total), trained=1,
            loss_milli=round(min(max(trained.loss, 0.0), LARGEST_LOSS) * LOSS_UNIT),
            clipped=Codec(self.size, self.policy, terms).percent(self.clipped(update, terms)),
        )  # fmt: skip
        told = None if terms.shares is None else columns
        self.on_event(
            TrainedEvent(round=order.round, loss=trained.loss, tokens=trained.tokens, columns=told)
        )
        return update, statistics, trained.tokens

    def clipped(self, update: Vector, terms: Terms) -> int:
        """How many coordinates of `update` are cut before it is sent.

        Raises:
            DataError: more than its owner allows; nothing is sent. Where there is noise the whole
                update is shortened instead, and that is what its privacy rests on.
        """
        codec = Codec(self.size, self.policy, terms)
        clipped, trained = codec.clipped(update), update.size
        if codec.noise is None:
            if terms.shares is not None:
                trained = int(np.count_nonzero(terms.shares.trained(self.name, update.size)))
            check_clipped(clipped, trained, self.consent)
        return clipped

    def score(self, order: messages.Work) -> tuple[Vector, Statistics, int]:
        """Score the adapter; there is no change to send."""
        counts = self.learner.evaluate(order.flat)
        return np.zeros(0, np.float32), Statistics.scores(counts.correct, counts.total), 0


def training_seed(place: RoundId, adapter: bytes, name: str) -> int:
    """This party's training seed: another one for each run, round, attempt, adapter and party.

    So two trainings from one adapter do not differ by one party's part alone: the others' differ
    too.

    Args:
        adapter: `adapter_digest` the one that it trains from.
    """
    seed = (
        f"quietchoir training 2 {place.run} {place.round} {place.attempt} {name} "
    ).encode() + adapter
    return int.from_bytes(hashlib.sha256(seed).digest()[:4], "big")
