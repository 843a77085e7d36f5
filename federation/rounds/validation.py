"""Is the new adapter good enough to be kept? A secret vote of the members' held-out examples.

Knows counts and history. Knows nothing of how votes travel, or of adapters.
Always: what is judged is the median over the buckets' accuracies (of one bucket: its accuracy); a
bucket whose counts cannot be those of honest members is left out; each honest member has one voice,
whatever the number of its examples; an adapter that too few could score is not kept.

The vote is an attempt of its own, between two rounds: so no member trains from an adapter that is
then undone, and no sum, and no privacy, is spent on it. It costs a download of the adapter and one
more pass through the masks, a second or so; the passes over held-out examples are those that the
next round would have made.

Not covered: a change that leaves held-out answers as they are (a backdoor). One member that lies in
its counters decides its bucket's vote, or has it left out, and under masks nobody sees who: where
there is one bucket it undoes each round, or none; and a lie that is kept as the best stands for the
rest of the run. A sum bounds no summand.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..aggregation.update import SCORE_UNIT, Statistics
from ..spec.policy import GuardTable
from ..wire import messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the members' votes say about one adapter."""

    accuracy: float | None
    scored: int  # members that did
    best: float | None  # of the adapters that were kept before
    kept: bool
    reason: str
    near: float = 0.0  # share of held-out answers' tokens that are right
    bytes: int = 0  # of the vote's messages, both ways, all members

    @property
    def rank(self) -> float:
        """For choosing among several."""
        return -1.0 if self.accuracy is None else self.accuracy + self.near


def judge(
    guard: GuardTable,
    votes: Sequence[tuple[Statistics, int]],
    best: float | None,
    nearest: float = 0.0,
) -> Verdict:
    """The verdict of `votes`: counters of a bucket, and how many members are in it.

    Args:
        best: accuracy of adapters that were kept; nearest: share of tokens that were right, to undo
        what falls far below that too: where no answer is right yet, it tells a step too far.
    """
    sound = [
        one
        for one, parties in votes
        if 0 < one.scored <= parties and max(one.score, one.near) <= SCORE_UNIT * one.scored
    ]
    found = [one.accuracy for one in sound if one.accuracy is not None]
    accuracy = statistics.median(found) if found else None
    near = statistics.median([one.nearness for one in sound]) if sound else 0.0
    fell = near < nearest - guard.margin
    kept = accuracy is not None and (best is None or accuracy >= best - guard.margin) and not fell
    if accuracy is None:
        reason = "undone: too few could score it; give members held-out examples (test.jsonl)"
    elif kept:
        reason = "kept"
    elif fell:
        reason = (
            f"undone: {near:.3f} of the answers' tokens are right, more than {guard.margin:g} "
            f"below the best, {nearest:.3f}"
        )
    else:
        reason = (
            f"undone: accuracy {accuracy:.3f} is more than {guard.margin:g} below the best, "
            f"{best:.3f}"
        )
    return Verdict(
        accuracy=accuracy,
        scored=Statistics.sum(sound).scored,
        best=best,
        kept=kept,
        reason=reason,
        near=near,
    )


def best_of(history: Sequence[dict[str, Any]]) -> float | None:
    """The best accuracy of an adapter that was kept."""
    found = [entry["accuracy"] for entry in history if entry["accuracy"] is not None]
    found += [
        entry["guard"]["accuracy"] for entry in history if (entry.get("guard") or {}).get("kept")
    ]
    return max(found, default=None)


def nearest_of(history: Sequence[dict[str, Any]]) -> float:
    """The best share of answers' tokens of an adapter that was kept."""
    kept = [entry["guard"] for entry in history if (entry.get("guard") or {}).get("kept")]
    # those that earlier versions wrote have none
    found = [entry.get("near", 0.0) for entry in (*history, *kept)]
    return max(found, default=0.0)


def parents_score(history: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Accuracy of the adapter that the next round starts from, as the last vote or round found
    it.
    """
    trained = [entry for entry in history if entry["kind"] == messages.TRAIN]
    if not trained:
        return None
    verdict = trained[-1].get("guard")
    source = verdict if verdict and verdict["kept"] else trained[-1]
    return (
        {name: source[name] for name in ("accuracy", "scored")}
        if source["accuracy"] is not None
        else None
    )
