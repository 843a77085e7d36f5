"""How many columns of the adapter each member trains: the `rank` on its line of the roster.

Knows the signed file and a node's own limit. Knows nothing of rounds, vectors or training.
Always: a member without a rank of its own trains the whole adapter; what a column's sum is divided
by follows from the signed file, so that nobody's word during a round changes it.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Protocol

from ...core.errors import ConfigError

if TYPE_CHECKING:
    from .policy import AdapterTable, Policy, ProtectionTable
    from .schedule import ScheduleTable


class Tables(Protocol):
    """The tables that ranks must fit: a federation file's, or a scenario's."""

    @property
    def adapter(self) -> "AdapterTable": ...
    @property
    def protection(self) -> "ProtectionTable": ...
    @property
    def schedule(self) -> "ScheduleTable": ...


def check_ranks(tables: Tables, ranks: Mapping[str, int]) -> None:
    """Require that members' ranks fit the adapter and the rest of the file. Raises ValueError."""
    whole = tables.adapter.rank
    for name, rank in ranks.items():
        if not 0 <= rank <= whole:
            raise ValueError(
                f"members: {name} trains rank {rank}, expected 1 to {whole}; 0: the whole adapter"
            )
    if not any(0 < rank < whole for rank in ranks.values()):
        return
    if tables.protection.min_tokens:
        raise ValueError(
            "members of different ranks need protection.min_tokens = 0: it counts the tokens "
            "behind a whole sum, not behind "
            "the columns that only some members train"
        )
    if tables.schedule.buffered:
        raise ValueError(
            'members of different ranks need schedule.rounds = "synchronous": who is in a buffered '
            "sum, and with it how many "
            "train a column, is known only after the training"
        )


def rank_of(policy: "Policy", name: str) -> int:
    """Columns that a member is asked to train."""
    found = next((member.rank for member in policy.members if member.name == name), 0)
    return found or policy.adapter.rank


def reached(ranks: Collection[int], least: int) -> int:
    """The largest rank that at least `least` of these members reach; that of all of them if they
    are fewer.
    """
    return sorted(ranks, reverse=True)[min(least, len(ranks)) - 1]


def check_limit(policy: "Policy", name: str, limit: int) -> None:
    """Require that the file asks no more of this node than its owner allows.

    Args:
        limit: `training.max_rank` of the node's configuration; 0: any.

    Raises:
        ConfigError: it does; says what the federation's owner can do.
    """
    asked = rank_of(policy, name)
    if limit and asked > limit:
        raise ConfigError(
            f"federation {policy.name} asks rank {asked} of {name}, but training.max_rank allows "
            f"{limit}; ask its owner for "
            f"`quietchoir federation change FED --member-rank {name}={limit}`, or change that line "
            f"of your configuration"
        )


def told_ranks(policy: "Policy") -> str | None:
    """For people: how many train what; None where all train the whole adapter."""
    whole, ranks = (
        policy.adapter.rank,
        [member.rank or policy.adapter.rank for member in policy.members],
    )
    if not ranks or min(ranks) == whole:
        return None
    classes = ", ".join(
        f"{ranks.count(rank)} of rank {rank}" for rank in sorted(set(ranks), reverse=True)
    )
    least = policy.smallest_sum
    shared = reached(ranks, least)
    unused = (
        (f"; columns above {shared} are trained by fewer than {least}, so by nobody")
        if shared < whole
        else ""
    )
    return (
        f"{classes}; all send the whole vector; a column's sum is over at least {least} that "
        f"train it{unused}"
    )
