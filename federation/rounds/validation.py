"""Is the new adapter good enough to be kept? A vote of the members' held-out examples; and who was
in the sums that it found bad.

    sums    the median over the buckets' accuracies (of one bucket: its accuracy); a bucket whose
            counts cannot be those of honest members is left out. Secret
    open    the mean of members' ballots without a quarter of them at each end: by how much each
            one's own score rose over that of the adapter that it trained from. The coordinator
            reads each

Knows counts, ballots and history. Knows nothing of how votes travel, or of adapters.
Always: each honest member has one voice, whatever the number of its examples; an adapter that too
few could score is not kept.

The vote is an attempt of its own, between two rounds: so no member trains from an adapter that is
then undone, and no sum, and no privacy, is spent on it. It costs a download of the adapter and one
more pass through the masks, a second or so; the passes over held-out examples are those that the
next round would have made.

Not covered: a change that leaves held-out answers as they are (a backdoor that is no longer than an
honest change). In sums, one member that lies in its counters decides its bucket's vote, or has it
left out, and under masks nobody sees who: where there is one bucket it undoes each round, or none;
and a lie that is kept as the best stands for the rest of the run. A sum bounds no summand. An open
ballot has a bound: a quarter of all that are cast cannot move the middle beyond what the others
said. Its price is that the coordinator learns, of each adapter that is voted on, some 5.7 bits of
each member's held-out examples; none of those it trains on.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..aggregation.update import SCORE_UNIT, Statistics
from ..spec.policy import GuardTable, Policy
from ..training.learner import Counts
from ..wire import messages

UNKNOWN = -1.0  # below any rank that was voted
BALLOT_UNIT = 50  # ballots are in steps of 2 %: finer ones would tell of how many answers they are
MOST = 25  # the farthest that a ballot goes, in these steps
REMEMBERED = 64  # scores of adapters, at a member
TRIMMED = 4  # one part in so many of the ballots is left out at each end
SELDOM = 0.01  # chance, over all members, with which one that did nothing is suspected all the same


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
    # where ballots are open: their middle, of the adapter that the round started from; how many
    rise: float | None = None
    ballots: int = 0

    @property
    def rank(self) -> float:
        """For choosing among several."""
        if self.rise is not None:
            return self.rise
        return UNKNOWN if self.accuracy is None else self.accuracy + self.near


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


def votes_of(policy: Policy) -> int:
    """Adapters that a round puts to the vote, at most: its change, and each bucket's own."""
    return 1 + (policy.aggregation.buckets if policy.aggregation.buckets > 1 else 0)


