"""A whole cohort through secure aggregation, some of it dropping out, and what that cost whom.

Knows the state machines of `crypto.secagg` and a clock. Knows no network: each message is handed over as the bytes it is.
Always: every stage of every member really runs, one member after another; values come from a seed, so that a thousand
vectors are never in memory at once; the sum is compared with the one in clear.
"""

import contextlib
import gc
import secrets
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...core.errors import CryptoError
from ...crypto.keys import Identity
from ...crypto.secagg import SecAggClient, SecAggConfig, SecAggResult, SecAggServer
from ...crypto.secagg.graph import plan
from .stopwatch import clock

STAGES = ("advertise", "share", "mask", "consistency", "unmask")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One attempt."""

    parties: int
    length: int  # values of one update
    bits: int = 8  # of one value
    drop_percent: int = 5  # of the parties fall silent after sharing: the costliest moment for the coordinator
    seed: int = 1  # of values and of who drops out; secrets are never seeded

    @property
    def dropped(self) -> frozenset[int]:
        """Numbers of the parties that drop out."""
        count = -(-self.parties * self.drop_percent // 100)
        return frozenset(np.random.default_rng(self.seed).choice(self.parties, count, replace=False).tolist())

    def values(self, number: int) -> NDArray[np.uint32]:
        """One party's update, the same at every call."""
        return np.random.default_rng([self.seed, number]).integers(0, 1 << self.bits, self.length, dtype=np.uint32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one attempt cost."""

    client_s: float  # median over the survivors, all stages of one member
    server_s: float  # the coordinator, all stages
    exact: bool  # sum, tokens and survivors are those in clear
    sent_bytes: float  # median over the survivors, everything one member sends
    client_spread_s: tuple[float, float]
    client_stages_s: dict[str, float]  # median by stage
    server_stages_s: dict[str, float]


@dataclass(slots=True)
class _Party:
    """One member's meter."""

    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    sent: int = 0


class _Meter:
    """Who spent how much."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.parties = {name: _Party() for name in names}
        self.server = dict.fromkeys(STAGES, 0.0)

    @contextlib.contextmanager
    def at(self, account: dict[str, float], stage: str) -> Iterator[None]:
        before = clock()
        yield
        account[stage] += clock() - before


def play(setting: Setting) -> Outcome:
    """One attempt, from fresh identities to the opened sum.

    Raises:
        CryptoError: the attempt ended without a sum.
    """
    names = tuple(f"party-{number:05}" for number in range(setting.parties))
    identities = {name: Identity.generate() for name in names}
    config = SecAggConfig(
        federation=secrets.token_bytes(32), round=1, attempt=0, threshold=2 * setting.parties // 3 + 1, min_cohort=3,
        members={name: identity.public for name, identity in identities.items()}, length=setting.length, bits=setting.bits,
    )  # fmt: skip
    meter = _Meter(names)
    gc.collect()
    gc.disable()  # a thousand members share this heap, which no real member does: its walks are nobody's cost
    try:
        return _judged(setting, meter, *_stages(setting, config, identities, meter))
    finally:
        gc.enable()


def _stages(
    setting: Setting, config: SecAggConfig, identities: dict[str, Identity], meter: _Meter
) -> tuple[SecAggResult, NDArray[np.int64]]:
    """Play all stages; return what was opened, and the sum in clear."""
    expected = np.zeros(setting.length, np.int64)
    numbers = {name: number for number, name in enumerate(identities)}
    clients: dict[str, SecAggClient] = {}
    for name, identity in identities.items():
        with meter.at(meter.parties[name].spent, "advertise"):
            clients[name] = SecAggClient(config, name, identity)
    with meter.at(meter.server, "advertise"):
        server = SecAggServer(config)
    inbox = dict.fromkeys(identities, b"")
    for stage in STAGES:
        plan.cache_clear()  # the coordinator has its own
        for name, message in inbox.items():
            if stage == "mask" and numbers[name] in setting.dropped:
                continue
            values = setting.values(numbers[name]) if stage == "mask" else np.empty(0, np.uint32)
            expected += values if stage == "mask" else 0
            if stage == "share":
                plan.cache_clear()  # and so has every member
            with meter.at(meter.parties[name].spent, stage):
                answer = _ask(clients[name], stage, message, values, numbers[name])
            meter.parties[name].sent += len(answer)
            with meter.at(meter.server, stage):
                server.receive(name, answer)
        with meter.at(meter.server, stage):
            inbox = dict(server.advance())
    if server.result is None:
        raise CryptoError(f"{setting.parties} parties: the attempt ended at {server.stage.name} without a sum; report this")
    return server.result, expected


def _ask(client: SecAggClient, stage: str, message: bytes, values: NDArray[np.uint32], number: int) -> bytes:
    if stage == "advertise":
        return client.advertise()
    if stage == "mask":
        return client.mask(message, values, 100 + number)
    answer: bytes = getattr(client, stage)(message)
    return answer


def _judged(setting: Setting, meter: _Meter, result: SecAggResult, expected: NDArray[np.int64]) -> Outcome:
    alive = [number for number in range(setting.parties) if number not in setting.dropped]
    everybody = list(meter.parties.items())
    survivors = [everybody[number] for number in alive]
    whole = [sum(party.spent.values()) for _, party in survivors]
    return Outcome(
        client_s=statistics.median(whole),
        server_s=sum(meter.server.values()),
        exact=bool(
            np.array_equal(result.total, expected)
            and result.tokens == sum(100 + number for number in alive)
            and result.survivors == tuple(name for name, _ in survivors)
        ),
        sent_bytes=statistics.median(party.sent for _, party in survivors),
        client_spread_s=(min(whole), max(whole)),
        client_stages_s={stage: statistics.median(party.spent[stage] for _, party in survivors) for stage in STAGES},
        server_stages_s=meter.server,
    )
