"""What members say, typed: decoded once, checked whole, then trusted.

Knows the fields of each member's message and what its signature covers. Knows nothing of when it
may come.
Always: `decode` returns a message that its sender signed for this session, or raises and nothing
has happened.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from ...core.errors import ProtocolError
from ..identity.keys import Identity, bind
from ..shamir import SHARE_BYTES
from .frames import Kind, Reader, blob, frame, number, records
from .session import Session

VOUCH_BYTES = 8
SELF_SHARE, KEY_SHARE = b"\x00", b"\x01"


@dataclass(frozen=True, slots=True)
class KeyCard:
    """Stage 0. A member's fresh keys for this attempt, and what it vouches for."""

    RECORD_BYTES = 32 + 32 + 32 + VOUCH_BYTES + 64
    sender: int
    channel: bytes  # X25519, seals shares
    mask: bytes  # X25519, agrees on pair masks
    commitment: bytes  # to the self-mask seed, so that wrong shares are noticed
    # how much of what the session's context names this member has checked itself; 0: nothing
    vouch: int
    signature: bytes

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
    ) -> Self:
        """Sign with the member's long-term key."""
        signature = identity.sign(
            session.signing("advertise"), bind(sender, channel, mask, commitment, vouch)
        )
        return cls(sender, channel, mask, commitment, vouch, signature)

    def encode(self, session: Session) -> bytes:
        return frame(Kind.ADVERTISE, session.id, number(self.sender), self.record())

    def record(self) -> bytes:
        """As it stands in the list of everybody's keys."""
        return (
            self.channel
            + self.mask
            + self.commitment
            + self.vouch.to_bytes(VOUCH_BYTES, "big")
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
            record[at:],
        )

    @classmethod
    def from_record(cls, session: Session, sender: int, record: bytes) -> Self:
        """Raises AuthenticationError unless `sender` signed it for this session."""
        card = cls.read(sender, record)
        message = bind(sender, card.channel, card.mask, card.commitment, card.vouch)
        session.verify(sender, session.signing("advertise"), message, card.signature)
        return card

    @classmethod
    def decode(cls, data: bytes, session: Session) -> Self:
        """Raises ProtocolError or AuthenticationError."""
        reader = Reader(data, Kind.ADVERTISE, session.id)
        sender, record = reader.number(len(session.names)), reader.take(cls.RECORD_BYTES)
        reader.done()
        return cls.from_record(session, sender, record)


@dataclass(frozen=True, slots=True)
class Parcel:
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
        parcel = cls(
            reader.number(len(session.names)), reader.records(session.box_bytes, len(session.names))
        )
        signature = reader.take(64)
        reader.done()
        body = number(parcel.sender) + records(parcel.boxes)
        session.verify(parcel.sender, session.signing("share", view), body, signature)
        return parcel


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
