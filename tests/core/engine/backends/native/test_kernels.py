"""Products of every block type on every instruction set that runs here, beside the `gguf`
package's own numbers.
"""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietchoir.core.engine.backends.native import library, probe
from quietchoir.core.engine.backends.native.probe import PackedMatrix
from quietchoir.tests.fakes.blocks import (
    INTEGERS,
    PLAIN,
    QUANTISED,
    block_size,
    expected_product,
    meaning,
    random_rows,
    with_scales,
)

KINDS = (*PLAIN, *QUANTISED)
SETS = library.instruction_sets() if library.available() is None else ("none",)
if "avx512bf16" in SETS:  # whose products are avx512's
    SETS = tuple(name for name in SETS if name != "avx512")
SHAPES = ((1, 1), (16, 2), (37, 3))  # rows, blocks of 256 columns
# Bits of a weight where a product reads more than the file has: see kquants.h and iquants.h.
WIDER = {"TQ1_0": 2.0625, "IQ3_XXS": 4.1875, "IQ3_S": 4.1875}


def packed(
    kind: str, rows: int, columns: int, rng: np.random.Generator
) -> tuple[np.ndarray, PackedMatrix]:
    raw = random_rows(kind, rows, columns, rng)
    return raw, PackedMatrix(kind, (rows, columns), raw)


def close(found: np.ndarray, wanted: np.ndarray, bound: np.ndarray) -> bool:
    return bool((np.abs(found - wanted) <= bound + 1e-30).all())


@pytest.mark.parametrize(("kind", "instructions"), list(product(KINDS, SETS)))
def test_a_product_is_that_of_the_files_numbers_up_to_float_sums(
    kind: str, instructions: str
) -> None:
    rng = np.random.default_rng(1)
    for rows, blocks in SHAPES:
        raw, matrix = packed(kind, rows, 256 * blocks, rng)
        for count in (*range(1, 10), 16, 17):
            x = rng.standard_normal((count, 256 * blocks)).astype(np.float32)
            wanted, bound = expected_product(kind, raw, x)
            assert close(matrix.multiply(x, instructions), wanted, bound), (rows, blocks, count)


@pytest.mark.parametrize(("kind", "instructions"), list(product(KINDS, SETS)))
def test_columns_may_be_any_number_of_blocks(kind: str, instructions: str) -> None:
    rng, width = np.random.default_rng(2), block_size(kind)[0]
    for blocks in (1, 3, 7):
        columns = blocks * width * (5 if kind in PLAIN else 1)  # plain numbers: odd widths too
        raw, matrix = packed(kind, 18, columns, rng)
        x = rng.standard_normal((3, columns)).astype(np.float32)
        wanted, bound = expected_product(kind, raw, x)
        assert close(matrix.multiply(x, instructions), wanted, bound), columns


@pytest.mark.parametrize(("kind", "instructions"), list(product(QUANTISED, SETS)))
def test_rounded_activations_cost_at_most_half_a_step_a_weight(
    kind: str, instructions: str
) -> None:
    """The stated bound of the whole product: sum over groups of |weights| times the group's
    largest activation / 254.
    """
    rng = np.random.default_rng(3)
    raw, matrix = packed(kind, 48, 512, rng)
    x = (rng.standard_normal((5, 512)) * rng.lognormal(size=(5, 512))).astype(np.float32)
    top = np.abs(x).reshape(5, -1, 32).max(axis=2).repeat(32, axis=1).astype(np.float64)
    step = top / 254 @ np.abs(meaning(kind, raw)).T
    _, sums = expected_product(kind, raw, x)
    assert close(
        matrix.multiply(x, instructions), x.astype(np.float64) @ meaning(kind, raw).T, step + sums
    )


