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

# WIDE: one row more than a ciphertext of an answer holds
ROWS, WIDE, NOISE = unit_rows(300, 384), unit_rows(4097, 32, seed=1), 2.0**-9


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
    matrices = {
        "bare": ckks.PlainMatrix(ROWS, 0.0),
        "noisy": ckks.PlainMatrix(ROWS, NOISE),
        "wide": ckks.PlainMatrix(WIDE, 0.0),
        "sparse": ckks.PlainMatrix(sparse, 0.0),
        "zero": ckks.PlainMatrix(np.zeros((2, 2)), 0.0),
    }
    return ckks.Multiplier(SEARCH.name, matrices)


def encrypted(asker, vector):
    pieces = ckks.split(np.asarray(vector, np.float64), SEARCH.slots)
    return asker.encrypt(*(piece.tobytes() for piece in pieces))


def product(asker, keys, multiplier, name, vector):
    answer = multiplier.product(name.encode(), *keys, *encrypted(asker, vector))
    return np.concatenate([np.frombuffer(part, np.float64) for part in asker.decrypt(*answer)])


def test_products_are_those_of_the_plain_matrices_within_the_stated_error(asker, keys, multiplier):
    query = unit_rows(1, 384, seed=2)[0]
    assert (
        np.abs(product(asker, keys, multiplier, "bare", query)[:300] - ROWS @ query).max()
        < SCORE_ERROR
    )
    query = unit_rows(1, 32, seed=3)[0]
    assert (
        np.abs(product(asker, keys, multiplier, "wide", query)[:4097] - WIDE @ query).max()
        < SCORE_ERROR
    )


def test_shards_hold_every_slab_once_and_together_answer_as_one(asker, keys, tmp_path):
    np.save(tmp_path / "rows.npy", WIDE)
    matrices = {
        "small": ckks.PlainMatrix(ROWS[:, :32], 0.0),
        "wide": ckks.PlainMatrix(tmp_path / "rows.npy", 0.0, 0.5),
    }
    cipher = asker.encrypt(WIDE[4096].astype(np.float64).tobytes())[0]
    found = [
        {
            name: ckks.Multiplier(SEARCH.name, matrices, shard, 2).product(
                name.encode(), *keys, cipher
            )
            for name in matrices
        }
        for shard in range(2)
    ]
    assert [[len(each[name]) for name in matrices] for each in found] == [[1, 1], [0, 1]]
    order = [ckks.shard_of(1, slab, 2) for slab in range(2)]
    parts = asker.decrypt(*(found[shard]["wide"][0] for shard in order))
    values = np.concatenate([np.frombuffer(part, np.float64) for part in parts])[: len(WIDE)]
    assert np.abs(values - 0.5 * WIDE @ WIDE[4096]).max() < SCORE_ERROR


def test_the_noise_of_the_cipher_itself_is_what_flooding_is_argued_against(asker, keys, multiplier):
    """`Multiplier` counts on 2^-17 for rows of length 1, over all slots: what is left when the
    rows' own rounding is taken out; of two keys, since part of what SEAL adds belongs to a key.
    """
    query, other = unit_rows(1, 32, seed=2)[0], ckks.Asker(SEARCH.name)
    first = product(asker, keys, multiplier, "wide", query)[:4096]
    second = product(other, other.public_keys(), multiplier, "wide", query)[:4096]
    assert 2.0**-21 < np.std(first - second) / np.sqrt(2) < 2.0**-17


def test_zero_diagonals_are_left_out_and_a_matrix_of_zeros_is_refused(asker, keys, multiplier):
    assert product(asker, keys, multiplier, "sparse", [0, 0, 0, 0, 1.0])[:3] == pytest.approx(
        [0, 0.5, 0], abs=SCORE_ERROR
    )
    with pytest.raises(CryptoError, match="zeros"):
        product(asker, keys, multiplier, "zero", [1.0, 1.0])


def test_noise_has_the_stated_deviation_and_is_fresh_every_time(asker, keys, multiplier):
    query = unit_rows(1, 384, seed=2)[0]
    first, second = (product(asker, keys, multiplier, "noisy", query)[:300] for _ in range(2))
    assert 0.8 * NOISE < np.std(first - ROWS @ query) < 1.2 * NOISE
    assert 0.8 * np.sqrt(2) * NOISE < np.std(first - second) < 1.2 * np.sqrt(2) * NOISE


