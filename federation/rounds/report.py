"""What a run says about itself.

Knows numbers and names. Holds nothing of one party that the protection hides: losses and scores are sums.
Always: made of JSON's types, so that it can be checkpointed and written as it is.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core import paths


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
    bytes_up: dict[str, int]  # letters from each party
    bytes_down: dict[str, int]  # letters to each party
    loss: float | None  # mean over the cohort's answer tokens
    accuracy: float | None  # of the adapter that the round started from
    correct: int
    total: int
    examples: int
    tokens: int
    clipped_share: float
    update_norm: float  # of the mean update


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
    delivered: list[str]  # members that keep the finished adapter
    aborted: list[str]  # reasons of attempts that ended without a sum
    history: list[dict[str, Any]] = field(default_factory=list)
    held: dict[str, Any] = field(default_factory=dict)  # what the coordinator held in the last training round

    def write(self, path: Path) -> None:
        """Write JSON; the old file stays if anything fails."""
        paths.write_atomically(path, (json.dumps(dataclasses.asdict(self), indent=2) + "\n").encode("utf-8"))


def summary(history: list[dict[str, Any]]) -> tuple[dict[str, float | None], float]:
    """Accuracy before and after, and mean bytes that one party sent in a training round."""
    scored = [entry["accuracy"] for entry in history if entry["accuracy"] is not None]
    sent = [size for entry in history if entry["kind"] == "train" for size in entry["bytes_up"].values()]
    ended = bool(history) and history[-1]["kind"] == "score"
    accuracy = {"before": scored[0] if scored else None, "after": scored[-1] if scored and ended else None}
    return accuracy, sum(sent) / len(sent) if sent else 0.0
