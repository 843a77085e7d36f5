"""Reading a column of a table: exact, hidden, and refused where a mask would be used twice."""

import numpy as np
import pytest

from quietchoir.core.errors import CryptoError, DataError, ProtocolError
from quietchoir.crypto.pir import kernel, lwe
from quietchoir.crypto.pir.table import (
    HEAD_BYTES,
    MAX_CHUNK_BYTES,
    PASSAGE_BYTES,
    TableLayout,
    chunk_bytes,
    pack,
    unpack,
)

RANDOM = np.random.default_rng(3)
TABLE = RANDOM.integers(-lwe.CENTRE, lwe.CENTRE, (96, 3000)).astype(np.int8)
MODULUS = 1 << lwe.MODULUS_BITS


@pytest.fixture(scope="module")
def hint():
    return lwe.hint(TABLE)


def plain(column):
    return (TABLE[:, column].astype(np.int64) + lwe.CENTRE).astype(np.uint8)


def noise(answer, masked, column):
    """What stands between an answer and its column, of 2^25 that it may be, centred."""
    exact = TABLE[:, column].astype(np.int64) << lwe.SHIFT
    off = (answer.astype(np.int64) - masked.astype(np.int64) - exact) % MODULUS
    return np.where(off >= MODULUS // 2, off - MODULUS, off)


def test_products_by_float64_are_those_of_python_s_integers(hint):
    matrix = lwe.public_matrix(0, TABLE.shape[1])
    exact = [
        sum(int(d) * int(a) for d, a in zip(TABLE[5], matrix[:, j], strict=True)) for j in (0, 9)
    ]
    assert [value % MODULUS for value in exact] == [int(hint[5, j]) % MODULUS for j in (0, 9)]
    query = np.array(RANDOM.integers(0, MODULUS, TABLE.shape[1]), np.uint32)
    words = [int(word) for word in query]
    expected = [sum(int(d) * q for d, q in zip(row, words, strict=True)) for row in TABLE[:4]]
    assert lwe.scan(TABLE, query)[:4].tolist() == [value % MODULUS for value in expected]


def test_the_largest_sum_that_float64_must_hold_is_exact():
    """The worst case of `MAX_COLUMNS`: every product is of the largest size, and one is odd."""
    table = np.full((1, lwe.MAX_COLUMNS), -lwe.CENTRE, np.int8)
    query = np.full(lwe.MAX_COLUMNS, 1 << 31, np.uint32)
    query[0] += 1
    assert lwe.scan(table, query)[0] == (-lwe.CENTRE * ((lwe.MAX_COLUMNS << 31) + 1)) % MODULUS
    with pytest.raises(CryptoError, match="at most"):
        lwe.mask(lwe.MAX_COLUMNS + 1)


def test_every_column_is_read_right_and_its_noise_is_the_one_that_is_stated(hint):
    found = []
    for column in (0, 1234, 2999):
        mask = lwe.mask(TABLE.shape[1])
        masked = hint.astype(np.float64) @ mask.secret
        answer = lwe.scan(TABLE, mask.query(column))
        assert np.array_equal(lwe.symbols(answer, masked), plain(column))
        found.append(noise(answer, masked, column))
    stated = lwe.DEVIATION * np.sqrt((TABLE.astype(float) ** 2).sum(1).mean())
    assert 0.8 * stated < np.std(found) < 1.2 * stated
    # the failure that `symbols` states: at 65535 columns, beside the noise of CKKS
    total = np.hypot(stated * np.sqrt(lwe.MAX_COLUMNS / TABLE.shape[1]), 2.0**21.6)
    assert (1 << lwe.SHIFT) / 2 / total > 9.8


def test_noise_beyond_half_a_step_would_change_a_symbol_and_below_it_none(hint):
    mask = lwe.mask(TABLE.shape[1])
    answer, masked = lwe.scan(TABLE, mask.query(7)), hint.astype(np.float64) @ mask.secret
    assert np.array_equal(lwe.symbols(answer, masked + 0.9 * 2**25), plain(7))
    assert not np.array_equal(lwe.symbols(answer, masked + 1.1 * 2**25), plain(7))


def test_a_query_says_nothing_by_its_words_and_one_mask_for_two_would():
    mask = lwe.mask(50)
    first, second = mask.query(3), mask.query(40)
    # the unprotected arm: two queries under one mask
    assert set(np.flatnonzero(first != second)) == {3, 40}
    other = lwe.mask(50)
    assert np.count_nonzero(first != other.query(3)) >= 49
    assert sorted(set(mask.secret.tolist())) == [-1, 0, 1]
    # neither half of a word's range is more likely where the column is
    high = np.mean([lwe.mask(2).query(1)[1] >= MODULUS // 2 for _ in range(60)])
    assert 0.2 < high < 0.8


@pytest.mark.parametrize(("passages", "size"), [(1, 64), (70, 320), (1000, 640), (9000, 1088)])
def test_passages_stand_where_the_layout_says_in_equal_chunks(passages, size):
    layout = TableLayout(passages, size)
    assert (layout.columns - 1) * layout.per_column < passages <= layout.columns * layout.per_column
    # nobody gets more than a 64th of a library by one choice
    assert layout.per_column <= max(1, passages // 64)
    if passages <= 1000:
        texts = [f"{n}: {'x' * (n % 90)}".encode() for n in range(passages)]
        table = layout.build([pack(text) for text in texts])
        assert table.shape == layout.shape
        for index in {0, passages // 2, passages - 1}:
            column = table[:, layout.column_of(index)].astype(np.int64) + lwe.CENTRE
            assert layout.read(column.astype(np.uint8), index) == texts[index]
    for index in (-1, passages):
        with pytest.raises(CryptoError, match="does not exist"):
            layout.column_of(index)


def test_a_chunk_is_opened_whole_or_refused_and_never_grows_beyond_a_passage():
    random = RANDOM.bytes(PASSAGE_BYTES)
    for text in (b"x", "ä\nb".encode(), bytes(PASSAGE_BYTES), random):
        chunk = pack(text)
        assert len(chunk) <= MAX_CHUNK_BYTES
        assert unpack(chunk.ljust(MAX_CHUNK_BYTES, b"\0")) == text
    assert chunk_bytes([pack(random)]) <= MAX_CHUNK_BYTES
    with pytest.raises(DataError, match="split"):
        pack(bytes(PASSAGE_BYTES + 1))
    import zlib

    bomb = zlib.compress(bytes(1 << 20), 9)
    head = len(bomb).to_bytes(2, "big") + zlib.crc32(bytes(1 << 20)).to_bytes(4, "big")
    good = pack(b"a passage")
    for chunk in (head + bomb, good[:-6], b"", bytes(100), good[:HEAD_BYTES] + b"\1" + good[7:]):
        with pytest.raises(ProtocolError, match="not a passage"):
            unpack(chunk)
    with pytest.raises(CryptoError, match="expected"):
        TableLayout(0, 64)


def test_the_compiled_products_are_those_of_float64_on_every_path(monkeypatch):
    """Odd sizes, and the largest numbers: sums wrap."""
    if not kernel.paths():
        pytest.skip("the library is not compiled here")
    for rows, columns in ((1, 1), (3, 63), (5, 64), (9, 65), (13, 5000), (7, lwe.MAX_COLUMNS)):
        table = RANDOM.integers(-lwe.CENTRE, lwe.CENTRE, (rows, columns)).astype(np.int8)
        table[0] = -128
        query = RANDOM.integers(0, MODULUS, columns, np.uint32)
        query[: columns // 2] = MODULUS - 1
        exact = (table.astype(np.int64) @ query.astype(np.int64)).astype(np.uint32)
        matrix = RANDOM.integers(0, MODULUS, (rows, columns), np.uint32)
        secret = lwe.ternary(columns)
        for path in range(kernel.paths()):
            assert np.array_equal(kernel.product(table, query, path), exact)
            combined = kernel.combine(matrix, secret, path)
            wide = matrix.astype(np.int64) @ secret.astype(np.int64)
            assert np.array_equal(combined, wide.astype(np.uint32))
    best = lwe.scan(TABLE, query[:3000])
    monkeypatch.setattr(kernel, "paths", lambda: 0)
    assert np.array_equal(lwe.scan(TABLE, query[:3000]), best)
    assert np.array_equal(lwe.masked(matrix, secret), combined)


def test_a_library_of_another_source_is_not_loaded(tmp_path, monkeypatch):
    changed = tmp_path / "scan.cpp"
    changed.write_bytes(kernel.SOURCE.read_bytes() + b"\n")
    kernel._library.cache_clear()
    try:
        monkeypatch.setattr(kernel, "SOURCE", changed)
        assert kernel.paths() == 0
    finally:
        kernel._library.cache_clear()
