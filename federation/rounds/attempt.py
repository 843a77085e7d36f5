"""One attempt from its number to its sums: who is asked, what they do, what comes out.

Knows the order of an attempt. Knows nothing of what is done with a sum, or of how it is protected.
Always: an attempt's number is on disk, and its privacy paid for, before anybody is asked to train;
an attempt that ends without a sum raises and leaves the adapter as it was; no sum is used that is
over fewer members than the federation's minimum.
"""

import dataclasses
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...core import log
from ...core.errors import BudgetError, CryptoError, DataError, RoundAborted, WorkerError
from ...crypto.privacy.accountant import Spent
from ..aggregation.base import Contributors, ServerContext, Sum
from ..aggregation.buckets import buckets
from ..aggregation.ranges import read_spans
from ..aggregation.rank_masks import RankMasks, rank_masks_of
from ..aggregation.registry import AGGREGATIONS
from ..aggregation.server_optimizer import adapter_digest
from ..aggregation.survivor_sets import Sets, choose
from ..aggregation.update import Codec, Statistics, Terms, seed_of
from ..events import AskedEvent, OnEvent, ReadyEvent
from ..spec.policy import Policy
from ..store.checkpoint import Logbook, RunState, Vector
from ..wire import broadcast_digest as broadcast
from ..wire import messages
from ..wire.link import Post, Traffic
from ..wire.messages import Reply, RoundId
from .global_model import ServerHeld
from .privacy_accountant import PrivacyAccountant
from .report import RoundReport
from .selection import Draw, draw, eligible
from .validation import parents_score

