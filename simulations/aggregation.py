"""How a simulation sums what pretended parties contribute: memory that does not grow with them, and
masked rounds without their masks.

    simulated("run", …)     contributions wait on disk, not in memory, and are rounded by the seed
    simulated("modelled")   besides, masked mode without keys, shares, streams and signatures:
                            advertise → share → mask → consistency → unmask, the same stages, empty
                            but for `mask`

Knows masked mode's rules: who is enough, whose scores count, what a ledger allows. Knows nothing of
secrets.
Always: in a modelled round a member joins, refuses, is left out and is summed where `MaskedClient`
would be, and the sum is the ring's: `tests/simulations/test_aggregation.py` holds both against each
other to the last integer. Nothing modelled is protected: it stands in the registry for as long as
`simulated` lasts, in a process that pretends to be everybody.
"""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast
from unittest import mock

import numpy as np
import numpy.typing as npt

from ..core.errors import ProtocolError, ThresholdError
from ..crypto.ring import encode
from ..crypto.secagg import SecAggConfig
from ..crypto.secagg.session import Session
from ..federation.aggregation import secagg
from ..federation.aggregation.base import ClientContext, ServerContext, Sum, Values
from ..federation.aggregation.plain import PlainClient
from ..federation.aggregation.registry import AGGREGATIONS, Aggregation
from ..federation.aggregation.secagg import (
    STAGES,
    WORD,
    BucketGroup,
    MaskedClient,
    agree,
    encode_contributors,
    narrow,
)
from ..federation.aggregation.update import Rounded
from ..federation.store.checkpoint import Vector
from ..federation.wire import messages

TOKEN_BYTES = 4
SMALL_BYTES = 1 << 14  # what waits in memory all the same


class Spool:
    """Bytes that wait in one file without a name; whoever lets them go frees their place."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115
        self.end, self.live = 0, 0

    def put(self, data: bytes) -> "SpooledBytes":
        """Keep these."""
        if len(data) <= SMALL_BYTES:
            return SpooledBytes(self, data, -1, len(data))
        self.file.seek(self.end)
        self.file.write(data)
        place, self.end, self.live = self.end, self.end + len(data), self.live + 1
        return SpooledBytes(self, b"", place, len(data))

    def release(self) -> None:
        """One less; when none is left the file begins anew."""
        self.live -= 1
        if not self.live and not self.file.closed:
            self.file.seek(0)
            self.file.truncate()
            self.end = 0

    def close(self) -> None:
        """Forget everything."""
        self.file.close()


class SpooledBytes:
    """Bytes in a spool."""

    __slots__ = ("data", "place", "size", "spool")

    def __init__(self, spool: Spool, data: bytes, place: int, size: int) -> None:
        self.spool, self.data, self.place, self.size = spool, data, place, size

    def read(self) -> bytes:
        """All of them."""
        if self.place < 0:
            return self.data
        self.spool.file.seek(self.place)
        return self.spool.file.read(self.size)

    def __del__(self) -> None:
        if self.place >= 0:
            self.spool.release()


class SpooledClient(PlainClient):
    """As `PlainClient`, its contribution in a spool until it is sent."""

    def __init__(
        self, context: ClientContext, values: Values, tokens: int, counted: bool, *, spool: Spool
    ) -> None:
        super().__init__(context, values, tokens, counted)
        self.kept, self.packed = spool.put(self.packed), b""

    def answer(self, stage: str, payload: bytes) -> bytes:
        """As `PlainClient`."""
        super().answer(stage, payload)
        return self.kept.read()


class ModelledClient(MaskedClient):
    """As `MaskedClient`, its integers as they are."""

    config: SecAggConfig

    def __init__(
        self, context: ClientContext, values: Values, tokens: int, counted: bool, *, spool: Spool
    ) -> None:
        super().__init__(context, values, tokens, counted)
        self.spool = spool
        self.put_aside()

    @property
    def stages(self) -> tuple[str, ...]:
        """As `AggregationClient`; what is opened is nobody's secret, so nobody attests it."""
        return STAGES

    def put_aside(self) -> None:
        """Let the values wait in the spool."""
        assert self.values is not None
        self.kept, self.values = self.spool.put(narrow(self.values)), None

    def join(self, ready: bytes) -> SecAggConfig:
        """As `MaskedClient`."""
        self.values = np.frombuffer(self.kept.read(), WORD).astype(np.uint64)
        config = super().join(ready)
        self.put_aside()
        return config

    def answer(self, stage: str, payload: bytes) -> bytes:
        """One stage.

        Raises:
            MessageError, ProtocolError, ThresholdError: as `MaskedClient.answer`.
        """
        sums = self.context.sums
        if stage == "advertise":
            self.config = self.join(payload)
            sums.begin(self.config.federation, self.config.round, self.config.attempt)
        elif stage == "mask":
            sums.leave(self.config.federation, self.config.round, self.config.attempt)
            ring = secagg.bit_ring(self.config)
            values = np.frombuffer(self.kept.read(), WORD)
            return self.tokens.to_bytes(TOKEN_BYTES, "big") + ring.close(ring.lift(values))
        elif stage == "consistency":
            self.agreed(tuple(payload.decode("utf-8").splitlines()))
        elif stage == "unmask":
            sums.open(self.config.federation, self.config.round, self.config.attempt)
        return b""

    def agreed(self, survivors: tuple[str, ...]) -> None:
        """Sign for these survivors, in this member's own ledger.

        Raises:
            ProtocolError: it is in a sum over others. ThresholdError: too few of them.
        """
        session = Session.of(self.config)
        if self.context.name not in survivors:
            raise ProtocolError("this member's own contribution is not among the survivors")
        numbers = [session.numbers[name] for name in survivors]
        if reason := session.short(numbers, "survived", self.config.needed):
            raise ThresholdError(f"{reason}; nothing is revealed")
        self.context.sums.sign(self.config.subjects, survivors)


