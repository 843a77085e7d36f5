"""The ring of sealed mode: values masked modulo t and encrypted, so that their sum is read by
members alone.

Knows packing, masks, ciphertext frames and two worker services. Knows nothing of rounds, or of how
members got their key.
Always: a mask is uniform over Z_t and the same from the same key on both sides; a frame names its
key and parameters and has exactly one length, checked before any byte of it reaches SEAL, which
runs in a worker; the coordinator's side holds no key.

Of one contribution the first values are sealed and the last ones, the counters, are only masked
(`BitRing`): the coordinator reads the counters' sums by itself, so that no member ever tells it
anything that was decrypted.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...core.errors import ProtocolError
from ..identity.keys import bind, hkdf
from ..ring import BitRing, Stream, Tally, Words
from .bfv import Adder, BfvMember, Packing, Slots
from .parameters import named

KEY_ID_BYTES = 32
HEAD_BYTES = KEY_ID_BYTES + 8  # name of the key, digest of the parameters
REMEMBERED = 4  # keys that a worker keeps ready
DEADLINE_S = 120.0  # for all ciphertexts of one contribution
# in a seeded ciphertext: a place behind SEAL's fields where a coefficient's eight bytes begin
COEFFICIENTS_AT = 155


class CryptoWorker(Protocol):
    """Where SEAL runs: a `Worker` or `WorkerPool` of core/worker.py with one of the two services
    below.
    """

    def call(self, method: str, *blobs: bytes, deadline_s: float = 60.0) -> list[bytes]:
        """Run one method of the service. Raises CryptoError; WorkerError if it crashed."""


Held = TypeVar("Held")


class _Ready(Generic[Held]):
    """The last few objects, by what they were made from."""

    def __init__(self) -> None:
        self._made: OrderedDict[tuple[bytes, ...], Held] = OrderedDict()

    def get(self, key: tuple[bytes, ...]) -> Held | None:
        found = self._made.get(key)
        if found is not None:
            self._made.move_to_end(key)
        return found

    def put(self, key: tuple[bytes, ...], made: Held) -> Held:
        self._made[key] = made
        while len(self._made) > REMEMBERED:
            self._made.popitem(last=False)
        return made


class MemberService:
    """What a member's worker does; the key comes with each call, so that one child serves every
    epoch.
    """

    def __init__(self) -> None:
        self._members: _Ready[BfvMember] = _Ready()

    def encrypt(self, parameters: bytes, seed: bytes, *rows: bytes) -> list[bytes]:
        """As `bfv.Member.encrypt`."""
        return self._member(parameters, seed).encrypt(*rows)

    def decrypt(self, parameters: bytes, seed: bytes, *sums: bytes) -> list[bytes]:
        """As `bfv.Member.decrypt`."""
        return self._member(parameters, seed).decrypt(*sums)

    def _member(self, parameters: bytes, seed: bytes) -> BfvMember:
        key = (parameters, seed)
        return self._members.get(key) or self._members.put(
            key, BfvMember(parameters.decode("ascii"), seed)
        )


class AdderService:
    """What the coordinator's worker does."""

    def __init__(self) -> None:
        self._adders: _Ready[Adder] = _Ready()

    def check(self, parameters: bytes, *payload: bytes) -> list[bytes]:
        """As `bfv.Adder.check`."""
        return self._adder(parameters).check(*payload)

    def add(self, parameters: bytes, masks: bytes, *parts: bytes) -> list[bytes]:
        """As `bfv.Adder.add`."""
        return self._adder(parameters).add(masks, *parts)

    def _adder(self, parameters: bytes) -> Adder:
        key = (parameters,)
        return self._adders.get(key) or self._adders.put(key, Adder(parameters.decode("ascii")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """What both sides must agree on before they speak of ciphertexts."""

    packing: Packing
    key_id: bytes  # 32 bytes: names the members' key, does not tell it

    @property
    def head(self) -> bytes:
        """Before every frame of ciphertexts."""
        return self.key_id + self.packing.parameters.digest

    @property
    def parameters(self) -> bytes:
        """Name of the set, as the workers want it."""
        return self.packing.parameters.name.encode("ascii")

    def frame(self, rows: Sequence[bytes]) -> bytes:
        """Head and ciphertexts."""
        return self.head + b"".join(rows)

    def rows(self, frame: bytes, row_bytes: int, what: str) -> list[bytes]:
        """Take a frame apart without looking into its ciphertexts.

        Raises:
            ProtocolError: another length, key or parameter set.
        """
        expected = HEAD_BYTES + self.packing.rows * row_bytes
        if len(frame) != expected:
            raise ProtocolError(
                f"{what} has {len(frame)} bytes, {expected} expected; it is refused"
            )
        if frame[:HEAD_BYTES] != self.head:
            raise ProtocolError(
                f"{what} is under another key or other parameters than agreed on; it is refused"
            )
        return [frame[at : at + row_bytes] for at in range(HEAD_BYTES, expected, row_bytes)]


class SealedRing:
    """A contribution of `packing.length` sealed values and then `counters` masked ones.

    Args:
        seal: None if nothing is sealed: a round that only scores.
        bound: what else two parties must have in common, for example the adapter they trained from.
        seed: the members' key, 32 bytes; None at the coordinator, which can therefore not `close`.
        crypto_worker: `MemberService` at a member, `AdderService` at the coordinator.
    """

    def __init__(
        self,
        seal: Seal | None,
        counters: BitRing,
        *,
        bound: bytes = b"",
        seed: bytes | None = None,
        crypto_worker: CryptoWorker,
    ) -> None:
        self.seal, self.counters, self.crypto_worker = seal, counters, crypto_worker
        self._seed, self._bound = seed, bound

    @property
    def name(self) -> bytes:
        seal = (
            b""
            if self.seal is None
            else bind(self.seal.head, self.sealed, self.seal.packing.bits, self.seal.packing.width)
        )
        return bind("sealed, Z mod t under BFV", seal, self.counters.name, self._bound)

    @property
    def sealed(self) -> int:
        """Values that are encrypted."""
        return 0 if self.seal is None else self.seal.packing.length

    @property
    def seal_bytes(self) -> int:
        """Bytes of one contribution's ciphertexts, their head included."""
        return 0 if self.seal is None else HEAD_BYTES + self.seal.packing.wire_bytes

    @property
    def wire_bytes(self) -> int:
        return self.seal_bytes + self.counters.wire_bytes

    def lift(self, values: NDArray[np.unsignedinteger]) -> "SealedWords":
        """Slots and words of `values` [sealed + counters].

        Raises:
            ValueError: wrong shape, or a value that needs more than the agreed bits.
        """
        words = self.counters.lift(values[self.sealed :])
        slots = (
            np.zeros((0, 0), np.uint64)
            if self.seal is None
            else self.seal.packing.pack(values[: self.sealed])
        )
        return SealedWords(slots, words)

    def mask(self, words: "SealedWords", streams: Sequence[Stream]) -> None:
        """Two streams from each key: slots modulo t, by rejection, and counters modulo their
        word.
        """
        if self.seal is not None:
            for key, subtract in streams:
                stream = hkdf(key, b"quietchoir sealed slots 1")
                words.slots = self.seal.packing.mask(words.slots, stream, subtract=subtract)
        self.counters.mask(
            words.counters,
            [(hkdf(key, b"quietchoir sealed counters 1"), subtract) for key, subtract in streams],
        )

    def close(self, words: "SealedWords") -> bytes:
        """Encrypt the masked slots; the counters stay masked.

        Raises:
            CryptoError: no key, or a ciphertext with more noise than the table promises; nothing is
            sent.
        """
        counters = self.counters.close(words.counters)
        if self.seal is None:
            return counters
        if self._seed is None:
            raise RuntimeError(
                "a ring without the members' key cannot close a contribution"
            )  # our bug
        slots = [row.tobytes() for row in words.slots]
        rows = self.crypto_worker.call(
            "encrypt", self.seal.parameters, self._seed, *slots, deadline_s=DEADLINE_S
        )
        return self.seal.frame(rows) + counters

    def tally(self) -> "SealedTally":
        return SealedTally(self)


@dataclass(slots=True)
class SealedWords:
    """Values while masks are added."""

    slots: Slots  # [rows, N], each below t
    counters: Words  # [counters]


class SealedTally:
    """The coordinator's sum: ciphertexts that it cannot read, and counters that it can.

    Holds every party's ciphertexts until `total`: about 2 bytes a value and party.
    """

    def __init__(self, ring: SealedRing) -> None:
        self._ring = ring
        self._parts: list[list[bytes]] = []  # [party][row]
        self._counters: Tally = ring.counters.tally()
        # Masks to take away from the encrypted sum, modulo t: this side has no other use for slots.
        self._masks = np.zeros((0, 0), np.uint64)
        if ring.seal is not None:
            self._masks = np.zeros(
                (ring.seal.packing.rows, ring.seal.packing.parameters.degree), np.uint64
            )
        self.sealed_sum = b""  # head and ciphertexts for the members, after `total`

    def add(self, payload: bytes) -> None:
        """Take one party's contribution.

        Raises:
            ProtocolError: another length, key or parameters, or ciphertexts that SEAL refuses;
            nothing was changed. WorkerError: its ciphertexts brought the worker down; nothing was
            changed, the party counts as gone.
        """
        ring, seal = self._ring, self._ring.seal
        if len(payload) != ring.wire_bytes:
            raise ProtocolError(
                f"a sealed contribution has {len(payload)} bytes, "
                f"{ring.wire_bytes} expected; it is refused"
            )
        counters = payload[ring.seal_bytes :]
        ring.counters.unpack(counters)
        if seal is not None:
            rows = seal.rows(
                payload[: ring.seal_bytes],
                seal.packing.parameters.seeded_bytes,
                "a sealed contribution",
            )
            ring.crypto_worker.call("check", seal.parameters, *rows, deadline_s=DEADLINE_S)
            self._parts.append(rows)
        self._counters.add(counters)

    def mask(self, key: bytes, *, subtract: bool) -> None:
        """Note a mask; it is taken off the ciphertext as a plaintext, in `total`."""
        if self._ring.seal is not None:
            stream = hkdf(key, b"quietchoir sealed slots 1")
            self._masks = self._ring.seal.packing.mask(self._masks, stream, subtract=not subtract)
        self._counters.mask(hkdf(key, b"quietchoir sealed counters 1"), subtract=subtract)

    def total(self) -> NDArray[np.int64]:
        """Sums of the counters; `sealed_sum` holds the rest, for the members.

        Raises:
            ProtocolError: more parts than the noise allows.
            WorkerError: the worker crashed over ciphertexts that it had read before; there is no
            sum.
        """
        seal = self._ring.seal
        if seal is not None:
            columns = zip(self._masks, *self._parts, strict=True)
            rows = [
                self._ring.crypto_worker.call("add", seal.parameters, mask.tobytes(), *parts)[0]
                for mask, *parts in columns
            ]
            self.sealed_sum = seal.frame(rows)
        return self._counters.total()


def open_sum(
    seal: Seal, seed: bytes, sealed_sum: bytes, crypto_worker: CryptoWorker
) -> NDArray[np.int64]:
    """The sums [length] behind what the coordinator added up.

    Args:
        seed: the members' key.
        crypto_worker: with `MemberService`.

    Raises:
        ProtocolError: another key, parameters or length; bytes that SEAL refuses; noise too high
        for an exact sum. WorkerError: the bytes brought the worker down.

    Hazard: who chooses `sealed_sum` learns something from whatever the caller tells about the
    result. Tell nothing of it.
    """
    rows = seal.rows(sealed_sum, seal.packing.parameters.ciphertext_bytes, "the sealed sum")
    opened = crypto_worker.call("decrypt", seal.parameters, seed, *rows, deadline_s=DEADLINE_S)
    slots = np.stack(
        [np.frombuffer(row, np.uint64, seal.packing.parameters.degree) for row in opened]
    )
    return seal.packing.unpack(slots)


def coefficients(seal: Seal, contribution: bytes) -> NDArray[np.uint8]:
    """The lowest seven bytes of each coefficient of a contribution's first ciphertext: what its
    holder sees of it.
    """
    row = contribution[HEAD_BYTES : HEAD_BYTES + named(seal.packing.parameters.name).seeded_bytes]
    count = seal.packing.parameters.degree - 16
    words: NDArray[np.uint8] = (
        np.frombuffer(row, np.uint8, 8 * count, COEFFICIENTS_AT)
        .reshape(count, 8)[:, :7]
        .reshape(-1)
    )
    return words
