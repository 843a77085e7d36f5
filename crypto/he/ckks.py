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
from .parameters import SEED_BYTES, ZEROS, RingParameters, named

Floats = npt.NDArray[np.float64]

BABY_STEPS = 32  # rotations by one; two rotation keys (1 and 32) serve every matrix
ROTATIONS = (1, BABY_STEPS)
KEPT_KEYS = 8  # askers whose keys a multiplier keeps read
MASK_DEVIATION = 2.0**18.5  # of a coefficient of what an encryption of zero is multiplied with
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
    # turn a question with its negative, which takes out the error that a key adds to every turn
    paired: bool = False

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
        words = np.minimum(words, np.uint64(self.modulus - 1))
        try:
            found = self.ciphertext(words, scale, ntt=False)
            self.evaluator.transform_to_ntt_inplace(found)
        except (RuntimeError, ValueError) as error:
            raise ProtocolError(f"an answer that hides nothing: {error}") from error
        return found

    def ciphertext(self, words: npt.NDArray[np.uint64], scale: float, *, ntt: bool) -> Any:
        """A ciphertext of these coefficients, all of them below the modulus: two polynomials."""
        body = words.astype("<u8").tobytes()
        head = CIPHERTEXT_HEAD.pack(
            struct.pack("<4Q", *self.level), ntt, 2, self.parameters.degree, 1, scale, 1
        )
        array = self._head(8 + len(body)) + struct.pack("<Q", len(words)) + body
        found = self.seal.Ciphertext()
        with _scratch() as path:
            Path(path).write_bytes(self._head(len(head) + len(array)) + head + array)
            found.load(self.context, path)
        return found

    def drawn(self, seed: bytes) -> list[npt.NDArray[np.uint64]]:
        """The second polynomials of a public key, in NTT form: uniform, and nobody's choice."""
        degree, bits = self.parameters.degree, np.uint64(64 - self.modulus.bit_length())
        found = []
        for number in range(ZEROS):
            # twice as many as are needed, since those that are not below the modulus go
            raw = hashlib.shake_256(seed + bytes([number])).digest(16 * degree)
            words = np.frombuffer(raw, "<u8").astype(np.uint64) >> bits
            found.append(words[words < self.modulus][:degree])
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

        The public key is Regev's: not one encryption of zero but `ZEROS`, whose second
        polynomials are drawn from a seed, so that nobody can choose them.
        """
        ring, table = self._ring, self._ring.parameters
        # The list overload means Galois elements, not steps: 3^step mod 2N.
        rotation = self._keys.create_galois_keys(
            [pow(3, step, 2 * table.degree) for step in ROTATIONS]
        )
        seed = os.urandom(SEED_BYTES)
        public = seed + b"".join(self._beside(drawn) for drawn in ring.drawn(seed))
        return [to_wire(rotation, table.rotation_keys_bytes(len(ROTATIONS))), public]

    def _beside(self, drawn: npt.NDArray[np.uint64]) -> bytes:
        """The first polynomial of an encryption of zero whose second one is `drawn`: e - s drawn.

        That is what a fresh encryption of zero opens to, with `drawn` taken off its second one.
        """
        ring, zero, plain = self._ring, self._ring.seal.Ciphertext(), self._ring.seal.Plaintext()
        self._encryptor.encrypt_zero_symmetric(ring.level, zero)
        words = np.concatenate([np.zeros_like(drawn), drawn])
        ring.evaluator.sub_inplace(zero, ring.ciphertext(words, zero.scale, ntt=True))
        self._decryptor.decrypt(zero, plain)
        first = np.fromiter(map(plain.data, range(len(drawn))), "<u8", len(drawn))
        return first.view(np.uint8).reshape(-1, 8)[:, : ring.parameters.word_bytes].tobytes()

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
        scale = 2.0**ring.parameters.answer_scale_bits
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

    Circuit privacy, exactly. To an answer (c0, c1) goes sum u_i (b_i, a_i) over the asker's
    encryptions of zero, with u_i Gaussian polynomials of the keeper's; to c0 also Gaussian noise of
    the matrix's deviation d on the real and imaginary part of every slot; then both are rounded to
    32 bits a coefficient. The a_i are hashed out of a seed, so no asker can choose them, and
    sum u_i a_i is a uniform polynomial (leftover hash over rings): c1 says nothing, whatever the
    b_i, the rotation keys and the question are. An asker can choose b_i so that c0 tells of the
    mask; what it then learns is x c0 + y c1 for one pair (x, y) of its own instead of c0: still one
    number for each row, under the same noise, since a second pair would leave it a small multiple
    of all a_i. (The hash is proven for b_i that tell nothing of the u_i. For others it takes 54 of
    their 123 bits a coefficient where c0 tells at most 22: an argument, not a proof.) A number
    holds, on average over a ciphertext, log2 q - log2(d' sqrt(2 pi e)) bits, with
    d' = 2^51 d / sqrt(N / 2) the deviation of a coefficient: 17.4 at d = 2^-11.

    An asker who keeps to the protocol knows the noise that it encrypted with, so what the product
    made of it would tell it linear forms of the rows besides the one it asked for. For rows of
    length 1 that part has a deviation c below 2^-17 over all slots (a test measures it: 2^-17.5 to
    2^-18.6 by key; in few slots, for the error that a key adds to every turn, up to 2^-15.4). A
    normal channel carries at most log2(1 + c^2 / d^2) / 2 bits a number: with d = 2^-11 that is
    2^-12.5, 0.7 bits for the 4096 numbers of a ciphertext, 46 bits over 64 questions; of a `paired`
    matrix c is 2^-19. A bound on what leaks, not a statistical proof of nothing (that takes
    d = 2^40 c and a larger modulus).
    Not covered: one who uses the head room of the modulus to ask louder than 1; the bits above are
    what it gets.
    Source: Halevi and Shoup 2014 (diagonals); Gentry 2009, section 21 (flooding); Regev 2005 (many
    encryptions of zero as a public key); Lyubashevsky, Peikert and Regev 2013, section 7 (its sums
    are uniform over rings).
    """

    def __init__(
        self, parameters: str, matrices: Mapping[str, PlainMatrix], shard: int = 0, shards: int = 1
    ) -> None:
        self._ring = _Ring(named(parameters))
        self._evaluator = self._ring.evaluator
        self._deviation = {name: matrix.deviation for name, matrix in matrices.items()}
        self._paired = {name: matrix.paired for name, matrix in matrices.items()}
        # name -> number of blocks, and this shard's slabs -> blocks -> diagonals
        self._slabs = {
            name: self._encode(matrix, number, shard, shards)
            for number, (name, matrix) in enumerate(matrices.items())
        }
        self._read: OrderedDict[bytes, tuple[Any, list[Any]]] = OrderedDict()

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
        asked = [
            from_wire(seal.Ciphertext(), ring.context, vector, ring.parameters.seeded_bytes)
            for vector in vectors
        ]
        deviation, paired = self._deviation[name.decode()], self._paired[name.decode()]
        try:
            steps = [self._baby_steps(each, turning, paired) for each in asked]
            return [
                ring.shortened(
                    self._hidden(self._giant_steps(diagonals, steps, turning), shared, deviation)
                )
                for diagonals in slabs
            ]
        except (RuntimeError, ValueError) as error:
            # a second polynomial of zeros, from the question or from what the keys made of it
            raise ProtocolError(f"a question that SEAL does not compute with: {error}") from error

    def _keys(self, rotation: bytes, public: bytes) -> tuple[Any, list[Any]]:
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
        shared = self._zeros(public)
        if not all(turning.has_key(pow(3, step, 2 * table.degree)) for step in ROTATIONS):
            raise ProtocolError(
                f"rotation keys for other steps than {ROTATIONS}; update both sides"
            )
        self._read[named_] = turning, shared
        while len(self._read) > KEPT_KEYS:
            self._read.popitem(last=False)
        return turning, shared

    def _zeros(self, public: bytes) -> list[Any]:
        """The asker's encryptions of zero, if they are what they should be: a test cannot tell, and
        nothing that the keeper hides depends on it.
        """
        ring, table = self._ring, self._ring.parameters
        if len(public) != table.public_key_bytes:
            raise ProtocolError(
                f"a public key of {len(public)} bytes, expected {table.public_key_bytes}; update "
                f"both sides"
            )
        whole = np.zeros((ZEROS, table.degree, 8), np.uint8)
        whole[:, :, : table.word_bytes] = np.frombuffer(public[SEED_BYTES:], np.uint8).reshape(
            ZEROS, table.degree, table.word_bytes
        )
        firsts = whole.view("<u8")[:, :, 0].astype(np.uint64)
        if (firsts >= ring.modulus).any():
            raise ProtocolError("a public key with numbers beyond its modulus; send another")
        return [
            ring.ciphertext(np.concatenate([first, drawn]), 1.0, ntt=True)
            for first, drawn in zip(firsts, ring.drawn(public[:SEED_BYTES]), strict=True)
        ]

    def _encode(
        self, matrix: PlainMatrix, number: int, shard: int, shards: int
    ) -> tuple[int, list[list[list[Any]]]]:
        rows, slots = matrix.open(), self._ring.parameters.slots
        blocks = blocks_of(rows.shape[1], slots)
        slabs = [
            self._encode_slab(rows[2 * slots * slab : 2 * slots * (slab + 1)], blocks, matrix)
            for slab in range(slabs_of(len(rows), self._ring.parameters))
            if shard_of(number, slab, shards) == shard
        ]
        return len(blocks), slabs

    def _encode_slab(
        self, rows: npt.NDArray[Any], blocks: Sequence[int], matrix: PlainMatrix
    ) -> list[list[Any]]:
        """For each block its diagonals; None where one is zero."""
        table = self._ring.parameters
        # the bit that a question gains where it is turned with its negative, here otherwise
        slots, scale = table.slots, 2.0 ** (table.matrix_scale_bits + (not matrix.paired))
        both = np.zeros((2 * slots, sum(blocks)))
        both[: len(rows), : rows.shape[1]] = rows
        pairs, index = matrix.factor * (both[:slots] + 1j * both[slots:]), np.arange(slots)
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

    def _baby_steps(self, first: Any, turning: Any, paired: bool) -> list[Any]:
        """The question turned by 0 to 31; paired, each twice itself: turned, less its negative
        turned.

        SEAL's key switching multiplies numbers of 0 to q with a key's errors, not of -q/2 to q/2.
        The mean, q/2 times these errors, is the same in every turn of one key, and stands in few
        slots, a hundred times what chance adds there; of the negative it is the same, so the
        difference is without it.
        """
        if (
            first.scale != 2.0**self._ring.parameters.query_scale_bits
            or first.size() != 2
            or first.parms_id() != self._ring.level
        ):
            raise ProtocolError(
                "a ciphertext with another scale, size or level than the table's; update both sides"
            )
        steps = self._turns(first, turning)
        if not paired:
            return steps
        negative = self._ring.seal.Ciphertext()
        self._evaluator.negate(first, negative)
        for step, other in zip(steps, self._turns(negative, turning), strict=True):
            self._evaluator.sub_inplace(step, other)
            step.scale = 2 * step.scale
        return steps

    def _turns(self, first: Any, turning: Any) -> list[Any]:
        steps = [first]
        while len(steps) < BABY_STEPS:
            steps.append(self._turned(steps[-1], turning))
        return steps

    def _turned(self, ciphertext: Any, turning: Any) -> Any:
        turned = self._ring.seal.Ciphertext()
        self._evaluator.rotate_vector(ciphertext, 1, turning, turned)
        return turned

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

    def _hidden(self, total: Any, zeros: Sequence[Any], deviation: float) -> Any:
        if total is None:
            raise CryptoError("a matrix of zeros has no product; add passages first")
        if deviation:
            ring, scale = self._ring, total.scale
            for zero in zeros:
                # Gaussian slots are Gaussian coefficients, sqrt(slots) times smaller
                often = self._gaussian(MASK_DEVIATION * ring.parameters.slots**0.5, 1.0)
                term = ring.seal.Ciphertext()
                self._evaluator.multiply_plain(zero, often, term)
                term.scale = scale
                self._evaluator.add_inplace(total, term)
            self._evaluator.add_plain_inplace(total, self._gaussian(deviation, scale))
        return total

    def _gaussian(self, deviation: float, scale: float) -> Any:
        """Noise of this deviation on the real and the imaginary part of every slot."""
        slots = self._ring.parameters.slots
        noise = gaussian(slots, deviation) + 1j * gaussian(slots, deviation)
        return self._ring.encode(noise, scale)
