"""What a member encrypts, and the coordinator's sum of it.

Knows ciphertexts, signatures and sums of polynomials. Knows nothing of shares: nothing here can
open anything.
Always: the polynomial a of a row follows from key, round and row; it is in no message, so nobody
can choose one.

A contribution is c0 = round(q m / T) - (a s_i + e) under the member's *own* secret s_i.
Contributions of a set U add up to an encryption of the summed messages under the sum of the secrets
of U, of which every member holds a share.

**Why not under the joint public key.** There the sender also sends c1, which should be a u + e'. A
member that sends c1 = q / T instead finds the joint secret itself in the opened sum, once and for
all, and only a proof of encryption in zero knowledge would show it (`tests/attacks` runs this).
Here c1 = a is public: the worst contribution adds something that its sender knows. It is half the
size as well, and responders need no ciphertext, only the names of those who contributed.
Source: Shi et al. 2011, "Privacy-preserving aggregation of time-series data", with ring learning
with errors for its group.
"""

import hashlib
from collections.abc import Collection, Sequence

import numpy as np

from ....core.errors import ProtocolError, ThresholdError
from ...identity.keys import SIGNATURE_BYTES, Identity, bind, digest, hkdf
from . import residues
from .dkg import first_common
from .key_share import KeyShare
from .lattice import LIMBS, Slots, lattice
from .plan import LARGEST_COHORT, PLAIN_MODULUS, ThresholdPlan
from .residues import Residues

# the round whose contributions are the members' parts of the joint key: encryptions of zero
REHEARSAL = 0
ROUND_BYTES = 8
SET_BYTES = LARGEST_COHORT // 8
REQUEST_BYTES = ROUND_BYTES + 2 * SET_BYTES  # round, responders, contributors


def common(plan: ThresholdPlan, key_id: bytes, round_number: int) -> Residues:
    """a for each row of a round, [rows, 3, N]; anybody can compute it."""
    if round_number == REHEARSAL:
        return first_common(plan)
    rows = range(plan.packing.rows)
    return np.stack(
        [
            residues.random(hkdf(key_id, bind("quietchoir joint row 1", round_number, row)), LIMBS)
            for row in rows
        ]
    )


def request(
    plan: ThresholdPlan,
    round_number: int,
    responders: Collection[str],
    contributors: Collection[str],
) -> bytes:
    """What responders are asked: round, who responds, whose contributions are in the sum.

    Raises:
        ThresholdError: not exactly `threshold` different responders, or fewer contributors than the
        plan's floor. ProtocolError: a stranger, or a rehearsal without everybody.
    """
    asked = [
        plan.bitset(plan.number(name) for name in names) for names in (responders, contributors)
    ]
    whole = round_number.to_bytes(ROUND_BYTES, "big") + b"".join(asked)
    if len(parse(plan, whole)[1]) != len(responders):
        raise ThresholdError(
            f"{len(responders)} responders, some of them twice; choose "
            f"{plan.threshold} different ones"
        )
    return whole


