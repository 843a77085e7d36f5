"""One attempt at a sum: its number, what its contributions have in common, what comes of them.

Knows how contributions that are ready become a sum. Knows nothing of who is asked to make them
(`scheduler`), of what is done with a sum, or of how it is protected.
Always: an attempt's number is on disk before anybody is asked; an attempt that ends without a sum
raises and leaves the adapter as it was; no sum is used that is over fewer members than the
federation's minimum.
"""

import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...core import log
from ...core.errors import CryptoError, DataError, RoundAborted, WorkerError
from ...crypto.privacy.accountant import Spent
from ..aggregation.base import Contributors, ServerContext, Sum
from ..aggregation.buckets import buckets
from ..aggregation.registry import AGGREGATIONS
from ..aggregation.server_optimizer import adapter_digest, levelled
from ..aggregation.survivor_sets import Sets, choose, confirmed, eligible
from ..aggregation.update import Codec, Statistics, SumContext, halves
from ..events import OnEvent
from ..spec.policy import Policy
from ..store.checkpoint import Logbook, RunState, Vector
from ..wire import messages
from ..wire.link import Messenger, Traffic
from ..wire.messages import Reply, RoundId
from . import tuning
from .global_model import ServerHeld
from .report import RoundReport
from .validation import parents_score

logger = log.get("federation.coordinator")


@dataclass(frozen=True, slots=True)
class Draw:
    """Who is asked, and who was passed over."""

    cohort: tuple[str, ...]  # sorted
    absent: tuple[str, ...]  # sorted; ranked before the last of the cohort, and not there


