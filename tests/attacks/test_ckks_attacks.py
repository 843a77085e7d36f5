"""What a decrypted CKKS number tells about the key: why none is ever shown to another party.

The unprotected arm is the whole attack of Li and Micciancio (eprint 2020/1533): one decryption, as
the library gives it, and the ciphertext that it came from; the secret key comes out, coefficient by
coefficient.
"""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quietchoir.crypto.he.ckks import Asker, Multiplier, PlainMatrix, from_wire, gaussian
from quietchoir.crypto.he.parameters import SEARCH
from quietchoir.crypto.pir.search import SCORE_NOISE

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
