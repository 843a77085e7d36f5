"""Who is asked, who trains when, and whose contributions are summed next.

    train → ready → aggregate (`attempt`)

    Synchronous     the drawn cohort trains from the newest adapter, and is summed at once
    Buffered        whoever is awake trains from the newest adapter; as soon as enough are ready,
                    these are summed, each as stale as it is. Nobody waits for a member that is
                    away or still training

Knows the roster, members that are there, what they were asked and what they have ready. Knows
nothing of Flower, training or how a sum is protected, nor of what is made of one.
Always: privacy is paid before anybody's contribution is asked for; a group has at least the
federation's minimum and at most one contribution of each member; who came to a group that failed is
asked anew, and offers what has not left it, or trains. The draw's seed follows from the signed
file, the run and the number of the round; it ranks the roster, and the cohort is the first of that
ranking that are there; the coordinator says who is not, and everybody of the cohort is told the
same.

A member checks a draw: it is in the cohort itself; all are of the roster; enough are asked
(`needed`); the cohort is exactly what the ranking gives once the named absentees are left out. Not
covered: whether an absentee was really away (who was named absent wrongly can show the signed
message to the others), and a coordinator that starts many runs, whose number it chooses, until a
draw pleases it. Both are what admission, the minimum cohort and noise are for; the draw keeps an
honest coordinator's choice out of its own hands.

Source of buffered rounds: Nguyen et al. 2022, "Federated learning with buffered asynchronous
aggregation" (FedBuff), arXiv 2106.06639, algorithm 1.
"""

import dataclasses
import functools
import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ...core import log
from ...core.errors import BudgetError, ConfigError, MessageError, RoundAborted
from ...crypto.shared import once
from ..aggregation.rank_masks import rank_masks_of
from ..aggregation.server_optimizer import adapter_digest
from ..aggregation.survivor_sets import Sets, choose
from ..aggregation.update import SumContext, terms_of
from ..events import AskedEvent, HandedEvent, OfferedEvent, ReadyEvent, WaitingEvent
from ..spec.policy import Policy
from ..store.checkpoint import RunState, Vector
from ..wire import messages
from ..wire.link import LeavingLink, PendingMessages
from ..wire.messages import Group, Reply, RoundId
from .attempt import Answers, Draw, ReadyGroup, RoundAttempt
from .privacy_accountant import PrivacyAccountant, PrivacyAccountants

logger = log.get("federation.coordinator")
POLL_S = 0.1
# a member that did not answer, or not usefully, is asked to train again no sooner than this after
# it was
AGAIN_S = 30.0


class PatienceError(RoundAborted):
    """Too few members came for too long: no attempt failed, none could begin."""


class Clock(Protocol):
    """Time as a run waits in it; a simulation has its own."""

    def now(self) -> float:
        """Seconds of a clock that nobody sets."""
        ...

    def rest(self, at_most_s: float) -> None:
        """Wait until something may have happened, no longer than this."""
        ...


