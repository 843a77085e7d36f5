"""The server's optimizer: from the mean of updates to the next adapter.

Knows flat vectors. Knows nothing of parties or rounds.
Always: the same mean from the same state gives the same adapter, bit for bit.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ServerState:
    """What the optimizer carries from round to round."""

    flat: Vector  # [n] the adapter's B matrices
    velocity: Vector  # [n]

    @staticmethod
    def zeros(size: int) -> "ServerState":
        """B = 0: the adapter that changes nothing."""
        return ServerState(np.zeros(size, np.float32), np.zeros(size, np.float32))


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
            ValueError: another length than the state's, or not all finite.
        """
        if mean.shape != state.flat.shape or not np.isfinite(mean).all():
            raise ValueError(f"a mean update of shape {mean.shape} must be finite and of shape {state.flat.shape}")
        velocity = np.float32(self.momentum) * state.velocity + mean.astype(np.float32)
        return ServerState(state.flat + np.float32(self.lr) * velocity, velocity)
