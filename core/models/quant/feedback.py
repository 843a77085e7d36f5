"""Rounding column after column, each one's error made up for by those that are still to come.

Knows a matrix, and which of its inputs go together. Knows nothing of layers, texts or files.
Always: the bytes are those of `grid.py`; where no inputs go together it is the nearest point of the
best grid, and nothing else.

Source: Frantar et al. 2022 (GPTQ), algorithm 1, with the grid of a block found when its first
column is reached, for the weights as they are then.
"""

import torch
from torch import Tensor

from .grid import GRIDS, nearest

DAMPING = 0.01  # of the mean of the diagonal, added to it; GPTQ's own
MOST_DAMPING = 1e3  # of the same: a matrix that is not sound with so much is none


def compensation(gram: Tensor) -> Tensor:
    """The upper triangular factor U of the inverse, U^T U = (gram + damping)^-1, float32 [n, n].

    Args:
        gram: the sum of x x^T over inputs x, float32 [n, n].

    Raises:
        ValueError: numbers that are not finite.
    """
    if not bool(torch.isfinite(gram).all()):
        raise ValueError("its inputs on the calibration text are not finite")
    gram = gram.double()
    size = float(gram.diagonal().mean()) or 1.0
    damping = DAMPING
    while True:
        sound = gram + damping * size * torch.eye(len(gram), dtype=torch.float64)
        factor, wrong = torch.linalg.cholesky_ex(sound)
        if not wrong:
            inverse = torch.cholesky_inverse(factor)
            upper, wrong = torch.linalg.cholesky_ex(inverse, upper=True)
        if not wrong:
            found: Tensor = upper.float()
            return found
        damping *= 10
        if damping > MOST_DAMPING:
            raise ValueError("its inputs on the calibration text are no sound sample")


def encode_with_feedback(rows: Tensor, upper: Tensor, name: str) -> Tensor:
    """Rows of a matrix as blocks of the type `name`.

    Args:
        rows: float32 [n, columns], not changed. upper: from `compensation`, [columns, columns].

    Returns:
        uint8 [n, bytes of a row].
    """
    kind = GRIDS[name]
    left = rows.T.contiguous()  # [columns, n]: a column's weights lie side by side
    # What an error of a column costs once the later ones have made up for it, equation 2.
    importance = upper.diagonal().reciprocal().square()
    packed = []
    for start in range(0, len(left), kind.columns):
        own = slice(start, start + kind.columns)
        block = left[own]
        grid = kind.fitted(block.T.contiguous(), importance[own].expand(len(rows), -1))
        steps, offsets = grid.step.T.contiguous(), grid.offset.T.contiguous()
        factors = upper[own, own]
        integers, errors = torch.empty_like(block), torch.empty_like(block)
        for column in range(kind.columns):
            step, offset = steps[column // kind.group], offsets[column // kind.group]
            integers[column] = nearest(block[column], step, offset, kind)
            missed = block[column] - (step * integers[column] - offset)
            errors[column] = missed / factors[column, column]
            rest = factors[column, column + 1 :]
            block[column + 1 :].addr_(rest, errors[column], alpha=-1)
        left[own.stop :].addmm_(upper[own, own.stop :].T, errors, alpha=-1)
        packed.append(kind.packed(grid, integers.T.contiguous()))
    return torch.cat(packed, dim=1)
