"""What a run says about itself.

Knows numbers, names, and the price of privacy and of its opposite, in words. Holds nothing of one
party that the protection hides: losses and scores are sums.
Always: made of JSON's types, so that it can be checkpointed and written as it is; an epsilon is
never shown without its delta, unit, sampling assumption and steps.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core import paths
from ..spec.policy import Policy
from ..wire import messages
from .validation import TRIMMED, parents_score, votes_of


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """One round that ended with a sum."""

    kind: str  # "train" or "score"
    round: int
    attempt: int
    seconds: float
    work_seconds: float  # of that, training or scoring
    asked: list[str]
    parties: list[str]  # whose contributions are in the sum
    bytes_up: dict[str, int]  # messages from each party
    bytes_down: dict[str, int]  # messages to each party
    loss: float | None  # of an answer token, mean over the members in the sum: each counts as one
    # of the adapter that the round started from, mean over the members that scored it
    accuracy: float | None
    scored: int  # members that did; 0: none, or too few to tell
    near: float  # the same of the share of their tokens that are right
    clipped_share: float  # of coordinates, mean over the members in the sum; 0 with noise
    update_norm: float  # of the mean update
    buckets: int = 1  # sums that were opened
    rates: list[float] | None = None  # of the recipe's learning rate, where rounds choose it
    ranges: list[float] = field(
        default_factory=list
    )  # narrowest and widest of the tensors' ranges; empty: the federation's one
    # spent with this round, by a member of every attempt so far; None without noise
    epsilon: float | None = None
    # of members' lengths, where it follows them and the coordinator has the adapter
    clip: float | None = None
    guard: dict[str, Any] | None = None  # the members' verdict on the adapter that this round made
    split: list[list[str]] | None = None  # whose each sum is, where there are several
    staleness: list[int] = field(default_factory=list)  # buffered: of each contribution, in order
    # members behind the columns below each rank, where not all train all of them
    columns: dict[str, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """A whole run."""

    federation: str
    name: str
    protection: str
    bits: int
    nodes: int
    rounds: int
    seconds: float
    accuracy: dict[str, float | None]  # "before", "after"
    bytes_per_node_round: float  # up, mean over parties and training rounds
    adapter: str  # name in the registry; empty if none was kept
    members: list[str]  # of the roster
    delivered: list[str]  # members that keep the finished adapter
    aborted: list[str]  # reasons of attempts that ended without a sum
    history: list[dict[str, Any]] = field(default_factory=list)
    # what the coordinator held in the last training round
    held: dict[str, Any] = field(default_factory=dict)
    # epsilon with delta, unit, sampling, steps, method and budget; None without noise
    privacy: dict[str, Any] | None = None
    stopped: str = ""  # why it ended before its rounds were done
    # members whose buckets were found bad more often than chance explains (`validation.suspects`)
    suspects: list[dict[str, Any]] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write JSON; the old file stays if anything fails."""
        paths.write_atomically(
            path, (json.dumps(dataclasses.asdict(self), indent=2) + "\n").encode("utf-8")
        )


def summary(history: list[dict[str, Any]]) -> tuple[dict[str, float | None], float]:
    """Accuracy before and after, and mean bytes that one party sent in a training round."""
    scored = [entry["accuracy"] for entry in history if entry["accuracy"] is not None]
    sent = [
        size for entry in history if entry["kind"] == "train" for size in entry["bytes_up"].values()
    ]
    # voted on: it is not scored once more
    known = parents_score(history) if history and "guard" in history[-1] else None
    if history and history[-1]["kind"] == messages.SCORE:
        known = history[-1]
    accuracy = {
        "before": scored[0] if scored else None,
        "after": None if known is None else known["accuracy"],
    }
    return accuracy, sum(sent) / len(sent) if sent else 0.0


def privacy_sentence(spent: Mapping[str, Any]) -> str:
    """What a run's rounds have cost a member of all of them.

    Args:
        spent: `PrivacyAccountant.spent`.
    """
    return (
        f"epsilon {spent['epsilon']:.3g} of {spent['budget']:g} at delta {spent['delta']:g}, "
        f"{spent['steps']} steps; "
        f"unit: {spent['unit']}; sampling {spent['sampling']}; {spent['mechanism']}, "
        f"{spent['method']}"
    )


def buckets_sentence(policy: Policy) -> str | None:
    """What buckets cost; None where there is one sum."""
    if policy.aggregation.rule == "mean":
        return None
    least, most = policy.smallest_sum, policy.aggregation.buckets
    noisier = "; each carries noise for its own size" if policy.privacy.on else ""
    return (
        f"up to {most} sums are opened a round, each over {least} members or more, instead of one "
        f"over the whole cohort: "
        f"whoever reads them knows the change of {least} together{noisier}; of a bucket, "
        f"{policy.colluders} members may be in "
        f"league with the coordinator, and the others stay {policy.protection.min_cohort}"
    )


def ballots_sentence(policy: Policy) -> str:
    """What open ballots cost."""
    voters = policy.recipe.cohort or len(policy.members)
    noise = "; no epsilon covers them" if policy.privacy.on else ""
    return (
        f"ballots are open: of each vote (up to {votes_of(policy)} a round; a member answers so "
        f"many for each time that it trains) the coordinator reads by how much each member's own "
        f"held-out score rose or fell, in steps of 2 %{noise}; a quarter of those that vote may "
        f"lie, of {voters} members {voters // TRIMMED}"
    )
