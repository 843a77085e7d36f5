"""A member's side of buffered rounds: train when asked, keep what came out, let it go into one sum.

Knows which contribution is kept, and what a call for a group must say. Knows nothing of Flower or
of the coordinator's reasons.
Always: a contribution leaves this member once: it is wiped, on disk first, before the masked (or
plain) values are sent, so it is in one sum at most, whether that sum is opened or not. A call that
is refused leaves memory and disk as they were.

    train   what is kept is offered again; if there is nothing, or it is too stale, train from the
            version that came
    group   all of the roster, enough, none too stale, its own version the one it was handed →
            weigh, protect, take part
"""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from ...core.errors import MessageError
from ..aggregation.base import ClientContext, Values
from ..aggregation.rank_masks import rank_masks_of
from ..aggregation.registry import AGGREGATIONS
from ..aggregation.server_optimizer import adapter_digest
from ..aggregation.survivor_sets import subjects
from ..aggregation.update import Codec, Terms
from ..events import WorkEvent
from ..spec.policy import weight
from ..store.checkpoint import Vector
from ..wire import messages
from ..wire.messages import GROUP, Group, RoundId, Task
from .contribution_buffer import Contribution, ContributionBuffer, rules_of

if TYPE_CHECKING:
    from .client import Client

STAGES = (messages.TRAIN, GROUP)
LEAVES_AT = ("mask", "send")  # the stage whose answer carries the contribution, masked or plain


