"""The coordinator: carries letters, adds up what it cannot read, steps the adapter.

Knows rounds. Knows nothing of Flower, training or how a sum is protected.
Always: the state on disk is that of the last whole round plus the number of the attempt that has begun; an attempt
that ends without a sum (too few members, too few survivors) leaves the adapter as it was; nothing is averaged over
fewer members than the federation's minimum.
"""

import dataclasses
import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from ...core import log
from ...core.errors import CryptoError, DataError, FederationError, MessageError, RoundAborted
from ...crypto.keys import Identity
from ...crypto.sealed import AdderService, Desk
from ...crypto.worker import Worker
from ..exchange import messages, work
from ..exchange.link import Link
from ..exchange.messages import Place, Reply, Task
from ..learning.aggregate import FedAvgM, ServerState, Vector
from ..membership.policy import Policy
from ..protection.modes import Sealing, coordinator_half
from ..protection.seam import Sum
from ..protection.update import Codec, Statistics
from ..sealed.muster import Muster
from .checkpoint import RunState, Store
from .report import RoundReport, RunReport, summary

logger = log.get("federation.coordinator")
Event = dict[str, object]
Keeper = Callable[[Vector, dict[str, object]], tuple[str, str]]
POLL_S = 0.1


@dataclass(slots=True)
class Traffic:
    """Bytes of letters in one attempt, by party."""

    up: dict[str, int] = field(default_factory=dict)
    down: dict[str, int] = field(default_factory=dict)


