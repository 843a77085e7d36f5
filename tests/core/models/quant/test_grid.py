"""Grids of blocks: what is packed is what was meant, the search finds good ones, and feedback makes
up for errors where inputs go together.
"""

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from quietchoir.core.models.quant.dequantize import dequantize_rows
from quietchoir.core.models.quant.feedback import compensation, encode_with_feedback
from quietchoir.core.models.quant.grid import GRIDS, encode_weighted
from quietchoir.core.models.quant.types import QUANT_TYPES


def drawn(rows: int = 24, columns: int = 512, seed: int = 3) -> Tensor:
    """Numbers as weights have them, a group of zeros, one of positive ones and a lone giant."""
    draw = torch.Generator().manual_seed(seed)
    numbers = torch.randn(rows, columns, generator=draw) * 0.05
    numbers[0, :32] = 0
    numbers[1, :256] = numbers[1, :256].abs() + 0.1
    numbers[2, 40] = 30.0
    return numbers


@pytest.mark.parametrize("name", GRIDS)
def test_what_is_packed_reads_back_as_the_points_that_were_meant(name: str) -> None:
    rows = drawn()
    raw, meant = encode_weighted(rows, torch.ones(1), name)
    assert raw.shape == (
        len(rows),
        rows.shape[1] // QUANT_TYPES[name].columns * QUANT_TYPES[name].size,
    )
    read = dequantize_rows(name, raw)
    assert (read - meant).abs().max() < 1e-5  # K-quants: product and difference in another order
    theirs = gguf.quants.dequantize(raw.numpy(), gguf.GGMLQuantizationType[name])
    assert np.array_equal(theirs, read.numpy())
    grid = GRIDS[name].read(raw.view(-1, QUANT_TYPES[name].size))
    again = GRIDS[name].packed(grid, grid.integers(read.view(-1, GRIDS[name].columns), GRIDS[name]))
    assert torch.equal(again.view(raw.shape), raw)  # already on its grid: nothing moves
    # the giant's neighbours may vanish beside it; everything else stays near
    near = torch.ones(len(rows), dtype=torch.bool)
    near[2] = False
    bound = {"Q4": 0.09, "Q5": 0.045, "Q6": 0.025, "Q8": 0.006}[name[:2]]
    assert (read - rows)[near].norm() / rows[near].norm() < bound


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_the_search_loses_less_than_plain_rounding_and_least_where_it_matters(name: str) -> None:
    rows = drawn(64)[3:]
    kind = gguf.GGMLQuantizationType[name]
    plain = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(rows.numpy(), kind), kind))
    alike = encode_weighted(rows, torch.ones(1), name)[1]
    assert (alike - rows).square().sum() < 0.97 * (plain - rows).square().sum()
    importance = torch.rand(rows.shape[1], generator=torch.Generator().manual_seed(1)) ** 4
    weighted = encode_weighted(rows, importance, name)[1]

    def lost(found: Tensor) -> Tensor:
        return ((found - rows).square() * importance).sum()

    assert lost(weighted) < 0.95 * lost(alike)


def inputs(columns: int, count: int = 2000) -> Tensor:
    """Rows whose numbers go together, as activations do."""
    draw = torch.Generator().manual_seed(5)
    mixed = torch.randn(columns, columns, generator=draw) * torch.linspace(2, 0.02, columns)
    return torch.randn(count, columns, generator=draw) @ mixed.T


@pytest.mark.parametrize("name", ["Q4_0", "Q5_1", "Q4_K", "Q6_K"])
def test_feedback_changes_outputs_less_than_the_best_rounding_of_each_weight(name: str) -> None:
    rows, x = drawn(16, 256)[3:], inputs(256)
    gram = x.T @ x
    raw = encode_with_feedback(rows, compensation(gram, len(x)), name)

    def output_error(found: Tensor) -> float:
        return float((x @ (found - rows).T).square().sum())

    best = encode_weighted(rows, gram.diagonal() / len(x), name)[1]
    assert output_error(dequantize_rows(name, raw)) < 0.6 * output_error(best)


def test_without_inputs_that_go_together_feedback_is_the_nearest_point_of_the_best_grid() -> None:
    rows, sizes = drawn(8, 256), torch.linspace(0.5, 2, 256)
    raw = encode_with_feedback(rows, compensation(torch.diag(sizes), 1000), "Q4_0")
    assert torch.equal(raw, encode_weighted(rows, sizes, "Q4_0")[0])


def test_what_goes_together_by_chance_in_a_short_text_is_hardly_made_up_for() -> None:
    rows, seen = (
        drawn(16, 256)[3:],
        torch.randn(256, 256, generator=torch.Generator().manual_seed(6)),
    )
    raw = encode_with_feedback(rows, compensation(seen.T @ seen, len(seen)), "Q4_0")
    best = encode_weighted(rows, torch.ones(256), "Q4_0")[1]

    def error(found: Tensor) -> float:
        return float((found - rows).square().sum())  # of inputs that do not go together

    assert error(dequantize_rows("Q4_0", raw)) < 1.1 * error(best)


def test_inputs_that_are_no_sample_are_refused_and_dead_ones_are_not() -> None:
    with pytest.raises(ValueError, match="not finite"):
        compensation(torch.full((4, 4), torch.nan), 8)
    x = inputs(64, 10)  # fewer rows than columns
    x[:, 7] = 0
    assert bool(torch.isfinite(compensation(x.T @ x, 10).upper).all())
    assert bool(torch.isfinite(compensation(torch.zeros(8, 8), 10).upper).all())
