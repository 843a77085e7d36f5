"""Who is asked in a round, and who is summed with whom: draws that every member can repeat.

Knows the roster, a public seed and who is said to be absent. Knows nothing of links or letters.
Always: the seed follows from the signed file, the run and the number of the round; it ranks the
roster; the cohort is the first of that ranking that are there. The coordinator says who is not
there, and everybody of the cohort is told the same.

A member checks: it is in the cohort itself; all are of the roster; enough are asked (`needed`); the
cohort is exactly what the ranking gives once the named absentees are left out. Not covered: whether
an absentee was really away (who was named absent wrongly can show the signed letter to the others),
and a coordinator that starts many runs, whose number it chooses, until a draw pleases it. Both are
what admission, the minimum cohort and noise are for; the draw keeps an honest coordinator's choice
out of its own hands.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

from ...core.errors import MessageError, RoundAborted
from ..aggregation.rank_masks import Shares
from ..spec.policy import Policy
from ..wire.message import Place


@dataclass(frozen=True, slots=True)
class Draw:
    """Who is asked, and who was passed over."""

    cohort: tuple[str, ...]  # sorted
    absent: tuple[str, ...]  # sorted; ranked before the last of the cohort, and not there


def ranking(policy: Policy, place: Place) -> tuple[str, ...]:
    """The roster in the order that this round's seed gives; the attempt plays no part in it."""
    seed = hashlib.sha256(
        f"quietchoir cohort 1 {place.run} {place.round}".encode() + policy.digest
    ).digest()
    return tuple(
        sorted(
            (one.name for one in policy.members),
            key=lambda name: hashlib.sha256(seed + name.encode()).digest(),
        )
    )


def size_of(policy: Policy, *, everybody: bool) -> int:
    """How many are asked."""
    wanted = policy.recipe.cohort
    return (
        len(policy.members)
        if everybody or not wanted
        else max(wanted, policy.protection.min_cohort)
    )


def needed(policy: Policy, asked: int = 0) -> int:
    """Members without which nothing of a round is opened: more than two thirds of all that could
    have been asked.

    Of the drawn size, which follows from the signed file alone (`recipe.cohort`, or the whole
    roster; buffered: the group), or of those asked, if they are more. Never of those that are
    ready, whom the coordinator names: so two sums of one attempt would each need honest members
    that the other needs too, as long as at most a third collude. In plain mode there is nothing to
    protect, and `min_cohort` is enough.

    Source: Bonawitz et al. 2017, section 6.2; the bound is `SecAggConfig.colluders`.
    """
    protection = policy.protection
    if protection.mode == "plain":
        return protection.min_cohort
    if policy.schedule.buffered:
        drawn = policy.schedule.group(protection.min_cohort)
    else:
        living = sum(policy.member(one.name) is not None for one in policy.members)
        drawn = min(living, size_of(policy, everybody=False))
    return max(protection.min_cohort, protection.threshold, 2 * max(drawn, asked) // 3 + 1)


def draw(policy: Policy, place: Place, here: Collection[str], *, everybody: bool = False) -> Draw:
    """The cohort of a round.

    Args:
        here: members that can be asked.
        everybody: all of them, as where an adapter is scored.

    Raises:
        RoundAborted: fewer are there than any sum needs.
    """
    known = {name for name in here if policy.member(name) is not None}
    if len(known) < (need := needed(policy)):
        raise RoundAborted(
            f"{len(known)} members are there, need {need}: nobody is "
            f"asked{advice(policy, len(known))}"
        )
    wanted, cohort, passed = size_of(policy, everybody=everybody), list[str](), list[str]()
    for name in ranking(policy, place):
        if len(cohort) == wanted:
            break
        (cohort if name in known else passed).append(name)
    return Draw(tuple(sorted(cohort)), tuple(sorted(passed)))


def advice(policy: Policy, found: int) -> str:
    """What an owner can do whose members are rarely there, as the end of a sentence; nothing if
    that would not help.
    """
    protection = policy.protection
    if policy.schedule.buffered or protection.mode == "plain" or found < protection.min_cohort:
        return ""
    return (
        f" (more than two thirds of {size_of(policy, everybody=False)}, from the signed file). If "
        f"members are rarely there, "
        "a lower recipe.cohort asks fewer of them at once"
    )


def check(policy: Policy, place: Place, found: Draw, name: str, *, everybody: bool = False) -> None:
    """Require that `found` is the draw of this round, if those it calls absent are, and that `name`
    is in it.

    Raises:
        MessageError: it is not.
    """
    present = {one.name for one in policy.members} - set(found.absent)
    try:
        expected = draw(policy, place, present, everybody=everybody)
    except RoundAborted as error:
        raise MessageError(f"the cohort of round {place.round}: {error}; refused") from None
    if found != expected or name not in found.cohort:
        raise MessageError(
            f"{len(found.cohort)} members are asked that are not the draw of round {place.round} "
            f"({len(expected.cohort)} expected, with {name} among them); refused"
        )


def buckets(
    policy: Policy, adapter: bytes, ready: Collection[str], shares: Shares | None = None
) -> tuple[tuple[str, ...], ...]:  # fmt: skip
    """`ready` members split for sums of their own, each over `Policy.smallest_sum` at least; sizes
    differ by at most one.

    Args:
        adapter: digest of the one that the sums are about: the same members from the same adapter
        are split alike, again.

    Who was ready is known after the work only, so nobody can choose a bucket before that. Where
    members train different columns, the minimum is of those that train the most, and they are dealt
    out first.
    """
    if policy.aggregation.buckets == 1:
        return (tuple(sorted(ready)),)
    leaders = set(ready) if shares is None else shares.leaders.intersection(ready)
    count = max(1, min(policy.aggregation.buckets, len(leaders) // policy.smallest_sum))
    seed = hashlib.sha256(b"quietchoir buckets 2" + policy.digest + adapter).digest()
    order = sorted(
        ready, key=lambda name: (name not in leaders, hashlib.sha256(seed + name.encode()).digest())
    )
    return tuple(tuple(sorted(order[start::count])) for start in range(count))
