"""The coordinator: carries messages, adds up what it cannot read, steps the adapter.

    1 train, 2 ready    the schedule's group           scheduler
    3 aggregate         a sum, or several              attempt
    4 step              where the adapter lives        global_model
    5 vote              where there is a guard         validation
    6 on disk                                          ../store/checkpoint

Knows rounds. Knows nothing of Flower, training or how a sum is protected.
Always: the state on disk is that of the last whole round plus the number of the attempt that has
begun; an attempt that ends without a sum (too few members, too few survivors) leaves the adapter as
it was; nothing is averaged over fewer members than the federation's minimum.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from ...core import log
from ...core.errors import BudgetError, FederationError, RoundAborted
from ...crypto.he.encrypted_ring import CryptoWorker
from ...crypto.identity.keys import Identity
from ..aggregation.clipping import bare, clip_at, length_of, stepper_of
from ..aggregation.server_optimizer import combine
from ..events import (
    AbortedEvent,
    BallotsEvent,
    BucketsEvent,
    DeliveredEvent,
    OnEvent,
    RoundEvent,
    StoppedEvent,
    SuspectEvent,
    TuningEvent,
)
from ..spec.policy import Policy
from ..store.checkpoint import Logbook, RunState, ServerState, Store, Vector
from ..wire import messages
from ..wire.link import Link, Messenger
from . import tuning, validation
from .attempt import Outcome, RoundAttempt, write_entry
from .delivery import Delivery
from .global_model import ServerHeld
from .member_held import MemberHeld
from .model_broadcast import ServerHeldDelta
from .privacy_accountant import ANY, PrivacyAccountant, PrivacyAccountants
from .report import RunReport, ballots_sentence, buckets_sentence, summary
from .scheduler import Buffered, PatienceError, RoundScheduler, Synchronous, Waiting
from .validation import Verdict

logger = log.get("federation.coordinator")
Keeper = Callable[[Vector, dict[str, object]], tuple[str, str]]
T = TypeVar("T")


class RoundServer:
    """One run of one federation.

    Args:
        identity: the key that the federation file names for its coordinator.
        size: values that rounds carry (`Policy.carried` of the adapter's); stops: where its tensors
        end, by default only at the end. keep: takes the finished adapter [n] and its evaluation;
        returns its name and its signed card. Not in sealed mode.
        waiting: how long members are waited for.
        crypto_worker: in sealed mode, the worker that adds ciphertexts; by default a new one.
    """

    def __init__(
        self,
        policy: Policy,
        identity: Identity,
        link: Link,
        *,
        size: int,
        stops: Sequence[int] = (),
        store: Store | None = None,
        keep: Keeper | None = None,
        on_event: OnEvent | None = None,
        waiting: Waiting | None = None,
        crypto_worker: CryptoWorker | None = None,
    ) -> None:
        """Take up the run where its store left it.

        Raises:
            FederationError: the key is not the one in the file, or the store belongs to something
            else. ConfigError: noise that does not fit the federation's bits, a history of privacy
            that cannot be read, or buffered rounds over a link that leaves no messages.
        """
        if identity.public.raw.hex() != policy.coordinator.key:
            raise FederationError(
                f"this key is not the coordinator's of {policy.name}; use the "
                f"key made by `federation init`"
            )
        self.size, self.keep = size, keep
        self.on_event = on_event or (lambda event: None)
        store = store or Store(None)
        # in sealed mode no adapter is here
        self.logbook = Logbook(store, policy, 0 if policy.can.model_held_by == "members" else size)
        self.messenger = Messenger(policy, identity, link)
        self.model = self.model_of(tuple(stops) or (size,), crypto_worker)
        self.attempt = RoundAttempt(self.messenger, self.logbook, self.model, self.on_event)
        # while no round is under way: a later federation file may come
        self.between: Callable[[], None] = lambda: None
        waiting = dataclasses.replace(waiting or Waiting(), between=lambda: self.between())
        self.waiting, self.cohort, self.scheduler = waiting, *self.schedules(waiting, store)
        self.delivery = Delivery(self.attempt, self.on_event)
        self.held: dict[str, object] = {}
        self.aborted: list[str] = []

    def schedules(self, waiting: Waiting, store: Store) -> tuple[Synchronous, RoundScheduler]:
        """Who is asked for scores, and who trains when."""
        policy, buffered = self.policy, self.policy.schedule.buffered
        if not buffered:
            account = PrivacyAccountant(policy, self.size, ANY, store.database)
            drawn = Synchronous(self.attempt, account, waiting)
            return drawn, drawn
        accounts = PrivacyAccountants(policy, self.size, store.database)
        drawn = Synchronous(self.attempt, accounts.worst(), waiting)
        return drawn, Buffered(self.attempt, accounts, waiting)

    @property
    def policy(self) -> Policy:
        """The newest federation file."""
        return self.messenger.policy

    @property
    def link(self) -> Link:
        """The way to the members."""
        return self.messenger.link

    def model_of(self, stops: Sequence[int], crypto_worker: CryptoWorker | None) -> ServerHeld:
        """Where this run's adapter lives."""
        optimizer, held = stepper_of(self.policy, self.size), held_by(self.policy)
        more = (
            {"crypto_worker": crypto_worker, "on_event": self.on_event}
            if held is MemberHeld
            else {}
        )
        return held(self.messenger, self.logbook, optimizer, self.size, stops, **more)

    @property
    def state(self) -> RunState:
        """The run as it is on disk."""
        return self.logbook.state

    def run(self, rounds: int | None = None, *, stay_s: float = 0.0) -> RunReport:
        """Go on until `rounds` are done (default: the federation's) or the privacy budget is; then
        score and deliver. A run that has ended, unless it is to have more rounds, is delivered
        only.

        Args:
            stay_s: how long members that do not have the adapter yet are waited for at the end.

        Raises:
            RoundAborted: too few members for too long, or a round failed as often as the recipe
            allows.
        """
        started, stopped = time.monotonic(), ""
        if not self.state.finished or (rounds or 0) > self.state.round:
            stopped = self.finish(rounds or self.policy.recipe.rounds)
        self.delivery.stay(stay_s, self.between)
        return self.report(time.monotonic() - started, stopped)

    def finish(self, goal: int) -> str:
        """All rounds, the score, the delivery; why it ended before its goal, if it did.

        Raises:
            RoundAborted: as `run`.
        """
        stopped = ""
        several = self.policy.aggregation.buckets > 1
        if several and (price := buckets_sentence(self.policy)) is not None:
            self.on_event(BucketsEvent(price=price))
        if self.policy.guard.open:
            self.on_event(BallotsEvent(price=ballots_sentence(self.policy)))
        if self.tuned:
            self.on_event(TuningEvent(price=tuning.price(self.policy, self.size)))
        try:
            stopped = self.learn(goal)
        # an end like any other: what was learned until here is delivered
        except BudgetError as reason:
            stopped = str(reason)
        if stopped:
            self.on_event(StoppedEvent(round=self.state.round, reason=stopped))
        self.scheduler.finish()
        for suspicion in self.suspects():
            self.on_event(SuspectEvent(**dataclasses.asdict(suspicion)))
        if not self.state.finished:
            if self.policy.privacy.counts and not self.knows_score():
                self.insist(self.score_round)
            self.insist(self.deliver)
        return stopped

    def learn(self, goal: int) -> str:
        """Rounds until `goal` are done, or no further one would help; then why.

        Raises:
            RoundAborted: as `run`. BudgetError: the next one cannot be paid.
        """
        self.scheduler.start()
        while self.state.round < goal:
            if self.tuned and (reason := tuning.settled(self.state.history)):
                return reason
            self.insist(self.train_round, self.scheduler.retry)
        return ""

    @property
    def tuned(self) -> bool:
        """Do rounds choose their learning rate?"""
        return self.policy.recipe.tuning == "auto"

    def take(self, policy: Policy) -> None:
        """Go on under a later version of the federation file that differs in who belongs,
        nothing else.
        """
        self.messenger.policy = policy
        self.logbook.keep(version=policy.version)
        self.scheduler.renew()

    def train_round(self) -> None:
        """One round: train, ready, aggregate, step."""
        if self.owes_vote():
            self.confirm()
        group = self.scheduler.next_group(evaluate=self.wants_score())
        self.apply(self.state.server, self.attempt.aggregate(group))

    def apply(self, parent: ServerState, outcome: Outcome) -> None:
        """Step with what came out, let members judge it, write it down."""
        change = combine(outcome.means, self.policy.aggregation.rule, self.policy.aggregation.trim)
        self.held = outcome.sums[0].held
        entry = write_entry(outcome, self.state, self.policy)
        entry["update_norm"] = round(float(np.linalg.norm(change)), 4)
        if self.policy.privacy.adaptive and parent.flat.size:  # sealed: only members know it
            entry["update_norm"] = round(length_of(self.policy, change, parent.flat), 4)
            entry["clip"] = round(clip_at(self.policy, parent.flat), 6)
        if self.model.held_by_members or not self.policy.guard.on:
            self.commit(self.model.step(parent, change), entry)
        else:
            self.commit_guarded(
                parent, [change, *(outcome.means if len(outcome.means) > 1 else ())], entry
            )
        if self.owes_vote():
            self.confirm()
        self.on_event(RoundEvent(entry=self.state.history[-1]))

    def score_round(self) -> None:
        """Score the adapter on everybody's held-out examples; the counts come back as sums."""
        outcome = self.attempt.aggregate(self.cohort.ask(messages.SCORE, self.state.server.flat))
        entry = write_entry(outcome, self.state, self.policy)
        history = (*(old for old in self.state.history if old["kind"] == messages.TRAIN), entry)
        self.logbook.keep(history=history, opening=False, skipped=self.state.skipped + 1)
        self.on_event(RoundEvent(entry=entry))

    def commit(self, server: ServerState, entry: dict[str, Any]) -> None:
        """A whole round is done."""
        self.logbook.commit(server, entry, self.model.steps_to(server))

    def commit_guarded(
        self, parent: ServerState, changes: Sequence[Vector], entry: dict[str, Any]
    ) -> None:
        """Keep the first change if members do not find it worse; else the best of the others, each
        a bucket's own; else none.

        Where the file says "choose", or each was made at a rate of its own, all of them are scored.
        An undone round leaves the parent, with an optimizer at rest.

        Raises:
            RoundAborted: too few voted, as often as the recipe allows; nothing is kept.
        """
        # of the number under which the change was opened; a kill from here on loses the round, no
        # more
        self.logbook.skip()
        first, *others = (self.model.step(parent, change) for change in changes)
        server, verdict = first, self.insist(lambda: self.vote(first.flat, [entry]))
        tried = len(entry.get("rates", ())) > 1
        further = others if not verdict.kept or tried or self.policy.guard.rule == "choose" else []
        trials, sent = list[float](), verdict.bytes
        for number, other in enumerate(further, start=1):
            salvaged = self.insist(lambda flat=other.flat: self.vote(flat, [entry]))  # type: ignore[misc]
            trials.append(salvaged.rank)
            sent += salvaged.bytes
            if salvaged.kept and (not verdict.kept or salvaged.rank > verdict.rank):
                server, verdict = (
                    other,
                    dataclasses.replace(
                        salvaged, reason=f"kept: the change of bucket {number} alone"
                    ),
                )
        if not verdict.kept:
            server = self.model.rest(parent)
        said = dataclasses.asdict(verdict) | {"bytes": sent}
        if further or tried:
            said["trials"] = trials
        self.commit(server, {**entry, "guard": said})

    def vote(self, flat: Vector, running: Sequence[dict[str, Any]] = ()) -> Verdict:
        """What the members say of the adapter `flat` ([0] in sealed mode: of the one they hold).

        Args:
            running: entries of rounds that are not written down yet.
        """
        outcome = self.attempt.aggregate(self.cohort.ask(messages.SCORE, flat))
        self.logbook.skip()
        votes = [
            (counters, len(total.parties))
            for counters, total in zip(outcome.votes, outcome.sums, strict=True)
        ]
        history = [*self.state.history, *running]
        nearest = validation.nearest_of(history) if self.tuned else 0.0
        verdict = validation.judge(self.policy.guard, votes, validation.best_of(history), nearest)
        if self.policy.guard.open:
            ballots = outcome.group.answers.ballots
            verdict = validation.count(self.policy, verdict, ballots, self.state.history)
        sent = sum((*outcome.traffic.up.values(), *outcome.traffic.down.values()))
        return dataclasses.replace(verdict, bytes=sent)

    def owes_vote(self) -> bool:
        """Sealed mode: members step by themselves, so they judge afterwards; is the last step
        not judged yet?
        """
        history = self.state.history
        return (
            self.model.held_by_members
            and self.policy.guard.on
            and bool(history)
            and "guard" not in history[-1]
        )

    def confirm(self) -> None:
        """Sealed mode: let members judge the adapter that they hold, and go back by one step if
        it is worse.
        """
        *earlier, last = self.state.history
        verdict = self.insist(lambda: self.vote(self.state.server.flat))
        if not verdict.kept:
            steps = self.state.round
            self.insist(lambda: self.model.rollback(steps))
        self.logbook.keep(history=(*earlier, {**last, "guard": dataclasses.asdict(verdict)}))

    def deliver(self) -> None:
        """Keep the finished adapter here and hand it to every member that is there.

        Raises:
            RoundAborted: sealed mode, and too few members share an adapter.
        """
        accuracy, _ = summary(list(self.state.history))
        evaluation: dict[str, object] = {
            **accuracy,
            "rounds": self.state.round,
            "run": self.state.run,
        }
        if (spent := self.privacy_spent()) is not None:
            evaluation |= {"privacy": spent, "epsilon": spent["epsilon"], "delta": spent["delta"]}
        name, card = "", ""
        if self.model.held_by_members:  # the adapter is the members', each signs its own card
            card = json.dumps(evaluation)
        elif self.keep is not None:
            name, card = self.keep(bare(self.policy, self.state.server.flat), evaluation)
        delivered = self.delivery.hand(card, self.link.present())
        self.logbook.keep(finished=True, adapter=name, card=card, delivered=delivered)
        self.on_event(DeliveredEvent(adapter=name, members=delivered))

    def insist(self, attempt: Callable[[], T], retry: Callable[[], None] | None = None) -> T:
        """Try a round as often as the recipe allows.

        Args:
            retry: between attempts; by default waits until enough members are there.

        Raises:
            RoundAborted: the last attempt's reason; state and adapter are those of the last whole
            round. PatienceError: none could begin.
        """
        left = self.policy.recipe.attempts
        while True:
            self.between()
            try:
                return attempt()
            except PatienceError:
                raise
            except RoundAborted as reason:
                self.abandon(reason)
                left -= not (self.waiting.patient and self.scheduler.too_few_are_here())
                if not left:
                    raise
                (retry or self.scheduler.wait_for_members)()

    def abandon(self, reason: RoundAborted) -> None:
        """Note an attempt that ended without a sum."""
        self.logbook.skip_opened()
        self.aborted.append(f"round {self.state.round + 1}, attempt {self.state.attempt}: {reason}")
        self.on_event(AbortedEvent(round=self.state.round + 1, reason=str(reason)))
        logger.info("%s", self.aborted[-1])

    def knows_score(self) -> bool:
        """Was the adapter that is here scored already? Members sum the scores of one adapter
        over the same members alone.
        """
        history = self.state.history
        if history and history[-1]["kind"] == messages.SCORE:
            return True
        return self.policy.guard.on and validation.parents_score(history) is not None

    def wants_score(self) -> bool:
        """Does this round score the adapter it starts from? The first one does; later ones'
        scores a guard knows already.
        """
        recipe, first = self.policy.recipe, self.state.round == 0
        if not self.policy.privacy.counts or self.knows_score():
            return False
        if self.policy.guard.on:
            return True
        return first or (
            recipe.evaluate_every > 0 and self.state.round % recipe.evaluate_every == 0
        )

    def privacy_spent(self) -> dict[str, object] | None:
        """What the run has cost in privacy, and how that was counted; None without noise."""
        return self.scheduler.accountant.spent() if self.policy.privacy.on else None

    def suspects(self) -> list[validation.Suspicion]:
        """Members that the votes on buckets speak against."""
        return validation.suspects(self.state.history, self.policy.guard.margin)

    def report(self, seconds: float, stopped: str) -> RunReport:
        """The run so far."""
        accuracy, sent = summary(list(self.state.history))
        return RunReport(
            federation=self.policy.federation.hex(),
            name=self.policy.name,
            protection=self.policy.protection.mode,
            bits=self.policy.protection.bits,
            nodes=len(self.policy.members),
            rounds=self.state.round,
            seconds=round(seconds, 3),
            accuracy=accuracy,
            bytes_per_node_round=sent,
            adapter=self.state.adapter,
            members=[one.name for one in self.policy.members],
            delivered=list(self.state.delivered),
            aborted=self.aborted,
            history=list(self.state.history),
            held=self.held,
            privacy=self.privacy_spent(),
            stopped=stopped,
            suspects=[dataclasses.asdict(one) for one in self.suspects()],
        )


def held_by(policy: Policy) -> type[ServerHeld]:
    """Where a federation's adapter lives."""
    if policy.can.model_held_by == "members":
        return MemberHeld
    return ServerHeldDelta if policy.followed else ServerHeld
