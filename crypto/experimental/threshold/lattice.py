"""What SEAL does for joint keys: samples secrets and noise, multiplies, rounds.

Knows SEAL's objects and how they lie in bytes. Knows nothing of members, shares or messages.
Always: SEAL loads only bytes that were laid out here from residues already checked, never bytes
that another party sent; that is why this needs no worker against crashes, unlike `bfv` and `ckks`.

No sampler and no cipher of our own: secrets are SEAL's `KeyGenerator`'s, noise is that of its
symmetric encryption. Only the uniform polynomial of a ciphertext is exchanged for the public one.
Rounding is SEAL's `Decryptor` under the secret key zero: it decodes the first polynomial alone,
which is where readers have put c0 + a s together.
Source: seal/ciphertext.cpp, plaintext.cpp, dynarray.h (`save_members`), version 4.
"""

import struct
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.errors import CryptoError, ProtocolError
from ...he.ckks import _scratch
from ...he.parameters import JOINT
from . import residues
from .plan import PLAIN_MODULUS, PRIMES
from .residues import Residues

Slots = NDArray[np.uint64]

LIMBS = len(PRIMES) - 1  # of a ciphertext


@cache
def lattice() -> "Lattice":
    """The one ring of joint keys; it holds no secret, so one serves the whole program."""
    return Lattice()


def _header(size: int) -> bytes:
    # magic, header size, version 4.3, uncompressed
    return b"\x5e\xa1\x10\x04\x03\x00\x00\x00" + struct.pack("<Q", size)


def _framed(body: bytes) -> bytes:
    return _header(16 + len(body)) + body


def _words(values: Residues) -> bytes:
    return _framed(struct.pack("<Q", values.size) + np.ascontiguousarray(values, "<u8").tobytes())


