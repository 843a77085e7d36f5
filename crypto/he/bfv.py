"""Sealed sums: packed integers under BFV, masked inside Z_t before they are encrypted.

Knows packing, masks modulo t and SEAL's BFV objects. Knows nothing of rounds, cohorts or who may
hold the key.
Always: a sum that opens is exact, because more ciphertexts than the noise allows are refused; masks
are uniform over the whole of Z_t; SEAL works in a `worker.Worker` alone.

The members share one key, made from a 32-byte seed that they hand each other in sealed boxes; the
coordinator has none. Masks protect a member from the coordinator and from the other holders of the
key; the encryption keeps the sum from the coordinator. Not covered: a member who hands the key to
the coordinator gives away sums, never a single update.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from ...core.errors import ConfigError, CryptoError, ProtocolError
from ..identity.keys import hkdf
from .ckks import from_wire, to_wire
from .parameters import SEALED, SEALED_LARGE, RingParameters, named

Slots = npt.NDArray[np.uint64]

SEED_BYTES = 32
# The largest prime of `plain_bits` bits that is 1 modulo 2N: what SEAL's PlainModulus.Batching
# returns.
PLAIN_MODULUS = {SEALED.name: 562949953216513, SEALED_LARGE.name: 70368743669761}


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Several values a slot, with room for the sum of the whole cohort.

    Raises:
        ConfigError: more parties or bits than any set of the table can add exactly.
    """

    length: int  # values
    bits: int  # of one value
    parties: int  # largest cohort

    def __post_init__(self) -> None:
        if (
            min(self.length, self.bits, self.parties) < 1
            or self.parties >= SEALED_LARGE.largest_sum
            or not self.fields
        ):
            raise ConfigError(
                f"{self.length} values of {self.bits} bits from {self.parties} parties cannot be "
                f"summed under encryption; "
                f"at most {SEALED_LARGE.largest_sum - 1} parties, and "
                f"{self.parameters.plain_bits - 1} bits for one sum"
            )

    @property
    def parameters(self) -> RingParameters:
        """The set that this cohort needs."""
        return SEALED if self.parties < SEALED.largest_sum else SEALED_LARGE

    @property
    def modulus(self) -> int:
        """t."""
        return PLAIN_MODULUS[self.parameters.name]

    @property
    def width(self) -> int:
        """Bits of one value's sum."""
        return self.bits + (self.parties - 1).bit_length()

    @property
    def fields(self) -> int:
        """Values in one slot."""
        return (self.parameters.plain_bits - 1) // self.width

    @property
    def rows(self) -> int:
        """Ciphertexts of one vector."""
        return -(-self.length // (self.fields * self.parameters.degree))

    @property
    def wire_bytes(self) -> int:
        """Bytes that one party sends."""
        return self.rows * self.parameters.seeded_bytes

    def pack(self, values: npt.NDArray[np.unsignedinteger]) -> Slots:
        """Values [length] into slots [rows, N], each below t.

        Raises:
            ValueError: wrong shape or kind, or a value of more bits than agreed.
        """
        if (
            values.shape != (self.length,)
            or values.dtype.kind != "u"
            or int(values.max()) >> self.bits
        ):
            raise ValueError(
                f"values are {values.dtype} {values.shape}, unsigned [{self.length}] "
                f"of {self.bits} bits expected"
            )
        padded = np.zeros(self.fields * self.rows * self.parameters.degree, np.uint64)
        padded[: self.length] = values
        out = np.zeros((self.rows, self.parameters.degree), np.uint64)
        for place, part in enumerate(padded.reshape(self.fields, *out.shape)):
            out |= part << np.uint64(place * self.width)
        return out

    def unpack(self, slots: Slots) -> npt.NDArray[np.int64]:
        """Sums [length] out of slots [rows, N]."""
        low = np.uint64((1 << self.width) - 1)
        fields = [(slots >> np.uint64(place * self.width)) & low for place in range(self.fields)]
        return np.concatenate(fields, axis=None)[: self.length].astype(np.int64)

    def mask(self, slots: Slots, key: bytes, *, subtract: bool) -> Slots:
        """Slots plus or minus the mask of `key`, modulo t."""
        stream = uniform(key, slots.size, self.modulus).reshape(slots.shape)
        modulus = np.uint64(self.modulus)
        return (slots + (modulus - stream if subtract else stream)) % modulus


def uniform(key: bytes, count: int, modulus: int) -> Slots:
    """`count` numbers uniform below `modulus`, the same for the same key.

    By rejection: a reduction modulo t would prefer small numbers.
    Args:
        key: 32 bytes that serve this one mask.

    Source: AES-256-CTR, NIST SP 800-38A; rejection as in FIPS 203, algorithm 7.
    """
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    low, found = np.uint64((1 << modulus.bit_length()) - 1), np.empty(0, np.uint64)
    while len(found) < count:
        words = (
            np.frombuffer(stream.update(bytes(8 * (count - len(found)))), "<u8").astype(np.uint64)
            & low
        )
        found = np.concatenate([found, words[words < np.uint64(modulus)]])
    return found


def key_id(seed: bytes) -> bytes:
    """32 bytes that name a key without telling it; every sealed message is bound to one."""
    return hkdf(seed, b"quietchoir sealed key id 1")


def _context(parameters: RingParameters, generator: Any = None) -> tuple[Any, Any]:
    import tenseal.sealapi as seal

    chosen = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV)
    chosen.set_poly_modulus_degree(parameters.degree)
    chosen.set_coeff_modulus(
        seal.CoeffModulus.Create(parameters.degree, list(parameters.prime_bits))
    )
    modulus = seal.PlainModulus.Batching(parameters.degree, parameters.plain_bits)
    if modulus.value() != PLAIN_MODULUS[parameters.name]:
        raise CryptoError(
            f"{parameters.name}: SEAL took t = {modulus.value()}; this version of it "
            f"does not fit ours"
        )
    chosen.set_plain_modulus(modulus)
    if generator is not None:
        chosen.set_random_generator(generator)
    context = seal.SEALContext(chosen, True, seal.SEC_LEVEL_TYPE.TC128)
    if not context.parameters_set():
        raise CryptoError(
            f"{parameters.name}: SEAL refuses it: {context.parameters_error_message()}"
        )
    return seal, context