class RealClock:
    """This machine's."""

    now = staticmethod(time.monotonic)

    def rest(self, at_most_s: float) -> None:
        """A moment."""
        time.sleep(min(POLL_S, at_most_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """How long members are waited for.

    Args:
        wait_s: for the minimum; grace_s: once that is there, for the rest of the roster.
        patient: that holds until the minimum was there once; members that go away later are waited
            for without end, and a round that failed because they did is not counted.
        between: called while no round is under way: a later federation file may come.
    """

    wait_s: float = 600.0
    grace_s: float = 30.0
    patient: bool = False
    clock: Clock = dataclasses.field(default_factory=RealClock)
    between: Callable[[], None] = lambda: None


FOR_NOBODY = Waiting(wait_s=0.0, grace_s=0.0)


class RoundScheduler(Protocol):
    """One run's."""

    @property
    def accountant(self) -> PrivacyAccountant:
        """Of the member that has spent most."""
        ...

    def start(self) -> None:
        """Rounds begin. Raises PatienceError: too few members came."""
        ...

    def next_group(self, *, evaluate: bool) -> ReadyGroup:
        """Have members train, and say whose contributions are summed next.

        Args:
            evaluate: they score the adapter before they train from it.

        Raises:
            RoundAborted: too few are ready. PatienceError: nobody was for too long.
            BudgetError: too few can pay for one more; nobody was asked.
        """
        ...

    def retry(self) -> None:
        """A group came to nothing; the next one may be asked for when this returns.

        Raises:
            PatienceError: too few members came.
        """
        ...

    def wait_for_members(self) -> None:
        """Until enough are there to score or vote. Raises PatienceError: still too few."""
        ...

    def too_few_are_here(self) -> bool:
        """Are members away that a round needs?"""
        ...

    def renew(self) -> None:
        """There is a later version of the federation file."""
        ...

    def finish(self) -> None:
        """The last step is done."""
        ...


class Synchronous:
    """The drawn cohort, at staleness 0. Scores are asked for like this under every schedule."""

    def __init__(
        self, attempt: RoundAttempt, accountant: PrivacyAccountant, waiting: Waiting
    ) -> None:
        self.attempt, self.accountant, self.waiting = attempt, accountant, waiting
        self.gathered = False  # the minimum was there once
        # who was asked in vain, in an earlier attempt of a round
        self.silent: tuple[int, frozenset[str]] = (0, frozenset())
        self.claims = set[str]()  # who last said that its privacy budget is used up

    def start(self) -> None:
        """As `RoundScheduler`."""
        self.wait_for_members()

    def retry(self) -> None:
        """As `RoundScheduler`."""
        self.wait_for_members()

    def next_group(self, *, evaluate: bool) -> ReadyGroup:
        """As `RoundScheduler`."""
        flat = self.attempt.logbook.state.server.flat
        return self.ask(messages.TRAIN, flat, evaluate=evaluate)

    def ask(self, kind: str, flat: Vector, *, evaluate: bool = False) -> ReadyGroup:
        """Have the cohort train from the adapter `flat`, or score it ([0] in sealed mode).

        Raises:
            RoundAborted: too few members. BudgetError: as `RoundScheduler.next_group`.
        """
        attempt, started, training = self.attempt, time.monotonic(), kind == messages.TRAIN
        policy, round_id = attempt.policy, attempt.begin()
        attempt.about(kind, flat)
        found = self.draw(round_id, everybody=not training)
        able = attempt.model.gather(found.cohort, round_id)
        if len(able) < (need := policy.needed(len(found.cohort))):
            raise RoundAborted(
                f"{len(able)} of {len(found.cohort)} members can take part, need {need}: nobody "
                f"was asked to work"
            )
        order = attempt.order(flat, draw=found, evaluate=evaluate, training=training)
        spent = self.accountant.charge(round_id) if training and policy.privacy.on else None
        broadcast_digest = (
            b""  # no masks could follow from it
            if policy.can.server_reads_updates
            else messages.work_digest(kind, order.header(), order.flat)
        )
        sum_context = terms_of(
            policy, attempt.size, round_id, order.ranges, found.cohort if training else (),
            broadcast_digest=broadcast_digest, start=order.state, adapter=adapter_digest(flat),
            rates=len(order.rates),
        )  # fmt: skip
        answers = self.work(kind, order, able, round_id)
        return ReadyGroup(
            round_id=round_id,
            kind=kind,
            draw=found,
            answers=attempt.settle(answers, len(found.cohort), sum_context),
            sum_context=sum_context,
            ranges=order.ranges,
            rates=order.rates,
            spent=spent,
            started=started,
            worked=time.monotonic(),
        )

    def draw(self, round_id: RoundId, *, everybody: bool) -> Draw:
        """The cohort, of those that can be asked."""
        return draw(self.attempt.policy, round_id, self.there(round_id), everybody=everybody)

    def there(self, round_id: RoundId) -> frozenset[str]:
        """Members that can be asked, without those that were asked in vain in this round, if
        there are enough others.
        """
        here, (round_, silent) = self.attempt.messenger.link.present(), self.silent
        others = here - silent if round_ == round_id.round else here
        enough = len(others) >= self.attempt.policy.needed()
        return self.attempt.eligible(others if enough else here)

    def work(
        self, kind: str, order: messages.Work, cohort: tuple[str, ...], round_id: RoundId
    ) -> Answers:
        """Let the cohort work; return who is ready to contribute.

        Raises:
            BudgetError: too few, because members have used up their privacy budget, by the
                coordinator's own account or by the word of more than a third of the roster.
        """
        attempt, policy = self.attempt, self.attempt.policy
        number, timeout_s = attempt.logbook.state.round + 1, policy.recipe.work_timeout_s
        event = AskedEvent(round=number, attempt=round_id.attempt, stage=kind, cohort=cohort)
        attempt.on_event(event)
        answers, spent = Answers(), list[str]()
        for reply in attempt.model.ask(kind, order, cohort, round_id, timeout_s):
            if answers.take(reply, policy):
                attempt.on_event(ReadyEvent(round=number, party=reply.sender))
            elif reply.payload == messages.SPENT and policy.privacy.on and kind == messages.TRAIN:
                spent.append(reply.sender)
        ready, need = len(answers.ready), policy.needed(len(order.cohort))
        before = self.silent[1] if self.silent[0] == round_id.round else frozenset()
        self.silent = (round_id.round, before | set(cohort).difference(answers.ready))
        self.claims = self.claims.difference(answers.ready).union(spent)
        for name in spent:
            doubt(name, self.accountant)
        if ready < need <= ready + len(spent) and (
            not self.accountant.affords() or enough_claim(policy, self.claims)
        ):
            raise BudgetError(
                f"{len(spent)} of {len(cohort)} members have used up their privacy budget, "
                f"{ready} have not, need {need}; "
                "found a federation with a larger budget or more noise to go on"
            )
        return answers

    def too_few_are_here(self) -> bool:
        """As `RoundScheduler`."""
        present = self.attempt.messenger.link.present()
        needed = self.attempt.policy.needed()
        return len(present) < needed or bool(self.attempt.awaited(present))

    def wait_for_members(self) -> None:
        """Until the roster is complete, or enough are there and the grace is over.

        Raises:
            PatienceError: still too few after `wait_s`, or without one that no sum from this
                adapter can do without; a patient run looks at that until enough were there once.
        """
        waiting, clock = self.waiting, self.waiting.clock
        began, shown, enough_since = clock.now(), -1, None
        while True:
            waiting.between()
            policy, present = self.attempt.policy, self.attempt.messenger.link.present()
            now = clock.now()
            need, everybody = policy.needed(), len(policy.members)
            here, missing = len(present), self.attempt.awaited(present)
            if here != shown:
                self.attempt.on_event(WaitingEvent(present=here, minimum=need, roster=everybody))
                shown = here
            if here < need or missing:
                enough_since = None
            elif enough_since is None:
                enough_since = now
            self.gathered = self.gathered or here >= need
            left = waiting.grace_s - (now - enough_since) if enough_since is not None else math.inf
            if enough_since is not None and (here >= everybody or left <= 0):
                return
            lost = enough_since is None and now - began >= waiting.wait_s
            if lost and not (waiting.patient and self.gathered):
                also = f", {', '.join(sorted(missing))} among them" if missing else ""
                raise PatienceError(
                    f"{here} members came within {waiting.wait_s:.0f} s, need {need}{also}; start "
                    f"the others with "
                    "`quietchoir join`, then start this command again: it goes on from the last "
                    "whole round"
                )
            clock.rest(left)

    def renew(self) -> None:
        """Nothing is under way between rounds."""

    def finish(self) -> None:
        """Nobody is still training."""


class Offer(NamedTuple):
    """What a member has ready: where its contribution was trained from, by its word."""

    version: int
    broadcast_digest: str  # of that work
    state: str  # the name of that adapter's state, if states have names


class Buffered:
    """Whoever is ready, each as stale as it is.

    Hazard: the coordinator chooses whom it sums with whom, among the members that are ready; see
    `README.md`.
    """

    def __init__(
        self, attempt: RoundAttempt, accountants: PrivacyAccountants, waiting: Waiting
    ) -> None:
        """Raises ConfigError: over a link that leaves no messages."""
        if not isinstance(link := attempt.messenger.link, LeavingLink):
            raise ConfigError(
                'schedule.rounds = "buffered" needs `quietchoir coordinate` and `join`: this way '
                "to the members asks them all and waits; found with schedule.rounds synchronous "
                "to use it"
            )
        self.attempt, self.accountants, self.waiting = attempt, accountants, waiting
        self.outbox, self.gathered = PendingMessages(attempt.messenger, link), False
        self.offers = dict[str, Offer]()
        # who was asked to train and has not answered usefully, and when
        self.asked = dict[str, float]()
        # members without enough of their privacy budget for one more group
        self.spent = set[str]()
        # who says so, against the coordinator's own account
        self.claims = set[str]()
        # Member → version of its contribution, and whom it signed for in earlier sums from that
        # version's adapter.
        self.before = dict[str, tuple[int, Sets]]()
        self.group: tuple[str, ...] = ()  # who was called last
        self.traffic, self.version = attempt.messenger.traffic, self.state.round
        self.news_at, self.stepped_at = waiting.clock.now(), time.monotonic()
        self.shown: tuple[int, int] = (-1, -1)

    @property
    def policy(self) -> Policy:
        """The newest federation file."""
        return self.attempt.policy

    @property
    def state(self) -> RunState:
        """The run as it is on disk."""
        return self.attempt.logbook.state

    @property
    def accountant(self) -> PrivacyAccountant:
        """As `RoundScheduler`."""
        return self.accountants.worst()

    def start(self) -> None:
        """As `RoundScheduler`; nobody is waited for."""
        self.news_at = self.waiting.clock.now()

    def retry(self) -> None:
        """As `RoundScheduler`: whoever is there is asked anew at once."""

    def next_group(self, *, evaluate: bool) -> ReadyGroup:
        """As `RoundScheduler`: as soon as enough contributions are ready.

        Raises:
            PatienceError: nobody has contributed for `schedule.patience_s`. And as there.
        """
        self.note_step()
        while True:
            self.hand_out(evaluate=evaluate)
            self.take_in()
            if (members := self.gather()) is not None:
                return self.call(members)
            self.check_patience()
            self.waiting.between()

    def note_step(self) -> None:
        """What was summed since is no news any more; a vote counts its own bytes."""
        if self.version != self.state.round:
            self.traffic = self.traffic.without(self.group)
            self.version, self.news_at = self.state.round, self.waiting.clock.now()
            self.stepped_at = time.monotonic()
        self.attempt.messenger.traffic = self.traffic

    def renew(self) -> None:
        """What members keep outlives a new roster, what is under way is asked for again."""
        self.accountants.policy = self.policy
        self.outbox.cancel()
        self.asked.clear()

    def hand_out(self, *, evaluate: bool = False) -> None:
        """Whoever is there and has nothing to do trains from the newest adapter."""
        now, there = self.waiting.clock.now(), self.attempt.messenger.link.present()
        idle = sorted(
            name
            for name in there - self.offers.keys() - self.spent
            if self.policy.member(name) is not None
            and now - self.asked.get(name, -math.inf) >= AGAIN_S
        )
        if idle:
            round_id, version = self.attempt.logbook.begin(), self.state.round
            order = self.attempt.order(self.state.server.flat, evaluate=evaluate)
            payloads = {
                name: messages.encode_train(version, work)
                for name, work in self.attempt.model.payloads(order, idle, round_id).items()
            }
            self.outbox.leave(messages.TRAIN, payloads, round_id, self.policy.recipe.work_timeout_s)
            self.asked |= dict.fromkeys(idle, now)
            event = HandedEvent(
                round=version + 1, attempt=round_id.attempt, version=version, members=tuple(idle)
            )
            self.attempt.on_event(event)

    def take_in(self) -> None:
        """Who is done becomes ready.

        Raises:
            BudgetError: too few members can go on.
        """
        for reply in self.outbox.collect(POLL_S):
            if reply.payload == messages.SPENT and self.policy.privacy.on:
                self.note_claim(reply.sender)
                continue
            self.news_at = self.waiting.clock.now()
            if self.attempt.model.worked(reply):
                self.note_offer(reply)
            elif self.attempt.model.at_once(reply.sender):
                self.asked.pop(reply.sender, None)
        self.report_waiting()

    def note_offer(self, reply: Reply) -> None:
        """Note what a member has ready, if it may still be summed; else it is asked anew, and
        trains from the newest.
        """
        try:
            version, named = messages.decode_offer(reply.payload)
        except MessageError as error:
            logger.warning("%s: %s", reply.sender, error)
            return
        if version > (known := self.state.round):
            logger.warning(
                "%s offers a contribution from version %d, there are %d",
                reply.sender, version, known,
            )  # fmt: skip
            return
        self.asked.pop(reply.sender, None)
        self.claims.discard(reply.sender)
        if self.is_fresh(version):
            self.offers[reply.sender] = Offer(version, *named)
            event = OfferedEvent(round=known + 1, party=reply.sender, version=version)
            self.attempt.on_event(event)

    def is_fresh(self, version: int) -> bool:
        """May a contribution from this version still be summed?"""
        return self.state.round - version <= self.policy.schedule.max_staleness

    def gather(self) -> tuple[str, ...] | None:
        """Members that are ready, there, and enough; None if they are too few.

        Raises:
            BudgetError: too few members can go on.
        """
        self.offers = {
            name: one for name, one in sorted(self.offers.items()) if self.is_fresh(one.version)
        }
        there, need = self.attempt.messenger.link.present(), self.policy.group_size
        here = self.alike(
            [name for name in self.offers if name in there and self.policy.member(name) is not None]
        )
        if len(here) < need:
            return None
        able, spent = self.accountants.part(here)
        self.note_spent(spent)
        if len(able) < need:
            return None
        # Who signed for a sum that was lost, from the adapter of its contribution, signs only for
        # one that fits it.
        before = {
            name: sets
            for name, (version, sets) in self.before.items()
            if name in self.offers and version == self.offers[name].version
        }
        names = tuple(sorted(able))
        shares = rank_masks_of(self.policy, names, 1) if self.policy.ranked else None
        split = self.attempt.split(names, SumContext(adapter=self.split_seed(), shares=shares))
        least = need if len(split) == 1 else self.policy.smallest_sum
        chosen = choose(split, before, need=need, least=least).members
        return tuple(name for name in names if name in chosen) or None

    def split_seed(self) -> bytes:
        """What the next group's buckets follow from."""
        return messages.split_seed(self.state.run, self.state.round)

    def alike(self, names: list[str]) -> list[str]:
        """Those of `names` that were told what most of their version were; the others would refuse
        the group, or be refused.

        A coordinator that was started again learns the older versions' digests from members alone.
        """
        offers = Counter(self.offers[name] for name in names)
        most = dict[int, Offer]()
        for offer, _ in sorted(offers.items(), key=lambda pair: (pair[1], pair[0])):
            most[offer.version] = offer
        odd = [name for name in names if most[self.offers[name].version] != self.offers[name]]
        for name in odd:
            logger.warning(
                "%s was told another adapter under version %d than others; left out",
                name, self.offers[name].version,
            )  # fmt: skip
        return self.vouched([name for name in names if name not in odd])

    def vouched(self, names: list[str]) -> list[str]:
        """Those of `names` that followed the adapter they trained from, and those that enough
        such members vouch for.
        """
        sure = [name for name in names if not self.attempt.model.relies(name)]
        need, versions = len(names) // 3 + 1, [self.offers[name].version for name in sure]
        return [
            name
            for name in names
            if name in sure
            or sum(version >= self.offers[name].version for version in versions) >= need
        ]

    def call(self, members: Iterable[str]) -> ReadyGroup:
        """Pay, and tell the group whose contributions are summed; who came is ready.

        Raises:
            RoundAborted: fewer than any sum needs, or the difference to an earlier sum would give
            somebody away.
        """
        round_id, worked = self.attempt.logbook.begin(), time.monotonic()
        # it goes into this sum, or is offered again
        offers = {name: self.offers.pop(name) for name in members}
        order = self.attempt.order(self.state.server.flat, training=True)
        group = Group(
            version=self.state.round,
            state=order.state,
            members=tuple((name, one.version) for name, one in sorted(offers.items())),
            adapters=tuple(sorted({one.version: one for one in offers.values()}.values())),
            ranges=order.ranges,
        )
        self.group = group.names
        spent = self.accountants.charge(group.names, round_id)
        sum_context = terms_of(
            self.policy, self.attempt.size, round_id, group.ranges, group.names,
            broadcast_digest=group.broadcast_digest, start=group.state, adapter=self.split_seed(),
        )  # fmt: skip
        answers = self.come(group, round_id)
        return ReadyGroup(
            round_id=round_id,
            kind=messages.TRAIN,
            draw=Draw(group.names, ()),
            answers=self.attempt.settle(answers, len(group.names), sum_context),
            sum_context=sum_context,
            ranges=group.ranges,
            spent=spent,
            started=self.stepped_at,
            worked=worked,
            staleness={name: group.staleness(name) for name in group.names},
        )

    def come(self, group: Group, round_id: RoundId) -> Answers:
        """Call the group; who came."""
        number, payload, answers = group.version + 1, messages.encode_group(group), Answers()
        timeout_s, versions = self.policy.recipe.stage_timeout_s, dict(group.members)
        event = AskedEvent(
            round=number, attempt=round_id.attempt, stage=messages.GROUP, cohort=group.names
        )
        self.attempt.on_event(event)
        payloads = dict.fromkeys(group.names, payload)
        for reply in self.attempt.messenger.ask(messages.GROUP, payloads, round_id, timeout_s):
            if answers.take(reply, self.policy):
                self.attempt.on_event(ReadyEvent(round=number, party=reply.sender))
        self.before |= {name: (versions[name], sets) for name, sets in answers.before.items()}
        return answers

    def note_claim(self, name: str) -> None:
        """A member says that it is spent: silence, and asked again, unless its account here says so
        too, or more than a third of the roster does.

        Raises:
            BudgetError: as `note_spent`.
        """
        if not doubt(name, self.accountants.of(name)):
            self.note_spent([name])
            return
        self.claims.add(name)
        if enough_claim(self.policy, self.claims):
            self.note_spent(sorted(self.claims))

    def note_spent(self, names: list[str]) -> None:
        """Ask these no more.

        Raises:
            BudgetError: too few are left.
        """
        self.spent |= set(names)
        for name in names:
            self.offers.pop(name, None)
        left, need = len(self.policy.members) - len(self.spent), self.policy.protection.min_cohort
        if names and left < need:
            raise BudgetError(
                f"{len(self.spent)} of {len(self.policy.members)} members have used up their "
                f"privacy budget, need {need} "
                "that have not; found a federation with a larger budget or more noise to go on"
            )

    def finish(self) -> None:
        """Let those who are still training finish, for so long that they get what comes of it."""
        clock = self.waiting.clock
        until = clock.now() + self.waiting.grace_s
        while self.outbox.pending and clock.now() < until:
            try:
                self.take_in()
            except BudgetError as reason:
                logger.info("%s", reason)
        self.outbox.cancel()

    def wait_for_members(self) -> None:
        """Until enough members are there that are not training: for a vote, or to score and
        deliver.

        Raises:
            PatienceError: as `check_patience`.
        """
        while len(self.attempt.messenger.link.present()) < self.policy.needed():
            self.waiting.between()
            self.take_in()
            self.check_patience()

    def check_patience(self) -> None:
        """Raises PatienceError once nothing has come for as long as the schedule says; a patient
        run does not count the time in which members are away that a group needs.
        """
        now, patience_s = self.waiting.clock.now(), self.policy.schedule.patience_s
        if self.waiting.patient and self.gathered and self.too_few_are_here():
            self.news_at = now
        if now - self.news_at >= patience_s:
            raise PatienceError(
                f"nobody has contributed for {patience_s:.0f} s (schedule.patience_s), "
                f"{len(self.offers)} are ready; start members with `quietchoir join`, then start "
                f"this command again: it goes on "
                "from the last step"
            )

    def too_few_are_here(self) -> bool:
        """As `RoundScheduler`; who trains is there as well."""
        return len(self.around()) < self.policy.protection.min_cohort

    def around(self) -> frozenset[str]:
        """Members that are there, or train."""
        return self.attempt.messenger.link.present() | self.outbox.pending.keys()

    def report_waiting(self) -> None:
        """Say how many are there and ready, when it has changed."""
        now = (len(self.around()), len(self.offers))
        if self.shown != now:
            self.shown, (there, ready), need = now, now, self.policy.group_size
            self.gathered = self.gathered or there >= need
            everybody = len(self.policy.members)
            event = WaitingEvent(present=there, minimum=need, roster=everybody, ready=ready)
            self.attempt.on_event(event)


def doubt(name: str, accountant: PrivacyAccountant) -> bool:
    """Could the member still pay, by the coordinator's account, though it says that it cannot?"""
    if able := accountant.affords():
        logger.warning(
            "%s says that its privacy budget is used up; by the account kept here it is not", name
        )
    return able


def enough_claim(policy: Policy, claims: Collection[str]) -> bool:
    """Do more than a third of the roster say that they are spent? So many are believed against the
    coordinator's account, which may have been lost; fewer could end a run with a lie.
    """
    return 3 * len(claims) > len(policy.members)


@functools.lru_cache(maxsize=8)
def ranking(policy: Policy, round_id: RoundId) -> tuple[str, ...]:
    """The roster in the order that this round's seed gives; the attempt plays no part in it."""
    seed = hashlib.sha256(
        f"quietchoir cohort 1 {round_id.run} {round_id.round}".encode() + policy.digest
    ).digest()
    return tuple(
        sorted(
            (one.name for one in policy.members),
            key=lambda name: hashlib.sha256(seed + name.encode()).digest(),
        )
    )


def draw(
    policy: Policy, round_id: RoundId, here: Collection[str], *, everybody: bool = False
) -> Draw:
    """The cohort of a round.

    Args:
        here: members that can be asked.
        everybody: all of them, as where an adapter is scored.

    Raises:
        RoundAborted: fewer are there than any sum needs.
    """
    known = {name for name in here if policy.member(name) is not None}
    if len(known) < (need := policy.needed()):
        raise RoundAborted(
            f"{len(known)} members are there, need {need}: nobody is "
            f"asked{policy.advice(len(known))}"
        )
    wanted, cohort, passed = policy.cohort_size(everybody=everybody), list[str](), list[str]()
    for name in ranking(policy, round_id):
        if len(cohort) == wanted:
            break
        (cohort if name in known else passed).append(name)
    return Draw(tuple(sorted(cohort)), tuple(sorted(passed)))


def check(
    policy: Policy, round_id: RoundId, found: Draw, name: str, *, everybody: bool = False
) -> None:
    """Require that `found` is the draw of this round, if those it calls absent are, and that `name`
    is in it.

    Raises:
        MessageError: it is not.
    """

    def find() -> Draw:
        present = {one.name for one in policy.members} - set(found.absent)
        return draw(policy, round_id, present, everybody=everybody)

    try:
        expected = once((policy.digest, round_id), ("draw", found.absent, everybody), find)
    except RoundAborted as error:
        raise MessageError(f"the cohort of round {round_id.round}: {error}; refused") from None
    if found != expected or name not in found.cohort:
        raise MessageError(
            f"{len(found.cohort)} members are asked that are not the draw of round "
            f"{round_id.round} ({len(expected.cohort)} expected, with {name} among them); refused"
        )
