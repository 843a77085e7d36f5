"""Encrypted matrix products: exact within their bound, of constant size, refused when changed."""

import subprocess
import sys

import numpy as np
import pytest

from quietchoir.core.errors import CryptoError, ProtocolError
from quietchoir.crypto.he import ckks
from quietchoir.crypto.he.parameters import SEARCH
from quietchoir.crypto.pir.search import SCORE_ERROR
from quietchoir.tests.fakes.search import unit_rows

ROWS, WIDE = unit_rows(300, 384), unit_rows(2100, 40, seed=1)


@pytest.fixture(scope="module")
def asker():
    return ckks.Asker(SEARCH.name)


@pytest.fixture(scope="module")
def keys(asker):
    return asker.public_keys()


@pytest.fixture(scope="module")
def multiplier():
    sparse = np.zeros((3, 5))
    sparse[1, 4] = 0.5
    matrices: dict[str, tuple[list[np.ndarray], float]] = {
        "bare": ([ROWS], 0.0),
        "noisy": ([ROWS], 2.0**-9),
        "wide": ([WIDE], 0.0),
        "two": ([ROWS[:, :100], ROWS[:, 100:120]], 0.0),
        "sparse": ([sparse], 0.0),
        "zero": ([np.zeros((2, 2))], 0.0),
    }
    return ckks.Multiplier(SEARCH.name, matrices)


def product(asker, keys, multiplier, name, *vectors):
    answer = multiplier.product(
        name.encode(),
        *keys,
        *asker.encrypt(*(np.asarray(v, np.float64).tobytes() for v in vectors)),
    )
    return np.concatenate([np.frombuffer(part, np.float64) for part in asker.decrypt(*answer)])


def test_products_are_those_of_the_plain_matrices_within_the_stated_error(asker, keys, multiplier):
    query = unit_rows(1, 384, seed=2)[0]
    assert (
        np.abs(product(asker, keys, multiplier, "bare", query)[:300] - ROWS @ query).max()
        < SCORE_ERROR
    )
    query = unit_rows(1, 40, seed=3)[0]
    assert (
        np.abs(product(asker, keys, multiplier, "wide", query)[:2100] - WIDE @ query).max()
        < SCORE_ERROR
    )
    left, right = unit_rows(1, 100, seed=4)[0], unit_rows(1, 20, seed=5)[0]
    expected = ROWS[:, :100] @ left + ROWS[:, 100:120] @ right
    assert (
        np.abs(product(asker, keys, multiplier, "two", left, right)[:300] - expected).max()
        < SCORE_ERROR
    )


def test_zero_diagonals_are_left_out_and_a_matrix_of_zeros_is_refused(asker, keys, multiplier):
    assert product(asker, keys, multiplier, "sparse", [0, 0, 0, 0, 1.0])[:3] == pytest.approx(
        [0, 0.5, 0], abs=SCORE_ERROR
    )
    with pytest.raises(CryptoError, match="zeros"):
        product(asker, keys, multiplier, "zero", [1.0, 1.0])


def test_noise_has_the_stated_deviation_and_is_fresh_every_time(asker, keys, multiplier):
    query = unit_rows(1, 384, seed=2)[0]
    first, second = (product(asker, keys, multiplier, "noisy", query)[:300] for _ in range(2))
    assert 0.8 * 2.0**-9 < np.std(first - ROWS @ query) < 1.2 * 2.0**-9
    assert 0.8 * 2.0**-8.5 < np.std(first - second) < 1.2 * 2.0**-8.5


def test_the_second_polynomial_of_a_noisy_answer_is_new_even_for_the_same_ciphertext(
    asker, keys, multiplier
):
    cipher = asker.encrypt(ROWS[0].astype(np.float64).tobytes())
    bare = {multiplier.product(b"bare", *keys, *cipher)[0] for _ in range(2)}
    assert len(bare) == 1  # the unprotected arm: a function of documents and question alone
    assert len({multiplier.product(b"noisy", *keys, *cipher)[0] for _ in range(2)}) == 2


def test_everything_on_the_wire_has_the_size_of_the_table_whatever_it_holds(
    asker, keys, multiplier
):
    for vector in (np.zeros(384) + 1e-9, ROWS[0].astype(np.float64), np.ones(384)):
        cipher = asker.encrypt(vector.tobytes())
        assert [len(part) for part in cipher] == [SEARCH.seeded_bytes]
        assert [len(part) for part in multiplier.product(b"noisy", *keys, *cipher)] == [
            SEARCH.ciphertext_bytes
        ]
    assert [len(key) for key in keys] == [SEARCH.rotation_keys_bytes(2), SEARCH.public_key_bytes]


def test_bytes_of_wrong_length_or_head_never_reach_seal(asker, keys, multiplier):
    good = asker.encrypt(ROWS[0].astype(np.float64).tobytes())[0]
    bad_size = good[:8] + (1 << 40).to_bytes(8, "little") + good[16:]
    for bad in (
        b"",
        good[:-1],
        good + b"\0",
        bytes(len(good)),
        good[:-1] + b"\1",
        bad_size,
        b"\x5f" + good[1:],
    ):
        with pytest.raises(ProtocolError, match="ciphertext part"):
            multiplier.product(b"bare", *keys, bad)


def test_unknown_matrices_and_a_wrong_number_of_vectors_are_refused(asker, keys, multiplier):
    good = asker.encrypt(ROWS[0].astype(np.float64).tobytes())[0]
    for name, vectors in (
        (b"none", (good,)),
        (b"bare", ()),
        (b"bare", (good, good)),
        (b"\xff", (good,)),
    ):
        with pytest.raises(ProtocolError, match="vectors"):
            multiplier.product(name, *keys, *vectors)


def test_a_computed_answer_sent_back_as_a_question_is_refused(asker, keys, multiplier):
    answer = multiplier.product(
        b"bare", *keys, *asker.encrypt(ROWS[0].astype(np.float64).tobytes())
    )[0]
    with pytest.raises(ProtocolError):
        multiplier.product(b"bare", *keys, answer[: SEARCH.seeded_bytes])


def test_a_matrix_wider_than_the_ring_is_refused():
    with pytest.raises(CryptoError, match="split"):
        ckks.block_of(SEARCH.slots + 1, SEARCH.slots)


def test_gaussian_noise_has_the_moments_of_a_gaussian():
    found = ckks.gaussian(200_000, 3.0)
    assert abs(found.mean()) < 0.05 and abs(found.std() - 3) < 0.05
    assert abs((np.abs(found) < 3.0).mean() - 0.6827) < 0.01


UNPROTECTED = """
import tenseal as ts
context = ts.context(ts.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 40, 60])
context.global_scale = 2**40
raw = bytearray(ts.ckks_vector(context, [1.0, 2.0, 3.0]).serialize())
raw[0] ^= 16
vector = ts.ckks_vector_from(context, bytes(raw))
print("loaded", flush=True)
vector.decrypt()
print("decrypted", flush=True)
"""


def test_without_our_checks_one_flipped_bit_is_loaded_and_ends_the_process():
    child = subprocess.run(
        [sys.executable, "-c", UNPROTECTED], capture_output=True, text=True, timeout=60
    )
    assert child.returncode < 0 and child.stdout.split() == ["loaded"]
