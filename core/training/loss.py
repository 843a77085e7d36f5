"""The vocabulary head on the rows that need it: loss with its gradient, and the best token.

Knows normed rows and the head's weights. Knows nothing of layers or examples.
Always: logits exist for a few hundred rows at a time, and the head itself never gets a gradient.

A training that repeats asks the whole vocabulary only now and then: after a few steps nearly all
likelihood is on a few thousand tokens, and the others' products are work for nothing
(`VocabularyHead`).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..models.quant.tensor import QuantTensor
from .packing import few_rows, few_sizes

# rows that are multiplied with the head at once: fewer leave the processor waiting for the head
MATRIX_ROWS = 512
CHUNK_ROWS = 64  # of these, rows whose softmax is taken at once, while they are in a cache
# A target that lacks less than this to certainty teaches nothing: its gradient is left out, and
# with it the work of going back through the head and, where an example has no other, the layers.
SURE = 2.0**-7
DENSE = 0.8  # share of rows with a gradient above which they are not picked out
# What may be missing of the likelihood of a loss's average row when only some tokens are asked, and
# how many losses are taken before the whole vocabulary is asked again which ones they should be.
OUTSIDE = 2.0**-10
NARROW_LOSSES = 8
TINY = 1e-38  # the smallest likelihood of a target that is told apart; its gradient stays exact
CHUNK_TOKENS = 8192  # vocabulary rows that are decoded at once when scoring
ROUNDING = 2.0**-8  # twice the most that a number rounded to bfloat16 is off, relative


def logits_room(head: Tensor) -> Tensor:
    """Memory for the logits of `MATRIX_ROWS` rows, [C, V] in the head's format, for many losses.

    Asked of the system for each loss anew, its pages cost more time than the logits.
    """
    return head.new_empty(MATRIX_ROWS, len(head))


def logits_of(rows: Tensor, weight: Tensor, room: Tensor) -> Tensor:
    """Logits of rows [n, D] in `room`, [>= n, V]: behind them zeros, up to one of a few sizes."""
    count = min(few_sizes(len(rows)), len(room))
    padded = functional.pad(rows, (0, 0, 0, count - len(rows))) if count > len(rows) else rows
    return torch.mm(padded, weight.T, out=room[:count])


class AnswerLoss(torch.autograd.Function):
    """Summed cross-entropy over the full vocabulary. The gradient is made on the way forward,
    while logits are at hand.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        targets: Tensor,
        room: Tensor,
        likelihood: Tensor | None,
    ) -> Tensor:
        """rows [M, D], weight [V, D], targets [M], room [C, V] -> float32 scalar, the sum over
        rows.

        `likelihood`: float32 [V]; where a token is no target, what all rows gave it is added.
        """
        gradient = torch.empty_like(rows)
        total = torch.zeros((), dtype=torch.float32)
        for start in range(0, len(rows), len(room)):
            part = slice(start, start + len(room))
            logits = logits_of(rows[part], weight, room)
            logit_grad = logits[: len(rows[part])]  # they become softmax - onehot in place
            missed = []
            for piece, wanted in zip(
                torch.split(logit_grad, CHUNK_ROWS),
                torch.split(targets[part], CHUNK_ROWS),
                strict=True,
            ):
                loss, lacking = grads_in_place(piece, wanted[:, None])
                total += loss
                missed.append(lacking)
            if likelihood is not None:
                likelihood += logit_grad.sum(dim=0, dtype=torch.float32)
            unsure = torch.cat(missed) >= SURE
            live = few_rows(unsure)
            if len(live) > DENSE * len(logit_grad):
                gradient[part] = (logits @ weight)[: len(logit_grad)]
            else:
                gradient[part] = 0
                gradient[start + live] = (logit_grad[live] * unsure[live, None]) @ weight
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Scale what forward made."""
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0].to(gradient.dtype), None, None, None, None


def grads_in_place(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Turn logits [C, V] into softmax - onehot of targets [C, 1]; the summed loss, float32 scalar,
    and what each target lacks to certainty, float32 [C].

    A target's own gradient is minus the sum of all others: 1 - softmax would be lost to rounding
    where the model is nearly sure, and every row of gradients sums to 0.
    """
    torch.softmax(logits, dim=1, out=logits)
    hit = logits.gather(1, targets)
    missed = logits.scatter_(1, targets, 0.0).sum(dim=1, keepdim=True)
    logits.scatter_(1, targets, -missed)
    hit, missed = hit.float(), missed.float()
    loss = -torch.where(missed < 0.5, torch.log1p(-missed), hit.clamp_min(TINY).log()).sum()
    return loss, missed[:, 0]


