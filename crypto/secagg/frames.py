"""Bytes at the border: one header, then fields whose sizes are known before they are read.

Knows lengths and order. Knows nothing of what fields mean.
Always: a frame has exactly one encoding; anything longer, shorter, out of order or of another
session is refused before a byte of it is used, and no size is taken from a message without a bound.
"""

from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum

from ...core.errors import ProtocolError

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