@dataclass(slots=True)
class Answers:
    """Who of those that were asked is ready, and what each says of its contribution."""

    scoring: set[str] = field(default_factory=set)
    # member → members that it signed for, from the same adapter
    before: dict[str, Sets] = field(default_factory=dict)
    chosen: tuple[str, ...] = ()  # whom the coordinator goes on with; the others are ready in vain
    ballots: dict[str, int] = field(default_factory=dict)  # in a vote whose ballots are open

    @property
    def ready(self) -> tuple[str, ...]:
        """Sorted names."""
        return tuple(sorted(self.before))

    @property
    def contributors(self) -> Contributors:
        """What all of them are told of each other."""
        return Contributors(self.ready, tuple(sorted(self.scoring)))

    def take(self, reply: Reply, policy: Policy) -> bool:
        """Note one answer; False if it says something else than that its sender is ready."""
        if (ready := messages.decode_ready(reply.payload)) is None:
            return False
        # Only sets with the sender in it, and of members alone: nobody speaks for others, and
        # whoever is none is never waited for.
        self.before[reply.sender] = frozenset(
            frozenset(one)
            for one in ready.before
            if reply.sender in one and all(policy.member(name) is not None for name in one)
        )
        if ready.scores:
            self.scoring.add(reply.sender)
        if policy.guard.open and len(ready.ballot) == 1:
            self.ballots[reply.sender] = ready.ballot[0]
        return True

    def only(self, members: Collection[str]) -> "Answers":
        """The same, to go on with these alone."""
        return Answers(
            self.scoring,
            self.before,
            tuple(name for name in self.ready if name in members),
            self.ballots,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyGroup:
    """Members whose contributions are ready to be summed, and what these have in common."""

    round_id: RoundId
    kind: str  # "train"; or "score": a contribution is its counters alone
    draw: Draw  # who was asked
    answers: Answers
    sum_context: SumContext
    ranges: messages.Ranges
    spent: Spent | None  # in privacy, with this attempt
    started: float  # monotonic seconds
    worked: float
    # buffered: steps between each contribution's adapter and the newest; else all are of the newest
    staleness: Mapping[str, int] = field(default_factory=dict)
    rates: tuple[float, ...] = (1.0,)  # as `Work.rates`


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one attempt gave."""

    group: ReadyGroup
    sums: tuple[Sum, ...]  # one for each bucket
    means: tuple[Vector, ...]  # of their changes; [0] where there is none to see
    votes: tuple[Statistics, ...]  # counters of each bucket
    traffic: Traffic  # of those that were asked

    @property
    def parties(self) -> tuple[str, ...]:
        """Whose contributions are in a sum."""
        return tuple(sorted(name for total in self.sums for name in total.parties))


@dataclass(slots=True)
class Signed:
    """Who may be in a sum about one adapter that was lost or undone."""

    adapter: bytes = b""
    # whom this coordinator summed, or tried to
    chosen: set[frozenset[str]] = field(default_factory=set)
    # member → sets that it says it signed for; nobody's word makes another one a signer
    reported: dict[str, Sets] = field(default_factory=dict)

    @property
    def members(self) -> frozenset[str]:
        """By this coordinator's own account, or their own word."""
        own = frozenset[str]().union(*self.chosen)
        return own.union(name for name, sets in self.reported.items() if sets)

    @property
    def sets(self) -> Sets:
        """Sets that may be summed again; one of this coordinator's until its members say which part
        of it signed.
        """
        own = (one for one in self.chosen if one.isdisjoint(self.reported))
        return confirmed(self.reported).union(own)

    def before(self, names: Collection[str]) -> dict[str, Sets]:
        """What each of `names` signed for: by its own word, else by this coordinator's account."""
        return {
            name: self.reported.get(name, frozenset(one for one in self.chosen if name in one))
            for name in names
        }

    def summed(self, names: Collection[str]) -> None:
        """These may be in a sum from now on; what they said before is of the past."""
        self.chosen.add(frozenset(names))
        for name in names:
            self.reported.pop(name, None)


class RoundAttempt:
    """The attempts of one run. Args: model: where the adapter lives."""

    def __init__(
        self, messenger: Messenger, logbook: Logbook, model: ServerHeld, on_event: OnEvent
    ) -> None:
        self.messenger, self.logbook, self.model = messenger, logbook, model
        self.size, self.on_event = model.size, on_event
        # nobody of those that were ready last can be summed from this adapter without these
        self.missing: frozenset[str] = frozenset()
        self.signed = Signed()
        self.signed_by_kind: dict[str, Signed] = {}  # a vote forgets nothing of what was trained

    @property
    def policy(self) -> Policy:
        """The newest federation file."""
        return self.messenger.policy

    def begin(self) -> RoundId:
        """Take the next attempt's number, on disk first."""
        self.messenger.traffic = Traffic()
        return self.logbook.begin()

    def about(self, kind: str, flat: Vector) -> None:
        """Forget who signed for sums about another adapter than `flat`; where only members have it,
        of another step.
        """
        adapter = adapter_digest(flat) if flat.size else str(self.logbook.state.round).encode()
        known = self.signed_by_kind.get(kind)
        if known is None or known.adapter != adapter:
            known = self.signed_by_kind[kind] = Signed(adapter)
        self.signed = known

    def eligible(self, here: frozenset[str]) -> frozenset[str]:
        """Whom of those that are there to ask: who can be summed with whom from this adapter."""
        if self.policy.can.server_reads_updates or not self.signed.members:
            return here  # nobody signs for a sum where each contribution is read
        return eligible(self.policy.needed(), here, self.signed.members, self.signed.sets)

    def awaited(self, here: frozenset[str]) -> frozenset[str]:
        """Members that are not here, and without whom there is no sum from this adapter. Nobody,
        once enough are here that signed for none: a set that somebody made up holds up no others.
        """
        if len(here - self.signed.members) >= self.policy.needed():
            return frozenset()
        return frozenset(
            name for name in self.missing - here if self.policy.member(name) is not None
        )

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
        drawn = draw or Draw((), ())
        return messages.Work(
            flat=flat,
            evaluate=evaluate,
            card=card,
            state=self.model.name(flat),
            ranges=self.model.ranges() if training else (),
            cohort=drawn.cohort,
            absent=drawn.absent,
            round=self.logbook.state.round + 1,
            rates=self.rates(flat, drawn.cohort) if training else (1.0,),
        )

    def rates(self, flat: Vector, cohort: Sequence[str]) -> tuple[float, ...]:
        """Of the recipe's learning rate, for the next round from the adapter `flat`: of as many
        sums as those that were opened from it before, if any was.
        """
        policy, least = self.policy, self.policy.smallest_sum
        if policy.recipe.tuning == "fixed":
            return (1.0,)
        halved = policy.trials > 1 and len(cohort) >= policy.trials * least
        before, again = self.signed.before(cohort), False
        if halved and any(before.values()):
            split = halves(policy, adapter_digest(flat), cohort)
            two = choose(split, before, need=least, least=least).members
            need = policy.needed(len(cohort))
            one = choose([cohort], before, need=need, least=need).members
            halved = again = len(two) > len(one)
        return tuning.next_rates(self.logbook.state.history, halved=halved, again=again)

    def aggregate(self, group: ReadyGroup) -> Outcome:
        """Sum what these members have ready.

        Raises:
            RoundAborted: too few are left at whatever stage, or a sum that no honest cohort can
            have.
        """
        policy, training = self.policy, group.kind == messages.TRAIN
        size = self.size if training else 0
        sums = self.combine(group, Codec(size, policy, group.sum_context).length)
        seen = 0 if self.model.held_by_members else size
        codec = Codec(seen, policy, group.sum_context)
        sums, opened = self.open(sums, codec)
        means = tuple(mean for mean, _ in opened)
        if training:
            means = tuple(levelled(means, policy.aggregation, codec.largest))
            self.model.opened(group.round_id, group.draw.cohort, sums, means)
        return Outcome(
            group=group,
            sums=sums,
            means=means,
            votes=tuple(statistics for _, statistics in opened),
            traffic=self.messenger.traffic.of(group.draw.cohort),
        )

    def settle(self, answers: Answers, asked: int, sum_context: SumContext) -> Answers:
        """Whom to go on with, of those that are ready.

        Raises:
            RoundAborted: fewer than any sum needs, in all or of those that train the most columns;
            or so many of them signed for an earlier sum from the same adapter that this one would
            give somebody away.
        """
        ready, need = answers.ready, self.policy.needed(asked)
        if len(ready) < need:
            raise RoundAborted(
                f"{len(ready)} of {asked} members are ready, need "
                f"{need}{self.policy.advice(len(ready))}"
            )
        if sum_context.shares is not None and (reason := sum_context.shares.short(ready)):
            raise RoundAborted(f"{reason}; the next attempt asks for fewer columns")
        return self.choose(answers, sum_context, need)

    def choose(self, answers: Answers, sum_context: SumContext, need: int) -> Answers:
        """Leave out, of those that are ready, whoever would keep the others from signing.

        Raises:
            RoundAborted: then too few are left; `missing` says who is waited for.
        """
        self.signed.reported |= answers.before
        if not any(answers.before.values()):  # nobody signed for a sum from this adapter before
            self.missing = frozenset()
            return answers.only(answers.ready)
        split = self.split(answers.ready, sum_context)
        least = need if len(split) == 1 else self.policy.smallest_sum
        choice = choose(split, answers.before, need=self.policy.smallest_sum, least=least)
        if choice.reason:
            here = self.messenger.link.present()
            self.missing = choice.missing if self.eligible(here) == here else frozenset()
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

    def split(self, ready: tuple[str, ...], sum_context: SumContext) -> tuple[tuple[str, ...], ...]:
        """Those that are ready, by the sums that they are in."""
        adapter, groups = sum_context.adapter, sum_context.groups
        if self.policy.aggregation.buckets == 1 and not groups:
            return (ready,)
        return buckets(self.policy, adapter, ready, sum_context.shares, groups)

    def combine(self, group: ReadyGroup, length: int) -> tuple[Sum, ...]:
        """Go through the protection's stages; members that fall silent are the protection's to
        survive.

        Raises:
            RoundAborted: too few are left to open a sum.
        """
        answers, timeout_s = group.answers, self.policy.recipe.stage_timeout_s
        context = ServerContext(
            policy=self.policy,
            round_id=group.round_id,
            length=length,
            counted=group.kind == messages.TRAIN,
            contributors=answers.contributors,
            asked=len(group.draw.cohort),
            sum_context=group.sum_context,
            common=self.model.common,
            crypto_worker=self.model.crypto_worker,
        )
        aggregation = AGGREGATIONS[self.policy.protection.kind]
        split = self.split(answers.ready, group.sum_context)
        each = [(cohort, aggregation.server(context, cohort)) for cohort in split]
        server = each[0][1] if len(each) == 1 else aggregation.together(each)
        stage, payloads = server.begin()
        step: tuple[str, Mapping[str, bytes]] | None = (
            stage,
            {name: payloads[name] for name in answers.chosen},
        )
        try:
            while step is not None:
                stage, payloads = step
                if stage == server.opens_at:
                    self.logbook.keep(opening=True)
                    for cohort, _ in each:
                        self.signed.summed(set(cohort).intersection(answers.chosen))
                for reply in self.messenger.ask(stage, payloads, group.round_id, timeout_s):
                    try:
                        server.receive(reply.sender, reply.payload)
                    except (CryptoError, WorkerError) as error:
                        logger.warning("%s in stage %s: %s", reply.sender, stage, error)
                step = server.advance()
        except (CryptoError, WorkerError) as error:
            raise RoundAborted(str(error)) from error
        return server.sums()

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


def write_entry(outcome: Outcome, state: RunState, policy: Policy) -> dict[str, Any]:
    """One line of history. Args: state: before the round is written down."""
    group, counters = outcome.group, Statistics.sum(outcome.votes)
    scored: dict[str, Any] = {"accuracy": counters.accuracy, "scored": counters.scored}
    if not counters.scored and policy.guard.on and group.kind == messages.TRAIN:
        scored = parents_score(state.history) or scored
    scales, shares = [scale for _, scale in group.ranges], group.sum_context.shares
    tuned = group.kind == messages.TRAIN and policy.recipe.tuning == "auto"
    entry = RoundReport(
        kind=group.kind,
        round=state.round + 1,
        attempt=group.round_id.attempt,
        asked=list(group.draw.cohort),
        parties=list(outcome.parties),
        seconds=round(time.monotonic() - group.started, 3),
        work_seconds=round(group.worked - group.started, 3),
        bytes_up=outcome.traffic.up,
        bytes_down=outcome.traffic.down,
        loss=counters.loss,
        **scored,
        update_norm=0.0,
        buckets=len(outcome.sums),
        near=round(counters.nearness, 4),
        clipped_share=counters.clipped_share,
        rates=list(group.rates) if tuned else None,
        ranges=[min(scales), max(scales)] if scales else [],
        epsilon=None if group.spent is None else group.spent.epsilon,
        columns=None if shares is None else shares.columns_of(outcome.parties),
        staleness=sorted(group.staleness[name] for name in outcome.parties if group.staleness),
        split=[list(one.parties) for one in outcome.sums] if len(outcome.sums) > 1 else None,
    )
    table = dataclasses.asdict(entry)
    # written with the verdict; where not all train all columns; where rounds are tuned; of several
    # sums; buffered
    absent = [
        name for name in ("guard", "columns", "rates", "split", "clip") if table[name] is None
    ]
    for name in (*absent, *(() if group.staleness else ("staleness",))):
        del table[name]
    return table
