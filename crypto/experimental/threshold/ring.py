"""The ring of sealed mode where no member holds the key singly: values masked modulo t inside
contributions to a joint key.

Knows how `sealed.SealedRing` and `contribution` fit together. Knows nothing of how a sum is opened.
Always: as in `sealed`, the counters are masked and not sealed, and masks are the same from the same
key on both sides; a contribution says whose it is and is signed for its key and round, so the
coordinator knows whose sum it holds.

SEAL reads nothing here that another party laid out (see `lattice`), so there is no worker.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ....core.errors import ProtocolError
from ...he.encrypted_ring import Seal, SealedRing, SealedTally, SealedWords
from ...identity.keys import SIGNATURE_BYTES
from ...ring import BitRing
from .contribution import Contributor, Gathering
from .lattice import Slots
from .plan import POLYNOMIAL_BYTES, ThresholdPlan

NUMBER_BYTES = 1  # of a member: a plan has at most 128
Close = Callable[[Slots], bytes]  # slots [rows, N] -> a member's number and its contribution


def closing(plan: ThresholdPlan, name: str, contributor: Contributor, round_number: int) -> Close:
    """What a member's `JointRing` needs to close its contribution to one round."""
    number = plan.number(name).to_bytes(NUMBER_BYTES, "big")
    return lambda slots: number + contributor.encrypt(round_number, slots)


class _Nowhere:
    """A joint ring has no worker."""

    def call(self, method: str, *blobs: bytes, deadline_s: float = 60.0) -> list[bytes]:
        del blobs, deadline_s
        raise RuntimeError(f"{method}: joint ciphertexts are not a worker's")  # our bug


class JointRing(SealedRing):
    """A contribution of `plan.length` sealed values and then `counters` masked ones.

    Args:
        plan: of the joint key.
        key_id: names that key.
        round_number: as contributions count rounds; one for each attempt.
        close: `closing` at a member; None at the coordinator.
    """

    def __init__(
        self,
        plan: ThresholdPlan,
        key_id: bytes,
        round_number: int,
        counters: BitRing,
        *,
        bound: bytes,
        close: Close | None = None,
    ) -> None:
        self.sealing = Seal(packing=plan.packing, key_id=key_id)
        super().__init__(self.sealing, counters, bound=bound, crypto_worker=_Nowhere())
        self.plan, self.key_id, self.round_number, self._close = plan, key_id, round_number, close

    @property
    def seal_bytes(self) -> int:
        """Bytes of one contribution, its sender's number included."""
        return NUMBER_BYTES + self.plan.packing.wire_bytes + SIGNATURE_BYTES

    def close(self, words: SealedWords) -> bytes:
        """Encrypt the masked slots; the counters stay masked.

        Raises:
            ProtocolError: this member contributed to this round before; nothing is sent.
        """
        if self._close is None:
            raise RuntimeError(
                "a ring without a member's share cannot close a contribution"
            )  # our bug
        return self._close(words.slots) + self.counters.close(words.counters)

    def tally(self) -> "JointTally":
        return JointTally(self)


class JointTally(SealedTally):
    """The coordinator's sum: polynomials that t members open together, and counters that it reads
    by itself.

    Holds one sum, whatever the number of parties.
    """

    def __init__(self, ring: JointRing) -> None:
        super().__init__(ring)
        self._joint = ring
        self.gathering = Gathering(ring.plan, ring.key_id, ring.round_number)

    def add(self, payload: bytes) -> None:
        """Take one party's contribution.

        Raises:
            ProtocolError: another length, key or ring, or a second one of the same member; nothing
            was changed. AuthenticationError: not signed by the member that it names, for this key
            and round.
        """
        ring = self._joint
        if len(payload) != ring.wire_bytes:
            raise ProtocolError(
                f"a sealed contribution has {len(payload)} bytes, "
                f"{ring.wire_bytes} expected; it is refused"
            )
        number, counters = payload[0], payload[ring.seal_bytes :]
        if number >= len(ring.plan.names):
            raise ProtocolError(
                f"a contribution of member {number}, there are "
                f"{len(ring.plan.names)}; it is refused"
            )
        ring.counters.unpack(counters)
        self.gathering.receive(ring.plan.names[number], payload[NUMBER_BYTES : ring.seal_bytes])
        self._counters.add(counters)

    def total(self) -> NDArray[np.int64]:
        """Sums of the counters; `sealed_sum` holds the rest, for members to open."""
        self.gathering.unmask(self._masks)
        self.sealed_sum = self._joint.sealing.frame([self.gathering.total])
        return self._counters.total()


def opened_bytes(seal: Seal, sealed_sum: bytes) -> bytes:
    """The sum in a frame that `JointTally` made, for a `Reader`.

    Raises:
        ProtocolError: another length, key or parameters.
    """
    return b"".join(seal.rows(sealed_sum, POLYNOMIAL_BYTES, "the sealed sum"))