logger = log.get("federation.coordinator")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one attempt gave."""

    place: RoundId
    draw: Draw
    sums: tuple[Sum, ...]  # one for each bucket
    means: tuple[Vector, ...]  # of their changes; [0] where there is none to see
    votes: tuple[Statistics, ...]  # counters of each bucket
    ranges: messages.Ranges
    spent: Spent | None
    started: float  # monotonic seconds
    worked: float
    traffic: Traffic
    # buffered: steps between each contribution's adapter and the newest, in order
    staleness: tuple[int, ...] = ()
    shares: RankMasks | None = None  # where not all train all columns

    @property
    def statistics(self) -> Statistics:
        """Counters over everybody."""
        return Statistics.sum(self.votes)

    @property
    def parties(self) -> tuple[str, ...]:
        """Whose contributions are in a sum."""
        return tuple(sorted(name for total in self.sums for name in total.parties))


@dataclass(slots=True)
class Answers:
    """Who of those that were asked is ready, and what each says of its contribution."""

    scoring: set[str] = field(default_factory=set)
    # member → members that it signed for, from the same adapter
    before: dict[str, Sets] = field(default_factory=dict)
    chosen: tuple[str, ...] = ()  # whom the coordinator goes on with; the others are ready in vain

    @property
    def ready(self) -> tuple[str, ...]:
        """Sorted names."""
        return tuple(sorted(self.before))

    @property
    def told(self) -> Contributors:
        """What all of them are told."""
        return Contributors(self.ready, tuple(sorted(self.scoring)))

    def take(self, reply: Reply) -> bool:
        """Note one answer; False if it says something else than that its sender is ready."""
        if (said := messages.decode_ready(reply.payload)) is None:
            return False
        # Only sets with the sender in it: nobody speaks for others.
        self.before[reply.sender] = frozenset(
            frozenset(one) for one in said.before if reply.sender in one
        )
        if said.scores:
            self.scoring.add(reply.sender)
        return True

    def only(self, members: Collection[str]) -> "Answers":
        """The same, to go on with these alone."""
        return Answers(
            self.scoring, self.before, tuple(name for name in self.ready if name in members)
        )


@dataclass(slots=True)
class Signed:
    """Who may be in a sum about one adapter that was lost or undone."""

    stage: str = ""
    adapter: bytes = b""
    members: set[str] = field(default_factory=set)
    sets: set[frozenset[str]] = field(default_factory=set)  # as members told of them


class RoundAttempt:
    """The attempts of one run. Args: model: where the adapter lives."""

    def __init__(
        self,
        policy: Policy,
        post: Post,
        logbook: Logbook,
        purse: PrivacyAccountant,
        model: ServerHeld,
        on_event: OnEvent,
    ) -> None:
        self.policy, self.post, self.logbook, self.purse = policy, post, logbook, purse
        self.model, self.size, self.on_event = model, model.size, on_event
        # nobody can be summed from this adapter without these
        self.missing: frozenset[str] = frozenset()
        # who was asked in vain, in an earlier attempt of a round
        self.silent: tuple[int, frozenset[str]] = (0, frozenset())
        self.signed = Signed()

    def hold(self, stage: str, flat: Vector, *, evaluate: bool = False) -> Outcome:
        """Go through one attempt of `stage` with the adapter `flat` ([0] in sealed mode).

        Raises:
            RoundAborted: too few members, at whatever stage; or a sum that no honest cohort can
            have. BudgetError: the federation's privacy budget would be passed; nobody was asked.
        """
        started, training = time.monotonic(), stage == messages.TRAIN
        place = self.begin()
        self.about(stage, flat)
        found = draw(self.policy, place, self.there(place), everybody=not training)
        able = self.model.gather(found.cohort, place)
        if len(able) < (need := self.policy.needed(len(found.cohort))):
            raise RoundAborted(
                f"{len(able)} of {len(found.cohort)} members can take part, need {need}: nobody "
                f"was asked to work"
            )
        order = self.order(flat, draw=found, evaluate=evaluate, training=training)
        spent = self.purse.pay(place) if training and self.policy.privacy.on else None
        ranked = training and self.policy.ranked
        shares = rank_masks_of(self.policy, found.cohort, place.attempt) if ranked else None
        ranges = (
            read_spans(order.ranges, self.size, self.policy.recipe.update_range)
            if order.ranges
            else ()
        )
        told = (
            b""  # no masks could follow from it
            if self.policy.can.server_reads_updates
            else broadcast.of_work(stage, order.header(), order.flat)
        )
        terms = Terms(
            ranges, seed_of(self.policy, place), told, order.state, shares, adapter_digest(flat)
        )
        ready = self.ask_work(stage, order, able, place, terms)
        worked = time.monotonic()
        length = Codec(self.size if training else 0, self.policy, terms).length
        sums = self.combine(place, ready, length, training, terms, len(found.cohort))
        sums, opened = self.open(sums, Codec(flat.size if training else 0, self.policy, terms))
        if training:
            self.model.opened(place, found.cohort, sums, tuple(mean for mean, _ in opened))
        return Outcome(
            place=place,
            draw=found,
            sums=sums,
            means=tuple(mean for mean, _ in opened),
            ranges=order.ranges,
            spent=spent,
            votes=tuple(statistics for _, statistics in opened),
            started=started,
            worked=worked,
            traffic=self.post.traffic,
            shares=shares,
        )

    def begin(self) -> RoundId:
        """Take the next attempt's number, on disk first."""
        self.post.traffic = Traffic()
        return self.logbook.begin()

    def there(self, place: RoundId) -> frozenset[str]:
        """Members that can be asked, without those that were asked in vain in this round, if
        there are enough others.
        """
        here, (round_, silent) = self.post.link.present(), self.silent
        others = here - silent if round_ == place.round else here
        if len(others) < self.policy.needed():
            others = here
        return eligible(self.policy, others, self.signed.members, self.signed.sets)

    def about(self, stage: str, flat: Vector) -> None:
        """Forget who signed for sums about another adapter than `flat`; where only members have it,
        of another step.
        """
        adapter = adapter_digest(flat) if flat.size else str(self.logbook.state.round).encode()
        if (self.signed.stage, self.signed.adapter) != (stage, adapter):
            self.signed = Signed(stage, adapter)

    def order(
        self,
        flat: Vector,
        *,
        draw: Draw | None = None,
        evaluate: bool = False,
        training: bool = False,
        card: str = "",
    ) -> messages.Work:
        """Work on the adapter `flat`; [0] where only members have it."""
        told = draw or Draw((), ())
        return messages.Work(
            flat=flat,
            evaluate=evaluate,
            card=card,
            state=self.model.name(flat),
            ranges=self.model.ranges() if training else (),
            cohort=told.cohort,
            absent=told.absent,
            round=self.logbook.state.round + 1,
        )

    def ask_work(
        self,
        stage: str,
        order: messages.Work,
        cohort: tuple[str, ...],
        place: RoundId,
        terms: Terms,
    ) -> Answers:
        """Let the cohort work; return who is ready to contribute, and whom to go on with.

        Raises:
            RoundAborted: fewer than any sum needs, in all or of those that train the most columns;
                or so many of them signed for an earlier sum from the same adapter that this one
                would give somebody away.
            BudgetError: fewer, because members have used up their privacy budget.
        """
        number, need = self.logbook.state.round + 1, self.policy.needed(len(order.cohort))
        self.on_event(
            AskedEvent(round=number, attempt=place.attempt, stage=stage, cohort=tuple(cohort))
        )
        answers, spent = Answers(), list[str]()
        for reply in self.model.ask(stage, order, cohort, place, self.policy.recipe.work_timeout_s):
            if answers.take(reply):
                self.on_event(ReadyEvent(round=number, party=reply.sender))
            elif reply.payload == messages.SPENT and self.purse.step is not None:
                spent.append(reply.sender)
        ready = answers.ready
        before = self.silent[1] if self.silent[0] == place.round else frozenset()
        self.silent = (place.round, before | set(cohort).difference(ready))
        if len(ready) < need <= len(ready) + len(spent):
            raise BudgetError(
                f"{len(spent)} of {len(cohort)} members have used up their privacy budget, "
                f"{len(ready)} have not, need {need}; "
                "found a federation with a larger budget or more noise to go on"
            )
        if len(ready) < need:
            raise RoundAborted(
                f"{len(ready)} of {len(cohort)} members are ready, need "
                f"{need}{self.policy.advice(len(ready))}"
            )
        if terms.shares is not None and (reason := terms.shares.short(ready)):
            raise RoundAborted(f"{reason}; the next attempt asks for fewer columns")
        return self.choose(answers, terms, need)

    def choose(self, answers: Answers, terms: Terms, need: int) -> Answers:
        """Leave out, of those that are ready, whoever would keep the others from signing.

        Raises:
            RoundAborted: then too few are left; `missing` says who is waited for.
        """
        if not any(answers.before.values()):  # nobody signed for a sum from this adapter before
            self.missing = frozenset()
            return answers.only(answers.ready)
        told = {one for sets in answers.before.values() for one in sets}
        self.signed.sets |= told
        self.signed.members.update(*told)
        split = self.split(answers.ready, terms)
        least = need if len(split) == 1 else self.policy.smallest_sum
        choice = choose(split, answers.before, need=self.policy.smallest_sum, least=least)
        if choice.reason:
            here = self.post.link.present()
            again = eligible(self.policy, here, self.signed.members, self.signed.sets)
            self.missing = frozenset() if again != here else choice.missing
            # another number for the next attempt, and with it another draw
            self.logbook.keep(opening=True)
            waited = f": waiting for {', '.join(sorted(self.missing))}" if self.missing else ""
            raise RoundAborted(
                f"{choice.reason}; the next from it must be over the very same members, or "
                f"differences would tell of single "
                f"ones{waited}. A new version of the federation file lets members go that do not "
                f"come back"
            )
        self.missing = frozenset()
        return answers.only(choice.members)

    def split(self, ready: tuple[str, ...], terms: Terms) -> tuple[tuple[str, ...], ...]:
        """Those that are ready, by the sums that they are in."""
        if self.policy.aggregation.buckets == 1:
            return (ready,)
        return buckets(self.policy, terms.adapter, ready, terms.shares)

    def combine(
        self, place: RoundId, answers: Answers, length: int, counted: bool, terms: Terms, asked: int
    ) -> tuple[Sum, ...]:  # fmt: skip
        """Go through the protection's stages; members that fall silent are the protection's to
        survive.

        Raises:
            RoundAborted: too few are left to open a sum.
        """
        context = ServerContext(
            policy=self.policy,
            place=place,
            length=length,
            counted=counted,
            told=answers.told,
            asked=asked,
            terms=terms,
            common=self.model.common,
            desk=self.model.desk,
        )
        aggregation = AGGREGATIONS[self.policy.protection.kind]
        server = aggregation.server
        split = self.split(answers.ready, terms)
        half = (
            server(context, split[0])
            if len(split) == 1
            else aggregation.together([(cohort, server(context, cohort)) for cohort in split])
        )
        stage, payloads = half.begin()
        step: tuple[str, Mapping[str, bytes]] | None = (
            stage,
            {name: payloads[name] for name in answers.chosen},
        )
        try:
            while step is not None:
                stage, payloads = step
                if stage == half.opens_at:
                    self.logbook.keep(opening=True)
                    self.signed.members.update(answers.chosen)
                for reply in self.post.ask(
                    stage, payloads, place, self.policy.recipe.stage_timeout_s
                ):
                    try:
                        half.receive(reply.sender, reply.payload)
                    except (CryptoError, WorkerError) as error:
                        logger.warning("%s in stage %s: %s", reply.sender, stage, error)
                step = half.advance()
        except (CryptoError, WorkerError) as error:
            raise RoundAborted(str(error)) from error
        return half.sums()

    def open(
        self, sums: tuple[Sum, ...], codec: Codec
    ) -> tuple[tuple[Sum, ...], list[tuple[Vector, Statistics]]]:
        """The sums that can be used, with the mean and the counters behind each.

        Raises:
            RoundAborted: none can: of too few members, or not of any honest ones.
        """
        used, opened, reason = list[Sum](), list[tuple[Vector, Statistics]](), ""
        for total in sums:
            try:
                if len(total.parties) < (need := self.policy.protection.min_cohort):
                    raise DataError(f"a sum of {len(total.parties)} members, need {need}: not used")
                if codec.shares is not None and (reason := codec.shares.short(total.parties)):
                    raise DataError(f"{reason}: a sum that is not used")
                opened.append(codec.decode(total.total, len(total.parties), total.parties))
                used.append(total)
            except DataError as error:
                reason = str(error)
                logger.warning("%s", reason)
        if not used:
            raise RoundAborted(reason)
        return tuple(used), opened