def parse(plan: ThresholdPlan, whole: bytes) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Round, responders and contributors of a request. Raises as `request`."""
    if len(whole) != REQUEST_BYTES:
        raise ProtocolError(
            f"a request of {len(whole)} bytes, {REQUEST_BYTES} expected; it is refused"
        )
    round_number = int.from_bytes(whole[:ROUND_BYTES], "big")
    responders = plan.from_bitset(whole[ROUND_BYTES : ROUND_BYTES + SET_BYTES])
    contributors = plan.from_bitset(whole[ROUND_BYTES + SET_BYTES :])
    if len(responders) != plan.threshold:
        raise ThresholdError(
            f"{len(responders)} responders, exactly {plan.threshold} open a sum; "
            f"nothing is revealed"
        )
    if len(contributors) < plan.min_parties:
        raise ThresholdError(
            f"{len(contributors)} contributions, at least {plan.min_parties} "
            f"expected; nothing is revealed"
        )
    if round_number == REHEARSAL and len(contributors) != len(plan.members):
        raise ProtocolError(
            f"a rehearsal over {len(contributors)} members, all "
            f"{len(plan.members)} expected; it is refused"
        )
    return round_number, responders, contributors


def request_id(key_id: bytes, whole: bytes) -> bytes:
    """32 bytes that name one request under one key."""
    return digest("quietchoir joint request 1", key_id, whole)


def _context(key_id: bytes, number: int, round_number: int) -> bytes:
    return bind("quietchoir joint contribution 1", key_id, number, round_number)


class Contributor:
    """Encrypts one member's slots."""

    def __init__(self, key_share: KeyShare, identity: Identity) -> None:
        self._key_share, self._identity = key_share, identity

    def encrypt(self, round_number: int, slots: Slots) -> bytes:
        """Slots [rows, N] (packed, masked or not, each below t) as one signed contribution.

        Raises:
            ProtocolError: a second contribution to one round; numbers start at 1 and a retry takes
            another.
        """
        key_share, packing = self._key_share, self._key_share.plan.packing
        if (
            slots.shape != (packing.rows, packing.parameters.degree)
            or (slots >= np.uint64(PLAIN_MODULUS)).any()
        ):
            raise ValueError(
                f"slots {slots.shape}, expected {packing.rows} rows below t; pack "
                f"them with the plan's packing"
            )
        if round_number == REHEARSAL:
            raise ValueError("round 0 is the rehearsal's; count rounds from 1")
        key_share.memory.encrypt(round_number)
        made = lattice().encrypt(
            key_share.secret, common(key_share.plan, key_share.key_id, round_number), slots
        )
        body = residues.to_bytes(made)
        digest = hashlib.sha256(body).digest()
        return body + self._identity.sign(
            _context(key_share.key_id, key_share.number, round_number), digest
        )


class Gathering:
    """The coordinator's side of one round. It holds no secret, and the answers to its requests are
    sealed for members.

    Args:
        key_id: as the members' `KeyShare` has it.
    """

    def __init__(self, plan: ThresholdPlan, key_id: bytes, round_number: int) -> None:
        self._plan, self._key_id, self._round = plan, key_id, round_number
        self._numbers: set[int] = set()
        self._total: Residues = np.zeros(
            (plan.packing.rows, LIMBS, plan.packing.parameters.degree), np.uint64
        )

    @property
    def contributors(self) -> tuple[str, ...]:
        """Whose contributions are in the sum."""
        return tuple(self._plan.names[number] for number in sorted(self._numbers))

    @property
    def total(self) -> bytes:
        """The sum, for readers. Nobody can open it without t members."""
        return residues.to_bytes(self._total)

    def receive(self, name: str, message: bytes) -> None:
        """Add one contribution.

        Raises:
            ProtocolError: a stranger, a second one, or bytes of another size or ring.
            AuthenticationError: not signed by this member for this key and round.
        """
        number, size = self._plan.number(name), self._plan.packing.wire_bytes + SIGNATURE_BYTES
        if number in self._numbers:
            raise ProtocolError(
                f"{name} has contributed to round {self._round} before; the second one is refused"
            )
        if len(message) != size:
            raise ProtocolError(
                f"a contribution of {len(message)} bytes from {name}, {size} "
                f"expected; it is refused"
            )
        body, signature = message[:-SIGNATURE_BYTES], message[-SIGNATURE_BYTES:]
        digest = hashlib.sha256(body).digest()
        self._plan.members[name].verify(
            _context(self._key_id, number, self._round), digest, signature
        )
        self._total = residues.add(
            self._total, residues.from_bytes(body, self._plan.packing.rows, LIMBS)
        )
        self._numbers.add(number)

    def unmask(self, masks: Slots) -> None:
        """Take masks [rows, N] (below t) off the sum, without opening it. Once: plans allow for
        one more rounding.
        """
        self._total = lattice().shift(
            self._total, (np.uint64(PLAIN_MODULUS) - masks) % np.uint64(PLAIN_MODULUS)
        )

    def request(self, responders: Sequence[str]) -> bytes:
        """What to send to each responder and each reader.

        The responders are chosen first and all asked the same: their weights and masks depend on
        all of them.
        Raises:
            ThresholdError: not exactly `threshold` responders, or fewer contributions than the
            plan's floor.
        """
        return request(self._plan, self._round, responders, self.contributors)
