"""The members of one attempt: what each is asked, what it answers, and what that cost it.

Knows the client's state machine and a clock. Knows nothing of the coordinator but its messages.
Always: every stage of every member really runs, one after another; values come from a seed, so that
a thousand vectors are never in memory at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...crypto.identity.keys import Identity, PublicIdentity
from ...crypto.secagg import SecAggClient, SecAggConfig
from ...crypto.secagg.session import plan
from .stopwatch import clock

STAGES = ("advertise", "share", "mask", "consistency", "unmask")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One attempt."""

    parties: int
    length: int  # values of one update
    bits: int = 8  # of one value
    # of the parties fall silent after sharing: the costliest moment for the coordinator
    drop_percent: int = 5
    seed: int = 1  # of values and of who drops out; secrets are never seeded

    @property
    def names(self) -> tuple[str, ...]:
        """Every party, in order of its number."""
        return tuple(f"party-{number:05}" for number in range(self.parties))

    @property
    def dropped(self) -> frozenset[int]:
        """Numbers of the parties that drop out."""
        count = -(-self.parties * self.drop_percent // 100)
        return frozenset(
            np.random.default_rng(self.seed).choice(self.parties, count, replace=False).tolist()
        )

    def values(self, number: int) -> NDArray[np.uint32]:
        """One party's update, the same at every call."""
        return np.random.default_rng([self.seed, number]).integers(
            0, 1 << self.bits, self.length, dtype=np.uint32
        )

    @staticmethod
    def tokens(number: int) -> int:
        """How many tokens one party counts."""
        return 100 + number


@dataclass(slots=True)
class Meter:
    """What one member spent."""

    # by stage
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    sent: int = 0  # bytes

    @property
    def whole(self) -> float:
        """Seconds over all stages."""
        return sum(self.seconds.values())


class Members:
    """Some of the parties of one attempt, in this process."""

    def __init__(self, setting: Setting, numbers: Sequence[int]) -> None:
        self._setting, self._silent = setting, setting.dropped
        self._numbers = {setting.names[number]: number for number in numbers}
        self._identities = {name: Identity.generate() for name in self._numbers}
        self._clients: dict[str, SecAggClient] = {}
        self._meters = {name: Meter() for name in self._numbers}
        self._sum = np.zeros(setting.length, np.int64)

    def public(self) -> dict[str, PublicIdentity]:
        """What the roster lists."""
        return {name: identity.public for name, identity in self._identities.items()}

    def begin(self, config: SecAggConfig) -> None:
        """Enter the attempt."""
        for name, identity in self._identities.items():
            before = clock()
            self._clients[name] = SecAggClient(config, name, identity)
            self._meters[name].seconds["advertise"] += clock() - before

    def answers(self, stage: str, inbox: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
        """Each member's answer to its message; those that drop out do so before they send
        values.
        """
        for name, message in inbox.items():
            if stage != "mask" or self._numbers[name] not in self._silent:
                yield name, self._answer(stage, name, message)

    def accounts(self) -> tuple[dict[str, Meter], NDArray[np.int64]]:
        """Every member's meter, and the sum in clear of the values that were sent."""
        return self._meters, self._sum

    def _answer(self, stage: str, name: str, message: bytes) -> bytes:
        number, client, meter = self._numbers[name], self._clients[name], self._meters[name]
        plan.cache_clear()  # every member works the graph's size out for itself
        values = self._setting.values(number) if stage == "mask" else None
        before = clock()
        if stage == "advertise":
            answer = client.advertise()
        elif values is not None:
            answer = client.mask(message, values, self._setting.tokens(number))
        else:
            answer = getattr(client, stage)(message)
        meter.seconds[stage] += clock() - before
        meter.sent += len(answer)
        if values is not None:
            self._sum += values
        return answer