def test_the_second_polynomial_of_a_noisy_answer_is_new_even_for_the_same_ciphertext(
    asker, keys, multiplier
):
    cipher = encrypted(asker, ROWS[0])
    bare = {multiplier.product(b"bare", *keys, *cipher)[0] for _ in range(2)}
    assert len(bare) == 1  # the unprotected arm: a function of documents and question alone
    assert len({multiplier.product(b"noisy", *keys, *cipher)[0] for _ in range(2)}) == 2


def test_everything_on_the_wire_has_the_size_of_the_table_whatever_it_holds(
    asker, keys, multiplier
):
    for vector in (np.zeros(384) + 1e-9, ROWS[0].astype(np.float64), np.ones(384)):
        cipher = encrypted(asker, vector)
        assert [len(part) for part in cipher] == 2 * [SEARCH.seeded_bytes]
        assert [len(part) for part in multiplier.product(b"noisy", *keys, *cipher)] == [
            SEARCH.answer_bytes
        ]
    assert [len(key) for key in keys] == [SEARCH.rotation_keys_bytes(2), SEARCH.public_key_bytes]


def test_bytes_of_wrong_length_or_head_never_reach_seal(asker, keys, multiplier):
    good, second = encrypted(asker, ROWS[0])
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
            multiplier.product(b"bare", *keys, bad, second)


def test_unknown_matrices_and_a_wrong_number_of_vectors_are_refused(asker, keys, multiplier):
    good, second = encrypted(asker, ROWS[0])
    for name, vectors in (
        (b"none", (good,)),
        (b"none", ()),
        (b"bare", ()),
        (b"bare", (good,)),
        (b"bare", (good, second, good)),
        (b"\xff", (good,)),
    ):
        with pytest.raises(ProtocolError, match="vectors"):
            multiplier.product(name, *keys, *vectors)


@pytest.mark.parametrize(
    ("columns", "blocks"),
    [(1, (32,)), (96, (64, 32)), (97, (128,)), (384, (256, 128)), (385, (512,)), (768, (512, 256)),
     (1024, (1024,)), (2048, (2048,))],
)  # fmt: skip
def test_a_vector_is_cut_into_the_blocks_of_its_matrix(columns, blocks):
    assert ckks.blocks_of(columns, SEARCH.slots) == blocks
    pieces = ckks.split(np.arange(1.0, columns + 1), SEARCH.slots)
    assert tuple(map(len, pieces)) == blocks
    assert sum(map(sum, pieces)) == columns * (columns + 1) / 2


def test_whatever_a_host_answers_is_opened_or_refused_and_never_parsed(asker):
    """The head of an answer is the asker's own, so there are no bytes that SEAL could stumble over;
    a SEAL object of the same host would be parsed.
    """
    random = np.random.default_rng(0)
    for words in (random.integers(0, 2**32, 8192), np.full(8192, 2**32 - 1), np.arange(8192) % 2):
        assert len(asker.decrypt(words.astype("<u4").tobytes())[0]) == 16 * SEARCH.slots
    for bad in (b"", bytes(SEARCH.answer_bytes - 1), bytes(SEARCH.answer_bytes + 4)):
        with pytest.raises(ProtocolError, match="expected"):
            asker.decrypt(bad)
    with pytest.raises(ProtocolError, match="hides nothing"):
        asker.decrypt(bytes(SEARCH.answer_bytes))


def test_an_answer_that_lost_its_low_bits_opens_to_the_same_numbers(asker, keys, multiplier):
    vector = np.concatenate([ROWS[7].astype(np.float64), np.zeros(128)])
    ring = asker._ring
    cipher = ckks.from_wire(
        ring.seal.Ciphertext(),
        ring.context,
        asker.encrypt(vector.tobytes())[0],
        SEARCH.seeded_bytes,
    )
    plain = ring.seal.Plaintext()
    asker._decryptor.decrypt(cipher, plain)
    whole = np.asarray(ring.coder.decode_complex(plain)).real
    short = ring.lengthened(ring.shortened(cipher), 2.0**SEARCH.query_scale_bits)
    asker._decryptor.decrypt(short, plain)
    # 2^22 dropped, at a scale of 2^32: 2^19 times what it is at the scale of an answer
    lost = np.asarray(ring.coder.decode_complex(plain)).real - whole
    assert 0 < np.std(lost) * 2.0 ** -(SEARCH.matrix_scale_bits + 1) < 2.0**-18


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
