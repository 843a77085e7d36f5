"""What a decrypted CKKS number tells about the key: why none is ever shown to another party.

The unprotected arm is the whole attack of Li and Micciancio (eprint 2020/1533): one decryption, as
the library gives it, and the ciphertext that it came from; the secret key comes out, coefficient by
coefficient.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quietchoir.core.errors import ProtocolError
from quietchoir.crypto.he.ckks import (
    CIPHERTEXT_HEAD,
    ROTATIONS,
    Asker,
    Multiplier,
    PlainMatrix,
    _scratch,
    from_wire,
    gaussian,
    tiled,
    to_wire,
)
from quietchoir.crypto.he.parameters import SEARCH, SEED_BYTES, ZEROS
from quietchoir.crypto.pir.search import PASSAGE_NOISE, SCORE_NOISE, Shape
from quietchoir.tests.fakes.search import unit_rows

N = SEARCH.degree


def words(thing: Any, count: int, start: int = 0) -> NDArray[np.object_]:
    """Numbers of a SEAL polynomial, as Python's own: products stay exact."""
    array = thing.dyn_array()
    return np.array([array.at(start + at) for at in range(count)], object)


def key_from(
    asker: Asker, ciphertext: Any, shown: NDArray[np.complex128], scale: float
) -> NDArray[np.object_]:
    """s = (m - c0) / c1 modulo the prime, with m the numbers shown, encoded again; all in SEAL's
    NTT basis.
    """
    ring = asker._ring
    prime = int(ring.seal.CoeffModulus.Create(N, list(SEARCH.prime_bits))[0].value())
    encoded = ring.encode(shown, scale)
    inverse = np.array([pow(int(value), -1, prime) for value in words(ciphertext, N, N)], object)
    return (words(encoded, N) - words(ciphertext, N)) * inverse % prime


@pytest.fixture(scope="module")
def asker() -> Asker:
    return Asker(SEARCH.name)


def opened(asker: Asker, ciphertext: Any) -> tuple[NDArray[np.complex128], float]:
    """The decryption as SEAL gives it: every slot, real and imaginary part."""
    plain = asker._ring.seal.Plaintext()
    asker._decryptor.decrypt(ciphertext, plain)
    return np.array(asker._ring.coder.decode_complex(plain)), plain.scale


def test_one_bare_decryption_is_the_key_and_a_flooded_one_is_not(asker: Asker) -> None:
    vector = np.random.default_rng(1).normal(size=384)
    blob = asker.encrypt((vector / np.linalg.norm(vector)).tobytes())[0]
    ciphertext = from_wire(
        asker._ring.seal.Ciphertext(), asker._ring.context, blob, SEARCH.seeded_bytes
    )
    secret = words(asker._secret.data(), N)
    bare, scale = opened(asker, ciphertext)
    # the unprotected arm: all of it
    assert np.array_equal(key_from(asker, ciphertext, bare, scale), secret)
    noise = gaussian(SEARCH.slots, SCORE_NOISE) + 1j * gaussian(SEARCH.slots, SCORE_NOISE)
    flooded = key_from(asker, ciphertext, bare + noise, scale)
    assert np.count_nonzero(flooded == secret) <= 1  # a chance of 4096 / 2^54


def test_an_answer_that_left_the_keeper_opens_to_flooded_numbers_every_time(asker: Asker) -> None:
    """The keeper floods before it sends; the exact product, and with it what an exact opening
    tells, exists nowhere else.
    """
    matrix = np.random.default_rng(2).normal(size=(SEARCH.slots, 64)).astype(np.float32) / 8
    keys = asker.public_keys()
    question = asker.encrypt((np.ones(64) / 8).tobytes())
    arms = {
        name: Multiplier(SEARCH.name, {"m": PlainMatrix(matrix, deviation)})
        for name, deviation in (("bare", 0.0), ("own", SCORE_NOISE))
    }
    errors = {}
    for name, arm in arms.items():
        answers = [arm.product(b"m", *keys, *question)[0] for _ in range(2)]
        values = [np.frombuffer(asker.decrypt(answer)[0], np.float64) for answer in answers]
        errors[name] = np.abs(values[0] - values[1]).max(), answers[0] == answers[1]
    # the same each time: its noise is the key's, and averaging does not help to hide it
    assert errors["bare"] == (0.0, True)
    assert errors["own"][0] > 2 * SCORE_NOISE and not errors["own"][1]