class Ballots:
    """A member's side of an open vote: its own scores of the last adapters, and which of them it
    trained from, in which round. In memory alone: who was started anew casts none until it trained.

    Args:
        most: adapters that it casts a ballot on after each time it trains (`votes_of`); whoever
            asks for more gets none.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.scores: dict[bytes, float] = {}  # adapter → shares of answers and of tokens, 0 to 2
        self.parent, self.round = b"", ("", 0)
        self.voted = set[bytes]()  # adapters, since it trained

    def note(self, adapter: bytes, counts: Counts) -> None:
        """Remember a score of the adapter with this digest; the oldest is forgotten."""
        if counts.total:
            self.scores[adapter] = counts.correct / counts.total + counts.near
        if len(self.scores) > REMEMBERED:
            del self.scores[next(iter(self.scores))]

    def starts(self, adapter: bytes, round_: tuple[str, int]) -> bool:
        """This member trains from it now; False if it was not scored yet. Args: round_: run and
        number.
        """
        self.parent, self.round, self.voted = adapter, round_, set()
        return adapter in self.scores

    def cast(self, adapter: bytes, round_: tuple[str, int]) -> tuple[int, ...]:
        """By how much this one's score lies above the parent's; nothing where one is not known, of
        more adapters than a round has, or in a round for which it did not train: the others compare
        with another parent there.
        """
        before, after = self.scores.get(self.parent), self.scores.get(adapter)
        if before is None or after is None or round_ != self.round:
            return ()
        if len(self.voted | {adapter}) > self.most:
            return ()
        self.voted.add(adapter)
        return (max(-MOST, min(MOST, round(BALLOT_UNIT * (after - before)))),)


def middle_of(ballots: Sequence[int]) -> float:
    """Their mean without a quarter of them at each end: so many liars move it no farther than the
    honest ones' own spread.

    Source: Yin et al. 2018, "Byzantine-robust distributed learning", definition 2.
    """
    left_out = len(ballots) // TRIMMED
    kept = sorted(ballots)[left_out : len(ballots) - left_out]
    return sum(kept) / (BALLOT_UNIT * len(kept))


def count(
    policy: Policy, verdict: Verdict, ballots: Mapping[str, int], history: Sequence[dict[str, Any]]
) -> Verdict:
    """`verdict` as the open ballots have it; the sums stay what is reported.

    Args:
        ballots: member → its own; one beyond the bounds is none.
        history: what was kept before, and by how much it rose: small losses add up.
    """
    sound = [one for one in ballots.values() if -MOST <= one <= MOST]
    if len(sound) < (need := policy.protection.min_cohort):
        reason = f"undone: {len(sound)} ballots, need {need}; members vote that trained, and have"
        reason = f"{reason} held-out examples"
        return replace(verdict, kept=False, reason=reason, rise=UNKNOWN, ballots=len(sound))
    rise, (level, best) = middle_of(sound), levels(history)
    fell = best - (level + rise)
    kept = fell <= policy.guard.margin
    reason = (
        "kept"
        if kept
        else f"undone: the middle of {len(sound)} ballots lies {fell:.3f} below the best adapter, "
        f"{policy.guard.margin:g} is allowed"
    )
    rise = round(rise, 4)
    return replace(verdict, kept=kept, reason=reason, rise=rise, ballots=len(sound))


def levels(history: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Of the adapter that the next round starts from, by the ballots until here; and of the best
    one. The first adapter's is 0.
    """
    level, best = 0.0, 0.0
    for entry in history:
        verdict = entry.get("guard") or {}
        if verdict.get("kept") and verdict.get("rise") is not None:
            level += verdict["rise"]
            best = max(best, level)
    return level, best


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspicion:
    """A member whose buckets were found bad more often than chance explains."""

    member: str
    blamed: int  # rounds in which its bucket was
    rounds: int  # in which one bucket was and another was not, and this member was in one
    chance: float  # at most, that any member that did nothing is blamed as often


def suspects(history: Sequence[dict[str, Any]], margin: float) -> list[Suspicion]:
    """Who was in the bad buckets, round after round: by what a run publishes, nothing else.

    A bucket is bad if its own change was voted more than `margin` below the best bucket's. Who
    shares it is dealt anew in each round, so members that did nothing are blamed by chance alone:
    as often as a sum of independent coins comes to as much, times the number of members. A round
    from the adapter of one that was undone has the same buckets again: that is no new coin.

    Hazard: a suspicion is no proof. Members whose examples are unlike all others' hurt them too;
    and who attacks learns the buckets before it sends, so two that attack only beside a third have
    that one named, not themselves.
    """
    shares, times, dealt_anew = dict[str, list[float]](), dict[str, int](), True
    for entry in history:
        again, dealt_anew = not dealt_anew, (entry.get("guard") or {}).get("kept", True)
        if again:
            continue
        split, ranks = entry.get("split"), (entry.get("guard") or {}).get("trials", ())
        if not split or len(split) != len(ranks):
            continue
        if min(ranks) <= UNKNOWN:
            continue
        bad = [rank < max(ranks) - margin for rank in ranks]
        members = [
            (name, blamed) for group, blamed in zip(split, bad, strict=True) for name in group
        ]
        share = sum(blamed for _, blamed in members) / len(members)
        if not any(bad):
            continue
        for name, blamed in members:
            shares.setdefault(name, []).append(share)
            times[name] = times.get(name, 0) + blamed
    found = [
        Suspicion(
            member=name,
            blamed=times[name],
            rounds=len(coins),
            chance=round(min(1.0, len(shares) * at_least_so_often(coins, times[name])), 6),
        )
        for name, coins in sorted(shares.items())
    ]
    return [one for one in found if one.chance < SELDOM]


def at_least_so_often(coins: Sequence[float], times: int) -> float:
    """Chance that independent coins, each with its own chance, fall on their head so often."""
    likely = [1.0]  # of 0, 1, … heads
    for coin in coins:
        likely = [
            (1 - coin) * none + coin * one
            for none, one in zip([*likely, 0.0], [0.0, *likely], strict=True)
        ]
    return sum(likely[times:])


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
