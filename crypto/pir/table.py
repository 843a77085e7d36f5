"""Passages as the columns of one table of small numbers, for `lwe`.

Every passage takes the same number of them, whatever its length: what is read says nothing by its
size. A column holds neighbours, passages of one file as a rule; who reads one gets them all.
Knows bytes, lengths and checksums. Knows nothing of encryption.
"""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...core.errors import CryptoError, DataError, ProtocolError
from ..he.ckks import slabs_of
from ..he.parameters import SEARCH
from .lwe import CENTRE, MAX_COLUMNS, SYMBOL_BITS, Table

PASSAGE_BYTES = 2042  # a passage and the name of its file, before it is packed
HEAD_BYTES = 6  # length of what is packed (2 bytes) and CRC-32 of the passage (4 bytes)
MAX_CHUNK_BYTES = HEAD_BYTES + PASSAGE_BYTES + 16  # 16: what zlib adds to bytes that do not pack
ROUND_BYTES = 64  # chunks are a multiple of it, so that one longer passage changes little
MAX_PER_COLUMN = SMALLEST_PART = 64
PASSAGES_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class TableLayout:
    """Where each passage stands. Follows from two numbers, so that both sides know it.

    Raises:
        CryptoError: no passage, or chunks of another size than a passage can have.
    """

    passages: int
    chunk_bytes: int

    def __post_init__(self) -> None:
        if self.passages < 1 or not HEAD_BYTES <= self.chunk_bytes <= MAX_CHUNK_BYTES:
            raise CryptoError(
                f"{self.passages} passages in chunks of {self.chunk_bytes} bytes, expected at "
                f"least one, in chunks of {HEAD_BYTES} to {MAX_CHUNK_BYTES}"
            )

    @property
    def symbols(self) -> int:
        """Numbers of one chunk."""
        return -(-8 * self.chunk_bytes // SYMBOL_BITS)

    @property
    def per_column(self) -> int:
        """Passages of one column: as many as make a query and its answer smallest together, and
        no more than a 64th of the library.
        """
        fewest = -(-self.passages // MAX_COLUMNS)
        most = max(fewest, min(MAX_PER_COLUMN, self.passages // SMALLEST_PART))
        return min(range(fewest, most + 1), key=self._traffic)

    @property
    def rows(self) -> int:
        """Numbers of one column."""
        return self.per_column * self.symbols

    @property
    def columns(self) -> int:
        """Columns of the table."""
        return -(-self.passages // self.per_column)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the table."""
        return self.rows, self.columns

    def column_of(self, passage: int) -> int:
        """Where a passage stands.

        Raises:
            CryptoError: no such passage.
        """
        if not 0 <= passage < self.passages:
            raise CryptoError(f"passage {passage} does not exist, there are {self.passages}")
        return passage // self.per_column

    def build(self, chunks: Sequence[bytes]) -> Table:
        """The table, [rows, columns], of packed passages."""
        whole = np.zeros((self.columns * self.per_column, self.symbols), np.uint8)
        for start in range(0, len(chunks), PASSAGES_AT_ONCE):
            part = chunks[start : start + PASSAGES_AT_ONCE]
            padded = b"".join(chunk.ljust(self.chunk_bytes, b"\0") for chunk in part)
            numbers = np.frombuffer(padded, np.uint8).reshape(len(part), -1)
            bits = np.zeros((len(part), self.symbols * SYMBOL_BITS), np.uint8)
            bits[:, : 8 * self.chunk_bytes] = np.unpackbits(numbers, axis=1)
            groups = bits.reshape(len(part), self.symbols, SYMBOL_BITS)
            whole[start : start + len(part)] = np.packbits(groups, axis=2)[:, :, 0] >> (
                8 - SYMBOL_BITS
            )
        columns = whole.reshape(self.columns, self.rows).T.astype(np.int8)
        return np.ascontiguousarray(columns - np.int8(CENTRE))

    def read(self, column: npt.NDArray[np.uint8], passage: int) -> bytes:
        """One passage out of its column of symbols.

        Raises:
            ProtocolError: length or checksum do not fit; the keeper answered something else.
        """
        start = passage % self.per_column * self.symbols
        found = column[start : start + self.symbols]
        bits = np.unpackbits(found[:, None] << np.uint8(8 - SYMBOL_BITS), axis=1)
        return unpack(np.packbits(bits[:, :SYMBOL_BITS])[: self.chunk_bytes].tobytes())

    def _traffic(self, per_column: int) -> int:
        rows = per_column * self.symbols
        columns = -(-self.passages // per_column)
        return 4 * columns + 4 * rows + SEARCH.answer_bytes * slabs_of(rows, SEARCH)


def pack(passage: bytes) -> bytes:
    """Length, checksum, and the passage made smaller.

    Raises:
        DataError: longer than `PASSAGE_BYTES`.
    """
    if len(passage) > PASSAGE_BYTES:
        raise DataError(f"a passage of {len(passage)} bytes, at most {PASSAGE_BYTES}; split it")
    small = zlib.compress(passage, 9)
    return len(small).to_bytes(2, "big") + zlib.crc32(passage).to_bytes(4, "big") + small


def unpack(chunk: bytes) -> bytes:
    """The passage out of its chunk; never more than `PASSAGE_BYTES` of it.

    Raises:
        ProtocolError: not what `pack` makes.
    """
    length, check = int.from_bytes(chunk[:2], "big"), int.from_bytes(chunk[2:HEAD_BYTES], "big")
    try:
        opener = zlib.decompressobj()
        text = opener.decompress(chunk[HEAD_BYTES : HEAD_BYTES + length], PASSAGE_BYTES)
    except zlib.error:
        text = b""
    if not text or zlib.crc32(text) != check:
        raise ProtocolError(
            "the answer is not a passage of this library, which chance does not make: its host, or "
            "the line, changed it, or the two versions do not fit. The host was not told; asking "
            "again would tell it, so ask its owner first"
        )
    return text


def chunk_bytes(chunks: Iterable[bytes]) -> int:
    """The size of every chunk of a library: that of its longest, rounded up."""
    longest = max(map(len, chunks), default=HEAD_BYTES)
    return min(MAX_CHUNK_BYTES, -(-longest // ROUND_BYTES) * ROUND_BYTES)