def _rows(raw: Sequence[bytes], degree: int) -> Slots:
    return np.stack([np.frombuffer(row, np.uint64, degree) for row in raw])


class BfvMember:
    """Service of one who holds the key.

    Args:
        seed: 32 bytes. Only the key is made from it; encryption draws fresh randomness from the
        operating system.
    """

    def __init__(self, parameters: str, seed: bytes) -> None:
        import tenseal.sealapi as seal

        if len(seed) != SEED_BYTES:
            raise CryptoError(
                f"a key seed of {len(seed)} bytes, expected {SEED_BYTES}; ask a member for it again"
            )
        self._table = named(parameters)
        words = np.frombuffer(hkdf(seed, b"quietchoir sealed key 1", 64), "<u8").tolist()
        _, fixed = _context(self._table, seal.Blake2xbPRNGFactory(words))
        secret = seal.KeyGenerator(fixed).secret_key()
        self._seal, self._context = _context(self._table)
        self._coder = self._seal.BatchEncoder(self._context)
        self._encryptor = self._seal.Encryptor(self._context, secret)
        self._decryptor = self._seal.Decryptor(self._context, secret)

    def encrypt(self, *rows: bytes) -> list[bytes]:
        """Each row of N masked slots (uint64) into one seeded ciphertext, whose noise is measured
        before it leaves.

        Raises:
            CryptoError: more noise than the table promises, so that a full sum might not open;
            nothing is sent.
        """
        out = []
        for row in _rows(rows, self._table.degree):
            plain = self._seal.Plaintext()
            self._coder.encode(row.tolist(), plain)
            out.append(to_wire(self._encryptor.encrypt_symmetric(plain), self._table.seeded_bytes))
            cipher = from_wire(
                self._seal.Ciphertext(), self._context, out[-1], self._table.seeded_bytes
            )
            budget = self._decryptor.invariant_noise_budget(cipher)
            if budget < self._table.fresh_budget:
                need = self._table.fresh_budget
                raise CryptoError(
                    f"a fresh ciphertext has {budget} bits of noise budget, {need} "
                    f"expected; nothing is sent"
                )
        return out

    def decrypt(self, *sums: bytes) -> list[bytes]:
        """Each summed ciphertext into its N slots (uint64).

        Raises:
            ProtocolError: bytes that SEAL refuses, or noise so high that the sum would not be
            exact.
        """
        out = []
        for blob in sums:
            cipher = from_wire(
                self._seal.Ciphertext(), self._context, blob, self._table.ciphertext_bytes
            )
            if self._decryptor.invariant_noise_budget(cipher) < 1:
                raise ProtocolError(
                    "a sealed sum without noise budget: too many parts, another "
                    "key or changed; it is refused"
                )
            plain = self._seal.Plaintext()
            self._decryptor.decrypt(cipher, plain)
            out.append(np.asarray(self._coder.decode_uint64(plain), np.uint64).tobytes())
        return out


class Adder:
    """Service of the coordinator: it adds what it cannot read, and never has a key."""

    def __init__(self, parameters: str) -> None:
        self._table = named(parameters)
        self._seal, self._context = _context(self._table)
        self._coder, self._evaluator = (
            self._seal.BatchEncoder(self._context),
            self._seal.Evaluator(self._context),
        )

    def check(self, *payload: bytes) -> list[bytes]:
        """Read one party's ciphertexts and forget them. Raises ProtocolError if SEAL refuses
        one.
        """
        for blob in payload:
            self._load(blob)
        return []

    def add(self, masks: bytes, *parts: bytes) -> list[bytes]:
        """Sum one row of all parties and subtract the masks that dropped parties left in it.

        Args:
            masks: N slots (uint64) to subtract, or nothing.

        Raises:
            ProtocolError: bytes that SEAL refuses, or more parts than can be added exactly.
        """
        if not 0 < len(parts) < self._table.largest_sum:
            raise ProtocolError(
                f"{len(parts)} ciphertexts to add, 1 to {self._table.largest_sum - 1} expected; "
                f"use a smaller cohort"
            )
        total = self._load(parts[0])
        for blob in parts[1:]:
            self._evaluator.add_inplace(total, self._load(blob))
        if masks:
            plain = self._seal.Plaintext()
            self._coder.encode(_rows([masks], self._table.degree)[0].tolist(), plain)
            self._evaluator.sub_plain_inplace(total, plain)
        return [to_wire(total, self._table.ciphertext_bytes)]

    def _load(self, blob: bytes) -> Any:
        cipher = from_wire(self._seal.Ciphertext(), self._context, blob, self._table.seeded_bytes)
        if (
            cipher.size() != 2
            or cipher.parms_id() != self._context.first_parms_id()
            or cipher.is_ntt_form()
        ):
            raise ProtocolError(
                "a ciphertext of another size or level than the table's; update both sides"
            )
        return cipher
