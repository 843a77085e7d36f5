"""The coordinator of buffered rounds: members train when they are awake, and are summed in groups
as they become ready.

Knows who works on which version of the adapter, who is ready, and when that is enough. Knows
nothing of Flower, training or how a sum is protected.
Always: a group has at least the federation's minimum and at most one contribution of each member;
nobody waits for a member that is away or still training; who came to a group that failed is asked
anew, and offers what has not left it, or trains. The step that follows from a sum, the members'
vote and the run's end are those of `Coordinator`.

Source: Nguyen et al. 2022, "Federated learning with buffered asynchronous aggregation" (FedBuff),
arXiv 2106.06639, algorithm 1.
"""

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from ...core import log
from ...core.errors import BudgetError, ConfigError, MessageError, RoundAborted
from ...crypto.identity.keys import Identity
from ..aggregation.ranges import read_spans
from ..aggregation.rank_masks import rank_masks_of
from ..aggregation.survivor_sets import Sets, choose
from ..aggregation.update import Codec, Terms, seed_of
from ..events import AskedEvent, HandedEvent, OfferedEvent, ReadyEvent, WaitingEvent
from ..spec.policy import Policy
from ..store.checkpoint import Store
from ..wire import messages
from ..wire.link import LeavingLink, Link, PendingMessages, Traffic
from ..wire.messages import Group, RoundId
from .attempt import Answers, Outcome
from .privacy_accountant import PrivacyAccountants
from .selection import Draw
from .server import POLL_S, Coordinator

logger = log.get("federation.coordinator")
# a member that did not answer, or not usefully, is asked to train again no sooner than this after
# it was
AGAIN_S = 30.0


