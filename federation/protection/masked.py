"""Secure aggregation as a protection: the coordinator sees the sum of the survivors, nothing else.

Knows `crypto.secagg` and how its stages map onto letters. Knows nothing of training or links.
Always: a member takes threshold and minimum from its own copy of the signed federation file; from the coordinator it
takes only the names of the cohort, and those must be in the roster.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ...core.errors import ProtocolError
from ...crypto.ring import BitRing, Ring, TokenRing
from ...crypto.secagg import Floor, SecAggClient, SecAggConfig, SecAggServer
from ..exchange import broadcast
from ..exchange.messages import Place
from ..learning.shares import Shares
from ..membership.policy import Policy
from .draw import buckets
from .seam import SAMPLE, PartyContext, Sum, Values, cohort_payload, describe, public_identities, read_cohort

STAGES = ("advertise", "share", "mask", "consistency", "unmask")


def agree(
    policy: Policy, place: Place, cohort: tuple[str, ...], length: int, *, counted: bool, context: bytes,
    shares: Shares | None = None,
) -> SecAggConfig:  # fmt: skip
    """What every member of `cohort` must configure alike for `place`.

    Args:
        counted: training tokens count towards `min_tokens`; they do not in a round that only scores.
        context: `broadcast.context` of what this side was told, or tells.
        shares: who trains which columns: those that train the most are enough in any sum, or it is not opened.

    Raises:
        ConfigError: fewer of them are in the cohort than a sum may be of.
    """
    protection = policy.protection
    leaders = frozenset() if shares is None else shares.leaders.intersection(cohort)
    return SecAggConfig(
        federation=hashlib.sha256(policy.digest + bytes.fromhex(place.run)).digest(),
        round=place.round,
        attempt=place.attempt,
        members=public_identities(policy, cohort),
        threshold=threshold(policy, len(cohort)),
        min_cohort=protection.min_cohort,
        min_tokens=protection.min_tokens if counted else 0,
        length=length,
        bits=protection.bits,
        floors=() if shares is None else (Floor(leaders, shares.floor),),
        context=context,
    )


def threshold(policy: Policy, cohort: int) -> int:
    """Survivors that a sum needs: the file's number, and always more than two thirds.

    With t > 2n/3 a coordinator that shows different survivors to different members needs a third of the cohort as
    accomplices; with a bare majority it would need none (`SecAggConfig.colluders`).
    Source: Bonawitz et al. 2017, section 6.2.
    """
    return max(min(policy.protection.threshold, cohort), 2 * cohort // 3 + 1)


class MaskedParty:
    """A member's side of one attempt."""

    stages: tuple[str, ...] = STAGES

    def __init__(self, context: PartyContext, values: Values, tokens: int, counted: bool) -> None:
        self.context = context
        self.values: Values | None = values
        self.tokens, self.counted = tokens, counted
        self.client: SecAggClient | None = None

    def answer(self, stage: str, payload: bytes) -> bytes:
        """One stage.

        Raises:
            MessageError: a cohort that the roster or its minimum does not allow.
            ProtocolError, AuthenticationError, ThresholdError: as `SecAggClient`; nothing was revealed.
        """
        if stage == "advertise":
            context = self.context
            ready = read_cohort(payload, context.policy, context.name, context.cohort)
            shares = context.terms.shares
            cohort = next(one for one in buckets(context.policy, context.place, ready, shares) if context.name in one)
            assert self.values is not None  # the party calls each stage once
            config = agree(
                context.policy, context.place, cohort, self.values.size, counted=self.counted, shares=shares,
                context=broadcast.context(context.terms.told, payload),
            )  # fmt: skip
            self.client = SecAggClient(
                config, context.name, context.identity, ring=self.ring(config), ledger=context.sums, vouch=context.vouch,
                relies=context.relies,
            )  # fmt: skip
            return self.client.advertise()
        if self.client is None:
            raise ProtocolError(f"found stage {stage!r} before 'advertise'; refused")
        if stage == "mask":
            assert self.values is not None
            masked = self.client.mask(payload, self.values, self.tokens)
            self.values = None
            return masked
        steps = {"share": self.client.share, "consistency": self.client.consistency, "unmask": self.client.unmask}
        return steps[stage](payload)

    def ring(self, config: SecAggConfig) -> Ring:
        """The ring to sum in."""
        return bit_ring(config)


def bit_ring(config: SecAggConfig) -> BitRing:
    """Masked mode's."""
    return BitRing(length=config.length, bits=config.bits, parties=len(config.members))


class MaskedCoordinator:
    """The coordinator's side of one attempt.

    Args:
        cohort: whose contributions are summed.
        ready: everybody whose contribution is summed in some bucket; by default the cohort. Members find their own bucket.
        told: the broadcast digest of what they were asked; shares: who trains which columns.
    """

    opens_at = STAGES[2]  # a masked upload is used up when it leaves, whatever becomes of it

    def __init__(
        self, policy: Policy, place: Place, cohort: tuple[str, ...], length: int, counted: bool, *,
        told: bytes = b"", ready: tuple[str, ...] = (), shares: Shares | None = None,
    ) -> None:  # fmt: skip
        self.cohort, self.ready = cohort, cohort_payload(ready or cohort)
        context = broadcast.context(told, self.ready)
        self.config = agree(policy, place, cohort, length, counted=counted, context=context, shares=shares)
        self.server = SecAggServer(self.config, ring=self.ring(self.config))
        self.done = 0  # stages that are over
        self.sample: bytes | None = None  # one masked contribution, for the report

    def ring(self, config: SecAggConfig) -> Ring:
        """As the members'."""
        return bit_ring(config)

    def begin(self) -> tuple[str, Mapping[str, bytes]]:
        """Name the cohort, ask for round keys."""
        return STAGES[0], dict.fromkeys(self.cohort, self.ready)

    def receive(self, party: str, payload: bytes) -> None:
        """Take one answer.

        Raises:
            ProtocolError, AuthenticationError: refused; the server's state is unchanged.
        """
        self.server.receive(party, payload)
        if STAGES[self.done] == "mask" and self.sample is None:
            self.sample = payload

    def advance(self) -> tuple[str, Mapping[str, bytes]] | None:
        """The next stage.

        Raises:
            ThresholdError: too few answered; nothing can be opened.
        """
        payloads = self.server.advance()
        self.done += 1
        return (STAGES[self.done], payloads) if self.done < len(STAGES) else None

    def total(self) -> Sum:
        """The survivors' sum."""
        result = self.server.result
        assert result is not None  # `advance` said None
        return Sum(result.total, tuple(sorted(result.survivors)), self.held(result.total))

    def held(self, total: npt.NDArray[np.int64]) -> dict[str, object]:
        """What the coordinator held of one member, beside the sum."""
        if self.sample is None:
            return {}
        n = len(self.config.members)
        ring = bit_ring(self.config)
        words = ring.unpack(payload_of(self.sample, ring.wire_bytes, n))
        return {**describe(words.astype(np.int64), "masked", 1 << ring.bits), "sum_words": total[:SAMPLE].tolist()}


def payload_of(upload: bytes, size: int, cohort: int) -> bytes:
    """The masked values in a member's upload, which ends with them and then its token count."""
    end = len(upload) - TokenRing(cohort).limbs.wire_bytes
    return upload[end - size : end]
