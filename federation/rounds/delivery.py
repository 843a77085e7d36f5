"""The finished adapter's way to the members: to those that are there, and later to those that were
away.

Knows who has it, and how it is handed over. Knows nothing of how it came to be.
Always: who has taken it is on disk; nobody is handed it twice by one coordinator, and nothing is
trained or summed for it.
"""

import time
from collections.abc import Callable

from ...core.errors import RoundAborted
from ..events import DeliveredEvent, OnEvent, StayingEvent, UndeliveredEvent
from ..wire import messages
from .attempt import RoundAttempt

POLL_S = 0.1
AGAIN_S = 30.0  # a member that did not take it is asked again after this


class Delivery:
    """One run's."""

    def __init__(self, attempt: RoundAttempt, on_event: OnEvent) -> None:
        self.attempt, self.logbook, self.link = attempt, attempt.logbook, attempt.messenger.link
        self.on_event = on_event

    def hand(self, card: str, members: frozenset[str]) -> tuple[str, ...]:
        """Give these members the run's adapter with its card; return who has taken it.

        Raises:
            RoundAborted: sealed mode, and too few members that share the adapter are there.
        """
        round_id = self.attempt.begin()
        # sealed: who holds it
        here = self.attempt.model.gather(tuple(sorted(self.link.present())), round_id)
        order = self.attempt.order(self.logbook.state.server.flat, card=card)
        wanted = tuple(name for name in here if name in members)
        timeout_s = self.attempt.policy.recipe.stage_timeout_s
        replies = self.attempt.model.ask(messages.ADOPT, order, wanted, round_id, timeout_s)
        return tuple(sorted(reply.sender for reply in replies))

    @property
    def missing(self) -> list[str]:
        """Members that do not have it."""
        return [
            one.name
            for one in self.attempt.policy.members
            if one.name not in self.logbook.state.delivered
        ]

    def stay(self, stay_s: float, between: Callable[[], None]) -> None:
        """Hand the finished run's adapter to members as they come, until all have it, for so long.

        Args:
            between: called while nobody is asked anything.
        """
        until, again, reported = time.monotonic() + stay_s, dict[str, float](), list[str]()
        while missing := self.missing:
            between()
            now, here = time.monotonic(), self.link.present()
            if late := [name for name in missing if name in here and now >= again.get(name, now)]:
                again |= dict.fromkeys(late, now + AGAIN_S)
                if self.hand_late(frozenset(late)):
                    continue
            if now >= until:
                return
            if missing != reported:
                self.on_event(StayingEvent(missing=tuple(missing), seconds=round(until - now)))
                reported = missing
            time.sleep(POLL_S)

    def hand_late(self, members: frozenset[str]) -> bool:
        """Give it to members that were away when the run ended; has anybody taken it?"""
        state = self.logbook.state
        try:
            took = self.hand(state.card, members)
        except RoundAborted as reason:  # sealed mode: members that hold it must be there as well
            self.logbook.skip_opened()
            self.on_event(UndeliveredEvent(members=tuple(sorted(members)), reason=str(reason)))
            return False
        if took:
            self.logbook.keep(delivered=tuple(sorted({*state.delivered, *took})))
            self.on_event(DeliveredEvent(adapter=state.adapter, members=took))
        return bool(took)