class ModelledServer:
    """As `MaskedServer`, adding what arrives as it arrives."""

    opens_at = STAGES[2]

    def __init__(self, context: ServerContext, cohort: tuple[str, ...]) -> None:
        self.ready = encode_contributors(context.contributors)
        told = messages.session_context(context.sum_context.broadcast_digest, self.ready)
        self.config = agree(
            context.policy,
            context.round_id,
            BucketGroup.of(cohort, context.asked, context.contributors),
            context.length,
            counted=context.counted,
            context=told,
            shares=context.sum_context.shares,
        )
        self.session = Session.of(self.config)
        self.words = secagg.bit_ring(self.config).tally()
        self.tokens, self.done = 0, 0  # stages that are over
        self.asked, self.answered = set(cohort), set[str]()
        self.survivors: tuple[str, ...] = ()

    def begin(self) -> tuple[str, Mapping[str, bytes]]:
        """As `AggregationServer`."""
        return STAGES[0], dict.fromkeys(sorted(self.asked), self.ready)

    def receive(self, party: str, payload: bytes) -> None:
        """Take one answer.

        Raises:
            ProtocolError: of nobody who is asked, a second one, or malformed; nothing was changed.
        """
        if party not in self.asked or party in self.answered:
            raise ProtocolError(f"{party} was not asked or has answered already; refused")
        if STAGES[self.done] == "mask":
            self.words.add(payload[TOKEN_BYTES:])
            self.tokens += int.from_bytes(payload[:TOKEN_BYTES], "big")
        self.answered.add(party)

    def advance(self) -> tuple[str, Mapping[str, bytes]] | None:
        """The next stage.

        Raises:
            ThresholdError: too few answered, or too few tokens stand behind the sum.
        """
        stage, config = STAGES[self.done], self.config
        if stage in STAGES[:3]:
            numbers = [self.session.numbers[name] for name in self.answered]
            reason = self.session.short(numbers, f"answered {stage}", config.needed)
        elif len(self.answered) < config.threshold:
            reason = f"{len(self.answered)} members answered {stage}, need {config.threshold}"
        else:
            reason = ""
        if reason:
            raise ThresholdError(f"{reason}; the attempt is abandoned")
        if stage == "mask":
            self.survivors = tuple(sorted(self.answered))
        self.asked, self.answered, self.done = self.answered, set(), self.done + 1
        if self.done == len(STAGES):
            if self.tokens < config.min_tokens:
                raise ThresholdError(
                    f"the sum stands on {self.tokens} tokens, {config.min_tokens} needed; it is "
                    f"not used"
                )
            return None
        told = "\n".join(self.survivors).encode() if STAGES[self.done] == "consistency" else b""
        return STAGES[self.done], dict.fromkeys(sorted(self.asked), told)

    def sums(self) -> tuple[Sum]:
        """The survivors' sum."""
        return (Sum(self.words.total()[: self.config.length], self.survivors),)


@contextmanager
def simulated(protection_cost: str, seed: int) -> Iterator[None]:
    """Sums of pretended parties, for as long as this lasts. Args: as of `Scenario`."""
    spool, plain, masked = Spool(), AGGREGATIONS["plain"], AGGREGATIONS["masked"]
    here: dict[str, Any] = {
        "plain": Aggregation(
            cast(Any, partial(SpooledClient, spool=spool)), plain.server, plain.wire_cost
        )
    }
    if protection_cost == "modelled":
        client = cast(Any, partial(ModelledClient, spool=spool))
        here["masked"] = Aggregation(client, ModelledServer, masked.wire_cost)

    def rounded(self: Rounded, update: Vector) -> npt.NDArray[np.uint64]:
        key = hashlib.sha256(f"quietchoir simulated rounding {seed} ".encode() + update.tobytes())
        return encode(update, self.ranges, self.bits, key=key.digest()).astype(np.uint64)

    with mock.patch.dict(AGGREGATIONS, here), mock.patch.object(Rounded, "apply", rounded):
        try:
            yield
        finally:
            spool.close()