def test_after_it_opened_numbers_an_asker_has_nothing_to_send_but_ciphertexts(asker: Asker) -> None:
    service = {name for name in dir(Asker) if not name.startswith("_")}
    # `decrypt` answers its owner's own process
    assert service == {"public_keys", "encrypt", "decrypt"}
    matrix = PlainMatrix(np.eye(8, dtype=np.float32), SCORE_NOISE)
    keys, question = asker.public_keys(), asker.encrypt(np.ones(8).tobytes())[0]
    answer = Multiplier(SEARCH.name, {"m": matrix}).product(b"m", *keys, question)[0]
    values = np.frombuffer(asker.decrypt(answer)[0], np.float64)
    sent = [asker.encrypt(vector.tobytes())[0] for vector in (values[:8], np.zeros(8))]
    assert len({len(blob) for blob in sent}) == 1 and values[:8].tobytes() not in sent[0]


class Liar:
    """An asker without a secret: rotation keys that turn both polynomials and add nothing, a public
    key of zeros, and questions that hold one plain vector in each polynomial.
    """

    def __init__(self) -> None:
        # SEAL's own objects and its context; nothing is ever decrypted
        self.asker = Asker(SEARCH.name)
        self.ring = self.asker._ring
        self.special = int(
            self.ring.seal.CoeffModulus.Create(N, list(SEARCH.prime_bits))[1].value()
        )

    def keys(self, first: int = 0) -> list[bytes]:
        """Rotation keys (0, P), and a public key whose first polynomials are `first`."""
        name = struct.pack("<4Q", *self.ring.context.key_parms_id())
        both = np.zeros((2, 2, N), "<u8")
        both[1, 0] = self.special % self.ring.modulus
        array = struct.pack("<Q", both.size) + both.tobytes()
        one = CIPHERTEXT_HEAD.pack(name, 1, 2, N, 2, 1.0, 1)
        one += self.ring._head(len(array)) + array
        one = self.ring._head(len(one)) + one
        places = {(pow(3, step, 2 * N) - 1) // 2 for step in ROTATIONS}
        lists = (struct.pack("<Q", at in places) + one * (at in places) for at in range(N))
        raw = name + struct.pack("<Q", N) + b"".join(lists)
        turning = self.ring.seal.GaloisKeys()
        with _scratch() as path:
            Path(path).write_bytes(self.ring._head(len(raw)) + raw)
            turning.load(self.ring.context, path)
        public = bytes(SEED_BYTES) + ZEROS * N * first.to_bytes(SEARCH.word_bytes, "little")
        return [to_wire(turning, SEARCH.rotation_keys_bytes(len(ROTATIONS))), public]

    def question(self, *vectors: NDArray[np.float64]) -> bytes:
        """Two vectors, in clear, in the place of one that is encrypted."""
        scale = 2.0**SEARCH.query_scale_bits
        plains = [self.ring.encode(tiled(each, SEARCH.slots), scale) for each in vectors]
        both = np.concatenate([words(plain, N).astype(np.uint64) for plain in plains])
        return to_wire(self.ring.ciphertext(both, scale, ntt=True), SEARCH.seeded_bytes)

    def opened(self, answer: bytes) -> NDArray[np.float64]:
        """[2, N]: the numbers of the rows, as each polynomial holds them."""
        both = np.frombuffer(answer, "<u4").astype(np.float64).reshape(2, N)
        both *= 2.0**SEARCH.dropped_bits
        both -= self.ring.modulus * (both > self.ring.modulus / 2)
        slots = np.fft.ifft(both * np.exp(1j * np.pi * np.arange(N) / N)) * N
        turned = slots[:, [(pow(3, at, 2 * N) - 1) // 2 for at in range(N // 2)]]
        scale = 2.0**SEARCH.answer_scale_bits
        return np.concatenate([turned.real, turned.imag], axis=1) / scale


ROWS = unit_rows(200, 64, seed=5)


class Unmasked(Multiplier):
    """The unprotected arm: what a public key of zeros left of a keeper that masked its answers with
    one encryption of zero under that key, the noise alone.
    """

    def _zeros(self, public: bytes) -> list[Any]:
        return []


@pytest.fixture(scope="module")
def liar() -> Liar:
    return Liar()


@pytest.mark.parametrize("keeper", [Unmasked, Multiplier])
def test_keys_that_are_none_do_not_make_an_answer_tell_more_than_one_number_a_row(
    liar: Liar, keeper: type[Multiplier]
) -> None:
    """All questions of a budget, two vectors in each: embeddings by linear algebra."""
    forms = np.linalg.qr(np.random.default_rng(3).normal(size=(64, 64)))[0]
    budget = Shape(dimension=64, passages=200, chunk_bytes=64).largest_budget
    multiplier = keeper(SEARCH.name, {"m": PlainMatrix(ROWS, SCORE_NOISE)})
    keys = liar.keys()
    found = np.concatenate(
        [
            liar.opened(multiplier.product(b"m", *keys, liar.question(one, other))[0])[:, :200]
            for one, other in zip(forms[:budget], forms[budget : 2 * budget], strict=True)
        ]
    ).reshape(budget, 2, 200)

    def cosine(asked: NDArray[np.float64], told: NDArray[np.float64]) -> float:
        worked_out = (asked.T @ told).T
        return float(((worked_out * ROWS).sum(1) / np.linalg.norm(worked_out, axis=1)).mean())

    firsts, seconds = forms[:budget], forms[budget : 2 * budget]
    assert 0.6 < cosine(firsts, found[:, 0]) < 0.75  # what honest keys get within the budget
    whole = cosine(np.concatenate([firsts, seconds]), np.concatenate([found[:, 0], found[:, 1]]))
    if keeper is Unmasked:
        assert whole > 0.95
    else:
        assert abs(whole) < 0.1 and abs(cosine(seconds, found[:, 1])) < 0.1


@pytest.mark.parametrize(("noise", "bits"), [(SCORE_NOISE, 17.4), (PASSAGE_NOISE, 22.4)])
def test_an_answer_holds_the_stated_bits_a_row_whatever_the_keys_are(
    liar: Liar, noise: float, bits: float
) -> None:
    """The same question twice: what differs is noise, and the rest is all that can be told."""
    question, largest = liar.question(ROWS[0], ROWS[1]), liar.ring.modulus
    told = {}
    for keeper in (Unmasked, Multiplier):
        multiplier = keeper(SEARCH.name, {"m": PlainMatrix(ROWS, noise)})
        for first in (0, largest - 1):
            keys = liar.keys(first)
            answers = [multiplier.product(b"m", *keys, question)[0] for _ in range(2)]
            one, other = (np.frombuffer(each, "<u4").astype(np.int64) for each in answers)
            apart = ((one - other) << SEARCH.dropped_bits).reshape(2, N)
            apart = (apart + largest // 2) % largest - largest // 2
            told[keeper, first] = apart.std(axis=1) / np.sqrt(2)
    for first in (0, largest - 1):
        assert told[Unmasked, first][1] == 0  # all of its 32 bits, for nothing
        # uniform: a difference of two is, too
        assert told[Multiplier, first][1] * np.sqrt(2) == pytest.approx(
            largest / np.sqrt(12), rel=0.05
        )
        held = np.log2(largest / (told[Multiplier, first][0] * np.sqrt(2 * np.pi * np.e)))
        assert bits - 0.3 < held < bits + 0.1


def test_a_question_that_hides_nothing_is_refused_and_does_not_end_the_worker(liar: Liar) -> None:
    """SEAL computes with no ciphertext whose second polynomial is zero."""
    multiplier = Multiplier(SEARCH.name, {"m": PlainMatrix(ROWS, SCORE_NOISE)})
    with pytest.raises(ProtocolError, match="SEAL does not compute"):
        multiplier.product(b"m", *liar.keys(), liar.question(ROWS[0], np.zeros(64)))


def test_a_public_key_of_another_length_or_beyond_the_modulus_is_refused(liar: Liar) -> None:
    multiplier = Multiplier(SEARCH.name, {"m": PlainMatrix(ROWS, SCORE_NOISE)})
    turning, public = liar.keys()
    assert multiplier.check(turning, public) == []
    for bad in (b"", public[:-1], public + b"\0"):
        with pytest.raises(ProtocolError, match="expected"):
            multiplier.check(turning, bad)
    for first in (liar.ring.modulus, 2**56 - 1):
        with pytest.raises(ProtocolError, match="beyond"):
            multiplier.check(*liar.keys(first))