class BufferedClient:
    """What `Client` does in a federation whose rounds are buffered."""

    def __init__(self, party: "Client", drawer: ContributionBuffer) -> None:
        self.party, self.drawer = party, drawer
        self.limit = party.policy.schedule.max_staleness
        self.rules = rules_of(party.policy)

    def answer(self, task: Task) -> bytes:
        """`train` or `group`."""
        return self.train(task) if task.stage == messages.TRAIN else self.group(task)

    def train(self, task: Task) -> bytes:
        """Offer what is kept; train first if nothing is, or if that is too stale.

        Raises:
            MessageError: refused; nothing was changed.
            DataError and others of the tree: training failed.
        """
        party, place = self.party, task.place
        version, payload = messages.split_train(task.payload)
        check_version(version, place)
        meant = party.meant(dataclasses.replace(task, payload=payload))
        order = meant.order
        messages.check_train(order)
        party.begin(place, pays=False)
        if party.recall is not None and meant.led is not None:
            party.recall.keep(meant.led)
        if (kept := self.kept(task)) is not None:
            return messages.encode_offer(kept.version, kept.told, kept.state)
        # nothing is paid before something leaves, but work for nothing is spared
        if not party.purse.affords():
            return party.spent(order.round, "the privacy budget is used up")
        party.on_event(
            WorkEvent(stage=task.stage, round=order.round, attempt=place.attempt, version=version)
        )
        adapter, told = adapter_digest(order.flat), messages.told_of(version, order)
        # who is summed, and so which columns are, is known later: it trains all that it may
        alone = rank_masks_of(party.policy, (party.name,), 1) if party.policy.ranked else None
        update, statistics, tokens = party.train(order, place, Terms(adapter=adapter, shares=alone))
        self.drawer.keep(
            Contribution(
                run=place.run,
                rules=self.rules,
                version=version,
                told=told,
                state=order.state,
                adapter=adapter.hex(),
                update=update,
                statistics=statistics,
                tokens=tokens,
            )
        )
        return messages.encode_offer(version, told, order.state)

    def kept(self, task: Task) -> Contribution | None:
        """What is offered again instead of training from the version that came with `task`."""
        version, kept = (
            messages.decode_version(task.payload[: messages.VERSION_BYTES]),
            self.drawer.look(task.place.run, self.rules),
        )
        return kept if kept is not None and 0 <= version - kept.version <= self.limit else None

    def group(self, task: Task) -> bytes:
        """Make the kept contribution ready to be summed with the others' of this group.

        Raises:
            MessageError: refused; nothing was changed.
        """
        party, place = self.party, task.place
        called = messages.decode_group(task.payload)
        kept = self.check(called, place)
        order = messages.Work(
            flat=np.zeros(0, np.float32),
            state=called.state,
            ranges=called.ranges,
            cohort=called.names,
            round=called.version + 1,
        )
        terms, staleness = (
            dataclasses.replace(
                party.terms(order, called.told, place, training=True),
                adapter=messages.split_seed(place.run, called.version),
            ),
            called.version - kept.version,
        )
        # before it is clipped and noised
        update = (kept.update * np.float32(weight(staleness))).astype(np.float32)
        if terms.shares is not None:
            update[~terms.shares.trained(party.name, update.size)] = 0.0
        clipped = party.clipped(update, terms)
        unpaid = party.begin(place, pays=True)
        party.on_event(
            WorkEvent(
                stage=task.stage, round=order.round, attempt=place.attempt, staleness=staleness
            )
        )
        if unpaid:
            return party.spent(order.round, unpaid)
        values, scores = self.weighed(kept, update, clipped, staleness, terms)
        vouch, relies = self.vouching(called, kept)
        context = ClientContext(
            party.policy,
            party.name,
            party.identity,
            party.ledger.sums,
            place,
            None,
            terms,
            called.names,
            vouch,
            relies,
            scores,
            subjects(party.policy, bytes.fromhex(kept.adapter), training=True, scored=scores),
            keep_sum=party.keep_sum,
        )
        protect = AGGREGATIONS[party.policy.protection.kind].client
        half = protect(context, values, kept.tokens, True)
        party.enter(place, half, kept.state if relies else "", leaves=True)
        return party.ready(context)

    def vouching(self, called: Group, kept: Contribution) -> tuple[int, int]:
        """What this member says, and asks, of the states that the group's contributions were
        trained from.

        Returns:
            One more than the newest version of which it followed that and every older one that the
            group names; and one more than its own, if it did not follow that.
        """
        party, vouch = self.party, 0
        if party.recall is None:
            return 0, 0
        for version, _, state in called.adapters:
            if not party.recall.follows(state, kept.run, party.size):
                break
            vouch = version + 1
        return vouch, 0 if vouch > kept.version else kept.version + 1

    def check(self, called: Group, place: RoundId) -> Contribution:
        """The contribution that may go into this group.

        Raises:
            MessageError: a group that this member does not take part in.
        """
        policy, name = self.party.policy, self.party.name
        self.party.ledger.check(place)
        if name not in called.names or any(policy.member(one) is None for one in called.names):
            raise MessageError("the group names strangers, or not this node; refused")
        # The node's own floor, never the coordinator's word.
        if len(called.members) < (need := policy.group_size):
            raise MessageError(
                f"a group of {len(called.members)} is below the minimum of {need}; refused"
            )
        for one, version in called.members:
            if not 0 <= version <= called.version <= version + self.limit:
                raise MessageError(
                    f"{one}'s contribution from version {version} does not fit version "
                    f"{called.version}, at most {self.limit} "
                    "steps later; refused"
                )
        check_version(called.version, place)
        kept = self.drawer.look(place.run, self.rules)
        if kept is None:
            raise MessageError(
                "this member has no contribution to give: the last one has left, or "
                "was never made; refused"
            )
        if kept.version != dict(called.members)[name]:
            raise MessageError(
                f"this member's contribution is from version {kept.version}, the group says "
                f"{dict(called.members)[name]}; "
                "refused"
            )
        # else its neighbours may have trained from another adapter
        if (kept.told, kept.state) != called.told_of(kept.version):
            raise MessageError(
                f"this member's contribution came of another adapter or other work than the group "
                f"says of version "
                f"{kept.version}; refused"
            )
        return kept

    def weighed(
        self, kept: Contribution, update: Vector, clipped: int, staleness: int, terms: Terms
    ) -> tuple[Values, bool]:
        """The contribution as whole numbers, `update` of it scaled already; does it hold scores?"""
        party = self.party
        codec = Codec(party.size, party.policy, terms)
        statistics = dataclasses.replace(kept.statistics, clipped=codec.percent(clipped))
        if staleness:  # its scores are of an adapter that is not the one this step starts from
            statistics = dataclasses.replace(statistics, scored=0, score=0)
        return codec.encode(
            update, statistics
        ), party.policy.privacy.counts and statistics.scored > 0


def check_version(version: int, place: RoundId) -> None:
    """Require that so many steps can have been made: numbers of rounds count them, and those that
    came to nothing.

    Raises:
        MessageError: they cannot.
    """
    if version >= place.round:
        raise MessageError(
            f"version {version} is said to be there before round {place.round} is over; refused"
        )