class BufferedServer(Coordinator):
    """One run of one federation whose schedule is buffered.

    Args:
        now: seconds of a clock that nobody sets; a simulation has its own.
        options: as `Coordinator`; there is no `purse`, each member has its own here.

    Hazard: the coordinator chooses whom it sums with whom, among the members that are ready; see
    `README.md`.
    """

    def __init__(
        self,
        policy: Policy,
        identity: Identity,
        link: LeavingLink,
        *,
        size: int,
        store: Store | None = None,
        now: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        store = store or Store(None)
        self.purses = PrivacyAccountants(policy, size, store.database)
        super().__init__(
            policy, identity, link, size=size, store=store, purse=self.purses.worst(), **options
        )
        self.now, self.outbox = now, PendingMessages(self.post, link)
        self.ready: dict[str, int] = {}  # member → version that its contribution was trained from
        # member → digest and state that it was told as that version, by its word
        self.heard: dict[str, tuple[str, str]] = {}
        # who was asked to train and has not answered usefully, and when
        self.asked: dict[str, float] = {}
        # members without enough of their privacy budget for one more group
        self.spent: set[str] = set()
        # Member → version of its contribution, and whom it signed for in earlier sums from that
        # version's adapter.
        self.before: dict[str, tuple[int, Sets]] = {}
        self.news_at, self.stepped_at = now(), time.monotonic()
        self.told: tuple[int, int] = (-1, -1)

    def learn(self, goal: int) -> None:
        """As `Coordinator`; who is still training when the last step is done is waited for no
        longer than `grace_s`.

        Raises:
            RoundAborted, BudgetError: as `go_on`.
        """
        try:
            self.go_on(goal)
        except BudgetError:
            self.call_in()
            raise
        self.call_in()

    def go_on(self, goal: int) -> None:
        """Step by step, each as soon as enough contributions are ready.

        Raises:
            RoundAborted: nobody has contributed for `schedule.patience_s`, or `recipe.attempts`
            groups in a row failed. BudgetError: too few members can pay for one more group.
        """
        failed, self.news_at = 0, self.now()
        while self.state.round < goal:
            self.between()
            self.hand_out()
            self.take_in()
            if (group := self.gather()) is None:
                self.check_patience()
                continue
            try:
                self.step(group)
                failed = 0
            except RoundAborted as reason:
                self.abandon(reason)
                failed += not (self.patient and self.too_few_are_here())
                if failed >= self.policy.recipe.attempts:
                    raise

    def take(self, policy: Policy) -> None:
        """As `Coordinator`; what members keep outlives a change of the roster, what is under way
        is asked for again.
        """
        super().take(policy)
        self.purses.policy = policy
        self.outbox.recall()
        self.asked.clear()

    def hand_out(self) -> None:
        """Whoever is there and has nothing to do trains from the newest adapter."""
        now, there = self.now(), self.link.present()
        idle = sorted(
            name
            for name in there - self.ready.keys() - self.spent
            if self.policy.member(name) is not None
            and now - self.asked.get(name, -math.inf) >= AGAIN_S
        )
        if idle:
            place, version = self.logbook.begin(), self.state.round
            order = self.assembly.order(self.state.server.flat, evaluate=self.wants_score())
            letters = {
                name: messages.encode_train(version, told)
                for name, told in self.model.letters(order, idle, place).items()
            }
            self.outbox.leave(messages.TRAIN, letters, place, self.policy.recipe.work_timeout_s)
            self.asked |= dict.fromkeys(idle, now)
            self.on_event(
                HandedEvent(
                    round=version + 1, attempt=place.attempt, version=version, members=tuple(idle)
                )
            )

    def take_in(self) -> None:
        """Who is done becomes ready.

        Raises:
            BudgetError: too few members can go on.
        """
        for reply in self.outbox.collect(POLL_S):
            self.news_at = self.now()
            if reply.payload == messages.SPENT and self.policy.privacy.on:
                self.note_spent([reply.sender])
                continue
            if not self.model.worked(reply):
                if self.model.at_once(reply.sender):
                    self.asked.pop(reply.sender, None)
                continue
            try:
                version, told = messages.decode_offer(reply.payload)
            except MessageError as error:
                logger.warning("%s: %s", reply.sender, error)
                continue
            if version > self.state.round:
                logger.warning(
                    "%s offers a contribution from version %d, there are %d",
                    reply.sender,
                    version,
                    self.state.round,
                )
                continue
            self.asked.pop(reply.sender, None)
            if self.is_fresh(version):  # else it is asked anew, and trains from the newest
                self.ready[reply.sender], self.heard[reply.sender] = version, told
                number = self.state.round + 1
                self.on_event(OfferedEvent(round=number, party=reply.sender, version=version))
        self.tell()

    def is_fresh(self, version: int) -> bool:
        """May a contribution from this version still be summed?"""
        return self.state.round - version <= self.policy.schedule.max_staleness

    def gather(self) -> dict[str, int] | None:
        """Members that are ready, there, and enough, with the versions they trained from; None if
        they are too few.

        Raises:
            BudgetError: too few members can go on.
        """
        self.ready = {
            name: version for name, version in sorted(self.ready.items()) if self.is_fresh(version)
        }
        there, need = self.link.present(), self.policy.group_size
        here = self.alike(
            [name for name in self.ready if name in there and self.policy.member(name) is not None]
        )
        if len(here) < need:
            return None
        able, spent = self.purses.part(here)
        self.note_spent(spent)
        if len(able) < need:
            return None
        # Who signed for a sum that was lost, from the adapter of its contribution, signs only for
        # one that fits it.
        before = {
            name: sets
            for name, (version, sets) in self.before.items()
            if version == self.ready.get(name)
        }
        names = tuple(sorted(able))
        split = self.assembly.split(names, self.group_terms(names))
        least = need if len(split) == 1 else self.policy.smallest_sum
        chosen = choose(split, before, need=need, least=least).members
        return {name: self.ready[name] for name in able if name in chosen} or None

    def alike(self, names: list[str]) -> list[str]:
        """Those of `names` that were told what most of their version were; the others would refuse
        the group, or be refused.

        A coordinator that was started again learns the older versions' digests from members alone.
        """
        said = Counter((self.ready[name], self.heard[name]) for name in names)
        most = dict[int, tuple[str, str]]()
        for (version, told), _ in sorted(said.items(), key=lambda pair: (pair[1], pair[0])):
            most[version] = told
        for name in (odd := [name for name in names if most[self.ready[name]] != self.heard[name]]):
            logger.warning(
                "%s was told another adapter under version %d than others; left out",
                name,
                self.ready[name],
            )
        return self.vouched([name for name in names if name not in odd])

    def vouched(self, names: list[str]) -> list[str]:
        """Those of `names` that followed the adapter they trained from, and those that enough
        such members vouch for.
        """
        sure, need = ([name for name in names if not self.model.relies(name)], len(names) // 3 + 1)
        return [
            name
            for name in names
            if name in sure or sum(self.ready[other] >= self.ready[name] for other in sure) >= need
        ]  # fmt: skip

    def step(self, group: Mapping[str, int]) -> None:
        """Sum what the group has, step, let members judge it, write it down.

        Raises:
            RoundAborted: too few came, or too few were left; the adapter is as it was.
        """
        outcome = self.hold(group)
        rest = Traffic(
            {name: size for name, size in self.post.traffic.up.items() if name not in group},
            {name: size for name, size in self.post.traffic.down.items() if name not in group},
        )
        self.apply(self.state.server, outcome)
        self.post.traffic, self.news_at, self.stepped_at = rest, self.now(), time.monotonic()

    def hold(self, group: Mapping[str, int]) -> Outcome:
        """One attempt: number on disk, privacy paid, the group called, its contributions summed.

        Raises:
            RoundAborted: as `step`.
        """
        place, flat, worked = self.logbook.begin(), self.state.server.flat, time.monotonic()
        order = self.assembly.order(flat, training=True)
        ranges = order.ranges
        adapters = {version: (version, *self.heard[name]) for name, version in group.items()}
        call = Group(
            version=self.state.round, state=order.state, members=tuple(sorted(group.items())),
            adapters=tuple(sorted(adapters.values())), ranges=ranges,
        )  # fmt: skip
        for name in group:
            del self.ready[name]  # it goes into this sum, or is offered again
        spent = self.purses.pay(group, place)
        self.purse = self.purses.worst()
        spans = read_spans(ranges, self.size, self.policy.recipe.update_range) if ranges else ()
        terms = dataclasses.replace(
            self.group_terms(call.names),
            ranges=spans,
            seed=seed_of(self.policy, place),
            told=call.told,
            start=call.state,
        )
        answers = self.call(call, place, terms)
        codec = Codec(self.size, self.policy, terms)
        sums, opened = self.assembly.open(
            self.assembly.combine(place, answers, codec.length, True, terms, len(group)), codec
        )
        means = tuple(mean for mean, _ in opened)
        self.model.opened(place, call.names, sums, means)
        parties = sorted(name for total in sums for name in total.parties)
        return Outcome(
            place=place,
            draw=Draw(call.names, ()),
            sums=sums,
            means=means,
            ranges=ranges,
            spent=spent,
            votes=tuple(statistics for _, statistics in opened),
            started=self.stepped_at,
            worked=worked,
            traffic=self.traffic_of(call.names),
            staleness=tuple(sorted(call.staleness(name) for name in parties)),
            shares=terms.shares,
        )

    def group_terms(self, names: tuple[str, ...]) -> Terms:
        """How a group of these members is split, and who of them trains what."""
        seed = messages.split_seed(self.state.run, self.state.round)
        shares = rank_masks_of(self.policy, names, 1) if self.policy.ranked else None
        return Terms(adapter=seed, shares=shares)

    def traffic_of(self, names: tuple[str, ...]) -> Traffic:
        """Bytes of these members since they were last summed."""
        up, down = self.post.traffic.up, self.post.traffic.down
        return Traffic(
            {name: up.get(name, 0) for name in names}, {name: down.get(name, 0) for name in names}
        )

    def call(self, group: Group, place: RoundId, terms: Terms) -> Answers:
        """Tell the group whose contributions are summed; return who came.

        Raises:
            RoundAborted: fewer than any sum needs, or the difference to an earlier sum would give
            somebody away.
        """
        number, need, payload = (
            group.version + 1,
            self.policy.needed(len(group.names)),
            messages.encode_group(group),
        )
        self.on_event(
            AskedEvent(
                round=number, attempt=place.attempt, stage=messages.GROUP, cohort=group.names
            )
        )
        came = Answers()
        timeout_s = self.policy.recipe.stage_timeout_s
        for reply in self.post.ask(
            messages.GROUP, dict.fromkeys(group.names, payload), place, timeout_s
        ):
            if came.take(reply):
                self.on_event(ReadyEvent(round=number, party=reply.sender))
        self.before |= {
            name: (dict(group.members)[name], sets) for name, sets in came.before.items()
        }
        if len(came.ready) < need:
            raise RoundAborted(
                f"{len(came.ready)} of {len(group.names)} members came to their group, need {need}"
            )
        if terms.shares is not None and (reason := terms.shares.short(came.ready)):
            raise RoundAborted(reason)
        return self.assembly.choose(came, terms, need)

    def note_spent(self, names: list[str]) -> None:
        """Ask these no more.

        Raises:
            BudgetError: too few are left.
        """
        self.spent |= set(names)
        for name in names:
            self.ready.pop(name, None)
        left, need = len(self.policy.members) - len(self.spent), self.policy.protection.min_cohort
        if names and left < need:
            raise BudgetError(
                f"{len(self.spent)} of {len(self.policy.members)} members have used up their "
                f"privacy budget, need {need} "
                "that have not; found a federation with a larger budget or more noise to go on"
            )

    def call_in(self) -> None:
        """Let those who are still training finish, for so long that they get what comes of it."""
        until = self.now() + self.grace_s
        while self.outbox.owed and self.now() < until:
            self.take_in()
        self.outbox.recall()

    def wait_for_members(self) -> None:
        """Until enough members are there that are not training: for a vote, or to score and
        deliver.

        Raises:
            RoundAborted: as `check_patience`.
        """
        while len(self.link.present()) < self.policy.needed():
            self.between()
            self.take_in()
            self.check_patience()

    def check_patience(self) -> None:
        """Raises RoundAborted once nothing has come for as long as the schedule says; a patient
        coordinator does not count the time in which members are away that a group needs.
        """
        if self.patient and self.gathered and self.too_few_are_here():
            self.news_at = self.now()
        if self.now() - self.news_at >= self.policy.schedule.patience_s:
            raise RoundAborted(
                f"nobody has contributed for {self.policy.schedule.patience_s:.0f} s "
                f"(schedule.patience_s), "
                f"{len(self.ready)} are ready; start members with `quietchoir join`, then start "
                f"this command again: it goes on "
                "from the last step"
            )

    def too_few_are_here(self) -> bool:
        """As `Coordinator`; who trains is there as well."""
        return (
            len(self.link.present() | self.outbox.owed.keys()) < self.policy.protection.min_cohort
        )

    def tell(self) -> None:
        """Say how many are there and ready, when it has changed."""
        there = len(self.link.present() | self.outbox.owed.keys())  # who trains is there as well
        if self.told != (there, len(self.ready)):
            self.told = (there, len(self.ready))
            need, everybody = self.policy.group_size, len(self.policy.members)
            self.gathered = self.gathered or there >= need
            self.on_event(
                WaitingEvent(present=there, minimum=need, roster=everybody, ready=len(self.ready))
            )


def coordinator_of(
    policy: Policy, identity: Identity, link: Link, *, size: int, **options: Any
) -> Coordinator:
    """The coordinator that a federation's schedule asks for; arguments as `Coordinator`.

    Raises:
        ConfigError: buffered rounds over a link that leaves no letters. As `Coordinator`.
    """
    if not policy.schedule.buffered:
        return Coordinator(policy, identity, link, size=size, **options)
    if not isinstance(link, LeavingLink):
        raise ConfigError(
            'schedule.rounds = "buffered" needs `quietchoir coordinate` and `join`: this way to '
            "the members asks "
            "them all and waits; found with schedule.rounds synchronous to use it"
        )
    return BufferedServer(policy, identity, link, size=size, **options)