class Lattice:
    """SEAL's context for `JOINT`.

    Raises:
        CryptoError: this SEAL chooses other primes than the plan's; its version does not fit ours.
    """

    def __init__(self) -> None:
        import tenseal.sealapi as seal

        chosen = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV)
        chosen.set_poly_modulus_degree(JOINT.degree)
        primes = seal.CoeffModulus.Create(JOINT.degree, list(JOINT.prime_bits))
        modulus = seal.PlainModulus.Batching(JOINT.degree, JOINT.plain_bits)
        if tuple(prime.value() for prime in primes) != PRIMES or modulus.value() != PLAIN_MODULUS:
            raise CryptoError(
                f"{JOINT.name}: SEAL took other primes than ours; install the "
                f"TenSEAL that pyproject.toml names"
            )
        chosen.set_coeff_modulus(primes)
        chosen.set_plain_modulus(modulus)
        self._seal: Any = seal
        self._context: Any = seal.SEALContext(chosen, True, seal.SEC_LEVEL_TYPE.TC128)
        if not self._context.parameters_set():
            raise CryptoError(
                f"{JOINT.name}: SEAL refuses it: {self._context.parameters_error_message()}"
            )
        self._top, self._level = self._context.key_parms_id(), self._context.first_parms_id()
        self._coder, self._evaluator = (
            seal.BatchEncoder(self._context),
            seal.Evaluator(self._context),
        )
        nothing = self._load(
            seal.SecretKey(), self._plain(np.zeros((LIMBS + 1, JOINT.degree), np.uint64), self._top)
        )
        self._rounder: Any = seal.Decryptor(self._context, nothing)

    def secret(self) -> Residues:
        """A fresh ternary secret [4, N] in the NTT basis, from SEAL's `KeyGenerator`."""
        # `data()` borrows from it, so it must stay
        private = self._seal.KeyGenerator(self._context).secret_key()
        polynomial: Residues = self._read(private.data(), 1, LIMBS + 1)[0]
        return polynomial

    def encrypt(self, secret: Residues, common: Residues, rows: Slots) -> Residues:
        """Each row of N slots (below t) as c0 = round(q m / T) - (a s + e), [rows, 3, N].

        SEAL encrypts with an a' of its own; c0 = c0' + (a' - a) s has the same e and the a that all
        have in common.
        Args:
            secret: [4, N], NTT basis.
            common: a for each row, [rows, 3, N].

        Hazard: with the same secret and a twice, the difference of two messages lies open but for
        noise.
        """
        encryptor = self._seal.Encryptor(
            self._context, self._load(self._seal.SecretKey(), self._plain(secret, self._top))
        )
        factor, out = (
            self._load(self._seal.Plaintext(), self._plain(secret[:LIMBS], self._level)),
            [],
        )
        for row, public in zip(rows, common, strict=True):
            plain, cipher = self._seal.Plaintext(), self._seal.Ciphertext()
            self._coder.encode(row.tolist(), plain)
            encryptor.encrypt_symmetric(plain, cipher)
            first = self._read(cipher, 1)[0]
            pair = np.stack([np.zeros_like(public), public])
            self._evaluator.sub_inplace(
                cipher,
                self._load(self._seal.Ciphertext(), self._cipher(pair, self._level, ntt=False)),
            )
            self._times(cipher, factor)
            out.append(residues.add(first, self._read(cipher, 1, start=1)[0]))
        return np.stack(out)

    def shift(self, polynomials: Residues, rows: Slots) -> Residues:
        """Each polynomial [rows, 3, N] plus round(q m / T) for a row m of N slots (below t): a
        plaintext added in the dark.
        """
        out = []
        for polynomial, row in zip(polynomials, rows, strict=True):
            plain, cipher = self._seal.Plaintext(), self._phase(polynomial)
            self._coder.encode(row.tolist(), plain)
            self._evaluator.add_plain_inplace(cipher, plain)
            out.append(self._read(cipher, 1)[0])
        return np.stack(out)

    def multiply(self, polynomials: Residues, factor: Residues) -> Residues:
        """Each polynomial [rows, 3, N] times `factor` [3, N] (in the NTT basis), as polynomials
        again.
        """
        plain = self._load(self._seal.Plaintext(), self._plain(factor, self._level))
        out = []
        # a ciphertext has two polynomials, so it carries two rows
        for start in range(0, len(polynomials), 2):
            two = polynomials[start : start + 2]
            cipher = self._load(
                self._seal.Ciphertext(),
                self._cipher(np.stack([two[0], two[-1]]), self._level, ntt=False),
            )
            self._times(cipher, plain)
            out.append(self._read(cipher, len(two)))
        return np.concatenate(out)

    def _times(self, cipher: Any, factor: Any) -> None:
        """Both polynomials of `cipher` times `factor` (in the NTT basis), in place."""
        self._evaluator.transform_to_ntt_inplace(cipher)
        self._evaluator.multiply_plain_inplace(cipher, factor)
        self._evaluator.transform_from_ntt_inplace(cipher)

    def decode(self, phases: Residues) -> Slots:
        """Slots [rows, N] of c0 + c1 s + noise [rows, 3, N].

        Raises:
            ProtocolError: more noise than an opened sum has; a part was wrong, missing or for
            something else.
        """
        out = []
        for phase in phases:
            if self.budget(phase) < 1:
                raise ProtocolError(
                    "the parts do not meet in a sum: one is wrong or of another "
                    "key; ask other responders"
                )
            plain = self._seal.Plaintext()
            self._rounder.decrypt(self._phase(phase), plain)
            out.append(np.asarray(self._coder.decode_uint64(plain), np.uint64))
        return np.stack(out)

    def budget(self, phase: Residues) -> int:
        """Bits of noise that a phase [3, N] could still take."""
        return int(self._rounder.invariant_noise_budget(self._phase(phase)))

    def _phase(self, phase: Residues) -> Any:
        # the second polynomial meets the secret key zero
        pair = np.stack([phase, np.ones_like(phase)])
        return self._load(self._seal.Ciphertext(), self._cipher(pair, self._level, ntt=False))

    def _load(self, thing: Any, raw: bytes) -> Any:
        with _scratch() as path:
            Path(path).write_bytes(raw)
            thing.load(self._context, path)
        return thing

    def _read(self, thing: Any, rows: int, limbs: int = LIMBS, *, start: int = 0) -> Residues:
        """`rows` polynomials from the one at `start`. SEAL saves compressed only: numbers are
        taken one by one, 0.4 us each.
        """
        array, one = thing.dyn_array(), limbs * JOINT.degree
        places = range(start * one, (start + rows) * one)
        return np.fromiter(map(array.at, places), np.uint64, len(places)).reshape(
            rows, limbs, JOINT.degree
        )

    @staticmethod
    def _cipher(pair: Residues, level: Sequence[int], *, ntt: bool) -> bytes:
        head = struct.pack(
            "<4Q?3QdQ", *level, ntt, *pair.shape[0:1], JOINT.degree, pair.shape[1], 1.0, 1
        )
        return _framed(head + _words(pair))

    @staticmethod
    def _plain(values: Residues, level: Sequence[int]) -> bytes:
        return _framed(struct.pack("<4QQd", *level, values.size, 1.0) + _words(values))
