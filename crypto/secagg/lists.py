"""What the coordinator says: lists of what members signed, and nothing of its own.

Knows how each list is written and the digest by which members refer to it. Knows nothing of when it
may come.
Always: a list carries its members' own signatures, so that the coordinator can leave somebody out
but not invent or change anybody; the digest of a list covers every list before it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from ..identity.keys import digest
from .frames import Kind, Reader, frame, member_set, records
from .messages import Agreement, KeyCard, Receipt
from .session import Session


@dataclass(frozen=True, slots=True)
class KeyList:
    """After stage 0: everybody's round keys."""

    cards: Mapping[int, KeyCard]

    def encode(self, session: Session) -> bytes:
        return frame(
            Kind.KEYS, session.id, records({at: card.record() for at, card in self.cards.items()})
        )

    @classmethod
    def decode(cls, data: bytes, session: Session) -> Self:
        """Raises ProtocolError; AuthenticationError if any card is not its member's."""
        reader = Reader(data, Kind.KEYS, session.id)
        found = reader.records(KeyCard.RECORD_BYTES, len(session.names))
        reader.done()
        return cls({at: KeyCard.from_record(session, at, record) for at, record in found.items()})

    def view(self, session: Session) -> bytes:
        """Digest of all keys: the graph's seed too, which is why nobody chooses it alone."""
        return digest(
            session.id, "keys", records({at: card.record() for at, card in self.cards.items()})
        )


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
    def decode(cls, data: bytes, session: Session, view: bytes) -> Self:
        """Args: view: `shared_view`. Raises ProtocolError; AuthenticationError if a receipt is
        not its member's.
        """
        reader = Reader(data, Kind.SURVIVORS, session.id)
        found = reader.records(Receipt.RECORD_BYTES, len(session.names))
        reader.done()
        return cls(
            {at: Receipt.from_record(session, view, at, record) for at, record in found.items()}
        )

    def view(self, session: Session, shared: bytes) -> bytes:
        """Digest of the survivors and of all that came before."""
        return digest(
            session.id,
            "survivors",
            shared,
            records({at: receipt.record() for at, receipt in self.receipts.items()}),
        )


@dataclass(frozen=True, slots=True)
class SignatureList:
    """After stage 3: who signed the survivor set."""

    signatures: Mapping[int, bytes]

    def encode(self, session: Session) -> bytes:
        return frame(Kind.SIGNATURES, session.id, records(self.signatures))

    @classmethod
    def decode(cls, data: bytes, session: Session, survivors: bytes) -> Self:
        """Raises ProtocolError; AuthenticationError if one signature is not over this very set."""
        reader = Reader(data, Kind.SIGNATURES, session.id)
        found = reader.records(64, len(session.names))
        reader.done()
        for at, signature in found.items():
            Agreement(at, signature).verify(session, survivors)
        return cls(found)
