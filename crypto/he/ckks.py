"""One encrypted vector times a plaintext matrix, on CKKS, through TenSEAL's `sealapi`.

Knows SEAL's objects, their bytes on the wire and the diagonal method (baby steps, giant steps).
Knows nothing of questions, passages, peers or budgets. `Asker` and `Multiplier` are services for
`worker.Worker`: bytes in, bytes out, and TenSEAL is imported only when one is constructed.
Always: bytes are checked for length and header before SEAL sees them; an answer leaves only after
it was re-randomised and flooded with noise.
"""

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.errors import CryptoError, ProtocolError
from .parameters import RingParameters, named

Floats = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64] | npt.NDArray[np.float32]

BABY_STEPS = 32  # rotations by one; two rotation keys (1 and 32) serve every matrix
ROTATIONS = (1, BABY_STEPS)
HEADER_BYTES = 16
# SEAL: magic, header size, major version (its minor version may differ)
MAGIC = b"\x5e\xa1\x10\x04"
ZSTD = 2


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
        chosen.set_coeff_modulus(
            seal.CoeffModulus.Create(parameters.degree, list(parameters.prime_bits))
        )
        self.seal: Any = seal
        self.parameters = parameters
        self.context: Any = seal.SEALContext(chosen, True, seal.SEC_LEVEL_TYPE.TC128)
        if not self.context.parameters_set():
            raise CryptoError(
                f"{parameters.name}: SEAL refuses it: {self.context.parameters_error_message()}"
            )
        self.coder: Any = seal.CKKSEncoder(self.context)
        self.level: Any = self.context.first_parms_id()

    def encode(self, values: npt.NDArray[Any], scale: float) -> Any:
        plain = self.seal.Plaintext()
        self.coder.encode(values.tolist(), self.level, scale, plain)
        return plain


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
        """Each computed ciphertext into its float64 slots.

        Raises:
            ProtocolError: bytes that are no ciphertext of this set. Another key's ciphertext opens
                to huge numbers without an error: bind a key id to every message.
        """
        ring, out = self._ring, []
        for answer in answers:
            cipher = from_wire(
                ring.seal.Ciphertext(), ring.context, answer, ring.parameters.ciphertext_bytes
            )
            plain = ring.seal.Plaintext()
            self._decryptor.decrypt(cipher, plain)
            out.append(np.asarray(ring.coder.decode_double(plain), np.float64).tobytes())
        return out


class Multiplier:
    """The side that owns the matrices, encoded once at the start; it never holds a secret key.

    Args:
        matrices: name to (blocks, deviation). Each block is [rows, columns]: a product is the sum
            over the blocks of block times its own encrypted vector. `deviation` is the standard
            deviation of the noise on every number of an answer; 0 leaves answers bare, for tests of
            what bare answers give away.

    Circuit privacy, exactly: an answer gets a fresh encryption of zero under the asker's public
    key, which hides its second polynomial from the asker itself if that key is well formed, and
    Gaussian noise of `deviation` on the real and imaginary part of every slot. The noise stands
    about 2^11 above the cipher's own noise: enough to bound the precision of what an answer tells,
    not a statistical proof (that takes 2^40 and a larger modulus).
    Not covered: an asker who publishes a malformed public key; one who asks in the imaginary parts
    too (count every answer as two); one who uses the head room of the modulus to ask louder than 1.
    Source: Halevi and Shoup 2014 (diagonals); Gentry 2009, section 21 (flooding).
    """

    def __init__(
        self, parameters: str, matrices: Mapping[str, tuple[Sequence[Matrix], float]]
    ) -> None:
        self._ring = _Ring(named(parameters))
        self._evaluator = self._ring.seal.Evaluator(self._ring.context)
        self._deviation = {name: deviation for name, (_, deviation) in matrices.items()}
        # name -> blocks -> slabs of `slots` rows -> diagonals; None where a diagonal is zero
        self._diagonals = {
            name: [self._encode(block) for block in blocks]
            for name, (blocks, _) in matrices.items()
        }

    def check(self, rotation: bytes, public: bytes) -> list[bytes]:
        """Read an asker's keys and forget them again.

        Raises:
            ProtocolError: bytes that SEAL refuses.
        """
        self._keys(rotation, public)
        return []

    def product(self, name: bytes, rotation: bytes, public: bytes, *vectors: bytes) -> list[bytes]:
        """Matrix `name` times the encrypted vector(s): one ciphertext for each `slots` rows.

        Raises:
            ProtocolError: unknown matrix, wrong number of vectors, or bytes that SEAL refuses.
        """
        ring, table, seal = self._ring, self._ring.parameters, self._ring.seal
        blocks = self._diagonals.get(name.decode("utf-8", "replace"))
        if blocks is None or len(vectors) != len(blocks):
            raise ProtocolError(
                f"{len(vectors)} vectors for matrix {name!r}, expected {len(blocks or ())}; ask "
                f"for the manifest again"
            )
        turning, shared = self._keys(rotation, public)
        totals: list[Any] = [None] * len(blocks[0])
        for block, vector in zip(blocks, vectors, strict=True):
            steps = self._baby_steps(
                from_wire(seal.Ciphertext(), ring.context, vector, table.seeded_bytes), turning
            )
            for slab, diagonals in enumerate(block):
                totals[slab] = self._add(totals[slab], self._giant_steps(diagonals, steps, turning))
        deviation = self._deviation[name.decode()]
        return [
            to_wire(self._hidden(total, shared, deviation), table.ciphertext_bytes)
            for total in totals
        ]

    def _keys(self, rotation: bytes, public: bytes) -> tuple[Any, Any]:
        ring, table = self._ring, self._ring.parameters
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
        return turning, shared

    def _encode(self, block: Matrix) -> list[list[Any]]:
        slots = self._ring.parameters.slots
        size, slabs = block_of(block.shape[1], slots), -(-len(block) // slots)
        padded = np.zeros((slabs * slots, size))
        padded[: len(block), : block.shape[1]] = block
        return [self._encode_slab(rows) for rows in padded.reshape(slabs, slots, size)]

    def _encode_slab(self, rows: Floats) -> list[Any]:
        slots, size = rows.shape
        index, scale, out = np.arange(slots), 2.0**self._ring.parameters.matrix_scale_bits, []
        for k in range(size):
            diagonal = np.roll(rows[index, (index + k) % size], k // BABY_STEPS * BABY_STEPS)
            plain = self._ring.encode(diagonal, scale)
            # SEAL refuses to multiply by zero (the result would be no encryption), so a zero
            # diagonal is left out.
            out.append(None if plain.is_zero() else plain)
        return out

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

    def _giant_steps(self, diagonals: Sequence[Any], steps: Sequence[Any], turning: Any) -> Any:
        """Horner: total = rotate(total, 32) + the inner sum of this giant step; None if every
        diagonal is zero.
        """
        total = None
        for start in range(len(diagonals) - BABY_STEPS, -1, -BABY_STEPS):
            if total is not None:
                self._evaluator.rotate_vector_inplace(total, BABY_STEPS, turning)
            for step, diagonal in zip(steps, diagonals[start : start + BABY_STEPS], strict=True):
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
