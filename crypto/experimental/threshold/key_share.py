"""What one member has once the joint key is made, and how that is written down.

Knows fields and bytes. Knows nothing of files, ceremonies or rounds.
Always: what `decode` returns is what `encode` wrote, or it refuses; nothing secret is in a repr.

    header length, 4 bytes | header, JSON | joint | secret | one share for each member, in the order
    of numbers
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ....core.errors import ConfigError, CryptoError, ProtocolError
from ...he.parameters import JOINT
from ...identity.keys import KEY_BYTES, PublicIdentity
from . import residues
from .lattice import LIMBS
from .memory import ThresholdMemory
from .plan import POLYNOMIAL_BYTES, PRIMES, RESIDUE_BYTES, ThresholdPlan
from .residues import Residues

SECRET_BYTES = JOINT.degree * len(PRIMES) * RESIDUE_BYTES
NUMBERS = ("epoch", "attempt", "threshold", "min_parties", "length", "bits")  # of a plan


@dataclass(frozen=True, slots=True, eq=False)
class KeyShare:
    """What one member has when the joint key is made.

    Hazard: `secret`, `shares`, `pairs` and `readers` are secrets; they are in no repr and are not
    pickled. Whoever keeps `encode` on a disk keeps it private and keeps `memory` beside it: a
    holding that forgot what it did is not safe to use.
    """

    plan: ThresholdPlan
    name: str
    key_id: bytes  # 32 bytes that name the joint key
    joint: Residues = field(repr=False)  # b [1, 3, N], public
    secret: Residues = field(repr=False)  # this member's own, [4, N], NTT basis
    # of each member's secret, in the order of numbers, [3, N], NTT basis
    shares: tuple[Residues, ...] = field(repr=False)
    # other member's number -> key of the masks between us
    pairs: Mapping[int, bytes] = field(repr=False)
    readers: bytes = field(repr=False)  # the members' common key: parts are sealed with it
    memory: ThresholdMemory = field(repr=False, default_factory=ThresholdMemory)

    @property
    def number(self) -> int:
        """This member's number."""
        return self.plan.numbers[self.name]

    def encode(self) -> bytes:
        """Everything but `memory`, which changes with every round and is written by itself.

        Hazard: whoever reads it is this member, as far as the joint key goes.
        """
        header = {
            "plan": {name: getattr(self.plan, name) for name in NUMBERS},
            "federation": self.plan.federation.hex(),
            "members": {
                name: bytes(identity).hex() for name, identity in self.plan.members.items()
            },
            "name": self.name,
            "key_id": self.key_id.hex(),
            "pairs": {str(number): key.hex() for number, key in self.pairs.items()},
            "readers": self.readers.hex(),
        }
        text = json.dumps(header, sort_keys=True).encode("ascii")
        arrays = (self.joint, self.secret, *self.shares)
        return (
            len(text).to_bytes(4, "big")
            + text
            + b"".join(residues.to_bytes(array) for array in arrays)
        )

    @staticmethod
    def decode(raw: bytes, memory: ThresholdMemory) -> "KeyShare":
        """Read what `encode` wrote.

        Args:
            memory: what was done with this very holding so far.

        Raises:
            ProtocolError: anything else.
        """
        end = 4 + int.from_bytes(raw[:4], "big")
        try:
            header: dict[str, Any] = json.loads(raw[4:end])
            members = {
                name: PublicIdentity(bytes.fromhex(key)) for name, key in header["members"].items()
            }
            plan = ThresholdPlan(
                federation=bytes.fromhex(header["federation"]), members=members, **header["plan"]
            )
            pairs = {int(number): bytes.fromhex(key) for number, key in header["pairs"].items()}
            key_id, readers, name = (
                bytes.fromhex(header["key_id"]),
                bytes.fromhex(header["readers"]),
                str(header["name"]),
            )
        except (
            ValueError,
            RecursionError,
            LookupError,
            TypeError,
            AttributeError,
            ConfigError,
            CryptoError,
        ) as error:
            raise ProtocolError(
                f"a holding whose header cannot be read ({type(error).__name__}); make another key"
            ) from None
        n = len(members)
        keys = [key_id, readers, *pairs.values()]
        if (
            {*pairs, plan.number(name)} != set(range(n))
            or len(pairs) != n - 1
            or {len(key) for key in keys} != {KEY_BYTES}
        ):
            raise ProtocolError("a holding whose keys do not fit its plan; make another key")
        size = (1 + n) * POLYNOMIAL_BYTES + SECRET_BYTES
        if len(raw) - end != size:
            raise ProtocolError(
                f"a holding with {len(raw) - end} bytes of polynomials, {size} "
                f"expected; make another key"
            )
        joint = residues.from_bytes(raw[end:][:POLYNOMIAL_BYTES], 1, LIMBS)
        secret = residues.from_bytes(raw[end + POLYNOMIAL_BYTES :][:SECRET_BYTES], 1, LIMBS + 1)[0]
        shares = residues.from_bytes(raw[end + POLYNOMIAL_BYTES + SECRET_BYTES :], n, LIMBS)
        return KeyShare(
            plan,
            name,
            key_id,
            joint,
            secret,
            tuple(np.ascontiguousarray(shares)),
            pairs,
            readers,
            memory,
        )

    def __reduce__(self) -> str:
        raise TypeError("a holding is not pickled; `encode` is for one private file")
