"""From members' changes to the next adapter: how means are combined, what the server's optimizer
carries along, and how far from zeros it can come.

Knows flat vectors and the recipe's words. Knows nothing of parties or messages. A new optimizer is
one class and one line of `optimizer_of`.
Always: the same means from the same state give the same adapter, bit for bit, on every machine:
additions, products, quotients and square roots of float32 alone, one after the other, none of them
fused. What any run of the federation can have produced passes `check_reach`; that is a guard
against values far beyond it, not a proof that an adapter is one of its own.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ...core.errors import MessageError
from ..spec.policy import AggregationTable, Recipe
from ..store.checkpoint import ServerState, Vector
from ..wire.messages import bits_of

SLACK = 1.0 + 1e-3  # times every bound: what float32 makes of sums that lie on it
# times the file's rounds: a run may be continued, but a number that a message claims counts no
# further
LONGER = 4
LENGTH_STEPS = 2**18  # of the largest coordinate, in which lengths are taken


class ServerOptimizer(Protocol):
    """One step of the server."""

    def step(self, state: ServerState, mean: Vector) -> ServerState:
        """Apply the cohort's mean update [n]."""
        ...

    def reach(self, largest: float, rounds: int) -> tuple[float, float, float]:
        """Largest coordinate of weights, velocity and second moments after `rounds` steps from
        zeros, if no coordinate of a mean is larger than `largest`.
        """
        ...


def check_mean(state: ServerState, mean: Vector) -> Vector:
    """`mean` as float32.

    Raises:
        ValueError: another length than the state's, or not all finite.
    """
    if mean.shape != state.flat.shape or not np.isfinite(mean).all():
        raise ValueError(
            f"a mean update of shape {mean.shape} must be finite and of shape {state.flat.shape}"
        )
    return mean.astype(np.float32)


@dataclass(frozen=True, slots=True)
class FedAvgM:
    """Federated averaging with server momentum; momentum 0 is FedAvg.

    Source: Hsu et al. 2019, arXiv 1909.06335, section 4.3: v ← βv + Δ, w ← w + ηv.
    """

    lr: float = 1.0
    momentum: float = 0.7

    def step(self, state: ServerState, mean: Vector) -> ServerState:
        """Apply the cohort's mean update [n].

        Raises:
            ValueError: as `check_mean`.
        """
        velocity = np.float32(self.momentum) * state.velocity + check_mean(state, mean)
        return ServerState(state.flat + np.float32(self.lr) * velocity, velocity)

    def reach(self, largest: float, rounds: int) -> tuple[float, float, float]:
        """|v| ≤ M (1 - βᵗ) / (1 - β) after t rounds, and |w| ≤ ηM · Σ (1 - βⁱ) / (1 - β) over the
        rounds i = 1 … t, which is less than ηMt / (1 - β).
        """
        beta = self.momentum
        grown = (1 - beta**rounds) / (1 - beta)
        return self.lr * largest * (rounds - beta * grown) / (1 - beta), largest * grown, 0.0


@dataclass(frozen=True, slots=True)
class FedAdam:
    """An adaptive server: each coordinate's step is divided by how much its changes vary.

    Source: Reddi et al. 2021, "Adaptive federated optimization", algorithm 2: m ← β₁m + (1-β₁)Δ,
    v ← β₂v + (1-β₂)Δ² (Adam) or v - (1-β₂)Δ² sign(v - Δ²) (Yogi), w ← w + ηm / (√v + τ); v starts
    at τ².
    """

    lr: float = 0.03
    momentum: float = 0.9  # beta 1
    memory: float = 0.99  # beta 2
    floor: float = 1e-3  # tau
    yogi: bool = False

    def step(self, state: ServerState, mean: Vector) -> ServerState:
        """Apply the cohort's mean update [n].

        Raises:
            ValueError: as `check_mean`.
        """
        change, tau = check_mean(state, mean), np.float32(self.floor)
        before: Vector = state.spread if state.spread.size else np.full_like(state.flat, tau * tau)
        keep, take = np.float32(self.memory), np.float32(1.0 - self.memory)
        square: Vector = change * change
        spread: Vector = keep * before + take * square
        if self.yogi:
            spread = (before - take * square * np.sign(before - square)).astype(np.float32)
        velocity: Vector = (
            np.float32(self.momentum) * state.velocity + np.float32(1.0 - self.momentum) * change
        )
        deviation: Vector = np.sqrt(spread)
        return ServerState(
            state.flat + np.float32(self.lr) * velocity / (deviation + tau), velocity, spread
        )

    def reach(self, largest: float, rounds: int) -> tuple[float, float, float]:
        """|m| ≤ M and, under Adam, v ≤ max(τ², M²), for both are convex sums of what they started
        from and of changes. Yogi adds (1 - β₂) Δ² to a v below Δ² and else takes it away, so there
        v ≤ max(τ², (2 - β₂) M²). No step is longer than ηM / τ. Under Adam, by Cauchy and Schwarz
        over the sums that m and v are, |m| ≤ (1 - β₁) / √((1 - β₂)(1 - β₁²/β₂)) · √v wherever
        β₁² < β₂, so no step is longer than η times that factor either.

        Source: Kingma, Ba 2015, "Adam", section 2.1 (bounds of a step).
        """
        beta, memory = self.momentum, self.memory
        step = largest / self.floor
        if not self.yogi and beta * beta < memory:
            step = min(step, (1 - beta) / math.sqrt((1 - memory) * (1 - beta * beta / memory)))
        overshoot = 2 - memory if self.yogi else 1.0
        square = max(self.floor * self.floor, overshoot * largest * largest)
        return rounds * self.lr * step, largest, square


