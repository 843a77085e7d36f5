"""Which column of a table somebody reads, hidden from whoever holds the table: SimplePIR.

An asker sends a vector of learning-with-errors samples with a large number added in the place of
the column it wants; the keeper multiplies its table with that; the asker takes the mask off. For
that it needs table x A x secret. SimplePIR has it download table x A, the hint, which is as large
as the table and gives the table away. Here the keeper keeps the hint and multiplies it, under the
CKKS key that the asker sent anyway, with the encrypted secret: nothing to download, nothing to keep
up to date, and a budget counts (Tiptoe's and HintlessPIR's idea).

Knows numbers modulo 2^32. Knows nothing of passages, of SEAL, or of who asks.
Always: a mask (a secret and its errors) serves one query; masks are made before anything is known
that could be a secret, and a query is then one addition.

Source: Henzinger, Hong, Corrigan-Gibbs, Meiklejohn, Vaikuntanathan, "One Server for the Price of
Two" (SimplePIR), eprint 2022/949; Henzinger, Dauterman, Corrigan-Gibbs, Zeldovich, "Private Web
Search with Tiptoe", eprint 2023/1438, section 6; Li, Micciancio, Raykova, Schultz, "Hintless
Single-Server Private Information Retrieval", eprint 2023/1733.
"""

import os
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from ...core.errors import CryptoError
from ..he.ckks import gaussian
from . import kernel

Table = npt.NDArray[np.int8]
Words = npt.NDArray[np.uint32]

MODULUS_BITS = 32
# 128 bits of security: the standard's table allows degree 1024 with a ternary secret a modulus of
# 27 bits at an error of 3.2. What an attack costs depends on modulus / error, so 32 bits go with
# an error of 3.2 x 2^5. Source: `he/parameters.SOURCE`.
DIMENSION = 1024
DEVIATION = 3.2 * 2**5
SYMBOL_BITS = 6  # of the table, in every number of it
CENTRE = 1 << (SYMBOL_BITS - 1)
SHIFT = MODULUS_BITS - SYMBOL_BITS
# A sum of so many products of a symbol (2^5) and a word (2^31) is exact in float64 (2^53).
MAX_COLUMNS = (1 << 16) - 1
# One matrix for everybody, made of a name: nobody chose it, and the hint of a table does not
# depend on who serves it.
SEED = sha256(b"quietchoir pir matrix 1").digest()
BLOCK_COLUMNS = 2048  # of the matrix, made at a time: 8 MB
BLOCK_SYMBOLS = 1 << 17  # of the table, turned to float64 at a time: 1 MB, a core's own cache


@dataclass(frozen=True, slots=True)
class Mask:
    """What one query is hidden under.

    Hazard: use it for one query and no more; two queries under one mask differ in their columns.
    """

    secret: npt.NDArray[np.int8]  # [DIMENSION], of -1, 0, 1
    words: Words  # [columns]: matrix x secret + error

    def query(self, column: int) -> Words:
        """The words that ask for `column`."""
        asked = self.words.copy()
        asked[column : column + 1] += np.uint32(1 << SHIFT)  # wraps; of a number alone numpy warns
        return asked


def mask(columns: int, summed: int = 0) -> Mask:
    """A fresh mask, from the operating system's generator.

    Args:
        summed: columns that one sum goes over, where a table is read in parts; 0: all of them.

    Raises:
        CryptoError: more columns to a sum than float64 adds up exactly.
    """
    if not 1 <= (summed or columns) <= MAX_COLUMNS:
        raise CryptoError(f"a table of {columns} columns, at most {MAX_COLUMNS}; split it")
    secret, words = ternary(DIMENSION), np.empty(columns, np.uint32)
    error = np.rint(gaussian(columns, DEVIATION)).astype(np.int64).astype(np.uint32)
    for start in range(0, columns, BLOCK_COLUMNS):
        stop = min(columns, start + BLOCK_COLUMNS)
        words[start:stop] = masked(public_matrix(start, stop), secret) + error[start:stop]
    return Mask(secret, words)


