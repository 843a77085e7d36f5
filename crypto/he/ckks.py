"""One encrypted vector times plaintext matrices, on CKKS, through TenSEAL's `sealapi`.

Knows SEAL's objects, their bytes on the wire and the diagonal method (baby steps, giant steps).
Knows nothing of questions, passages, peers or budgets. `Asker` and `Multiplier` are services for
`worker.Worker`: bytes in, bytes out, and TenSEAL is imported only when one is constructed.
Always: bytes are checked for length and header before SEAL sees them; an answer leaves only after
it was re-randomised, flooded with noise and rounded.

A slot is a complex number and a question is real, so every slot carries two rows of a matrix, one
in its real part and one in its imaginary part: half the multiplications, half the answers.
"""

import hashlib
import os
import struct
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.errors import CryptoError, ProtocolError
from .parameters import RingParameters, named

Floats = npt.NDArray[np.float64]

BABY_STEPS = 32  # rotations by one; two rotation keys (1 and 32) serve every matrix
ROTATIONS = (1, BABY_STEPS)
KEPT_KEYS = 8  # askers whose keys a multiplier keeps read
HEADER_BYTES = 16
# SEAL: magic, header size, major version (its minor version may differ)
MAGIC = b"\x5e\xa1\x10\x04"
ZSTD = 2
# A ciphertext as SEAL writes it without compression: the name of the parameters, in NTT form or
# not, polynomials, coefficients, primes, scale, correction factor; then an array with its count.
CIPHERTEXT_HEAD = struct.Struct("<32sBQQQdQ")


@dataclass(frozen=True, slots=True)
class PlainMatrix:
    """What a `Multiplier` multiplies with: [rows, columns], in memory or in an .npy file.

    A file is mapped and read by those shards alone that hold some of its rows.
    """

    rows: npt.NDArray[Any] | Path
    deviation: float  # of the noise on every number of an answer; 0 leaves answers bare, for tests
    factor: float = 1.0  # rows times this is what is multiplied with; numbers of at most about 1

    def open(self) -> npt.NDArray[Any]:
        """The rows as they are kept."""
        if isinstance(self.rows, Path):
            mapped: npt.NDArray[Any] = np.load(self.rows, mmap_mode="r")
            return mapped
        return self.rows


