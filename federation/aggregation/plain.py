"""No protection: the coordinator sees every contribution.

Knows packing. Knows nothing of training or links.
Always: the sum is of what arrived, at least the federation's minimum.
"""

from collections.abc import Mapping

import numpy as np

from ...core.errors import ProtocolError, RoundAborted
from ...crypto.ring import BitRing
from ..spec.policy import Policy
from .base import MESSAGE_BYTES, ClientContext, ServerContext, Sum, Values, WireCost
from .update import SAMPLE, Codec, describe

PLAIN_STAGE = "send"


class PlainClient:
    """Sends its contribution as it is.

    Hazard: the coordinator sees it. A node joins such a federation only if its own `[consent]`
    lists "plain".
    """

    stages: tuple[str, ...] = (PLAIN_STAGE,)

    def __init__(self, context: ClientContext, values: Values, tokens: int, counted: bool) -> None:
        del tokens, counted  # nobody's claim is needed: the coordinator sees who is there
        bits, self.packed = context.policy.protection.bits, b""
        if values.size:
            ring = BitRing(length=values.size, bits=bits, parties=1)
            self.packed = ring.close(ring.lift(values))

    def answer(self, stage: str, payload: bytes) -> bytes:
        """The one stage."""
        if stage != PLAIN_STAGE or payload:
            raise ProtocolError(
                f"found stage {stage!r} with {len(payload)} bytes, expected "
                f"{PLAIN_STAGE!r} with none"
            )
        return self.packed

    def freeze(self) -> bytes:
        """As `AggregationClient`."""
        return self.packed

    def restore(self, kept: bytes) -> None:
        """As `AggregationClient`."""
        self.packed = kept


class PlainServer:
    """Adds contributions as they arrive."""

    opens_at = PLAIN_STAGE

    def __init__(self, context: ServerContext, cohort: tuple[str, ...]) -> None:
        self.policy, self.cohort, self.awaited = context.policy, cohort, set(cohort)
        bits = context.policy.protection.bits
        self.ring = BitRing(length=context.length, bits=bits, parties=1)
        self.sum = np.zeros(context.length, np.int64)
        self.arrived: list[str] = []
        self.held: dict[str, object] = {}

    def begin(self) -> tuple[str, Mapping[str, bytes]]:
        """Ask everybody for its contribution."""
        return PLAIN_STAGE, dict.fromkeys(self.cohort, b"")

    def receive(self, party: str, payload: bytes) -> None:
        """Add one contribution.

        Raises:
            ProtocolError: not of the cohort, a second one, or malformed; the sum is unchanged.
        """
        if party not in self.awaited:
            raise ProtocolError(
                f"{party} is not of this cohort or has sent already; its message is refused"
            )
        words = self.ring.unpack(payload).astype(np.int64)
        self.sum += words
        self.awaited.remove(party)
        self.arrived.append(party)
        if not self.held:
            self.held = describe(words, "plain")

    def advance(self) -> None:
        """There is no second stage.

        Raises:
            RoundAborted: fewer than the federation's minimum.
        """
        need = self.policy.protection.min_cohort
        if len(self.arrived) < need:
            raise RoundAborted(
                f"{len(self.arrived)} contributions, need {need}: nothing is averaged"
            )

    def sums(self) -> tuple[Sum]:
        """The sum of what arrived."""
        held = {**self.held, "sum_words": self.sum[:SAMPLE].tolist()}
        return (Sum(self.sum, tuple(sorted(self.arrived)), held),)


def wire_cost(policy: Policy, size: int, cohort: int) -> WireCost:
    """What a contribution of `size` values costs."""
    del cohort
    length, bits = Codec(size, policy).length, policy.protection.bits
    words = BitRing(length=length, bits=bits, parties=1).wire_bytes
    return WireCost(words + MESSAGE_BYTES, MESSAGE_BYTES)