def answer_loss(
    rows: Tensor,
    weight: Tensor,
    targets: Tensor,
    room: Tensor | None = None,
    likelihood: Tensor | None = None,
) -> Tensor:
    """Summed cross-entropy, float32 scalar: rows [M, D] after the last norm, weight [V, D]
    frozen, targets [M].

    Args:
        room: from `logits_room`, for whoever takes many losses; what it held is overwritten.
        likelihood: float32 [V], to which is added what all rows gave each token that is no target.
    """
    room = logits_room(weight) if room is None else room
    loss: Tensor = AnswerLoss.apply(rows, weight, targets, room, likelihood)  # type: ignore[no-untyped-call]
    return loss


class VocabularyHead:
    """Many losses over a fixed set of targets. One asks the whole vocabulary; while all but
    `OUTSIDE` of the likelihood is on less than half of it, the next `NARROW_LOSSES` ask that part
    and the targets alone.

    What is left out gets no gradient meanwhile; a token that gains is found by the next whole loss.

    Source: a softmax over a part of the vocabulary, Jean et al. 2015, section 3; the part is the
    likely tokens, not drawn ones.
    """

    def __init__(self, weight: Tensor, targets: Tensor) -> None:
        """weight [V, D], frozen; targets: every token that a loss can be about, int64 [any]."""
        self.weight, self.targets = weight, torch.tensor(sorted(set(targets.tolist())))
        self.room = logits_room(weight)
        self.left = 0  # narrow losses to take
        self.part, self.part_room = weight, self.room  # [P, D], [C, P]
        self.place = torch.empty(0)  # int64 [V]: where a token of the part stands in it

    def loss(self, rows: Tensor, targets: Tensor) -> Tensor:
        """As `answer_loss`, rows [M, D], targets [M]."""
        if self.left:
            self.left -= 1
            return answer_loss(rows, self.part, self.place[targets], self.part_room)
        likelihood = torch.zeros(len(self.weight))
        loss = answer_loss(rows, self.weight, targets, self.room, likelihood)
        self.narrow(likelihood, len(rows))
        return loss

    def narrow(self, likelihood: Tensor, rows: int) -> None:
        """Choose the part for the next losses, if it is small enough to be worth it."""
        likelihood[self.targets] = torch.inf
        ascending, order = likelihood.sort()
        count = few_sizes(int((ascending.cumsum(0) > OUTSIDE * rows).sum()))
        if 2 * count > len(self.weight):
            return
        tokens = order[-count:].sort().values
        self.left, self.part = NARROW_LOSSES, self.weight[tokens]
        self.part_room = self.room.view(-1)[: len(self.room) * len(tokens)].view(-1, len(tokens))
        self.place = torch.zeros(len(self.weight), dtype=torch.int64)
        self.place[tokens] = torch.arange(len(tokens))


@torch.no_grad()
def best_tokens(rows: Tensor, head: QuantTensor) -> Tensor:
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


class ArgmaxCheck:
    """Whether targets are the most likely tokens, as `best_tokens` finds them in float32.

    Where the dense head is in bfloat16, its logits, which are had many times faster, name the few
    tokens whose logits could reach the target's; only those are multiplied in float32.

    Source: a product of rounded factors is off by at most the product of their norms times the
    rounding of the factors (Cauchy and Schwarz), plus its own; Higham 2002, section 3.1.
    """

    def __init__(self, head: QuantTensor, dense: Tensor) -> None:
        """`head` and `dense` [V, D] are the same weights, as the file has them and rounded."""
        self.head, self.dense = head, dense
        self.rounded = dense.dtype is torch.bfloat16
        if self.rounded:
            self.room = logits_room(dense)
            parts = torch.split(dense, CHUNK_TOKENS)
            self.longest = max(float(part.float().norm(dim=1).max()) for part in parts)

    @torch.no_grad()
    def __call__(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Rows [M, D] after the last norm, in the dense head's format; bool [M]."""
        if not self.rounded:
            return best_tokens(rows, self.head) == targets
        count = len(self.room)
        pairs = zip(torch.split(rows, count), torch.split(targets, count), strict=True)
        return torch.cat([self.check(part, wanted) for part, wanted in pairs])

    def check(self, rows: Tensor, targets: Tensor) -> Tensor:
        """The same for rows whose logits fit into the room."""
        wide = rows.float()
        own = (wide * self.head.rows(targets)).sum(dim=1)
        logits = logits_of(rows, self.dense, self.room)[: len(rows)]
        logits.scatter_(1, targets[:, None], -torch.inf)
        rival = logits.amax(dim=1).float()
        # what a rival's rounded logit can be off by
        off = ROUNDING * (self.longest * wide.norm(dim=1) + torch.maximum(own.abs(), rival.abs()))
        hit: Tensor = own + off >= rival
        unsure = torch.nonzero(hit & (own - off <= rival))[:, 0]
        if len(unsure):
            near = logits[unsure] >= (own - off)[unsure, None]
            where, token = torch.nonzero(near, as_tuple=True)
            row = unsure[where]
            exact = (wide[row] * self.head.rows(token)).sum(dim=1)
            ahead = (exact > own[row]) | ((exact == own[row]) & (token < targets[row]))
            hit[row[ahead]] = False  # the first of equals is the best
        return hit
