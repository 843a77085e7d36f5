"""Every linear back-end against the numbers that the blocks stand for."""

import gguf
import numpy as np
import pytest
import torch

from quietchoir.core.engine.backends.torch_cpu.kernels import copy_fits, linear_for
from quietchoir.core.engine.backends.torch_cpu.kernels.choice import COPY_BYTES, fast_dtype
from quietchoir.core.engine.backends.torch_cpu.kernels.dense import SLAB_ROWS, DenseLinear
from quietchoir.core.engine.backends.torch_cpu.kernels.int4pack import FEW_ROWS, Int4Linear
from quietchoir.core.models.quant.tensor import QuantTensor
from quietchoir.core.models.quant.types import QUANT_TYPES, WIDENED
from quietchoir.tests.fakes.blocks import with_scales

ROWS = (1, FEW_ROWS, FEW_ROWS + 1, 40)


def blocks_of(kind: str, rows: int = 80, columns: int = 96) -> QuantTensor:
    """A random matrix, quantised by the gguf package."""
    values = np.random.default_rng(3).standard_normal(
        (rows, columns), dtype=np.float32
    ) + np.float32(0.3)
    raw = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    return QuantTensor(
        kind, (rows, columns), torch.from_numpy(np.ascontiguousarray(raw).view(np.uint8))
    )


def error(linear: torch.nn.Module, blocks: QuantTensor, rows: int) -> float:
    """Root mean square of the deviation from float32, in parts of the result's own."""
    x = torch.randn(rows, blocks.shape[1], generator=torch.Generator().manual_seed(rows))
    exact, found = x @ blocks.dequantize().T, linear(x)
    assert found.dtype is torch.float32
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("rows", ROWS)
def test_the_exact_product_is_exact_for_every_block_type(kind, rows):
    assert error(linear_for(blocks_of(kind), compute=torch.float32), blocks_of(kind), rows) < 1e-6


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("rows", ROWS)
def test_the_fast_product_is_off_by_16_bit_rounding_and_no_more(kind, copy, rows):
    assert error(linear_for(blocks_of(kind), copy=copy), blocks_of(kind), rows) < 0.005


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_packed_integers_are_the_files_own(kind):
    """With scales that bfloat16 holds exactly, one-hot rows read the matrix back without any
    error.
    """
    blocks = blocks_of(kind)
    size = blocks.raw.shape[1] // (blocks.shape[1] // 32)
    raw = blocks.raw.clone().view(-1, size)
    raw[:, :2] = torch.tensor([0.25], dtype=torch.float16).view(torch.uint8)
    if kind == "Q4_1":
        raw[:, 2:4] = torch.tensor([-1.5], dtype=torch.float16).view(torch.uint8)
    plain = QuantTensor(kind, blocks.shape, raw.view(blocks.raw.shape))
    assert torch.equal(Int4Linear(plain)(torch.eye(blocks.shape[1])).T, plain.dequantize())


@pytest.mark.parametrize("kind", [kind for kind in QUANT_TYPES if kind not in WIDENED])
@pytest.mark.parametrize("rows", ROWS)
def test_every_block_type_that_a_file_may_hold_is_multiplied(kind, rows):
    """Also those that the gguf package cannot write, such as K-quants: random integers under
    small scales.
    """
    form, rng = QUANT_TYPES[kind], np.random.default_rng(5)
    if form.columns > 1:
        raw = rng.integers(0, 256, (80 * 256 // form.columns, form.size), dtype=np.uint8)
        raw = with_scales(kind, raw, np.full((len(raw), 2), 0.01)).reshape(80, -1)
        blocks = QuantTensor(kind, (80, 256), torch.from_numpy(raw))
    else:
        blocks = blocks_of(kind, columns=256)
    assert error(linear_for(blocks, compute=torch.float32), blocks, rows) < 1e-6
    assert error(linear_for(blocks), blocks, rows) < 0.005


def test_a_matrix_larger_than_a_slab_is_packed_like_a_small_one():
    blocks = blocks_of("Q8_0", rows=SLAB_ROWS + 64, columns=32)
    assert error(linear_for(blocks), blocks, 2) < 0.005
    assert torch.equal(DenseLinear(blocks, torch.float32).weight, blocks.dequantize())


def test_rows_that_the_packed_kernel_cannot_hold_fall_back_to_a_plain_product():
    blocks = blocks_of("Q4_0", rows=72)
    linear = linear_for(blocks)
    assert isinstance(linear, DenseLinear)
    assert error(linear, blocks, 3) < 0.005


def test_float_matrices_that_16_bits_would_round_stay_exact():
    assert error(linear_for(blocks_of("F32")), blocks_of("F32"), 3) < 1e-6
    assert error(linear_for(blocks_of("F16")), blocks_of("F16"), 3) < 1e-6


def test_copies_are_made_only_while_they_stay_within_their_limit():
    columns = 1024
    rows = COPY_BYTES // fast_dtype().itemsize // columns
    fits, vector = (
        QuantTensor("Q8_0", (n, columns), torch.empty(n, columns // 32 * 34, dtype=torch.uint8))
        for n in (rows, 1)
    )
    assert copy_fits({"matrix": fits, "norm": vector})
    assert not copy_fits({"matrix": fits, "further": fits})
