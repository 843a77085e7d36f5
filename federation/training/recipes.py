"""Which server optimizer a federation's recipe names.

Knows the recipe's words. Always: the same recipe gives the same optimizer in the coordinator and in
every member.
"""

from ..aggregation.server_optimizer import FedAdam, FedAvgM, ServerOptimizer
from ..spec.policy import Recipe


def optimizer_of(recipe: Recipe) -> ServerOptimizer:
    """The server's optimizer."""
    if recipe.server_optimizer in ("fedadam", "fedyogi"):
        return FedAdam(
            recipe.server_lr, recipe.server_momentum, recipe.server_memory, recipe.server_floor,
            yogi=recipe.server_optimizer == "fedyogi",
        )  # fmt: skip
    return FedAvgM(
        recipe.server_lr, 0.0 if recipe.server_optimizer == "fedavg" else recipe.server_momentum
    )
