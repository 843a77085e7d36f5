"""Both halves of a private search, and what each of them can and cannot find out."""

import gc

import numpy as np
import pytest

from quietchoir.core.errors import CryptoError, DataError, ProtocolError, WorkerError
from quietchoir.crypto.he.parameters import SEARCH
from quietchoir.crypto.pir import search
from quietchoir.crypto.pir.search import (
    MAX_PASSAGES,
    PASSAGE_BYTES,
    SCORE_ERROR,
    SCORE_NOISE,
    PirClient,
    PirServer,
    Shape,
)
from quietchoir.tests.fakes.search import unit_rows

ROWS = unit_rows(200, 384)
PASSAGES = [f"passage {index}: {'ä' * (index % 50)}".encode() for index in range(200)]


@pytest.fixture(scope="module")
def keeper():
    one = PirServer(ROWS, PASSAGES)
    yield one
    one.close()


@pytest.fixture(scope="module")
def questioner(keeper):
    one = PirClient(keeper.shape)
    yield one
    one.close()


@pytest.fixture(scope="module")
def keys(questioner):
    return questioner.keys()


def test_scores_are_the_cosines_within_error_and_noise_and_the_best_is_the_best(
    keeper, questioner, keys
):
    keeper.check_keys(keys)
    for index in (0, 77, 199):
        # any length: it is brought to 1
        question = 3 * (ROWS[index] + 0.01 * unit_rows(1, 384, seed=index)[0])
        scores = questioner.scores(keeper.score(keys, questioner.question(question)))
        assert (
            np.abs(scores - ROWS @ (question / np.linalg.norm(question))).max()
            < SCORE_ERROR + 6 * SCORE_NOISE
        )
        assert scores.argmax() == index


def test_every_passage_can_be_read_and_only_the_chosen_one_comes(keeper, questioner, keys):
    for index in (0, 1, 123, 199):
        assert questioner.passage(keeper.read(keys, questioner.choice(index))) == PASSAGES[index]


def test_a_library_beyond_one_ciphertext_is_searched_and_read_too():
    rows = unit_rows(2050, 8)
    texts = [f"{index}".encode() for index in range(2050)]
    server, questioner = PirServer(rows, texts), PirClient(Shape(dimension=8, passages=2050))
    try:
        keys = questioner.keys()
        scores = questioner.scores(server.score(keys, questioner.question(rows[2049])))
        assert np.abs(scores - rows @ rows[2049]).max() < SCORE_ERROR + 6 * SCORE_NOISE
        assert questioner.passage(server.read(keys, questioner.choice(2049))) == b"2049"
        assert questioner.passage(server.read(keys, questioner.choice(7))) == b"7"
    finally:
        server.close()
        questioner.close()


def test_two_questions_and_two_choices_look_alike(questioner):
    questions = [questioner.question(ROWS[0]), questioner.question(-ROWS[1])]
    choices = [questioner.choice(0), questioner.choice(199)]
    assert len({tuple(map(len, parts)) for parts in [*questions, *choices]}) == 1
    for first, second in (questions, choices):
        # Beyond SEAL's head the bytes are compressed pseudo-random numbers: as different between
        # two questions as between two encryptions of the same one.
        other, again = (
            np.frombuffer(parts[0][200:30000], np.uint8)
            for parts in (second, questioner.question(ROWS[0]))
        )
        mine = np.frombuffer(first[0][200:30000], np.uint8)
        assert abs((mine == other).mean() - (mine == again).mean()) < 0.01


def test_what_the_keeper_receives_holds_no_secret_key_and_does_not_open_an_answer(
    keeper, questioner, keys
):
    import tenseal.sealapi as seal

    received = [*keys, *questioner.question(ROWS[3]), *questioner.choice(3)]
    ring = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    ring.set_poly_modulus_degree(SEARCH.degree)
    ring.set_coeff_modulus(seal.CoeffModulus.Create(SEARCH.degree, list(SEARCH.prime_bits)))
    context = seal.SEALContext(ring, True, seal.SEC_LEVEL_TYPE.TC128)
    from quietchoir.crypto.he.ckks import from_wire

    for blob in received:
        with pytest.raises(ProtocolError):
            from_wire(seal.SecretKey(), context, blob, len(blob))
    stranger = PirClient(keeper.shape)
    try:  # every key but the asker's own opens the answer to numbers that are no cosines
        with pytest.raises(ProtocolError, match="no cosines"):
            stranger.scores(keeper.score(keys, received[2:3]))
    finally:
        stranger.close()
    gc.collect()