def slabs_of(rows: int, parameters: RingParameters) -> int:
    """Ciphertexts of an answer: one for every two rows of a slot."""
    return -(-rows // (2 * parameters.slots))


def shard_of(matrix: int, slab: int, shards: int) -> int:
    """Which shard holds a slab of the matrix with this number; neighbours lie apart."""
    return (matrix + slab) % shards


def block_of(columns: int, slots: int) -> int:
    """Columns padded to a power of two, at least one baby round.

    Raises:
        CryptoError: more columns than slots.
    """
    if not 0 < columns <= slots:
        raise CryptoError(
            f"a matrix of {columns} columns does not fit a ciphertext of {slots} slots; split it"
        )
    return max(BABY_STEPS, 1 << (columns - 1).bit_length())


def blocks_of(columns: int, slots: int) -> tuple[int, ...]:
    """Widths that a matrix of so many columns is cut into, powers of two. 384 becomes 256 and 128,
    each with an encrypted vector of its own: a quarter of the products less than in 512.

    Raises:
        CryptoError: more columns than slots.
    """
    whole = block_of(columns, slots)
    if whole >= 4 * BABY_STEPS and columns <= 3 * whole // 4:
        return whole // 2, whole // 4
    return (whole,)


def split(vector: Floats, slots: int) -> list[Floats]:
    """A vector in the pieces that `Multiplier.product` takes, one for each block of the matrix."""
    blocks = blocks_of(len(vector), slots)
    padded = np.pad(vector, (0, sum(blocks) - len(vector)))
    return np.split(padded, np.cumsum(blocks)[:-1])


def tiled(vector: Floats, slots: int) -> Floats:
    """A query as the diagonal method wants it: padded to its block, repeated over all slots."""
    block = block_of(len(vector), slots)
    return np.tile(np.pad(vector, (0, block - len(vector))), slots // block)


@contextmanager
def _scratch() -> Iterator[str]:
    """A path that SEAL can write and read; memory where the platform has it, so that no key
    touches a disk.
    """
    if sys.platform == "linux":
        handle = os.memfd_create("quietchoir")
        try:
            yield f"/proc/self/fd/{handle}"
        finally:
            os.close(handle)
    else:
        with tempfile.TemporaryDirectory(prefix="quietchoir") as folder:
            yield str(Path(folder) / "x")


def to_wire(thing: Any, size: int) -> bytes:
    """A SEAL object's own bytes, padded with zeros to `size`, so that lengths say nothing.

    Raises:
        CryptoError: larger than the table says; our bug.
    """
    with _scratch() as path:
        thing.save(path)
        raw = Path(path).read_bytes()
    if len(raw) > size:
        raise CryptoError(
            f"a SEAL object of {len(raw)} bytes, the table allows {size}; mend "
            f"crypto/he/parameters.py"
        )
    return raw + bytes(size - len(raw))


def from_wire(thing: Any, context: Any, blob: bytes, size: int) -> Any:
    """Load `blob` into the empty SEAL object `thing`.

    Raises:
        ProtocolError: wrong length, wrong header, or SEAL refuses it.

    Hazard: SEAL can crash on bytes that pass these checks; call only in a worker, on bytes whose
    sender was authenticated.
    """
    if len(blob) != size:
        raise ProtocolError(
            f"a ciphertext part of {len(blob)} bytes, expected exactly {size}; update both sides"
        )
    inner = int.from_bytes(blob[8:HEADER_BYTES], "little")
    if (
        blob[:4] != MAGIC
        or blob[5] != ZSTD
        or not HEADER_BYTES < inner <= size
        or any(blob[inner:])
    ):
        raise ProtocolError(
            "a ciphertext part without SEAL's header; it was changed or made by another library"
        )
    with _scratch() as path:
        Path(path).write_bytes(blob[:inner])
        try:
            thing.load(context, path)
        except (RuntimeError, ValueError, IndexError) as error:
            raise ProtocolError(f"a ciphertext part that SEAL refuses: {error}") from error
    return thing


def gaussian(count: int, deviation: float) -> Floats:
    """Normal deviates from the operating system's generator (Box-Muller on 53-bit uniforms)."""
    words = np.frombuffer(os.urandom(16 * count), np.uint64).reshape(2, count)
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    normal: Floats = np.sqrt(-2 * np.log(uniform[0])) * np.cos(2 * np.pi * uniform[1])
    return deviation * normal


class _Ring:
    """SEAL's context and encoder for one set of the table."""

    def __init__(self, parameters: RingParameters) -> None:
        import tenseal.sealapi as seal

        chosen = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        chosen.set_poly_modulus_degree(parameters.degree)
        primes = seal.CoeffModulus.Create(parameters.degree, list(parameters.prime_bits))
        chosen.set_coeff_modulus(primes)
        self.seal: Any = seal
        self.parameters = parameters
        self.context: Any = seal.SEALContext(chosen, True, seal.SEC_LEVEL_TYPE.TC128)
        if not self.context.parameters_set():
            raise CryptoError(
                f"{parameters.name}: SEAL refuses it: {self.context.parameters_error_message()}"
            )
        self.coder: Any = seal.CKKSEncoder(self.context)
        self.evaluator: Any = seal.Evaluator(self.context)
        self.level: Any = self.context.first_parms_id()
        self.modulus = int(primes[0].value())

    def encode(self, values: npt.NDArray[Any], scale: float) -> Any:
        plain = self.seal.Plaintext()
        self.coder.encode(values.tolist(), self.level, scale, plain)
        return plain

    def shortened(self, ciphertext: Any) -> bytes:
        """A ciphertext that was computed, as it leaves: the top 32 bits of every coefficient.

        This switches to a smaller modulus, as CKKS does by dropping a prime; every coefficient is
        public to whoever gets the ciphertext, so nothing is decided by a secret.
        """
        count, dropped = 2 * self.parameters.degree, self.parameters.dropped_bits
        self.evaluator.transform_from_ntt_inplace(ciphertext)
        words = np.fromiter(map(ciphertext.dyn_array().at, range(count)), np.uint64, count)
        top = (words + np.uint64(1 << dropped >> 1)) >> np.uint64(dropped)
        short: bytes = np.minimum(top, np.uint64(2**32 - 1)).astype("<u4").tobytes()
        return short

    def lengthened(self, answer: bytes, scale: float) -> Any:
        """The ciphertext that `shortened` bytes stand for. The head is ours and every word is a
        right one, so bytes of the right length hold nothing that SEAL could stumble over.

        Raises:
            ProtocolError: another length, or a ciphertext that hides nothing.
        """
        table = self.parameters
        if len(answer) != table.answer_bytes:
            raise ProtocolError(
                f"an answer of {len(answer)} bytes, expected {table.answer_bytes}; update both "
                f"sides"
            )
        words = np.frombuffer(answer, "<u4").astype("<u8") << np.uint64(table.dropped_bits)
        body = np.minimum(words, np.uint64(self.modulus - 1)).tobytes()
        head = CIPHERTEXT_HEAD.pack(
            struct.pack("<4Q", *self.level), 0, 2, table.degree, 1, scale, 1
        )
        array = self._head(8 + len(body)) + struct.pack("<Q", len(words)) + body
        found = self.seal.Ciphertext()
        with _scratch() as path:
            Path(path).write_bytes(self._head(len(head) + len(array)) + head + array)
            try:
                found.load(self.context, path)
                self.evaluator.transform_to_ntt_inplace(found)
            except (RuntimeError, ValueError) as error:
                raise ProtocolError(f"an answer that hides nothing: {error}") from error
        return found

    def _head(self, size: int) -> bytes:
        # as this library writes it, its minor version included, and without compression
        if not hasattr(self, "_version"):
            with _scratch() as path:
                self.encode(np.ones(1), 1.0).save(path)
                self._version = Path(path).read_bytes()[: len(MAGIC) + 1]
        return self._version + bytes(3) + struct.pack("<Q", HEADER_BYTES + size)


class Asker:
    """The side that owns the key. Everything of it lives and dies in its worker; the secret key has
    no way out.

    Hazard: decrypted CKKS numbers carry the key's noise (Li and Micciancio, eprint 2020/1533). Show
    them to the key's owner; never send them, or anything computed from them without rounding, to
    another party.
    """

    def __init__(self, parameters: str) -> None:
        self._ring = ring = _Ring(named(parameters))
        self._keys = ring.seal.KeyGenerator(ring.context)
        self._secret = self._keys.secret_key()
        self._encryptor = ring.seal.Encryptor(ring.context, self._secret)
        self._decryptor = ring.seal.Decryptor(ring.context, self._secret)

    def public_keys(self) -> list[bytes]:
        """Rotation keys (seeded) and public key, for `Multiplier.product`; neither opens
        anything.
        """
        ring, table = self._ring, self._ring.parameters
        # The list overload means Galois elements, not steps: 3^step mod 2N.
        rotation = self._keys.create_galois_keys(
            [pow(3, step, 2 * table.degree) for step in ROTATIONS]
        )
        public = ring.seal.PublicKey()
        self._keys.create_public_key(public)
        return [
            to_wire(rotation, table.rotation_keys_bytes(len(ROTATIONS))),
            to_wire(public, table.public_key_bytes),
        ]

    def encrypt(self, *vectors: bytes) -> list[bytes]:
        """Each float64 vector into one seeded symmetric ciphertext."""
        table = self._ring.parameters
        plains = (
            self._ring.encode(
                tiled(np.frombuffer(vector, np.float64), table.slots), 2.0**table.query_scale_bits
            )
            for vector in vectors
        )
        return [
            to_wire(self._encryptor.encrypt_symmetric(plain), table.seeded_bytes)
            for plain in plains
        ]

    def decrypt(self, *answers: bytes) -> list[bytes]:
        """Each answer into the float64 numbers of its two rows a slot, in the rows' order.

        Raises:
            ProtocolError: bytes that are no answer of this set. Another key's answer opens
                to huge numbers without an error: bind a key id to every message.
        """
        ring, out = self._ring, []
        scale = 2.0 ** (ring.parameters.matrix_scale_bits + ring.parameters.query_scale_bits)
        for answer in answers:
            plain = ring.seal.Plaintext()
            self._decryptor.decrypt(ring.lengthened(answer, scale), plain)
            slots = np.asarray(ring.coder.decode_complex(plain))
            out.append(np.concatenate([slots.real, slots.imag]).tobytes())
        return out


class Multiplier:
    """The side that owns the matrices, encoded once at the start; it never holds a secret key.

    Args:
        shard, shards: this one of so many multipliers holds every `shards`-th slab of each matrix:
            together they hold every encoded number once (4 KB a row of 384), and work side by side.

    Circuit privacy, exactly: an answer gets a fresh encryption of zero under the asker's public
    key, which hides its second polynomial from the asker itself if that key is well formed, and
    Gaussian noise of the matrix's deviation d on the real and imaginary part of every slot; then
    it is rounded to 32 bits a coefficient. The asker knows the noise that it encrypted with, so
    what the product made of it would tell it linear forms of the rows besides the one it asked
    for. For rows of length 1 that part has a deviation c below 2^-18 (a test measures it). A normal
    channel carries at most log2(1 + c^2 / d^2) / 2 bits a number: with d = 2^-11 that is 2^-14.4,
    a fifth of a bit for the 4096 numbers of a ciphertext, 12 bits over 64 questions. A bound on
    what leaks, not a statistical proof of nothing (that takes d = 2^40 c and a larger modulus).
    Not covered: an asker who publishes a malformed public key; one who uses the head room of the
    modulus to ask louder than 1.
    Source: Halevi and Shoup 2014 (diagonals); Gentry 2009, section 21 (flooding).
    """

    def __init__(
        self, parameters: str, matrices: Mapping[str, PlainMatrix], shard: int = 0, shards: int = 1
    ) -> None:
        self._ring = _Ring(named(parameters))
        self._evaluator = self._ring.evaluator
        self._deviation = {name: matrix.deviation for name, matrix in matrices.items()}
        # name -> number of blocks, and this shard's slabs -> blocks -> diagonals
        self._slabs = {
            name: self._encode(matrix, number, shard, shards)
            for number, (name, matrix) in enumerate(matrices.items())
        }
        self._read: OrderedDict[bytes, tuple[Any, Any]] = OrderedDict()

    def check(self, rotation: bytes, public: bytes) -> list[bytes]:
        """Read an asker's keys.

        Raises:
            ProtocolError: bytes that SEAL refuses.
        """
        self._keys(rotation, public)
        return []

    def product(self, name: bytes, rotation: bytes, public: bytes, *vectors: bytes) -> list[bytes]:
        """This shard's slabs of matrix `name` times the encrypted vector, one answer each.

        Args:
            vectors: the pieces of `split`, encrypted.

        Raises:
            ProtocolError: unknown matrix, another number of pieces, or bytes that SEAL refuses.
        """
        ring, seal = self._ring, self._ring.seal
        blocks, slabs = self._slabs.get(name.decode("utf-8", "replace"), (0, []))
        if not blocks or len(vectors) != blocks:
            raise ProtocolError(
                f"{len(vectors)} vectors for matrix {name!r}, expected {blocks}; ask for the "
                f"manifest again"
            )
        turning, shared = self._keys(rotation, public)
        steps = [
            self._baby_steps(
                from_wire(seal.Ciphertext(), ring.context, vector, ring.parameters.seeded_bytes),
                turning,
            )
            for vector in vectors
        ]
        deviation = self._deviation[name.decode()]
        return [
            ring.shortened(
                self._hidden(self._giant_steps(diagonals, steps, turning), shared, deviation)
            )
            for diagonals in slabs
        ]

    def _keys(self, rotation: bytes, public: bytes) -> tuple[Any, Any]:
        ring, table = self._ring, self._ring.parameters
        named_ = hashlib.sha256(rotation + public).digest()
        if named_ in self._read:
            self._read.move_to_end(named_)
            return self._read[named_]
        turning = from_wire(
            ring.seal.GaloisKeys(),
            ring.context,
            rotation,
            table.rotation_keys_bytes(len(ROTATIONS)),
        )
        shared = from_wire(ring.seal.PublicKey(), ring.context, public, table.public_key_bytes)
        if not all(turning.has_key(pow(3, step, 2 * table.degree)) for step in ROTATIONS):
            raise ProtocolError(
                f"rotation keys for other steps than {ROTATIONS}; update both sides"
            )
        self._read[named_] = turning, shared
        while len(self._read) > KEPT_KEYS:
            self._read.popitem(last=False)
        return turning, shared

    def _encode(
        self, matrix: PlainMatrix, number: int, shard: int, shards: int
    ) -> tuple[int, list[list[list[Any]]]]:
        rows, slots = matrix.open(), self._ring.parameters.slots
        blocks = blocks_of(rows.shape[1], slots)
        slabs = [
            self._encode_slab(
                rows[2 * slots * slab : 2 * slots * (slab + 1)], blocks, matrix.factor
            )
            for slab in range(slabs_of(len(rows), self._ring.parameters))
            if shard_of(number, slab, shards) == shard
        ]
        return len(blocks), slabs

    def _encode_slab(
        self, rows: npt.NDArray[Any], blocks: Sequence[int], factor: float
    ) -> list[list[Any]]:
        """For each block its diagonals; None where one is zero."""
        table = self._ring.parameters
        slots, scale = table.slots, 2.0**table.matrix_scale_bits
        both = np.zeros((2 * slots, sum(blocks)))
        both[: len(rows), : rows.shape[1]] = rows
        pairs, index = factor * (both[:slots] + 1j * both[slots:]), np.arange(slots)
        found, start = [], 0
        for size in blocks:
            diagonals = []
            for k in range(size):
                picked = pairs[index, start + (index + k) % size]
                plain = self._ring.encode(np.roll(picked, k // BABY_STEPS * BABY_STEPS), scale)
                # SEAL refuses to multiply by zero (the result would be no encryption), so a zero
                # diagonal is left out.
                diagonals.append(None if plain.is_zero() else plain)
            found.append(diagonals)
            start += size
        return found

    def _baby_steps(self, first: Any, turning: Any) -> list[Any]:
        if (
            first.scale != 2.0**self._ring.parameters.query_scale_bits
            or first.size() != 2
            or first.parms_id() != self._ring.level
        ):
            raise ProtocolError(
                "a ciphertext with another scale, size or level than the table's; update both sides"
            )
        steps = [first]
        for _ in range(1, BABY_STEPS):
            turned = self._ring.seal.Ciphertext()
            self._evaluator.rotate_vector(steps[-1], 1, turning, turned)
            steps.append(turned)
        return steps

    def _giant_steps(
        self, blocks: Sequence[Sequence[Any]], steps: Sequence[Sequence[Any]], turning: Any
    ) -> Any:
        """Horner: total = rotate(total, 32) + the inner sums of this giant step, of all blocks that
        have so many; None if every diagonal is zero.
        """
        total = None
        for start in range(max(map(len, blocks)) - BABY_STEPS, -1, -BABY_STEPS):
            if total is not None:
                self._evaluator.rotate_vector_inplace(total, BABY_STEPS, turning)
            for diagonals, turned in zip(blocks, steps, strict=True):
                # none are left of a block that is too small for this step
                pairs = zip(turned, diagonals[start : start + BABY_STEPS], strict=False)
                for step, diagonal in pairs:
                    if diagonal is not None:
                        term = self._ring.seal.Ciphertext()
                        self._evaluator.multiply_plain(step, diagonal, term)
                        total = self._add(total, term)
        return total

    def _add(self, total: Any, term: Any) -> Any:
        if total is None or term is None:
            return term if total is None else total
        self._evaluator.add_inplace(total, term)
        return total

    def _hidden(self, total: Any, shared: Any, deviation: float) -> Any:
        if total is None:
            raise CryptoError("a matrix of zeros has no product; add passages first")
        if deviation:
            zero = self._ring.seal.Ciphertext()
            self._ring.seal.Encryptor(self._ring.context, shared).encrypt_zero(zero)
            zero.scale = total.scale
            self._evaluator.add_inplace(total, zero)
            slots = self._ring.parameters.slots
            noise = gaussian(slots, deviation) + 1j * gaussian(slots, deviation)
            self._evaluator.add_plain_inplace(total, self._ring.encode(noise, total.scale))
        return total
