"""Matrices in a GPU's order hold the file's numbers."""

import gguf
import pytest
import torch

from quietchoir.core.engine.backends.cuda.packed import pack, supports
from quietchoir.core.models.quant.tensor import QuantTensor

CPU = torch.device("cpu")


def quantised(kind: str, rows: int, columns: int, seed: int = 0) -> QuantTensor:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).numpy()
    raw = gguf.quants.quantize(matrix, getattr(gguf.GGMLQuantizationType, kind))
    return QuantTensor(kind, (rows, columns), torch.from_numpy(raw))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("columns", [128, 256, 576, 32])
def test_unpacking_gives_the_file_s_numbers_exactly(kind, columns):
    parts = [quantised(kind, 70, columns, seed) for seed in (1, 2)]
    packed = pack(parts, CPU)
    assert torch.equal(
        packed.dense(torch.float32), torch.cat([part.dequantize() for part in parts])
    )
    assert (packed.rows, packed.columns) == (140, columns)


def test_four_bit_kinds_may_stand_on_one_another():
    parts = [quantised("Q4_0", 16, 128), quantised("Q4_1", 16, 128)]
    assert torch.equal(
        pack(parts, CPU).dense(torch.float32), torch.cat([part.dequantize() for part in parts])
    )


def test_a_weight_takes_the_file_s_bits():
    packed = pack([quantised("Q4_0", 64, 1024)], CPU)
    assert packed.words.numel() * 4 + packed.scales.numel() * 2 == 64 * 1024 * 18 // 32
    assert packed.zeros is None


def test_four_and_eight_bits_are_not_packed_together():
    parts = [quantised("Q4_0", 16, 128), quantised("Q8_0", 16, 128)]
    assert not supports(parts)
    with pytest.raises(ValueError, match="cannot be packed together"):
        pack(parts, CPU)
