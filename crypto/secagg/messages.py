"""All that is said, typed: decoded once, checked whole, then trusted. Frames and their fields, what
members say, and the coordinator's lists of it.

Knows the fields of each message, what its signature covers, and the digest by which members refer
to a list. Knows nothing of when it may come.
Always: a frame has exactly one encoding; anything longer, shorter, out of order or of another
session is refused before a byte of it is used, and no size is taken from a message without a bound.
`decode` returns a message that its sender signed for this session, or raises and nothing has
happened. A list carries its members' own signatures, so that the coordinator can leave somebody out
but not invent or change anybody; its digest covers every list before it.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Self

from ...core.errors import ProtocolError
from ..identity.keys import Identity, bind, digest
from ..shamir import SHARE_BYTES
from ..shared import once
from .session import SIGNATURE_BYTES, VOUCH_BYTES, Session

MAGIC = b"QCSA"
VERSION = 2
HEADER_BYTES = 4 + 1 + 1 + 32


class Kind(IntEnum):
    """Every message of the protocol, in the order they are sent."""

    ADVERTISE = 1  # member: its round keys
    KEYS = 2  # coordinator: everybody's round keys
    SHARES = 3  # member: sealed shares for its neighbours
    BOXES = 4  # coordinator: who shared, and the boxes for this member
    MASKED = 5  # member: masked vector
    SURVIVORS = 6  # coordinator: whose vectors arrived
    AGREED = 7  # member: signature over the survivors
    SIGNATURES = 8  # coordinator: everybody's signatures
    REVEALED = 9  # member: one share for each neighbour


def frame(kind: Kind, session: bytes, *fields: bytes) -> bytes:
    """Header and fields."""
    return b"".join((MAGIC, bytes((VERSION, kind)), session, *fields))


def number(value: int) -> bytes:
    """A member's number or a count, two bytes."""
    return value.to_bytes(2, "big")


def blob(content: bytes) -> bytes:
    """Four bytes of length, then the content."""
    return len(content).to_bytes(4, "big") + content


def records(entries: Mapping[int, bytes]) -> bytes:
    """A count, then number and record in ascending order."""
    return number(len(entries)) + b"".join(number(at) + entries[at] for at in sorted(entries))


