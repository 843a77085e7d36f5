"""Blocks become exactly the numbers that the format's reference makes of them."""

import gguf
import numpy as np
import pytest
import torch

from quietchoir.core.models.quant.tensor import QuantTensor
from quietchoir.core.models.quant.types import QUANT_TYPES

ROWS, COLUMNS = 24, 512


def random_bytes(kind: str, rows: int = ROWS, seed: int = 1) -> np.ndarray:
    """Any bits a file may hold, save scales and numbers that are not finite."""
    rng = np.random.default_rng(seed)
    form = QUANT_TYPES[kind]
    width = COLUMNS // form.columns * form.size
    if kind == "F32":
        return rng.standard_normal((rows, COLUMNS), dtype=np.float32).view(np.uint8)
    raw = rng.integers(0, 256, (rows, width), dtype=np.uint8)
    halves = raw.reshape(rows, -1, form.size)
    scales = {"Q4_1": 2, "Q4_0": 1, "Q8_0": 1}.get(kind, form.size // 2)
    for place in range(scales):
        finite = (
            rng.standard_normal(halves.shape[:2])
            .astype(np.float16)
            .view(np.uint8)
            .reshape(*halves.shape[:2], 2)
        )
        halves[..., 2 * place : 2 * place + 2] = finite
    if kind == "MXFP4":
        halves[..., 0] = rng.integers(64, 192, halves.shape[:2])  # its exponents
    return raw


@pytest.mark.parametrize("kind", QUANT_TYPES)
def test_every_block_type_is_decoded_as_the_reference_decodes_it(kind: str) -> None:
    raw = random_bytes(kind)
    reference = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    blocks = QuantTensor(kind, (ROWS, COLUMNS), torch.from_numpy(raw))
    assert torch.equal(
        blocks.dequantize(),
        torch.from_numpy(np.array(reference, dtype=np.float32)).view(ROWS, COLUMNS),
    )


@pytest.mark.parametrize("kind", QUANT_TYPES)
def test_any_bytes_at_all_are_decoded_as_the_reference_decodes_them(kind: str) -> None:
    """Scales that are infinite or no number, integers at both ends, and everything between."""
    width = COLUMNS // QUANT_TYPES[kind].columns * QUANT_TYPES[kind].size
    anything = np.random.default_rng(2).integers(0, 256, (400, width), dtype=np.uint8)
    extremes = [
        np.full((2, width), byte, dtype=np.uint8) for byte in (0x00, 0xFF, 0x7B, 0x80, 0x55, 0xAA)
    ]
    raw = np.concatenate([anything, *extremes])
    with np.errstate(all="ignore"):
        reference = np.array(
            gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind]), dtype=np.float32
        )
    found = QuantTensor(kind, (len(raw), COLUMNS), torch.from_numpy(raw)).dequantize().numpy()
    assert np.array_equal(found, reference.reshape(found.shape), equal_nan=True)


@pytest.mark.parametrize("kind", QUANT_TYPES)
def test_sizes_and_numbers_of_block_types_are_the_formats_own(kind: str) -> None:
    known, form = gguf.GGMLQuantizationType[kind], QUANT_TYPES[kind]
    assert (form.columns, form.size) == gguf.GGML_QUANT_SIZES[known]
    assert form.number == known.value


@pytest.mark.parametrize("kind", QUANT_TYPES)
def test_chosen_rows_equal_the_rows_of_the_whole(kind: str) -> None:
    blocks = QuantTensor(kind, (ROWS, COLUMNS), torch.from_numpy(random_bytes(kind)))
    index = torch.tensor([5, 0, 5, ROWS - 1])
    assert torch.equal(blocks.rows(index), blocks.dequantize()[index])
    assert torch.equal(blocks.take(index.numpy()).dequantize(), blocks.dequantize()[index])
    assert torch.equal(blocks.rows(index, torch.bfloat16), blocks.dequantize()[index].bfloat16())


@pytest.mark.parametrize("kind", QUANT_TYPES)
def test_changing_the_numbers_does_not_change_the_blocks(kind: str) -> None:
    blocks = QuantTensor(kind, (ROWS, COLUMNS), torch.from_numpy(random_bytes(kind)))
    before = blocks.raw.clone()
    blocks.dequantize().zero_()
    blocks.rows(torch.tensor([1])).zero_()
    assert torch.equal(blocks.raw, before)


def test_blocks_that_do_not_fit_their_shape_are_refused() -> None:
    raw = torch.from_numpy(random_bytes("Q4_1"))
    with pytest.raises(ValueError, match="must be uint8"):
        QuantTensor("Q4_1", (ROWS, COLUMNS + 32), raw)
    with pytest.raises(ValueError, match="must be uint8"):
        QuantTensor("Q4_0", (ROWS, COLUMNS), raw)
    with pytest.raises(ValueError, match="unknown; known"):
        QuantTensor("Q9_Z", (ROWS, COLUMNS), raw)
