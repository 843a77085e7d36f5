"""How far a student's likelihoods are from its teacher's, with the gradient.

Knows rows, a head, and the few likelihoods of the teacher that were kept. Knows nothing of layers.
Always: logits exist for a few dozen rows at a time; what the teacher gave to all other tokens
together is one more event, so that the student is not asked to give them nothing.
"""

from typing import Any

import torch
from torch import Tensor

from ..loss import CHUNK_ROWS

LEAST = 1e-6  # of a likelihood that is divided by or whose logarithm is taken


class DistillationLoss(torch.autograd.Function):
    """Forward KL divergence of the teacher's likelihoods over its top k tokens and all others,
    summed over rows, at one temperature and times its square; mixed with cross-entropy.

    The gradient is made on the way forward, while logits are at hand.

    Source: Hinton, Vinyals and Dean 2015, section 2 (the square keeps gradients as large whatever
    the temperature).
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        head: Tensor,
        ids: Tensor,
        likelihoods: Tensor,
        targets: Tensor,
        temperature: float,
        hard: float,
    ) -> Tensor:
        """rows [M, D] after the last norm, head [V, D] frozen, ids int64 [M, k] and likelihoods
        float32 [M, k] of the teacher at this temperature, targets [M] -> float32 scalar.

        Args:
            hard: share of the cross-entropy of the targets; the divergence has the rest.
        """
        gradient = torch.empty_like(rows)
        total = torch.zeros(())
        for start in range(0, len(rows), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            logits = (rows[part] @ head.T).float()
            loss, grads = divergence(logits, ids[part], likelihoods[part], temperature)
            if hard:
                other, wrong = cross_entropy(logits, targets[part])
                loss, grads = loss * (1 - hard) + other * hard, grads.mul_(1 - hard)
                grads.add_(wrong, alpha=hard)
            total += loss
            gradient[part] = grads.to(rows.dtype) @ head
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what forward made."""
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0].to(gradient.dtype), None, None, None, None, None, None


def divergence(
    logits: Tensor, ids: Tensor, likelihoods: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Sum over rows and its gradient [C, V]; logits [C, V], ids and likelihoods [C, k]."""
    q = torch.softmax(logits / temperature, dim=1)
    there = q.gather(1, ids)
    rest = (1 - likelihoods.sum(1)).clamp_min(0.0)  # of the teacher, on all other tokens
    outside = (1 - there.sum(1)).clamp_min(LEAST)
    apart = likelihoods * (likelihoods.clamp_min(LEAST).log() - there.clamp_min(LEAST).log())
    others = rest * (rest.clamp_min(LEAST).log() - outside.log())
    loss = (apart.sum(1) + others).sum() * temperature**2
    # of a token among the k: q - p; of another: q (1 - rest / outside); each divided by T
    grads = q * (1 - rest / outside)[:, None]
    grads.scatter_(1, ids, there - likelihoods)
    return loss, grads.mul_(temperature)


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over rows and its gradient [C, V]; logits [C, V], targets [C]."""
    logs = torch.log_softmax(logits, dim=1)
    loss = -logs.gather(1, targets[:, None]).sum()
    grads = logs.exp_()
    grads[torch.arange(len(targets)), targets] -= 1
    return loss, grads


def distance(seen: Tensor, wanted: Tensor) -> Tensor:
    """Squared distance of hidden rows [M, D] as a share of the teacher's own size, summed over
    rows; float32 scalar.

    Source: Jiao et al. 2020 (TinyBERT), equation 8; divided by the size, which grows with depth.
    """
    wanted = wanted.float()
    size = wanted.square().mean(1).clamp_min(LEAST)
    return ((seen.float() - wanted).square().mean(1) / size).sum()
