"""The vocabulary head on the rows that need it: loss with its gradient, and the best token.

Knows normed rows and the head's weights. Knows nothing of layers or examples.
Always: logits exist for a few hundred rows at a time, and the head itself never gets a gradient.
"""

from typing import Any

import torch
from torch import Tensor

from ..models.quant.tensor import Blocks

# rows that are multiplied with the head at once: fewer leave the processor waiting for the head
MATRIX_ROWS = 512
CHUNK_ROWS = 64  # of these, rows whose softmax is taken at once: 64 x 49,152 stay in a large cache
TINY = 1e-38  # the smallest likelihood of a target that is told apart; its gradient stays exact
CHUNK_TOKENS = 8192  # vocabulary rows that are decoded at once when scoring


class AnswerLoss(torch.autograd.Function):
    """Summed cross-entropy over the full vocabulary. The gradient is made on the way forward,
    while logits are at hand.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """rows [M, D], weight [V, D], targets [M] -> float32 scalar, the sum over rows."""
        gradient = torch.empty_like(rows)
        total = torch.zeros((), dtype=torch.float32)
        for start in range(0, len(rows), MATRIX_ROWS):
            part = slice(start, start + MATRIX_ROWS)
            slope = rows[part] @ weight.T  # [C, V], logits that become softmax - onehot in place
            for piece, wanted in zip(
                torch.split(slope, CHUNK_ROWS), torch.split(targets[part], CHUNK_ROWS), strict=True
            ):
                likely = torch.softmax(piece, dim=1, dtype=torch.float32)
                hit = likely.gather(1, wanted[:, None])
                total -= hit.clamp_min(TINY).log().sum()
                piece.copy_(likely.scatter_(1, wanted[:, None], hit - 1))
            torch.mm(slope, weight, out=gradient[part])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        """Scale what forward made."""
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0].to(gradient.dtype), None, None


def answer_loss(rows: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy, float32 scalar: rows [M, D] after the last norm, weight [V, D]
    frozen, targets [M].
    """
    loss: Tensor = AnswerLoss.apply(rows, weight, targets)  # type: ignore[no-untyped-call]
    return loss


@torch.no_grad()
def best_tokens(rows: Tensor, head: Blocks) -> Tensor:
    """The most likely token of each row, int64 [M]; the first of equals.

    In float32 whatever the rows are: bfloat16 logits are so coarse (steps of 0.125 at 20) that they
    tie.
    """
    rows = rows.float()
    best = torch.full((len(rows),), -torch.inf)
    index = torch.zeros(len(rows), dtype=torch.int64)
    for start in range(0, head.shape[0], CHUNK_TOKENS):
        tokens = torch.arange(start, min(start + CHUNK_TOKENS, head.shape[0]))
        value, where = (rows @ head.rows(tokens).T).max(dim=1)
        better = value > best
        best, index = torch.where(better, value, best), torch.where(better, where + start, index)
    return index