class Coordinator:
    """One run of one federation.

    Args:
        identity: the key that the federation file names for its coordinator.
        size: length n of the adapter's flat vector.
        keep: takes the finished adapter [n] and its evaluation; returns its name and its signed card. Not in sealed mode.
        wait_s: how long too few members are waited for.
        grace_s: once the minimum is there, how long the rest of the roster is waited for.
        desk: in sealed mode, the worker that adds ciphertexts; by default a new one.
    """

    def __init__(
        self,
        policy: Policy,
        identity: Identity,
        link: Link,
        *,
        size: int,
        store: Store | None = None,
        keep: Keeper | None = None,
        on_event: Callable[[Event], None] | None = None,
        wait_s: float = 600.0,
        grace_s: float = 30.0,
        desk: Desk | None = None,
    ) -> None:
        """Take up the run where its store left it.

        Raises:
            FederationError: the key is not the one in the file, or the store belongs to something else.
        """
        if identity.public.raw.hex() != policy.coordinator.key:
            raise FederationError(f"this key is not the coordinator's of {policy.name}; use the key made by `federation init`")
        self.policy, self.identity, self.link, self.size = policy, identity, link, size
        self.store = store or Store(None)
        self.keep = keep
        self.on_event = on_event or (lambda event: None)
        self.wait_s, self.grace_s = wait_s, grace_s
        sealed = policy.protection.mode == "sealed"
        self.desk = (desk or Worker(AdderService)) if sealed else None
        self.sealing: Sealing | None = None  # of this attempt
        self.held_size = 0 if sealed else size  # values of the adapter that are here: in sealed mode none
        self.state: RunState = self.store.load(policy, self.held_size)
        self.skip_opened()
        self.optimizer = FedAvgM(policy.recipe.server_lr, policy.recipe.server_momentum)
        self.traffic = Traffic()
        self.held: dict[str, object] = {}
        self.aborted: list[str] = []

    def run(self, rounds: int | None = None) -> RunReport:
        """Go on until `rounds` are done (default: the federation's), then score and deliver the adapter.

        Raises:
            RoundAborted: too few members for too long, or a round failed as often as the recipe allows.
        """
        goal = rounds or self.policy.recipe.rounds
        started = time.monotonic()
        self.wait_for_members()
        while self.state.round < goal:
            self.insist(self.train_round)
        name, delivered = "", list[str]()
        if not self.state.finished:
            self.insist(self.score_round)
            name, delivered = self.deliver()
        return self.report(time.monotonic() - started, name, delivered)

    def train_round(self) -> None:
        """One round: sample, ask, combine, apply, check, write down."""
        started = time.monotonic()
        cohort = self.sample()  # 1  who
        place = self.begin_attempt()  # 2  on disk before anybody is asked
        able = self.muster(cohort, place)
        ready = self.ask_work(work.TRAIN, self.order(evaluate=self.wants_score()), able, place)  # 3  train
        worked = time.monotonic()
        total = self.combine(place, ready, Codec(self.size, self.policy))  # 4  the sum, nothing else
        mean, statistics = decode_sum(Codec(self.held_size, self.policy), total)
        server = self.optimizer.step(self.state.server, mean)  # 5  apply
        self.held = total.held
        entry = self.describe(work.TRAIN, place, cohort, total, statistics, (started, worked))
        entry["update_norm"] = round(float(np.linalg.norm(mean)), 4)
        self.commit(server, entry)  # 6  on disk
        self.on_event({"event": "round", **entry})  # fmt: skip

    def score_round(self) -> None:
        """Score the adapter on everybody's held-out examples; the counts come back as sums."""
        started = time.monotonic()
        cohort, place = self.sample(everybody=True), self.begin_attempt()
        able = self.muster(cohort, place)
        ready = self.ask_work(work.SCORE, self.order(), able, place)
        worked = time.monotonic()
        codec = Codec(0, self.policy)
        total = self.combine(place, ready, codec)
        _, statistics = decode_sum(codec, total)
        entry = self.describe(work.SCORE, place, cohort, total, statistics, (started, worked))
        history = (*(old for old in self.state.history if old["kind"] == work.TRAIN), entry)
        self.keep_state(dataclasses.replace(self.state, history=history, opening=False, skipped=self.state.skipped + 1))
        self.on_event({"event": "score", **entry})

    def deliver(self) -> tuple[str, list[str]]:
        """Keep the finished adapter here and hand it to every member that is there."""
        accuracy, _ = summary(list(self.state.history))
        evaluation: dict[str, object] = {**accuracy, "rounds": self.state.round, "run": self.state.run}
        name, card = "", ""
        if self.desk is not None:  # sealed: the adapter is the members', each signs its own card
            card = json.dumps(evaluation)
        elif self.keep is not None:
            name, card = self.keep(self.state.server.flat, evaluation)
        members, place = tuple(sorted(self.link.present())), self.begin_attempt()
        payload = work.encode(self.order(card=card))
        replies = self.ask(work.ADOPT, dict.fromkeys(members, payload), place, self.policy.recipe.stage_timeout_s)
        delivered = sorted(reply.sender for reply in replies)
        self.keep_state(dataclasses.replace(self.state, finished=True))
        self.on_event({"event": "delivered", "adapter": name, "members": delivered})
        return name, delivered

    def insist(self, attempt: Callable[[], None]) -> None:
        """Try a round as often as the recipe allows; between attempts wait until enough members are there.

        Raises:
            RoundAborted: the last attempt's reason; state and adapter are those of the last whole round.
        """
        for left in reversed(range(self.policy.recipe.attempts)):
            try:
                return attempt()
            except RoundAborted as reason:
                self.skip_opened()
                self.aborted.append(f"round {self.state.round + 1}, attempt {self.state.attempt}: {reason}")
                self.on_event({"event": "aborted", "round": self.state.round + 1, "reason": str(reason)})
                logger.info("%s", self.aborted[-1])
                if not left:
                    raise
                self.wait_for_members()
        return None

    def wait_for_members(self) -> None:
        """Until the roster is complete, or the minimum is there and the grace is over.

        Raises:
            RoundAborted: still below the minimum after `wait_s`.
        """
        need, everybody = self.policy.protection.min_cohort, len(self.policy.members)
        began, enough_since, told = time.monotonic(), None, -1
        while True:
            here, now = len(self.link.present()), time.monotonic()
            if here != told:
                self.on_event({"event": "waiting", "present": here, "minimum": need, "roster": everybody})
                told = here
            enough_since = (enough_since or now) if here >= need else None
            if enough_since is not None and (here >= everybody or now - enough_since >= self.grace_s):
                return
            if enough_since is None and now - began >= self.wait_s:
                raise RoundAborted(
                    f"{here} members came within {self.wait_s:.0f} s, need {need}; start the others with `quietchoir join`, "
                    "then start this command again: it goes on from the last whole round"
                )
            time.sleep(POLL_S)

    def sample(self, *, everybody: bool = False) -> tuple[str, ...]:
        """The members to ask: all that are there, or a draw from a seed that every member can compute.

        Raises:
            RoundAborted: fewer are there than the federation's minimum.
        """
        here = sorted(name for name in self.link.present() if self.policy.member(name) is not None)
        if len(here) < self.policy.protection.min_cohort:
            raise RoundAborted(f"{len(here)} members are there, need {self.policy.protection.min_cohort}: nobody is asked")
        size = self.policy.recipe.cohort
        if everybody or not size or size >= len(here):
            return tuple(here)
        seed = hashlib.sha256(
            self.policy.federation + f"{self.state.run} {self.state.round} {self.state.attempt}".encode()
        ).digest()
        return tuple(sorted(random.Random(seed).sample(here, max(size, self.policy.protection.min_cohort))))

    def begin_attempt(self) -> Place:
        """Take the next attempt's number, on disk first."""
        self.keep_state(dataclasses.replace(self.state, attempt=self.state.attempt + 1))
        self.traffic = Traffic()
        return Place(self.state.run, self.state.round + 1 + self.state.skipped, self.state.attempt)

    def skip_opened(self) -> None:
        """If the sum of the last attempt was being opened when it ended, give its number up: no member opens it again."""
        if self.state.opening:
            self.keep_state(dataclasses.replace(self.state, opening=False, skipped=self.state.skipped + 1, attempt=0))

    def wants_score(self) -> bool:
        """Is this a round that scores the adapter it starts from? The first one always is."""
        every = self.policy.recipe.evaluate_every
        return self.state.round == 0 or (every > 0 and self.state.round % every == 0)

    def muster(self, cohort: tuple[str, ...], place: Place) -> tuple[str, ...]:
        """Who of `cohort` can take part: in sealed mode, those that share a key and an adapter when it returns.

        Raises:
            RoundAborted: too few do.
        """
        if self.desk is None:
            return cohort
        self.sealing = Sealing(Muster(self.policy, place, self.ask).gather(cohort), self.desk)
        steps, known = self.sealing.common.steps, self.state.round
        if steps != known:  # one side was killed between the members' last step and our noting it: theirs counts
            logger.warning("members are at step %d, %d is written here; going on from theirs", steps, known)
            self.on_event({"event": "stepped", "round": steps, "expected": known})
            skipped = self.state.skipped + max(0, known - steps)  # so that no number of a round comes twice
            self.keep_state(dataclasses.replace(self.state, round=steps, skipped=skipped))
        return self.sealing.common.members

    def order(self, *, evaluate: bool = False, card: str = "") -> work.Work:
        """Work on the adapter as it is now; in sealed mode only its tag is known here."""
        state = "" if self.sealing is None else self.sealing.common.tag.hex()
        return work.Work(flat=self.state.server.flat, evaluate=evaluate, card=card, state=state)

    def ask_work(self, stage: str, order: work.Work, cohort: tuple[str, ...], place: Place) -> tuple[str, ...]:
        """Let the cohort work; return who is ready to contribute.

        Raises:
            RoundAborted: fewer than the federation's minimum.
        """
        self.on_event(
            {"event": "asked", "round": place.round, "attempt": place.attempt, "stage": stage, "cohort": list(cohort)}
        )
        payload = work.encode(order)
        ready = []
        for reply in self.ask(stage, dict.fromkeys(cohort, payload), place, self.policy.recipe.work_timeout_s):
            ready.append(reply.sender)
            self.on_event({"event": "ready", "round": place.round, "party": reply.sender})
        if len(ready) < self.policy.protection.min_cohort:
            raise RoundAborted(f"{len(ready)} of {len(cohort)} members are ready, need {self.policy.protection.min_cohort}")
        return tuple(sorted(ready))

    def combine(self, place: Place, cohort: tuple[str, ...], codec: Codec) -> Sum:
        """Go through the protection's stages; members that fall silent are the protection's to survive.

        Raises:
            RoundAborted: too few are left to open a sum.
        """
        half = coordinator_half(
            self.policy, place, cohort, codec.length, counted=codec.size > 0, sealing=self.sealing
        )  # fmt: skip
        step: tuple[str, Mapping[str, bytes]] | None = half.begin()
        try:
            while step is not None:
                stage, payloads = step
                if stage == half.opens_at:
                    self.keep_state(dataclasses.replace(self.state, opening=True))
                for reply in self.ask(stage, payloads, place, self.policy.recipe.stage_timeout_s):
                    try:
                        half.receive(reply.sender, reply.payload)
                    except CryptoError as error:
                        logger.warning("%s in stage %s: %s", reply.sender, stage, error)
                step = half.advance()
        except CryptoError as error:
            raise RoundAborted(str(error)) from error
        total = half.total()
        if len(total.parties) < self.policy.protection.min_cohort:
            raise RoundAborted(f"a sum of {len(total.parties)} members, need {self.policy.protection.min_cohort}: not used")
        return total

    def ask(self, stage: str, payloads: Mapping[str, bytes], place: Place, timeout_s: float) -> Iterator[Reply]:
        """Sign, send, and yield the replies that are what they claim to be; the others are logged and missing."""
        letters = {
            name: messages.encode_task(
                Task(place=place, stage=stage, recipient=name, payload=payload), self.policy, self.identity
            )
            for name, payload in payloads.items()
        }
        for name, letter in letters.items():
            self.traffic.down[name] = self.traffic.down.get(name, 0) + len(letter)
        answered: set[str] = set()
        for name, answer in self.link.ask(letters, timeout_s):
            try:
                if name in answered or name not in letters:
                    raise MessageError(f"{name} was not asked or has answered already; refused")
                reply = messages.decode_reply(answer, self.policy, letters[name])
            except MessageError as error:
                logger.warning("stage %s: %s", stage, error)
                continue
            answered.add(name)
            self.traffic.up[name] = self.traffic.up.get(name, 0) + len(answer)
            yield reply

    def describe(
        self, kind: str, place: Place, asked: tuple[str, ...], total: Sum, statistics: Statistics, times: tuple[float, float]
    ) -> dict[str, object]:
        """One line of history."""
        started, worked = times
        report = RoundReport(
            kind=kind, round=place.round, attempt=place.attempt, asked=list(asked), parties=list(total.parties),
            seconds=round(time.monotonic() - started, 3), work_seconds=round(worked - started, 3),
            bytes_up=self.traffic.up, bytes_down=self.traffic.down, loss=statistics.loss, accuracy=statistics.accuracy,
            correct=statistics.correct, total=statistics.total, examples=statistics.examples, tokens=statistics.tokens,
            clipped_share=statistics.clipped / max(1, self.size * len(total.parties)), update_norm=0.0,
        )  # fmt: skip
        return dataclasses.asdict(report)

    def commit(self, server: ServerState, entry: dict[str, object]) -> None:
        """A whole round is done."""
        self.keep_state(
            dataclasses.replace(
                self.state, server=server, round=self.state.round + 1, attempt=0, opening=False, finished=False,
                history=(*self.state.history, entry),
            )
        )  # fmt: skip

    def keep_state(self, state: RunState) -> None:
        """On disk first, then in memory: if the disk refuses, nothing has changed."""
        self.store.save(state)
        self.state = state

    def report(self, seconds: float, name: str, delivered: list[str]) -> RunReport:
        """The run so far."""
        accuracy, sent = summary(list(self.state.history))
        return RunReport(
            federation=self.policy.federation.hex(), name=self.policy.name, protection=self.policy.protection.mode,
            bits=self.policy.protection.bits, nodes=len(self.policy.members), rounds=self.state.round,
            seconds=round(seconds, 3), accuracy=accuracy, bytes_per_node_round=sent, adapter=name, delivered=delivered,
            aborted=self.aborted, history=list(self.state.history), held=self.held,
        )  # fmt: skip


def decode_sum(codec: Codec, total: Sum) -> tuple[Vector, Statistics]:
    """The mean and the counters behind a sum.

    Raises:
        RoundAborted: no honest cohort can have this sum.
    """
    try:
        return codec.decode(total.total, len(total.parties))
    except DataError as error:
        raise RoundAborted(str(error)) from error
