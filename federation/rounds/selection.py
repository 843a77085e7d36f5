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
from ..spec.policy import Policy
from ..wire.messages import RoundId


@dataclass(frozen=True, slots=True)
class Draw:
    """Who is asked, and who was passed over."""

    cohort: tuple[str, ...]  # sorted
    absent: tuple[str, ...]  # sorted; ranked before the last of the cohort, and not there


def ranking(policy: Policy, place: RoundId) -> tuple[str, ...]:
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


def draw(policy: Policy, place: RoundId, here: Collection[str], *, everybody: bool = False) -> Draw:
    """The cohort of a round.

    Args:
        here: members that can be asked.
        everybody: all of them, as where an adapter is scored.

    Raises:
        RoundAborted: fewer are there than any sum needs.
    """
    known = {name for name in here if policy.member(name) is not None}
    if len(known) < (need := policy.needed()):
        raise RoundAborted(
            f"{len(known)} members are there, need {need}: nobody is "
            f"asked{policy.advice(len(known))}"
        )
    wanted, cohort, passed = policy.cohort_size(everybody=everybody), list[str](), list[str]()
    for name in ranking(policy, place):
        if len(cohort) == wanted:
            break
        (cohort if name in known else passed).append(name)
    return Draw(tuple(sorted(cohort)), tuple(sorted(passed)))


def eligible(
    policy: Policy, here: Collection[str], signed: Collection[str], sets: Collection[frozenset[str]]
) -> frozenset[str]:
    """Whom to draw from where sums from the same adapter may have been opened already: members that
    are in none of them, else exactly one of these sets, else whoever is there.

    Whoever is left out is named absent, so `check` holds. Without this a cohort of near half the
    roster rarely is drawn so that it has enough new members, or all of the old ones.

    Args:
        signed: members that may be in such a sum; sets: those sets that members told of.
    """
    if len(fresh := frozenset(here).difference(signed)) >= policy.needed():
        return fresh
    whole = [one for one in sets if one.issubset(here) and len(one) >= policy.needed()]
    return max(whole, key=lambda one: (len(one), sorted(one)), default=frozenset(here))


def check(
    policy: Policy, place: RoundId, found: Draw, name: str, *, everybody: bool = False
) -> None:
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