@pytest.mark.parametrize(("kind", "instructions"), list(product(QUANTISED, SETS)))
@pytest.mark.parametrize("byte", [0x00, 0x7F, 0x80, 0xFF])
def test_the_largest_integers_neither_saturate_nor_wrap(
    kind: str, instructions: str, byte: int
) -> None:
    """Scales are 1 and activations whole numbers, so that the exact product is a float and must
    come out to the bit.
    """
    width, size = block_size(kind)
    blocks = np.full((16 * 512 // width, size), 1, dtype=np.uint8)
    blocks[:, INTEGERS[kind]] = byte
    if kind == "Q6_K":
        blocks[:, 192:208] = np.array([1, 255], dtype=np.uint8).repeat(8)  # 1 and -1
    if kind == "IQ4_XS":
        blocks[:, 2:8] = (0xAA, 0x55, 0x11, 0x11, 0xFF, 0xFF)  # 33 - 32 and 31 - 32
    raw = with_scales(kind, blocks, np.ones((len(blocks), 2))).reshape(16, -1)
    matrix = PackedMatrix(kind, (16, 512), raw)
    signs = np.random.default_rng(4).choice([-127.0, 127.0], (8, 512))
    for x in (
        np.full((1, 512), 127.0),
        np.full((9, 512), -127.0),
        signs,
        np.abs(signs) * np.resize([1, 1, -1, -1], 512),
    ):
        assert np.array_equal(
            matrix.multiply(x.astype(np.float32), instructions), x @ meaning(kind, raw).T
        )


@pytest.mark.parametrize("kind", KINDS)
def test_instruction_sets_with_fused_sums_agree_to_the_bit(kind: str) -> None:
    fused = [name for name in SETS if name != "plain"]
    rng = np.random.default_rng(5)
    _, matrix = packed(kind, 33, 768, rng)
    x = rng.standard_normal((11, 768)).astype(np.float32)
    products = [matrix.multiply(x, name) for name in fused]
    assert all(np.array_equal(products[0], other) for other in products)


@pytest.mark.parametrize("instructions", SETS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_bytes_multiply_as_the_gguf_package_reads_them(
    instructions: str, data: st.DataObject
) -> None:
    kind = data.draw(st.sampled_from(QUANTISED))
    rows, count, seed = (
        data.draw(st.integers(1, 40)),
        data.draw(st.integers(1, 20)),
        data.draw(st.integers(0, 2**32)),
    )
    columns = block_size(kind)[0] * data.draw(st.integers(1, 3))
    rng = np.random.default_rng(seed)
    raw, matrix = packed(kind, rows, columns, rng)
    x = (rng.standard_normal((count, columns)) * 10.0 ** data.draw(st.integers(-12, 12))).astype(
        np.float32
    )
    x[:, rng.random(columns) < data.draw(st.floats(0, 1))] = 0
    wanted, bound = expected_product(kind, raw, x)
    assert close(matrix.multiply(x, instructions), wanted, bound)


@pytest.mark.parametrize(("kind", "instructions"), list(product(QUANTISED, SETS)))
def test_zeros_and_numbers_too_small_to_matter_give_zero(kind: str, instructions: str) -> None:
    _, matrix = packed(kind, 16, 256, np.random.default_rng(6))
    x = np.zeros((3, 256), dtype=np.float32)
    x[1], x[2, ::3] = 1e-42, -1e-38
    found = matrix.multiply(x, instructions)
    assert np.array_equal(found[0], np.zeros(16))
    assert (np.abs(found) < 1e-30).all()


@pytest.mark.parametrize("instructions", SETS)
def test_a_row_that_is_not_finite_spoils_only_itself(instructions: str) -> None:
    rng = np.random.default_rng(7)
    for kind in KINDS:
        _, matrix = packed(kind, 16, 256, rng)
        x = rng.standard_normal((4, 256)).astype(np.float32)
        before = matrix.multiply(x, instructions)
        x[2] = np.nan
        after = matrix.multiply(x, instructions)
        assert not np.isfinite(after[2]).any(), kind
        assert np.array_equal(after[[0, 1, 3]], before[[0, 1, 3]]), kind


@pytest.mark.parametrize("kind", KINDS)
def test_an_embeddings_rows_are_the_files_numbers_to_the_bit(kind: str) -> None:
    raw = random_rows(kind, 9, 512, np.random.default_rng(8))
    assert np.array_equal(probe.decoded(kind, 512, raw), meaning(kind, raw).astype(np.float32))


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_matrix_takes_the_files_own_bits_or_those_that_are_written_down(kind: str) -> None:
    rows, columns = 64, 2048
    raw = random_rows(kind, rows, columns, np.random.default_rng(9))
    file_bits = 8 * raw.nbytes / (rows * columns)
    found = 8 * PackedMatrix(kind, (rows, columns), raw).nbytes / (rows * columns)
    assert found == WIDER.get(kind, file_bits) >= file_bits


def test_what_is_no_matrix_is_refused() -> None:
    raw = random_rows("Q4_K", 16, 256, np.random.default_rng(10))
    for kind, shape, bytes_ in (
        ("Q4_K", (16, 512), raw),
        ("Q4_K", (15, 256), raw),
        ("Q4_K", (16, 255), raw),
        ("Q6_K", (16, 256), raw),
        ("IQ2_S", (16, 256), raw),
        ("Q4_K", (16, 256), raw[:, :-1]),
    ):
        with pytest.raises(ValueError, match=kind):
            PackedMatrix(kind, shape, bytes_)
    matrix = PackedMatrix("Q4_K", (16, 256), raw)
    for x, name in (
        (np.zeros((0, 256)), ""),
        (np.zeros((1, 255)), ""),
        (np.zeros(256), ""),
        (np.zeros((1, 256)), "avx1024"),
    ):
        with pytest.raises(ValueError, match=r"x must be|avx1024"):
            matrix.multiply(x.astype(np.float32), name)
