"""Rounding column after column, each one's error made up for by those that are still to come.

Knows a matrix, and which of its inputs go together. Knows nothing of layers, texts or files.
Always: the bytes are those of `grid.py`; where no inputs go together it is the nearest point of the
best grid, and nothing else.

Source: Frantar et al. 2022 (GPTQ), algorithm 1, with the columns of the largest inputs first (its
authors' `act_order`); a block's grid is found before, for the weights as they are. Its damping, a
hundredth of the mean, is not taken: what a text of n tokens says of c inputs that go together is
off by about c / n, and of wide matrices feedback then made up for chance. So each input's own
square is raised by a share of that.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .grid import GRIDS, nearest

LEAST_DAMPING = 0.01  # of each input's own square
NOISE = 2.0  # of c / n; 1 to 2 were best on another text (simulations/LOG.md)
FLOOR = 1e-6  # of the mean of all: for an input that was never there
TRIES = 6  # tenfold each: a matrix that is not sound then is none
TOGETHER = 128  # columns whose errors reach the rest in one product


@dataclass(frozen=True, slots=True)
class Compensation:
    """How errors of some inputs' weights are made up for by those of others."""

    order: Tensor  # int64 [n]: columns as they are rounded, those of the largest inputs first
    upper: Tensor  # float32 [n, n], in that order: U^T U is the inverse of the damped Gram matrix

    @property
    def importance(self) -> Tensor:
        """What a squared error of each column costs once later ones have made up for it, float32
        [n] in the matrix's own order; equation 2.
        """
        found = torch.empty(len(self.order))
        found[self.order] = self.upper.diagonal().reciprocal().square()
        return found


def compensation(gram: Tensor, rows: int) -> Compensation:
    """Of a matrix whose inputs were measured.

    Args:
        gram: the sum of x x^T over inputs x, float32 [n, n]. rows: how many they were.

    Raises:
        ValueError: numbers that are not finite.
    """
    if not bool(torch.isfinite(gram).all()):
        raise ValueError("its inputs on the calibration text are not finite")
    squares = gram.diagonal()
    order = squares.argsort(descending=True, stable=True)
    gram, squares = gram[order][:, order].double(), squares[order].double()
    floor = FLOOR * (float(squares.mean()) or 1.0)
    damping = max(LEAST_DAMPING, NOISE * len(gram) / max(rows, 1))
    for _ in range(TRIES):
        factor, wrong = torch.linalg.cholesky_ex(gram + torch.diag(damping * squares + floor))
        if not wrong:
            inverse = torch.cholesky_inverse(factor)
            upper, wrong = torch.linalg.cholesky_ex(inverse, upper=True)
        if not wrong:
            return Compensation(order, upper.float())
        damping *= 10
    raise ValueError("its inputs on the calibration text are no sound sample")


def encode_with_feedback(rows: Tensor, made_up: Compensation, name: str) -> Tensor:
    """Rows of a matrix as blocks of the type `name`.

    Args:
        rows: float32 [n, columns], not changed. made_up: of its columns.

    Returns:
        uint8 [n, bytes of a row].
    """
    kind = GRIDS[name]
    blocks = [slice(at, at + kind.columns) for at in range(0, rows.shape[1], kind.columns)]
    importance = made_up.importance
    grids = [
        kind.fitted(rows[:, own].contiguous(), importance[own].expand(len(rows), -1))
        for own in blocks
    ]
    steps = torch.cat([grid.step for grid in grids], dim=1).T.contiguous()  # [groups, n]
    offsets = torch.cat([grid.offset for grid in grids], dim=1).T.contiguous()
    left = rows.T[made_up.order]  # a column's weights lie side by side
    integers = torch.empty_like(left)  # [columns, n], in the matrix's own order
    for start in range(0, len(left), TOGETHER):
        own = slice(start, start + TOGETHER)
        block, factors = left[own], made_up.upper[own, own]
        errors = torch.empty_like(block)
        for place, column in enumerate(made_up.order[own].tolist()):
            step, offset = steps[column // kind.group], offsets[column // kind.group]
            integers[column] = nearest(block[place], step, offset, kind)
            missed = block[place] - (step * integers[column] - offset)
            errors[place] = missed / factors[place, place]
            block[place + 1 :].addr_(factors[place, place + 1 :], errors[place], alpha=-1)
        left[own.stop :].addmm_(made_up.upper[own, own.stop :].T, errors, alpha=-1)
    packed = [
        kind.packed(grid, integers[own].T.contiguous())
        for grid, own in zip(grids, blocks, strict=True)
    ]
    return torch.cat(packed, dim=1)
