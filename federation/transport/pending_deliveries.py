"""Messages that were handed to Flower and whose answers are still owed.

Knows who owes what, until when, and what became of it. Knows nothing of who waits, or of what
messages say.
Always: an answer is taken once; a message whose member went away, let its time pass, or asks for
work instead of answering is owed no longer; whatever is owed no longer is gone from the link state.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ...core import log
from .messenger import LinkStateMessenger
from .superlink import SuperLink

logger = log.get("federation.flower")
HANDED_OUT = 5  # times, at most: then whoever asks without answering is missing
LATE_S = 60.0  # Flower keeps a message for so long after nobody waits for it any more


@dataclass(slots=True)
class PendingDelivery:
    """One message. Times are `time.monotonic`."""

    name: str
    timeout_s: float
    until: float
    handed: float  # when it was last handed out, at the latest
    left: int = HANDED_OUT  # times that it may still be handed out


class PendingDeliveries:
    """Some messages under way.

    Args:
        give_up: called with a member that owes an answer, and why it is not waited for.
        refused: called with a member that answered without a message, and of what kind its refusal
        was.
    """

    def __init__(
        self,
        superlink: SuperLink,
        messenger: LinkStateMessenger,
        give_up: Callable[[str, str], None],
        refused: Callable[[str, str], None],
    ) -> None:
        self.superlink, self.messenger, self.give_up, self.refused = (
            superlink,
            messenger,
            give_up,
            refused,
        )
        self.pending: dict[str, PendingDelivery] = {}  # by number
        self.kept: set[str] = set()  # numbers that the link state holds

    @property
    def names(self) -> frozenset[str]:
        """Who owes an answer."""
        return frozenset(one.name for one in self.pending.values())

    def put(self, ids: Mapping[str, int], messages: Mapping[str, bytes], timeout_s: float) -> None:
        """Leave messages for the members in `ids`; the others are passed over."""
        began = time.monotonic()
        for name, message in messages.items():
            number = (
                self.messenger.put(ids[name], message, timeout_s + LATE_S) if name in ids else None
            )
            if number is not None:
                self.pending[number] = PendingDelivery(
                    name, timeout_s, time.monotonic() + timeout_s, began
                )
                self.kept.add(number)
                self.superlink.ring(name)

    def left_s(self) -> float:
        """Until the next message's time is over."""
        return (
            min((one.until for one in self.pending.values()), default=math.inf) - time.monotonic()
        )

    def take(self) -> Iterator[tuple[str, bytes]]:
        """Answers that are here; and those that will not come are given up."""
        idle = {
            number: self.superlink.caller(one.name).idle_at for number, one in self.pending.items()
        }
        for number, payload, reason in self.messenger.take(self.pending):
            name = self.pending.pop(number).name
            if payload is not None:
                yield name, payload
            else:
                self.refused(name, reason)
        self.hand_out_again(idle)
        for number, one in list(self.pending.items()):
            if time.monotonic() >= one.until:
                self.drop(number, f"did not answer within {one.timeout_s:.0f} s")

    def lose(self, online: frozenset[str]) -> None:
        """Give up those whose heartbeats do not arrive."""
        for number, one in list(self.pending.items()):
            if one.name not in online:
                self.drop(number, "went away before it answered")

    def hand_out_again(self, idle: Mapping[str, float]) -> None:
        """Messages whose members asked for work after they were handed out: they were lost on the
        way, or the node died.

        Args:
            idle: when each member had last asked in vain, by the message's number, noted before
            answers were taken.
        """
        for number, one in list(self.pending.items()):
            handed = self.superlink.caller(one.name).handed_at
            if not one.handed < handed < idle.get(number, -math.inf):
                continue
            if number in self.messenger.announced or not one.left:
                self.drop(number, "asks for work instead of answering")
                continue
            logger.info(
                "%s asks for work while it owes an answer; its message goes out again", one.name
            )
            one.left, one.handed = one.left - 1, handed
            self.messenger.leave_again(number)
            self.superlink.ring(one.name)

    def drop(self, number: str, why: str) -> None:
        """Wait for this one no longer."""
        self.give_up(self.pending.pop(number).name, why)

    def forget(self, *, everything: bool = False) -> None:
        """Take what is owed no longer out of the link state; `everything`: nothing is owed any
        more.
        """
        if everything:
            self.pending.clear()
        if gone := self.kept - self.pending.keys():
            self.kept -= gone
            self.messenger.forget(gone)