def test_flipped_bits_never_end_the_keeper_and_the_next_question_is_answered(
    keeper, questioner, keys
):
    """Hostile bytes go straight to the worker here: the signature that stops them in life is
    left out.
    """
    good = questioner.question(ROWS[5])[0]
    places = np.random.default_rng(0).integers(0, 31_000 * 8, 30)
    refused = 0
    for place in [*range(0, 24 * 8, 7), *places]:
        changed = bytearray(good)
        changed[place // 8] ^= 1 << int(place % 8)
        try:
            keeper.score(keys, [bytes(changed)])
        except (ProtocolError, WorkerError):
            refused += 1
    assert refused > 0
    assert questioner.scores(keeper.score(keys, [good])).argmax() == 5


def test_wrong_counts_and_sizes_are_refused(keeper, questioner, keys):
    good = questioner.question(ROWS[0])
    for parts in ([], good * 2, [good[0][:-1]], [b""]):
        with pytest.raises(ProtocolError, match="expected 1 of"):
            keeper.score(keys, parts)
        with pytest.raises(ProtocolError, match="expected 1 of"):
            questioner.scores(parts)
    with pytest.raises(ProtocolError, match="keys of"):
        keeper.check_keys(keys[:1])
    with pytest.raises(CryptoError, match="of shape"):
        questioner.question(ROWS[0][:5])
    for bad in (np.zeros(384, np.float32), np.full(384, np.nan, np.float32)):
        with pytest.raises(CryptoError, match="finite"):
            questioner.question(bad)
    for index in (-1, 200):
        with pytest.raises(CryptoError, match="does not exist"):
            questioner.choice(index)


def test_a_library_that_does_not_fit_is_refused():
    with pytest.raises(ProtocolError, match="split"):
        Shape(dimension=384, passages=MAX_PASSAGES + 1)
    with pytest.raises(DataError, match="split"):
        search.passage_column(b"x" * (PASSAGE_BYTES + 1))
    with pytest.raises(CryptoError, match="embed them again"):
        PirServer(ROWS, PASSAGES[:-1])


def test_a_passage_that_was_not_decrypted_right_is_refused_by_its_checksum():
    column = (search.passage_column(b"a passage").astype(np.float64) + 0.5) / 256 - 0.5
    assert search.passage_text(column) == b"a passage"
    column[8] += 0.25
    with pytest.raises(ProtocolError, match="not a passage"):
        search.passage_text(column)


def recovered(keeper, rows, questions):
    """Least-squares estimate of the keeper's embeddings from the scores of `questions`; relative
    error.
    """
    asker = PirClient(keeper.shape)
    try:
        keys = asker.keys()
        answers = np.stack(
            [asker.scores(keeper.score(keys, asker.question(question))) for question in questions],
            axis=1,
        )
    finally:
        asker.close()
        keeper.close()
    estimate = np.linalg.lstsq(questions, answers.T, rcond=None)[0].T
    return np.linalg.norm(estimate - rows) / np.linalg.norm(rows)


def test_as_many_bare_answers_as_dimensions_give_the_embeddings_away_and_the_budget_prevents_it():
    dimension = 16
    rows = unit_rows(40, dimension, seed=9)
    texts = [b"x"] * 40
    questions = unit_rows(dimension, dimension, seed=10)
    # the unprotected arm: all of it
    assert recovered(PirServer(rows, texts, noisy=False), rows, questions) < 0.02
    allowed = Shape(dimension=dimension, passages=40).largest_budget
    assert allowed < dimension / 2
    # Of isotropic embeddings a budget below half the dimension leaves more than half of the energy
    # unseen.
    assert recovered(PirServer(rows, texts), rows, questions[:allowed]) > 0.6
