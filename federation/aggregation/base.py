"""How a cohort's contributions become one sum, and who can see what on the way.

Knows two sides that speak in opaque bytes, stage by stage. Knows nothing of training, links or
signatures on messages.
Always: all modes sum the same integers, so they give the same total, to the last bit.

    plain   the coordinator sees every contribution (simulations, one owner's own machines)
    masked  secure aggregation (crypto.secagg): the coordinator sees the sum of the survivors,
    nothing else sealed  the same inside ciphertexts (`crypto.he`): the coordinator sees the sums
    of the counters alone
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ...crypto.he.encrypted_ring import CryptoWorker
from ...crypto.identity.keys import Identity
from ...crypto.secagg import RevealLedger
from ..spec.policy import Policy
from ..store.client_store import ClientStore
from ..wire.messages import RoundId
from .update import SumContext

Values = npt.NDArray[np.uint64]


MESSAGE_BYTES = 2500  # headers and signatures of a round's messages
PEER_BYTES = 900  # keys, shares and signatures that a member exchanges with one other
MAX_PEERS = 64  # of one member, in any cohort: above 32 members the graph is no longer complete


@dataclass(frozen=True, slots=True)
class WireCost:
    """Bytes of one training round, at one member: at least what a round that goes well takes."""

    up: int
    down: int
    once_up: int = 0  # besides, in the first round under each version of the file
    once_down: int = 0
    # at most, besides, in a round of a member that missed some before it, or lost what it held
    late_down: int = 0

    def __add__(self, other: "WireCost") -> "WireCost":
        """Both."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return WireCost(*(one + two for one, two in pairs))


@dataclass(frozen=True, slots=True)
class Sum:
    """What the coordinator may open."""

    total: npt.NDArray[np.int64]  # [length]; in sealed mode the counters alone
    parties: tuple[str, ...]  # whose contributions are in it
    # what the coordinator held of one party, and of the sum
    held: dict[str, object] = field(default_factory=dict)
    # signatures of those that found it to be their sum
    proof: Mapping[str, bytes] = field(default_factory=dict)
    # without its counters, as `delta_chain.pack` made it for those that checked it
    packed: tuple[str, bytes] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ClientSecrets:
    """What only a member of a sealed federation has."""

    store: ClientStore
    crypto_worker: CryptoWorker  # with `crypto.he.encrypted_ring.MemberService`


class SumConsumer(Protocol):
    """What becomes of a sum that members see: their model (`..rounds.global_model`)."""

    def bound(self, round_id: RoundId) -> bytes:
        """What masks are bound to besides what was told: as `Common.bound`."""
        ...

    def keep_sum(
        self, digest: bytes, whole: npt.NDArray[np.int64] | npt.NDArray[np.uint32]
    ) -> None:
        """Remember an opened sum [n] that this member signed: a step may be made of it."""
        ...

    def apply(self, round_id: RoundId, sum_context: SumContext, sums: Sequence[Sum]) -> bytes:
        """Step with sums [n each] that this member opened; answer what names the adapter then.

        Raises:
            DataError: a sum that so many members cannot have; nothing was changed.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientContext:
    """Who a member is, in one attempt."""

    policy: Policy
    name: str
    identity: Identity
    sums: RevealLedger  # the node's memory of rounds that were opened
    round_id: RoundId
    model: SumConsumer
    secrets: ClientSecrets | None = None  # in sealed mode
    sum_context: SumContext = field(default_factory=SumContext)  # of this place
    cohort: tuple[str, ...] = ()  # who was asked; whoever contributes is one of them
    # which of the adapters that were told this member followed itself: 0 none; as `SecAggClient`
    vouch: int = 0
    relies: int = 0  # which of them others must vouch for, because it did not
    scores: bool = False  # this contribution holds scores
    subjects: tuple[bytes, ...] = ()  # what it is about (`rounds.client.subjects`)


class AggregationClient(Protocol):
    """A member's side of one attempt."""

    def __init__(self, context: ClientContext, values: Values, tokens: int, counted: bool) -> None:
        """A contribution that is ready.

        Args:
            tokens: answer tokens that it was trained on; counted: it was trained.
        """
        ...

    @property
    def stages(self) -> tuple[str, ...]:
        """In this order, each once."""
        ...

    def answer(self, stage: str, payload: bytes) -> bytes:
        """What to send back; the last stages may raise and reveal nothing."""
        ...

    def freeze(self) -> bytes:
        """Everything it needs to go on, where the process that answers one stage is not the one
        that answers the next. Hazard: as `crypto.secagg.snapshot`.
        """
        ...

    def restore(self, kept: bytes) -> None:
        """Go on where `freeze` left it, in the same session, under the same place.

        Raises:
            MessageError, ProtocolError: of another session than the federation file's.
        """
        ...


@dataclass(frozen=True, slots=True)
class Contributors:
    """Who is ready to be summed, and whose contributions hold scores; told to all of them in the
    first masked stage.
    """

    ready: tuple[str, ...]  # sorted
    scoring: tuple[str, ...] = ()  # sorted; some of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What the members that are set up have in common."""

    members: tuple[str, ...]
    key_id: bytes  # names their key
    steps: int  # sums applied in this run
    tag: bytes  # names their adapter
    key_group: bytes = (
        b""  # who made their joint key, `KeyGroup.encode`; nothing where all have the key
    )

    @property
    def bound(self) -> bytes:
        """What their masks are bound to."""
        return self.steps.to_bytes(8, "big") + self.tag


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerContext:
    """What the coordinator's side of one attempt is about.

    Args:
        length: values of a contribution; counted: its tokens were trained on.
        contributors: everybody who is summed in some bucket; members find their own.
        asked: how many were.
        common, crypto_worker: where members hold the model: what they have in common, and the
            worker that adds ciphertexts.
    """

    policy: Policy
    round_id: RoundId
    length: int
    counted: bool
    contributors: Contributors
    asked: int
    sum_context: SumContext
    common: Common | None = None
    crypto_worker: CryptoWorker | None = None


class AggregationServer(Protocol):
    """The coordinator's side of one attempt."""

    @property
    def opens_at(self) -> str:
        """The stage whose answers carry the contributions: once it is asked for, this round's
        number is used up.
        """
        ...

    def begin(self) -> tuple[str, Mapping[str, bytes]]:
        """The first stage and its payloads, by party."""
        ...

    def receive(self, party: str, payload: bytes) -> None:
        """Take one party's answer to the current stage."""
        ...

    def advance(self) -> tuple[str, Mapping[str, bytes]] | None:
        """The next stage and its payloads; None once the sum is open."""
        ...

    def sums(self) -> tuple[Sum, ...]:
        """One for each bucket whose sum is open, after `advance` said None."""
        ...
