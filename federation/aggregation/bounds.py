"""How far from zeros an adapter can be after so many rounds of a federation.

Knows the recipe, the ranges and the noise of the signed file. Knows nothing of letters or sums.
Always: what any run of the federation can have produced passes, whoever took part in it; a guard
against values far beyond that, not a proof that an adapter is one of its own (`rounds/client_model`
is).

Let M bound every coordinate of a round's mean change. Without noise a member's coordinates are cut
to `update_range`, and so is their mean's: M is that. With noise M bounds the mean's whole length:
`crypto.privacy.noise.Noise.farthest`.

FedAvg and FedAvgM, v ← βv + Δ, w ← w + ηv:  |v| ≤ M (1 - βᵗ) / (1 - β) after t rounds, and
|w| ≤ ηM · Σ (1 - βⁱ) / (1 - β) over the rounds i = 1 … t, which is less than ηMt / (1 - β).

FedAdam and FedYogi, w ← w + ηm / (√v + τ):  |m| ≤ M and, under Adam, v ≤ max(τ², M²), for both are
convex sums of what they started from and of changes. Yogi adds (1 - β₂) Δ² to a v below Δ² and else
takes it away, so there v ≤ max(τ², (2 - β₂) M²). No step is longer than ηM / τ. Under Adam, by
Cauchy and Schwarz over the sums that m and v are, |m| ≤ (1 - β₁) / √((1 - β₂)(1 - β₁²/β₂)) · √v
wherever β₁² < β₂, so no step is longer than η times that factor either.

Source: Kingma, Ba 2015, "Adam", section 2.1 (bounds of a step); Reddi et al. 2021, algorithm 2.
"""

import math

import numpy as np

from ...core.errors import MessageError
from ..spec.policy import Recipe
from .server_optimizer import ServerState, Vector

SLACK = 1.0 + 1e-3  # times every bound: what float32 makes of sums that lie on it
# times the file's rounds: a run may be continued, but a number that a letter claims counts no
# further
LONGER = 4


def reach(recipe: Recipe, largest: float, rounds: int) -> tuple[float, float, float]:
    """Largest coordinate of adapter, velocity and second moments after `rounds` steps of at most
    `largest` each.
    """
    if recipe.server_optimizer in ("fedadam", "fedyogi"):
        beta, memory, floor = recipe.server_momentum, recipe.server_memory, recipe.server_floor
        step = largest / floor
        if recipe.server_optimizer == "fedadam" and beta * beta < memory:
            step = min(step, (1 - beta) / math.sqrt((1 - memory) * (1 - beta * beta / memory)))
        overshoot = 2 - memory if recipe.server_optimizer == "fedyogi" else 1.0
        return (
            rounds * recipe.server_lr * step,
            largest,
            max(floor * floor, overshoot * largest * largest),
        )
    beta = 0.0 if recipe.server_optimizer == "fedavg" else recipe.server_momentum
    velocity = largest * (1 - beta**rounds) / (1 - beta)
    flat = (
        recipe.server_lr * largest * (rounds - beta * (1 - beta**rounds) / (1 - beta)) / (1 - beta)
    )
    return flat, velocity, 0.0


def check(recipe: Recipe, found: ServerState | Vector, rounds: int, largest: float) -> None:
    """Require an adapter, or a state, that `rounds` rounds of this federation can have produced.

    Args:
        rounds: that a letter says are over; largest: of any coordinate of a round's mean change.

    Raises:
        MessageError: it lies farther out.
    """
    vectors = found.vectors if isinstance(found, ServerState) else (found,)
    rounds = min(rounds, LONGER * recipe.rounds)
    names = ("adapter", "velocity", "second moments")
    for name, vector, bound in zip(names, vectors, reach(recipe, largest, rounds), strict=False):
        if (farthest := float(np.abs(vector).max(initial=0.0))) > SLACK * bound:
            raise MessageError(
                f"the {name} that was told reaches {farthest:.3g}, {rounds} rounds of this "
                f"federation at most "
                f"{bound:.3g}; refused"
            )
