"""Members that refused for a reason of their own: away, until they may have mended it.

Knows what a refusal's kind means, and when its member may be asked again. Knows nothing of messages
or of how they travel.
Always: a refusal of these kinds does to a run what its member's absence would, no more: the member
is away for a while after the question is over, longer each time, never longer than `LONGEST_S`.
Of what a member says its kind alone is read.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from ...core import log
from ..store.ledger import LEASE_S

logger = log.get("federation.flower")
# Away for so long: a member that has not dialled in since, and one that has; twice as long after
# each further refusal.
AGAIN_S, REDIALLED_S, LONGEST_S = 60.0, 2.0, 300.0
FORGET_S = 3600.0  # a refusal so long after the last one is a first one
OWN = {  # what the member, or its owner, has to mend
    "RosterError": "it does not go on under version {version} of the federation file: start its "
    "node again with the newest file, or this command if the older one is here",
    "FileVersionError": "it holds another version of the federation file than {version}: start its "
    "node again with the newest file, or this command if the older one is here",
    "ConfigError": "its owner does not consent to version {version} of the federation file: its "
    "own log says why",
    "RivalError": "it is in another run: a second coordinator has this identity, or this one lost "
    "its state; go on from that run's state folder (--state), or it takes this run up after "
    f"{LEASE_S / 60:.0f} minutes of that one's silence",
}
MEANING = {
    "StaleError": ": it has answered this place or a later one, so the state here is older than "
    "the run: restore the newest"
}


@dataclass(slots=True)
class Refusal:
    """One member's last one. Times are `time.monotonic`."""

    kind: str
    at: float
    times: int  # in a row
    over: float | None = None  # when the question was that it answered so

    def until(self, dialled_at: float) -> float:
        """When its member, which dialled in last at `dialled_at`, may be asked again."""
        if self.over is None:
            return float("inf")
        first = REDIALLED_S if dialled_at > self.at else AGAIN_S
        return self.over + min(first * 2.0 ** min(self.times - 1, 16), LONGEST_S)


class Refusals:
    """Of one link. Args: now: seconds of a clock that nobody sets."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now, self.last = now, dict[str, Refusal]()

    def note(self, name: str, kind: str, version: int) -> None:
        """A member answered without a message; say why, once where that stays as it is."""
        if kind not in OWN:
            logger.warning("%s did not answer: %s%s", name, kind, MEANING.get(kind, ""))
            return
        before, now = self.last.get(name), self.now()
        again = before is not None and now - before.at < FORGET_S
        self.last[name] = Refusal(kind, now, before.times + 1 if before and again else 1)
        meaning = OWN[kind].format(version=version)
        log = logger.info if before and again and before.kind == kind else logger.warning
        log("%s did not answer: %s: %s; it counts as away meanwhile", name, kind, meaning)

    def settle(self) -> None:
        """A question is over: pauses count from here, so that whoever refused while others worked
        is still away when it is asked why too few were ready.
        """
        for one in self.last.values():
            if one.over is None:
                one.over = self.now()

    def away(self, dialled_at: Callable[[str], float]) -> frozenset[str]:
        """Whom to ask nothing now. Args: dialled_at: when a member last did."""
        now = self.now()
        return frozenset(
            name for name, one in self.last.items() if now < one.until(dialled_at(name))
        )

    def forget(self) -> None:
        """There is another version of the file: everybody may take it."""
        self.last.clear()