def masked(matrix: Words, secret: npt.NDArray[np.int8]) -> Words:
    """Matrix x secret modulo 2^32, [rows]."""
    if paths := kernel.paths():
        return kernel.combine(matrix, secret, paths - 1)
    exact = _signed(matrix) @ secret.astype(np.float64)  # < 2^41
    return exact.astype(np.int64).astype(np.uint32)


def ternary(count: int) -> npt.NDArray[np.int8]:
    """Uniform on -1, 0, 1, by rejection."""
    found = np.empty(0, np.uint8)
    while len(found) < count:
        drawn = np.frombuffer(os.urandom(2 * count), np.uint8)
        found = np.concatenate([found, drawn[drawn < 255]])
    return (found[:count] % 3).astype(np.int8) - np.int8(1)


def public_matrix(start: int, stop: int) -> Words:
    """Rows `start` to `stop` of A, [stop - start, DIMENSION]: AES-256 in counter mode of the seed,
    as FrodoKEM makes its matrix.
    """
    first = (start * DIMENSION * 4 // 16).to_bytes(16, "big")
    stream = Cipher(algorithms.AES(SEED), modes.CTR(first)).encryptor()
    raw = stream.update(bytes((stop - start) * DIMENSION * 4))
    return np.frombuffer(raw, "<u4").astype(np.uint32, copy=False).reshape(-1, DIMENSION)


def hint(table: Table, first: int = 0) -> npt.NDArray[np.int32]:
    """Table x A modulo 2^32, [rows, DIMENSION], centred. For the keeper alone.

    Args:
        first: row of A that belongs to the table's first column.
    """
    total = np.zeros((len(table), DIMENSION), np.uint32)
    for start in range(0, table.shape[1], BLOCK_COLUMNS):
        stop = min(table.shape[1], start + BLOCK_COLUMNS)
        rows = _signed(public_matrix(first + start, first + stop))
        part = table[:, start:stop].astype(np.float64) @ rows
        total += part.astype(np.int64).astype(np.uint32)
    return total.view(np.int32)


def scan(table: Table, query: Words) -> Words:
    """Table x query modulo 2^32, [rows]: the keeper's work for one query, as fast as its memory is
    read where `scan.cpp` was compiled.
    """
    if query.shape != table.shape[1:]:
        raise CryptoError(f"a query of {query.shape} words, expected {table.shape[1]}")
    if paths := kernel.paths():
        return kernel.product(table, query, paths - 1)
    return exact_scan(table, query)


def exact_scan(table: Table, query: Words) -> Words:
    """The same without a compiler, by BLAS: exact in float64."""
    rows, columns = table.shape
    right, found = _signed(query), np.empty(rows, np.uint32)
    step = max(1, BLOCK_SYMBOLS // columns)
    for start in range(0, rows, step):
        exact = table[start : start + step].astype(np.float64) @ right
        found[start : start + step] = exact.astype(np.int64).astype(np.uint32)
    return found


def symbols(answer: Words, masked: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """The column that was asked for, [rows], numbers of `SYMBOL_BITS` bits.

    Args:
        masked: hint x secret, nearly; what it is off by more than 2^25 would change a symbol.
            Off it is by the noise of CKKS (deviation 2^21.7 in every slot, with
            `search.PASSAGE_NOISE`, measured), and the answer by the query's errors times the row:
            102.4 x 18.5 x sqrt(65535) = 2^18.9 where symbols are spread evenly, x 32 instead of
            18.5 in a row of padding: 2^19.7 at most. Together 2^21.75, so a symbol is wrong with a
            chance of erfc(9.5 / sqrt(2)) < 2^-68, a passage of 2752 symbols with 2^-57, and its
            checksum says so.
    """
    value = np.rint((answer.astype(np.float64) - masked) / (1 << SHIFT)).astype(np.int64)
    return ((value + CENTRE) % (1 << SYMBOL_BITS)).astype(np.uint8)


def _signed(words: Words) -> npt.NDArray[np.float64]:
    return words.view(np.int32).astype(np.float64)