def write_entry(kind: str, outcome: Outcome, state: RunState, policy: Policy) -> dict[str, Any]:
    """One line of history. Args: state: before the round is written down."""
    counters, place = outcome.statistics, outcome.place
    scored: dict[str, Any] = {"accuracy": counters.accuracy, "scored": counters.scored}
    if not counters.scored and policy.guard.on and kind == messages.TRAIN:
        scored = parents_score(state.history) or scored
    scales = [scale for _, scale in outcome.ranges]
    entry = RoundReport(
        kind=kind,
        round=state.round + 1,
        attempt=place.attempt,
        asked=list(outcome.draw.cohort),
        parties=list(outcome.parties),
        seconds=round(time.monotonic() - outcome.started, 3),
        work_seconds=round(outcome.worked - outcome.started, 3),
        bytes_up=outcome.traffic.up,
        bytes_down=outcome.traffic.down,
        loss=counters.loss,
        **scored,
        update_norm=0.0,
        buckets=len(outcome.sums),
        clipped_share=counters.clipped_share,
        ranges=[min(scales), max(scales)] if scales else [],
        epsilon=None if outcome.spent is None else outcome.spent.epsilon,
        columns=None if outcome.shares is None else outcome.shares.told(outcome.parties),
        staleness=list(outcome.staleness),
    )
    table = dataclasses.asdict(entry)
    if table["guard"] is None:
        del table["guard"]  # written with the verdict
    if outcome.shares is None:
        del table["columns"]
    if not outcome.staleness:
        del table["staleness"]
    return table
