"""A whole cohort through secure aggregation, some of it dropping out, and what that cost whom.

Knows the coordinator's state machine and a clock. Knows no network: each message is handed over as
the bytes it is.
Always: every stage of every party really runs, and the sum is compared with the one in clear.
"""

import contextlib
import gc
import secrets
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...core.errors import CryptoError
from ...crypto.secagg import SecAggConfig, SecAggResult, SecAggServer
from ...crypto.secagg.session import plan
from .crew import Crew
from .members import STAGES, Members, Meter, Setting
from .stopwatch import clock

# parties that are played in this process; starting others takes longer than playing so few
ALONE_UP_TO = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptCost:
    """What one attempt cost."""

    client_s: float  # median over the survivors, all stages of one member
    server_s: float  # the coordinator, all stages
    exact: bool  # sum, tokens and survivors are those in clear
    sent_bytes: float  # median over the survivors, everything one member sends
    client_spread_s: tuple[float, float]
    client_stages_s: dict[str, float]  # median by stage
    server_stages_s: dict[str, float]


def play(setting: Setting, *, processes: int = 0) -> AttemptCost:
    """One attempt, from fresh identities to the opened sum.

    Args:
        processes: for the members; 0: this one for a small cohort, one a processor for a large one.

    Raises:
        CryptoError: the attempt ended without a sum.
    """
    gc.collect()
    # many parties share this heap, which no real party does: its walks are nobody's cost
    gc.disable()
    try:
        if processes == 1 or (not processes and setting.parties <= ALONE_UP_TO):
            return _judged(setting, *_stages(setting, Members(setting, range(setting.parties))))
        with Crew(setting, processes) as crew:
            return _judged(setting, *_stages(setting, crew))
    finally:
        gc.enable()


class _Coordinator:
    """The server, with a meter around all it does."""

    def __init__(self, config: SecAggConfig) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        with self._at("advertise"):
            self.server = SecAggServer(config)

    def receive(self, stage: str, name: str, message: bytes) -> None:
        with self._at(stage):
            self.server.receive(name, message)

    def advance(self, stage: str) -> dict[str, bytes]:
        plan.cache_clear()
        with self._at(stage):
            return dict(self.server.advance())

    @contextlib.contextmanager
    def _at(self, stage: str) -> Iterator[None]:
        before = clock()
        yield
        self.seconds[stage] += clock() - before


def _stages(
    setting: Setting, members: Members | Crew
) -> tuple[_Coordinator, dict[str, Meter], NDArray[np.int64]]:
    """Play all stages; return the coordinator, everybody's meter and the sum in clear."""
    config = SecAggConfig(
        federation=secrets.token_bytes(32),
        round=1,
        attempt=0,
        members=members.public(),
        threshold=2 * setting.parties // 3 + 1,
        min_cohort=3,
        length=setting.length,
        bits=setting.bits,
    )
    members.begin(config)
    coordinator, inbox = _Coordinator(config), dict.fromkeys(setting.names, b"")
    for stage in STAGES:
        for name, answer in members.answers(stage, inbox):
            coordinator.receive(stage, name, answer)
        inbox = coordinator.advance(stage)
    return coordinator, *members.accounts()


def _judged(
    setting: Setting, coordinator: _Coordinator, meters: dict[str, Meter], clear: NDArray[np.int64]
) -> AttemptCost:
    result: SecAggResult | None = coordinator.server.result
    if result is None:
        raise CryptoError(
            f"{setting.parties} parties: no sum at the end of all stages; report this"
        )
    alive = [number for number in range(setting.parties) if number not in setting.dropped]
    names = tuple(setting.names[number] for number in alive)
    whole = [meters[name].whole for name in names]
    return AttemptCost(
        client_s=statistics.median(whole),
        server_s=sum(coordinator.seconds.values()),
        exact=bool(
            np.array_equal(result.total, clear)
            and result.tokens == sum(setting.tokens(number) for number in alive)
            and result.survivors == names
        ),
        sent_bytes=statistics.median(meters[name].sent for name in names),
        client_spread_s=(min(whole), max(whole)),
        client_stages_s={
            stage: statistics.median(meters[name].seconds[stage] for name in names)
            for stage in STAGES
        },
        server_stages_s=coordinator.seconds,
    )
