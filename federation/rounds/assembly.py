"""One attempt from its number to its sums: who is asked, what they do, what comes out.

Knows the order of an attempt. Knows nothing of what is done with a sum, or of how it is protected.
Always: an attempt's number is on disk, and its privacy paid for, before anybody is asked to train; an attempt that ends
without a sum raises and leaves the adapter as it was; no sum is used that is over fewer members than the federation's minimum.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ...core import log
from ...core.errors import BudgetError, CryptoError, DataError, RoundAborted
from ...crypto.accountant import Spent
from ...crypto.sealed import Desk
from ..exchange import broadcast, work
from ..exchange.messages import Place
from ..learning.aggregate import Vector
from ..learning.ranges import read_spans, spans
from ..learning.shares import Shares, shares_of
from ..membership.policy import Policy
from ..protection.draw import Draw, draw
from ..protection.modes import Sealing, coordinator_half
from ..protection.seam import Sum
from ..protection.terms import Terms, seed_of
from ..protection.update import Codec, Statistics
from ..sealed.muster import Muster
from .logbook import Logbook
from .post import Post, Traffic
from .purse import Purse
from .telling import Telling

logger = log.get("federation.coordinator")
Event = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one attempt gave."""

    place: Place
    draw: Draw
    sums: tuple[Sum, ...]  # one for each bucket
    means: tuple[Vector, ...]  # of their changes; [0] where there is none to see
    votes: tuple[Statistics, ...]  # counters of each bucket
    ranges: work.Ranges
    spent: Spent | None
    started: float  # monotonic seconds
    worked: float
    traffic: Traffic
    staleness: tuple[int, ...] = ()  # buffered: steps between each contribution's adapter and the newest, in order
    shares: Shares | None = None  # where not all train all columns

    @property
    def statistics(self) -> Statistics:
        """Counters over everybody."""
        return Statistics.sum(self.votes)

    @property
    def parties(self) -> tuple[str, ...]:
        """Whose contributions are in a sum."""
        return tuple(sorted(name for total in self.sums for name in total.parties))