def member_set(members: Iterable[int], cohort: int) -> bytes:
    """One bit a member of the cohort."""
    bits = sum(1 << member for member in members)
    return bits.to_bytes(-(-cohort // 8), "little")


class Reader:
    """Takes a frame apart from front to back.

    Raises (every method): ProtocolError for anything that is not what the protocol says comes next.
    """

    def __init__(self, data: bytes, kind: Kind, session: bytes) -> None:
        self._data = memoryview(data)
        self._at = 0
        self._kind = kind
        header = self.take(HEADER_BYTES)
        if header[:5] != MAGIC + bytes((VERSION,)):
            raise ProtocolError(
                f"not a message of secagg version {VERSION}; upgrade the older side"
            )
        if header[5] != kind:
            raise ProtocolError(
                f"message kind {header[5]} came while {kind.name} was expected; it is refused"
            )
        if header[6:] != session:
            raise ProtocolError(
                f"{kind.name} belongs to another federation, round, attempt or "
                f"configuration; it is refused"
            )

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        if self._at + size > len(self._data):
            raise ProtocolError(
                f"{self._kind.name} ends after {len(self._data)} bytes, more "
                f"expected; it is refused"
            )
        self._at += size
        return bytes(self._data[self._at - size : self._at])

    def blob(self, limit: int) -> bytes:
        """Bytes with their length before them, at most `limit`."""
        size = int.from_bytes(self.take(4), "big")
        if size > limit:
            raise ProtocolError(
                f"{self._kind.name} announces {size} bytes, {limit} at most; it is refused"
            )
        return self.take(size)

    def number(self, below: int) -> int:
        """A two-byte number smaller than `below`."""
        value = int.from_bytes(self.take(2), "big")
        if value >= below:
            raise ProtocolError(
                f"{self._kind.name} names number {value}, less than {below} expected; it is refused"
            )
        return value

    def records(self, size: int, cohort: int) -> dict[int, bytes]:
        """A count, then that many records of `size` bytes, each with a member's number, strictly
        ascending.
        """
        return dict(self._ascending(self.number(cohort + 1), size, cohort))

    def _ascending(self, count: int, size: int, cohort: int) -> Iterator[tuple[int, bytes]]:
        last = -1
        for _ in range(count):
            member = self.number(cohort)
            if member <= last:
                raise ProtocolError(
                    f"{self._kind.name} names member {member} twice or out of order; it is refused"
                )
            last = member
            yield member, self.take(size)

    def member_set(self, cohort: int) -> tuple[int, ...]:
        """Members of a bit set, ascending; bits beyond the cohort are refused."""
        bits = int.from_bytes(self.take(-(-cohort // 8)), "little")
        if bits >> cohort:
            raise ProtocolError(f"{self._kind.name} names members beyond the cohort; it is refused")
        return tuple(member for member in range(cohort) if bits >> member & 1)

    def done(self) -> None:
        """Nothing may follow."""
        if self._at != len(self._data):
            raise ProtocolError(
                f"{self._kind.name} has {len(self._data) - self._at} bytes too many; it is refused"
            )


SELF_SHARE, KEY_SHARE = b"\x00", b"\x01"


@dataclass(frozen=True, slots=True)
class KeyCard:
    """Stage 0. A member's fresh keys for this attempt, and what it vouches for."""

    sender: int
    channel: bytes  # X25519, seals shares
    mask: bytes  # X25519, agrees on pair masks
    commitment: bytes  # to the self-mask seed, so that wrong shares are noticed
    # how much of what the session's context names this member has checked itself; 0: nothing
    vouch: int
    signature: bytes
    # to what it adds to the key of tags, so that all are dealt the same; nothing without tags
    tag_commitment: bytes = b""

    @classmethod
    def signed(
        cls,
        session: Session,
        identity: Identity,
        sender: int,
        channel: bytes,
        mask: bytes,
        commitment: bytes,
        vouch: int = 0,
        tag_commitment: bytes = b"",
    ) -> Self:
        """Sign with the member's long-term key."""
        made = cls(sender, channel, mask, commitment, vouch, b"", tag_commitment)
        signature = identity.sign(session.signing("advertise"), made.message())
        return dataclasses.replace(made, signature=signature)

    def message(self) -> bytes:
        """What is signed."""
        tagged = [self.tag_commitment] if self.tag_commitment else []
        return bind(self.sender, self.channel, self.mask, self.commitment, self.vouch, *tagged)

    def encode(self, session: Session) -> bytes:
        return frame(Kind.ADVERTISE, session.id, number(self.sender), self.record())

    def record(self) -> bytes:
        """As it stands in the list of everybody's keys."""
        return (
            self.channel
            + self.mask
            + self.commitment
            + self.vouch.to_bytes(VOUCH_BYTES, "big")
            + self.tag_commitment
            + self.signature
        )

    @classmethod
    def read(cls, sender: int, record: bytes) -> Self:
        """What `record` wrote; its signature is not looked at."""
        at = 96 + VOUCH_BYTES
        return cls(
            sender,
            record[:32],
            record[32:64],
            record[64:96],
            int.from_bytes(record[96:at], "big"),
            record[-SIGNATURE_BYTES:],
            record[at:-SIGNATURE_BYTES],
        )

    @classmethod
    def from_record(cls, session: Session, sender: int, record: bytes) -> Self:
        """Raises AuthenticationError unless `sender` signed it for this session."""
        card = cls.read(sender, record)
        session.verify(sender, session.signing("advertise"), card.message(), card.signature)
        return card

    @classmethod
    def decode(cls, data: bytes, session: Session) -> Self:
        """Raises ProtocolError or AuthenticationError."""
        reader = Reader(data, Kind.ADVERTISE, session.id)
        sender, record = reader.number(len(session.names)), reader.take(session.card_bytes)
        reader.done()
        return cls.from_record(session, sender, record)


@dataclass(frozen=True, slots=True)
class SealedShares:
    """Stage 1. A member's shares, each sealed for one neighbour."""

    sender: int
    boxes: Mapping[int, bytes] = field(repr=False)

    def encode(self, session: Session, identity: Identity, view: bytes) -> bytes:
        body = number(self.sender) + records(self.boxes)
        return frame(
            Kind.SHARES, session.id, body, identity.sign(session.signing("share", view), body)
        )

    @classmethod
    def decode(cls, data: bytes, session: Session, view: bytes) -> Self:
        """Args: view: digest of the key list. Raises ProtocolError or AuthenticationError."""
        reader = Reader(data, Kind.SHARES, session.id)
        sealed = cls(
            reader.number(len(session.names)), reader.records(session.box_bytes, len(session.names))
        )
        signature = reader.take(64)
        reader.done()
        body = number(sealed.sender) + records(sealed.boxes)
        session.verify(sealed.sender, session.signing("share", view), body, signature)
        return sealed


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof that a member sent a masked vector with this digest, and its claim about tokens."""

    RECORD_BYTES = 1 + 32 + 64
    sender: int
    claim: int
    payload_digest: bytes
    signature: bytes

    @classmethod
    def signed(
        cls,
        session: Session,
        identity: Identity,
        view: bytes,
        sender: int,
        claim: int,
        payload: bytes,
    ) -> Self:
        """Sign what is about to be sent."""
        payload_digest = hashlib.sha256(payload).digest()
        message = bind(sender, claim, payload_digest)
        return cls(
            sender, claim, payload_digest, identity.sign(session.signing("mask", view), message)
        )

    def record(self) -> bytes:
        """As it stands in the list of survivors."""
        return bytes((self.claim,)) + self.payload_digest + self.signature

    @classmethod
    def from_record(cls, session: Session, view: bytes, sender: int, record: bytes) -> Self:
        """Raises AuthenticationError unless `sender` signed it having seen `view`."""
        receipt = cls(sender, record[0], record[1:33], record[33:])
        if receipt.claim > session.claim_limit:
            raise ProtocolError(
                f"{session.names[sender]} claims {receipt.claim} units of tokens, "
                f"{session.claim_limit} at most"
            )
        message = bind(sender, receipt.claim, receipt.payload_digest)
        session.verify(sender, session.signing("mask", view), message, receipt.signature)
        return receipt


@dataclass(frozen=True, slots=True)
class Upload:
    """Stage 2. A member's masked values and token count; noise to everybody until masks are
    removed from a sum.
    """

    receipt: Receipt
    values: bytes = field(repr=False)
    tokens: bytes = field(repr=False)

    def encode(self, session: Session) -> bytes:
        sender = number(self.receipt.sender)
        return frame(
            Kind.MASKED, session.id, sender, self.receipt.record(), blob(self.values), self.tokens
        )

    @classmethod
    def decode(cls, data: bytes, session: Session, view: bytes) -> Self:
        """Args: view: digest of who shared. Raises ProtocolError or AuthenticationError."""
        reader = Reader(data, Kind.MASKED, session.id)
        sender, record = reader.number(len(session.names)), reader.take(Receipt.RECORD_BYTES)
        values = reader.blob(session.ring.wire_bytes)
        tokens = reader.take(session.token_ring.limbs.wire_bytes)
        reader.done()
        receipt = Receipt.from_record(session, view, sender, record)
        if hashlib.sha256(values + tokens).digest() != receipt.payload_digest:
            raise ProtocolError(
                f"the vector of {session.names[sender]} is not the one it signed; it is refused"
            )
        return cls(receipt, values, tokens)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Stage 3. A member's signature over the set of survivors it was shown."""

    sender: int
    signature: bytes

    def encode(self, session: Session) -> bytes:
        return frame(Kind.AGREED, session.id, number(self.sender), self.signature)

    @classmethod
    def signed(cls, session: Session, identity: Identity, sender: int, survivors: bytes) -> Self:
        """Args: survivors: digest of the set and of all that came before it."""
        return cls(sender, identity.sign(session.signing("consistency", survivors), number(sender)))

    def verify(self, session: Session, survivors: bytes) -> None:
        """Raises AuthenticationError unless its sender saw exactly this set."""
        session.verify(
            self.sender,
            session.signing("consistency", survivors),
            number(self.sender),
            self.signature,
        )

    @classmethod
    def decode(cls, data: bytes, session: Session, survivors: bytes) -> Self:
        """Raises ProtocolError or AuthenticationError."""
        reader = Reader(data, Kind.AGREED, session.id)
        agreement = cls(reader.number(len(session.names)), reader.take(64))
        reader.done()
        agreement.verify(session, survivors)
        return agreement


@dataclass(frozen=True, slots=True)
class Revelation:
    """Stage 4. One share for each peer: of its self-mask if it survived, of its mask key if not.
    Never both.
    """

    sender: int
    shares: Mapping[int, bytes] = field(repr=False)  # kind (1 byte) and share (33 bytes)

    def encode(self, session: Session, identity: Identity, survivors: bytes) -> bytes:
        body = number(self.sender) + records(self.shares)
        return frame(
            Kind.REVEALED,
            session.id,
            body,
            identity.sign(session.signing("unmask", survivors), body),
        )

    @classmethod
    def decode(cls, data: bytes, session: Session, survivors: bytes) -> Self:
        """Raises ProtocolError or AuthenticationError."""
        reader = Reader(data, Kind.REVEALED, session.id)
        revelation = cls(
            reader.number(len(session.names)), reader.records(1 + SHARE_BYTES, len(session.names))
        )
        signature = reader.take(64)
        reader.done()
        body = number(revelation.sender) + records(revelation.shares)
        session.verify(revelation.sender, session.signing("unmask", survivors), body, signature)
        return revelation


@dataclass(frozen=True, slots=True)
class KeyList:
    """After stage 0: everybody's round keys."""

    cards: Mapping[int, KeyCard]

    def encode(self, session: Session) -> bytes:
        return frame(
            Kind.KEYS, session.id, records({at: card.record() for at, card in self.cards.items()})
        )

    @classmethod
    def decode(cls, data: bytes, session: Session) -> "KeyList":
        """Raises ProtocolError; AuthenticationError if any card is not its member's."""

        def find() -> "KeyList":
            reader = Reader(data, Kind.KEYS, session.id)
            found = reader.records(session.card_bytes, len(session.names))
            reader.done()
            return cls({at: KeyCard.from_record(session, at, one) for at, one in found.items()})

        return once(session.id, (cls, hashlib.sha256(data).digest()), find)

    def view(self, session: Session) -> bytes:
        """Digest of all keys: the graph's seed too, which is why nobody chooses it alone."""

        def find() -> tuple["KeyList", bytes]:  # with the list, so that its number is no other's
            listed = records({at: card.record() for at, card in self.cards.items()})
            return self, digest(session.id, "keys", listed)

        return once(session.id, ("view", id(self)), find)[1]


@dataclass(frozen=True, slots=True)
class BoxList:
    """After stage 1: who shared, and the boxes for one member."""

    shared: tuple[int, ...]
    boxes: Mapping[int, bytes] = field(repr=False)

    def encode(self, session: Session) -> bytes:
        return frame(
            Kind.BOXES, session.id, member_set(self.shared, len(session.names)), records(self.boxes)
        )

    @classmethod
    def decode(cls, data: bytes, session: Session) -> Self:
        """Raises ProtocolError. The boxes are checked when they are opened."""
        reader = Reader(data, Kind.BOXES, session.id)
        boxes = cls(
            reader.member_set(len(session.names)),
            reader.records(session.box_bytes, len(session.names)),
        )
        reader.done()
        return boxes


def shared_view(session: Session, keys_view: bytes, shared: tuple[int, ...]) -> bytes:
    """Digest of who shared, the same for all members although each gets its own boxes."""
    return digest(session.id, "shared", keys_view, member_set(shared, len(session.names)))


@dataclass(frozen=True, slots=True)
class SurvivorList:
    """After stage 2: whose masked vectors arrived, each with its own signed receipt."""

    receipts: Mapping[int, Receipt]

    def encode(self, session: Session) -> bytes:
        return frame(
            Kind.SURVIVORS,
            session.id,
            records({at: receipt.record() for at, receipt in self.receipts.items()}),
        )

    @classmethod
    def decode(cls, data: bytes, session: Session, view: bytes) -> "SurvivorList":
        """Args: view: `shared_view`. Raises ProtocolError; AuthenticationError if a receipt is
        not its member's.
        """

        def find() -> "SurvivorList":
            reader = Reader(data, Kind.SURVIVORS, session.id)
            found = reader.records(Receipt.RECORD_BYTES, len(session.names))
            reader.done()
            return cls(
                {at: Receipt.from_record(session, view, at, one) for at, one in found.items()}
            )

        return once(session.id, (cls, view, hashlib.sha256(data).digest()), find)

    def view(self, session: Session, shared: bytes) -> bytes:
        """Digest of the survivors and of all that came before."""

        def find() -> tuple["SurvivorList", bytes]:
            listed = records({at: receipt.record() for at, receipt in self.receipts.items()})
            return self, digest(session.id, "survivors", shared, listed)

        return once(session.id, ("view", id(self), shared), find)[1]


@dataclass(frozen=True, slots=True)
class SignatureList:
    """After stage 3: who signed the survivor set."""

    signatures: Mapping[int, bytes]

    def encode(self, session: Session) -> bytes:
        return frame(Kind.SIGNATURES, session.id, records(self.signatures))

    @classmethod
    def decode(cls, data: bytes, session: Session, survivors: bytes) -> "SignatureList":
        """Raises ProtocolError; AuthenticationError if one signature is not over this very set."""

        def find() -> "SignatureList":
            reader = Reader(data, Kind.SIGNATURES, session.id)
            found = reader.records(64, len(session.names))
            reader.done()
            for at, signature in found.items():
                Agreement(at, signature).verify(session, survivors)
            return cls(found)

        return once(session.id, (cls, survivors, hashlib.sha256(data).digest()), find)
