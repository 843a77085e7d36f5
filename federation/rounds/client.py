"""One member of a federation, without any network: messages in, answers out.

Knows the order of one attempt's stages. Knows nothing of Flower, files of examples or the engine.
Always: a message is checked whole (signature, federation, version, model, receiver, order) before
anything changes; a refused message leaves memory and disk as they were. No code is ever taken from
a message.

    train | score   →  the protection's stages, one by one      adopt and undo stand alone
    buffered:  train   what is kept is offered again; else train from the version that came, keep
               group   the protection's stages, with what is kept
    sealed: before them, the stages of `aggregation/state_transfer`, any number of times

Buffered: a contribution leaves this member once: it is wiped, on disk first, before the masked (or
plain) values are sent, so it is in one sum at most, whether that sum is opened or not.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core import log
from ...core.config import ConsentConfig
from ...core.errors import BudgetError, DataError, MessageError, RosterError
from ...core.worker import Worker
from ...crypto.he.encrypted_ring import MemberService
from ...crypto.identity.keys import Identity
from ..aggregation.base import AggregationClient, ClientContext, ClientSecrets, Values
from ..aggregation.clipping import bare, clip_at, joint, stepper_of
from ..aggregation.ranges import spans
from ..aggregation.rank_masks import narrowed, rank_masks_of
from ..aggregation.registry import AGGREGATIONS
from ..aggregation.server_optimizer import adapter_digest, check_reach
from ..aggregation.update import (
    LARGEST_LOSS,
    LOSS_UNIT,
    Codec,
    Statistics,
    SumContext,
    check_clipped,
    terms_of,
    transforms_of,
)
from ..events import OnEvent, SpentEvent, TrainedEvent, WorkEvent
from ..membership.consent import check_consent
from ..spec.policy import Policy
from ..store.checkpoint import Vector
from ..store.client_store import ClientStore
from ..store.ledger import AnsweredRounds
from ..training.learner import Counts, Learner, Trained, Tunable
from ..wire import messages
from ..wire.messages import GROUP, Reply, RoundId, Task
from .attempt import Draw
from .contribution_buffer import Contribution, ContributionBuffer, check_version, rules_of
from .global_model import ClientModel, LackingError, Resolved
from .member_held import OwnModel
from .model_broadcast import ClientModelCache, FollowedModel
from .privacy_accountant import PrivacyAccountant
from .scheduler import check
from .tuning import LEAST_STEPS, UNTUNED, check_rates
from .validation import Ballots, votes_of

logger = log.get("federation.client")
LEAVES_AT = ("mask", "send")  # the stage whose answer carries the contribution, masked or plain


@dataclass(slots=True)
class Attempt:
    """The one attempt that this party is in."""

    round_id: RoundId
    aggregation: AggregationClient
    done: int = 0  # stages answered
    # the state that this member did not follow itself: it counts as followed once enough others
    # vouched
    relies_on: str = ""
    # buffered: the contribution is the one that is kept, and wiped, on disk first, before it leaves
    leaves: bool = False

    @property
    def expects(self) -> str | None:
        """The stage that must come next; None when all are answered."""
        stages = self.aggregation.stages
        return stages[self.done] if self.done < len(stages) else None


class Client:
    """A member: trains, protects, answers.

    Args:
        size: values that rounds carry (`Policy.carried` of the adapter's); stops: where its tensors
        end, by default only at the end. consent: the owner's floor; a federation below it is
        refused at once. adopt: takes a finished adapter [n] and its signed card, returns the
            adapter's name. In sealed mode, instead of a card, the evaluation as JSON: the
            coordinator has no adapter to sign.
        secrets: in sealed mode, this member's store and the worker for ciphertexts; by default in
        memory, and a new one. accountant: this member's privacy spent so far; by default in memory.
        Hazard: a node that runs again needs it on disk. buffer: in buffered rounds, where its
        contribution waits; by default in memory. cache: where adapters are followed, what it holds
        of them; by default in memory. on_answer: told of each answer's bytes before it leaves; if
        it raises, the answer does not leave.
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
        secrets: ClientSecrets | None = None,
        accountant: PrivacyAccountant | None = None,
        buffer: ContributionBuffer | None = None,
        cache: ClientModelCache | None = None,
        on_event: OnEvent | None = None,
        on_answer: Callable[[Task, int], None] | None = None,
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
        self.policy, self.identity, self.name = policy, identity, name
        self.learner, self.size, self.stops = learner, size, tuple(stops) or (size,)
        self.ledger = ledger or AnsweredRounds()
        self.accountant = accountant or PrivacyAccountant(policy, size, name)
        self.adopt = adopt
        self.on_event = on_event or (lambda event: None)
        self.on_answer = on_answer
        self.attempt: Attempt | None = None
        self.buffer = (buffer or ContributionBuffer()) if policy.schedule.buffered else None
        self.ballots = Ballots(votes_of(policy)) if policy.guard.open else None
        self.secrets: ClientSecrets | None = None
        self.model, self.stepper = ClientModel(policy, size), stepper_of(policy, size)
        if policy.followed:
            self.model = FollowedModel(policy, size, self.stops, cache or ClientModelCache())
        if policy.can.model_held_by == "members":
            own = secrets or ClientSecrets(ClientStore(None, size), Worker(MemberService))
            self.secrets, self.model = own, OwnModel(policy, size, name, identity, own)

    def handle(self, message: bytes) -> bytes:
        """Answer one message.

        Raises:
            MessageError: refused; nothing was changed.
            ProtocolError, AuthenticationError, ThresholdError: the protection refused this stage;
            nothing was revealed. DataError and others of the tree: training failed; this attempt is
            over for this party.
        """
        task = messages.decode_task(message, self.policy, self.name)
        payload = self.answer(task)
        reply = Reply(
            round_id=task.round_id,
            stage=task.stage,
            sender=self.name,
            task=messages.fingerprint(message),
            payload=payload,
        )
        encoded = messages.encode_reply(reply, self.policy, self.identity)
        if self.on_answer is not None:
            self.on_answer(task, len(encoded))
        return encoded

    def answer(self, task: Task) -> bytes:
        """One stage of whatever it belongs to."""
        # whoever adds a stage says what binds it, or why nothing need
        if task.stage not in messages.KNOWN:
            raise MessageError(f"found stage {task.stage!r}, which no member answers; refused")
        try:
            if task.stage == messages.TRAIN and self.buffer is not None:
                return self.offer(task, self.buffer)
            if task.stage in messages.STAGES:
                return self.open(task)
            if task.stage == GROUP and self.buffer is not None:
                return self.join(task, self.buffer)
        # nothing was changed; told once more, in another way, this member works
        except LackingError as lacking:
            return lacking.reply
        if task.stage in self.model.stages:
            self.ledger.check(task.round_id)  # `train` and `score` record it
            return self.model.answer(task.round_id, task.stage, task.payload)
        return self.go_on(task)

    def resolve(self, round_id: RoundId, stage: str, payload: bytes) -> Resolved:
        """What is to be done, and with which adapter: one that the rounds before `round_id` can
        have produced. Raises as `ClientModel.resolve`.
        """
        self.ledger.check(round_id)
        found = self.model.resolve(round_id, stage, payload)
        if found.claimed is not None:
            largest, before = Codec(self.size, self.policy).largest, round_id.round - 1
            check_reach(self.policy.recipe, found.claimed, before, largest, self.stepper)
        return found

    def open(self, task: Task) -> bytes:
        """Begin an attempt: train or score; or keep a finished adapter, or undo a step."""
        round_id, training = task.round_id, task.stage == messages.TRAIN
        found = self.resolve(round_id, task.stage, task.payload)
        order = found.order
        if order.rates != UNTUNED:
            check_rates(self.policy, order.rates, training=training)
        if task.stage in (messages.TRAIN, messages.SCORE):
            drawn = Draw(order.cohort, order.absent)
            check(self.policy, round_id, drawn, self.name, everybody=not training)
        adapter = adapter_digest(order.flat)
        sum_context = self.sum_context(
            round_id, order, found.broadcast_digest, adapter, training, found.velocity
        )
        unpaid = self.begin(round_id, pays=training, undoes=task.stage == messages.UNDO)
        self.model.keep(found)
        self.on_event(WorkEvent(stage=task.stage, round=order.round, attempt=round_id.attempt))
        if task.stage == messages.ADOPT:
            flat = self.bare(order.flat)
            name = "" if self.adopt is None else self.adopt(flat, order.card)
            # a sealed adapter's name is a hash of its content
            return name.encode("utf-8") if self.secrets is None else b""
        if task.stage == messages.UNDO:
            return messages.DONE
        if unpaid:
            return self.spent(order.round, unpaid)
        update, statistics, tokens = (
            self.train(order, round_id, sum_context) if training else self.score(order, adapter)
        )
        scored = order.evaluate or not training
        return self.contribute(
            self.context(
                round_id,
                sum_context=sum_context,
                cohort=order.cohort,
                scores=self.policy.privacy.counts and statistics.scored > 0,
                subjects=subjects(self.policy, adapter, training=training, scored=scored),
            ),
            Codec(update.size, self.policy, sum_context).encode(update, statistics),
            tokens,
            training,
            states={0: order.state},
            ballot=() if training else self.ballot(adapter, round_id, order),
        )

    def ballot(self, adapter: bytes, round_id: RoundId, order: messages.Work) -> tuple[int, ...]:
        """What this member says in clear of the adapter with this digest; nothing by default."""
        round_ = (round_id.run, order.round)
        return () if self.ballots is None else self.ballots.cast(adapter, round_)

    def offer(self, task: Task, buffer: ContributionBuffer) -> bytes:
        """Buffered: offer what is kept; train first if nothing is, or if that is too stale.

        Raises:
            MessageError: refused; nothing was changed.
            DataError and others of the tree: training failed.
        """
        round_id = task.round_id
        version, payload = messages.split_train(task.payload)
        check_version(version, round_id)
        found = self.resolve(round_id, task.stage, payload)
        order = found.order
        messages.check_train(order)
        if order.rates != UNTUNED:
            check_rates(self.policy, order.rates, training=False)
        self.begin(round_id)
        self.model.keep(found)
        if (kept := self.kept(task)) is None:
            # nothing is paid before something leaves, but work for nothing is spared
            if not self.accountant.affords():
                return self.spent(order.round, "the privacy budget is used up")
            self.on_event(
                WorkEvent(
                    stage=task.stage, round=order.round, attempt=round_id.attempt, version=version
                )
            )
            # who is summed, and so which columns are, is known later: it trains all that it may
            alone = rank_masks_of(self.policy, (self.name,), 1) if self.policy.ranked else None
            adapter = adapter_digest(order.flat)
            update, statistics, tokens = self.train(
                order, round_id, SumContext(adapter=adapter, shares=alone)
            )
            kept = Contribution(
                run=round_id.run,
                rules=rules_of(self.policy),
                version=version,
                broadcast_digest=messages.version_digest(version, order),
                state=order.state,
                adapter=adapter.hex(),
                update=update,
                statistics=statistics,
                tokens=tokens,
            )
            buffer.keep(kept)
        return messages.encode_offer(kept.version, kept.broadcast_digest, kept.state)

    def kept(self, task: Task) -> Contribution | None:
        """Buffered: what is offered again instead of training from the version that came."""
        version, _ = messages.split_train(task.payload)
        buffer, run = self.buffer, task.round_id.run
        return None if buffer is None else buffer.fresh(run, self.policy, version)

    def join(self, task: Task, buffer: ContributionBuffer) -> bytes:
        """Buffered: make the kept contribution ready to be summed with the others' of a group.

        Raises:
            MessageError: refused; nothing was changed.
        """
        round_id, group = task.round_id, messages.decode_group(task.payload)
        self.ledger.check(round_id)
        kept, staleness = buffer.for_group(round_id, self.policy, self.name, group)
        order = messages.Work(
            flat=np.zeros(0, np.float32),
            state=group.state,
            ranges=group.ranges,
            cohort=group.names,
            round=group.version + 1,
        )
        split = messages.split_seed(round_id.run, group.version)
        sum_context = self.sum_context(round_id, order, group.broadcast_digest, split, True)
        update = kept.update  # weighed before it is clipped and noised
        for one in transforms_of(self.policy, sum_context, self.name, staleness=staleness):
            update = one.apply(update)
        clipped = self.clipped(update, sum_context)
        unpaid = self.begin(round_id, pays=True)
        self.on_event(
            WorkEvent(
                stage=task.stage, round=order.round, attempt=round_id.attempt, staleness=staleness
            )
        )
        if unpaid:
            return self.spent(order.round, unpaid)
        codec = Codec(self.size, self.policy, sum_context)
        statistics = dataclasses.replace(kept.statistics, clipped=codec.percent(clipped))
        if staleness:  # its scores are of an adapter that is not the one this step starts from
            statistics = dataclasses.replace(statistics, scored=0, score=0, near=0)
        scores = self.policy.privacy.counts and statistics.scored > 0
        adapter = bytes.fromhex(kept.adapter)
        return self.contribute(
            self.context(
                round_id,
                sum_context=sum_context,
                cohort=group.names,
                scores=scores,
                subjects=subjects(self.policy, adapter, training=True, scored=scores),
            ),
            codec.encode(update, statistics),
            kept.tokens,
            True,
            states={version: state for version, _, state in group.adapters},
            own=kept.version,
            leaves=True,
        )

    def context(self, round_id: RoundId, **given: Any) -> ClientContext:
        """Who this member is in an attempt. Args: given: as `ClientContext`."""
        return ClientContext(
            policy=self.policy,
            name=self.name,
            identity=self.identity,
            sums=self.ledger.sums,
            round_id=round_id,
            model=self.model,
            secrets=self.secrets,
            **given,
        )

    def contribute(
        self,
        context: ClientContext,
        values: Values,
        tokens: int,
        training: bool,
        *,
        states: Mapping[int, str],
        own: int = 0,
        leaves: bool = False,
        ballot: tuple[int, ...] = (),
    ) -> bytes:
        """Take part in the protection's stages; tell the coordinator that a contribution is ready,
        and nothing of how the work went: that travels inside the sum.

        Args:
            states: versions that the sum's contributions are of, with the names of their states;
            own: this one's; leaves: as `Attempt`; ballot: where ballots are open, this member's.
        """
        round_id, sums = context.round_id, self.ledger.sums
        vouch, relies = self.model.vouching(round_id.run, sorted(states.items()), own)
        context = dataclasses.replace(context, vouch=vouch, relies=relies)
        make = AGGREGATIONS[self.policy.protection.kind].client
        self.attempt = Attempt(
            round_id,
            make(context, values, tokens, training),
            relies_on=states[own] if relies else "",
            leaves=leaves,
        )
        before = {one for subject in context.subjects for one in sums.before(subject)}
        return messages.encode_ready(
            messages.Ready(scores=context.scores, before=tuple(sorted(before)), ballot=ballot)
        )

    def sum_context(
        self,
        round_id: RoundId,
        order: messages.Work,
        broadcast_digest: bytes,
        adapter: bytes,
        training: bool,
        velocity: Vector | None = None,
    ) -> SumContext:
        """What this member's contribution has in common with the others'.

        Args:
            adapter: what buckets and repeated sums follow from; velocity: what ranges follow from,
            where that is here.

        Raises:
            MessageError: ranges that the federation does not allow.
        """
        policy, recipe, given = self.policy, self.policy.recipe, order.ranges
        wanted = training and recipe.ranges == "tensor"
        if bool(given) != (wanted and policy.can.model_held_by == "server"):
            raise MessageError(
                f"{len(given)} ranges came for a federation whose ranges are "
                f"{recipe.ranges!r}; refused"
            )
        if wanted and velocity is not None:
            # the same in every member: the masks are bound to the velocity they follow from
            follow = spans(velocity, self.stops, recipe.update_range)
            if given and given != follow:
                raise MessageError(
                    "ranges came that do not follow from the adapter's last steps; refused"
                )
            given = follow
        return terms_of(
            policy,
            self.size,
            round_id,
            given if wanted else (),
            order.cohort if training else (),
            broadcast_digest=broadcast_digest,
            start=order.state if policy.followed else "",
            adapter=adapter,
            rates=len(order.rates),
        )

    def begin(self, round_id: RoundId, *, pays: bool = False, undoes: bool = False) -> str:
        """Write down in one step, before any work, that `round_id` is worked, so that none is
        twice; what it costs in privacy; and the adapter that this member goes back to, if it does.

        Returns: why it cannot be paid; then nothing is trained.

        Raises:
            MessageError: as `AnsweredRounds.record`, `ClientModel.rollback`; nothing was changed.
            QuietchoirError: the disk refuses; nothing was changed.
        """
        unpaid = ""
        with self.ledger.step():
            if undoes:
                self.model.rollback(round_id)
            self.ledger.record(round_id)
            if pays and self.policy.privacy.on:
                try:
                    self.accountant.charge(round_id)
                except BudgetError as error:
                    unpaid = str(error)
        self.attempt = None
        return unpaid

    def spent(self, number: int, reason: str) -> bytes:
        """The answer instead of a contribution that cannot be paid."""
        self.on_event(SpentEvent(round=number, reason=reason))
        return messages.SPENT

    def go_on(self, task: Task) -> bytes:
        """Answer the next stage of the protection."""
        attempt = self.attempt
        if attempt is None or task.round_id != attempt.round_id or task.stage != attempt.expects:
            expected = (
                "no stage"
                if attempt is None
                else (f"{attempt.expects} of round {attempt.round_id.round}")
            )
            raise MessageError(
                f"found stage {task.stage!r} of round {task.round_id.round}, expected "
                f"{expected}; refused"
            )
        with self.ledger.step():
            answer = attempt.aggregation.answer(task.stage, task.payload)
            if attempt.leaves and self.buffer is not None and task.stage in LEAVES_AT:
                self.buffer.wipe()  # or nothing leaves
            self.ledger.save()  # a round that is being opened is on disk before its shares leave
        if task.stage == "share" and attempt.relies_on:  # it found enough that vouch
            self.model.trust(attempt.round_id.run, attempt.relies_on)
        attempt.done += 1
        if attempt.done == len(attempt.aggregation.stages):
            self.attempt = None  # the contribution is gone from memory
        return answer

    def train(
        self, order: messages.Work, round_id: RoundId, sum_context: SumContext
    ) -> tuple[Vector, Statistics, int]:
        """Score if asked, then train; return the change as it is summed, the counters, and the
        answer tokens trained on.
        """
        start = self.bare(order.flat)
        counts = self.evaluate(order.flat, sum_context.adapter) if order.evaluate else Counts(0, 0)
        round_ = (round_id.run, order.round)
        if self.ballots is not None and not self.ballots.starts(sum_context.adapter, round_):
            self.evaluate(order.flat, sum_context.adapter)
        columns = (
            self.policy.adapter.rank
            if sum_context.shares is None
            else sum_context.shares.of(self.name)
        )
        recipe = self.policy.recipe
        halves = sum_context.groups
        mine = next((at for at, group in enumerate(halves) if self.name in group), 0)
        share = recipe.lr_share(order.round) * order.rates[mine]
        least = LEAST_STEPS if recipe.tuning == "auto" else 0
        learner = self.learner
        if isinstance(learner, Tunable):
            learner = learner.tuned(share, recipe.local_steps, least)
        if sum_context.shares is not None:
            learner = narrowed(learner, columns, self.policy.adapter.rank)
        trained: Trained = learner.train(
            start, training_seed(round_id, sum_context.adapter, self.name)
        )
        if not (np.isfinite(trained.flat).all() and math.isfinite(trained.loss)):
            raise DataError(
                "training ended in values that are not finite; nothing is sent, a lower lr may help"
            )
        update = trained.flat.astype(np.float32) - start
        for one in transforms_of(self.policy, sum_context, self.name, steps=trained.steps):
            update = one.apply(update)
        privacy = self.policy.privacy
        clip = clip_at(self.policy, order.flat) if privacy.adaptive else privacy.clip
        clipped = self.clipped(update, sum_context, clip)
        share = clipped / max(1, update.size)
        if privacy.on and clipped:
            share = clip / float(np.linalg.norm(update.astype(np.float64)))
        if privacy.adaptive:
            update = joint(self.policy, update, clip)
        statistics = dataclasses.replace(
            Statistics.scores(counts.correct, counts.total, counts.near),
            trained=1,
            loss_milli=round(min(max(trained.loss, 0.0), LARGEST_LOSS) * LOSS_UNIT),
            clipped=Codec(self.size, self.policy, sum_context).percent(clipped),
        )
        self.on_event(
            TrainedEvent(
                round=order.round,
                loss=trained.loss,
                tokens=trained.tokens,
                columns=None if sum_context.shares is None else columns,
                clipped=None if privacy.on else round(share, 4) or None,
                shortened=round(share, 4) if privacy.on and clipped else None,
                left=trained.left or None,
            )
        )
        return update, statistics, trained.tokens

    def clipped(self, update: Vector, sum_context: SumContext, clip: float = 0.0) -> int:
        """How many coordinates of `update` are cut before it is sent.

        Args:
            clip: of its length, where there is noise; 0: the file's.

        Raises:
            DataError: more than its owner allows; nothing is sent. Where there is noise the whole
                update is shortened instead, and that is what its privacy rests on.
        """
        codec = Codec(self.size, self.policy, sum_context)
        clipped, trained = codec.clipped(update, clip), update.size
        if codec.noise is None:
            if sum_context.shares is not None:
                trained = int(np.count_nonzero(sum_context.shares.trained(self.name, update.size)))
            check_clipped(clipped, trained, self.consent)
        return clipped

    def bare(self, flat: Vector) -> Vector:
        """The adapter [n] in a vector that rounds carry."""
        return bare(self.policy, flat) if self.policy.privacy.adaptive else flat

    def evaluate(self, flat: Vector, adapter: bytes) -> Counts:
        """Score the adapter in `flat`, whose digest is `adapter`."""
        counts = self.learner.evaluate(self.bare(flat))
        if self.ballots is not None:
            self.ballots.note(adapter, counts)
        return counts

    def score(self, order: messages.Work, adapter: bytes) -> tuple[Vector, Statistics, int]:
        """Score the adapter; there is no change to send."""
        counts = self.evaluate(order.flat, adapter)
        scores = Statistics.scores(counts.correct, counts.total, counts.near)
        return np.zeros(0, np.float32), scores, 0


def training_seed(round_id: RoundId, adapter: bytes, name: str) -> int:
    """This party's training seed: another one for each run, round, attempt, adapter and party.

    So two trainings from one adapter do not differ by one party's part alone: the others' differ
    too.

    Args:
        adapter: `adapter_digest` the one that it trains from.
    """
    seed = (
        f"quietchoir training 2 {round_id.run} {round_id.round} {round_id.attempt} {name} "
    ).encode() + adapter
    return int.from_bytes(hashlib.sha256(seed).digest()[:4], "big")


def subjects(policy: Policy, adapter: bytes, *, training: bool, scored: bool) -> tuple[bytes, ...]:
    """What a contribution is about, in the ledger's terms: training from an adapter, and its
    scores, each for itself.

    A later version of the federation file is another one: its owner may let members go that no sum
    can do without.

    Args:
        adapter: `adapter_digest` of the one that it was made from.
    """
    if policy.can.server_reads_updates:
        return ()  # nobody signs for a sum where each contribution is read
    kinds = ["training"] * training + ["scores"] * scored
    return tuple(
        hashlib.sha256(f"quietchoir {kind} 1".encode() + policy.digest + adapter).digest()
        for kind in kinds
    )