def optimizer_of(recipe: Recipe) -> ServerOptimizer:
    """The optimizer that a recipe names: the same in the server and in every member."""
    if recipe.server_optimizer in ("fedadam", "fedyogi"):
        return FedAdam(
            recipe.server_lr,
            recipe.server_momentum,
            recipe.server_memory,
            recipe.server_floor,
            yogi=recipe.server_optimizer == "fedyogi",
        )
    momentum = 0.0 if recipe.server_optimizer == "fedavg" else recipe.server_momentum
    return FedAvgM(recipe.server_lr, momentum)


def check_reach(
    recipe: Recipe,
    found: ServerState | Vector,
    rounds: int,
    largest: float,
    stepper: ServerOptimizer | None = None,
) -> None:
    """Require an adapter, or a state, that `rounds` rounds of this federation can have produced.

    Args:
        rounds: that a message says are over.
        largest: M, of any coordinate of a round's mean change. Without noise a member's coordinates
            are cut to `update_range`, and so is their mean's; with noise it is the mean's whole
            length, `crypto.privacy.noise.Noise.farthest`. stepper: what steps; by default the
            recipe's optimizer.

    Raises:
        MessageError: it lies farther out.
    """
    vectors = found.vectors if isinstance(found, ServerState) else (found,)
    rounds = min(rounds, LONGER * recipe.rounds)
    bounds = (stepper or optimizer_of(recipe)).reach(largest, rounds)
    names = ("adapter", "velocity", "second moments")
    for name, vector, bound in zip(names, vectors, bounds, strict=False):
        if (farthest := float(np.abs(vector).max(initial=0.0))) > SLACK * bound:
            raise MessageError(
                f"the {name} that was told reaches {farthest:.3g}, {rounds} rounds of this "
                f"federation at most {bound:.3g}; refused"
            )


def adapter_digest(flat: Vector) -> bytes:
    """32 bytes that name an adapter [n] by all its bits."""
    found = hashlib.sha256(b"quietchoir adapter bits 1")
    found.update(bits_of(flat))
    return found.digest()


def levelled(means: Sequence[Vector], table: AggregationTable, largest: float) -> list[Vector]:
    """The means [n] of buckets; where the file says so each as long as the middle one of them: then
    a vote among them compares where they go. Who shouts still turns its own bucket's.

    Args:
        largest: no coordinate of a mean is larger, nor is one afterwards.

    The same bits on every machine: lengths are those of whole numbers.
    """
    if table.lengths == "own" or len(means) < 2:
        return list(means)
    lengths = [length_of(one, largest) for one in means]
    middle = sorted(lengths)[(len(lengths) - 1) // 2]
    found = list[Vector]()
    for one, length in zip(means, lengths, strict=True):
        farthest = float(np.abs(one).max(initial=0.0))
        factor = min(middle / length, largest / farthest) if length and farthest else 0.0
        found.append((np.float32(factor) * one).astype(np.float32))
    return found


def length_of(mean: Vector, largest: float) -> float:
    """The L2 norm of `mean` [n], in steps of `largest` / 2^18."""
    whole = np.rint(mean.astype(np.float64) * (LENGTH_STEPS / largest)).astype(np.int64)
    return math.sqrt(int(whole @ whole))


def combine(means: Sequence[Vector], rule: str, trim: int = 1) -> Vector:
    """One change [n] from the means [n] of buckets, coordinate by coordinate.

    Args:
        rule: "mean", "median" or "trimmed-mean"; of fewer than three buckets all are their mean.
        trim: values left out at each end, as long as one is left.

    Source: Yin et al. 2018, "Byzantine-robust distributed learning", definitions 1 and 2.
    """
    rows = np.stack(means)  # [buckets, n]
    if rule == "mean" or len(rows) < 3:
        mean: Vector = rows.mean(axis=0, dtype=np.float32)
        return mean if len(rows) > 1 else rows[0]
    if rule == "median":
        return np.median(rows, axis=0).astype(np.float32)
    left_out = min(trim, (len(rows) - 1) // 2)
    middle: Vector = np.sort(rows, axis=0)[left_out : len(rows) - left_out].mean(
        axis=0, dtype=np.float32
    )
    return middle