class Assembly:
    """The attempts of one run.

    Args:
        size: values of an update; stops: where its tensors end.
        telling: how members are told which adapter is meant.
        desk: in sealed mode, the worker that adds ciphertexts.
    """

    def __init__(
        self, policy: Policy, post: Post, logbook: Logbook, purse: Purse, *,
        size: int, stops: Sequence[int], desk: Desk | None, telling: Telling, on_event: Callable[[Event], None],
    ) -> None:  # fmt: skip
        self.policy, self.post, self.logbook, self.purse = policy, post, logbook, purse
        self.size, self.stops, self.desk, self.on_event = size, tuple(stops), desk, on_event
        self.telling = telling
        self.sealing: Sealing | None = None  # of this attempt
        self.silent: tuple[int, frozenset[str]] = (0, frozenset())  # who was asked in vain, in an earlier attempt of a round

    def hold(self, stage: str, flat: Vector, *, evaluate: bool = False) -> Outcome:
        """Go through one attempt of `stage` with the adapter `flat` ([0] in sealed mode).

        Raises:
            RoundAborted: too few members, at whatever stage; or a sum that no honest cohort can have.
            BudgetError: the federation's privacy budget would be passed; nobody was asked.
        """
        started, training = time.monotonic(), stage == work.TRAIN
        place = self.begin()
        found = draw(self.policy, place, self.there(place), everybody=not training)
        able = self.muster(found.cohort, place)
        order = self.order(flat, draw=found, evaluate=evaluate, training=training)
        spent = self.purse.pay(place) if training else None
        shares = shares_of(self.policy, found.cohort, place.attempt) if training else None
        ready = self.ask_work(stage, order, able, place, shares)
        worked = time.monotonic()
        ranges = read_spans(order.ranges, self.size, self.policy.recipe.update_range) if order.ranges else ()
        told = broadcast.of_work(stage, order.header(), order.flat)
        terms = Terms(ranges, seed_of(self.policy, place), told, shares)
        sums = self.combine(place, ready, Codec(self.size if training else 0, self.policy, terms).length, training, terms)
        sums, opened = self.open(sums, Codec(flat.size if training else 0, self.policy, terms))
        if training:
            self.telling.opened(place, found.cohort, sums)
        return Outcome(
            place=place, draw=found, sums=sums, means=tuple(mean for mean, _ in opened), ranges=order.ranges, spent=spent,
            votes=tuple(statistics for _, statistics in opened), started=started, worked=worked, traffic=self.post.traffic,
            shares=shares,
        )  # fmt: skip

    def begin(self) -> Place:
        """Take the next attempt's number, on disk first."""
        self.post.traffic = Traffic()
        return self.logbook.begin()

    def there(self, place: Place) -> frozenset[str]:
        """Members that can be asked, without those that were asked in vain in this round, if there are enough others."""
        here, (round_, silent) = self.post.link.present(), self.silent
        others = here - silent if round_ == place.round else here
        return others if len(others) >= self.policy.protection.min_cohort else here

    def muster(self, cohort: tuple[str, ...], place: Place) -> tuple[str, ...]:
        """Who of `cohort` can take part: in sealed mode, those that share a key and an adapter when it returns.

        Raises:
            RoundAborted: too few do.
        """
        if self.desk is None:
            return cohort
        self.sealing = Sealing(Muster(self.policy, place, self.post.ask, self.size).gather(cohort), self.desk)
        steps, known = self.sealing.common.steps, self.logbook.state.round
        if self.logbook.catch_up(steps):
            logger.warning("members are at step %d, %d is written here; going on from theirs", steps, known)
            self.on_event({"event": "stepped", "round": steps, "expected": known})
        return self.sealing.common.members

    def order(
        self, flat: Vector, *, draw: Draw | None = None, evaluate: bool = False, training: bool = False, card: str = ""
    ) -> work.Work:
        """Work on the adapter `flat`; in sealed mode only its tag is known here."""
        recipe, told = self.policy.recipe, draw or Draw((), ())
        ranged = training and recipe.ranges == "tensor" and self.desk is None
        state = self.telling.name(flat) if self.sealing is None else self.sealing.common.tag.hex()
        return work.Work(
            flat=flat, evaluate=evaluate, card=card, state=state,
            ranges=spans(self.logbook.state.server.velocity, self.stops, recipe.update_range) if ranged else (),
            cohort=told.cohort, absent=told.absent,
        )  # fmt: skip

    def ask_work(
        self, stage: str, order: work.Work, cohort: tuple[str, ...], place: Place, shares: Shares | None = None
    ) -> tuple[str, ...]:
        """Let the cohort work; return who is ready to contribute.

        Raises:
            RoundAborted: fewer than the federation's minimum, in all or of those that train the most columns.
            BudgetError: fewer, because members have used up their privacy budget.
        """
        number, need = self.logbook.state.round + 1, self.policy.protection.min_cohort
        self.on_event({"event": "asked", "round": number, "attempt": place.attempt, "stage": stage, "cohort": list(cohort)})
        ready, spent = list[str](), list[str]()
        for reply in self.telling.ask(stage, order, cohort, place, self.policy.recipe.work_timeout_s):
            if reply.payload == work.READY:
                ready.append(reply.sender)
                self.on_event({"event": "ready", "round": number, "party": reply.sender})
            elif reply.payload == work.SPENT and self.purse.step is not None:
                spent.append(reply.sender)
        before = self.silent[1] if self.silent[0] == place.round else frozenset()
        self.silent = (place.round, before | set(cohort).difference(ready))
        if len(ready) < need <= len(ready) + len(spent):
            raise BudgetError(
                f"{len(spent)} of {len(cohort)} members have used up their privacy budget, {len(ready)} have not, need {need}; "
                "found a federation with a larger budget or more noise to go on"
            )
        if len(ready) < need:
            raise RoundAborted(f"{len(ready)} of {len(cohort)} members are ready, need {need}")
        if shares is not None and (reason := shares.short(ready)):
            raise RoundAborted(f"{reason}; the next attempt asks for fewer columns")
        return tuple(sorted(ready))

    def combine(
        self, place: Place, ready: tuple[str, ...], length: int, counted: bool, terms: Terms
    ) -> tuple[Sum, ...]:  # fmt: skip
        """Go through the protection's stages; members that fall silent are the protection's to survive.

        Raises:
            RoundAborted: too few are left to open a sum.
        """
        half = coordinator_half(
            self.policy, place, ready, length, counted=counted, told=terms.told, shares=terms.shares, sealing=self.sealing
        )  # fmt: skip
        step: tuple[str, Mapping[str, bytes]] | None = half.begin()
        try:
            while step is not None:
                stage, payloads = step
                if stage == half.opens_at:
                    self.logbook.keep(opening=True)
                for reply in self.post.ask(stage, payloads, place, self.policy.recipe.stage_timeout_s):
                    try:
                        half.receive(reply.sender, reply.payload)
                    except CryptoError as error:
                        logger.warning("%s in stage %s: %s", reply.sender, stage, error)
                step = half.advance()
        except CryptoError as error:
            raise RoundAborted(str(error)) from error
        return half.sums()

    def open(self, sums: tuple[Sum, ...], codec: Codec) -> tuple[tuple[Sum, ...], list[tuple[Vector, Statistics]]]:
        """The sums that can be used, with the mean and the counters behind each.

        Raises:
            RoundAborted: none can: of too few members, or not of any honest ones.
        """
        used, opened, reason = list[Sum](), list[tuple[Vector, Statistics]](), ""
        for total in sums:
            try:
                if len(total.parties) < self.policy.protection.min_cohort:
                    raise DataError(
                        f"a sum of {len(total.parties)} members, need {self.policy.protection.min_cohort}: not used"
                    )
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
