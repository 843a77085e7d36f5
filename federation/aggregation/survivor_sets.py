"""Sums about one adapter, again: whose may be opened after an earlier one, from the same adapter.

Knows sets of names, and which of them members say that they signed for. Knows nothing of masks or
messages.
Always: what is chosen here is what members sign for (`crypto.secagg.RevealLedger.sign` is their own
check, with the same rule): the very same set as before, or nobody of it.

A round comes again from the same adapter after an attempt that was opened and lost, after a change
that was undone, and with every new run, since all of them start from zeros. Members of the earlier
sum say so when they are ready, so that a coordinator that remembers nothing can leave out, or wait
for, whom it must.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

Sets = frozenset[frozenset[str]]


@dataclass(frozen=True, slots=True)
class Choice:
    """Whom a coordinator goes on with, of those that are ready."""

    members: frozenset[str]
    missing: frozenset[str]  # nobody can be summed without these; empty if somebody is
    reason: str = ""  # why nobody can be


def choose(
    buckets: Iterable[Collection[str]], before: Mapping[str, Sets], *, need: int, least: int
) -> Choice:
    """The members of each bucket that will sign for a sum over all of them.

    Args:
        before: the sets that each ready member says it signed for, about the same adapter.
        need: members over all buckets; least: members of one bucket.
    """
    chosen, missing, reason = set[str](), frozenset[str](), ""
    for bucket in map(frozenset, buckets):
        known = {earlier for name in bucket for earlier in before.get(name, ())}
        # One of the sets again, or those that are in none: a member that makes up a set of others
        # keeps nobody else from signing.
        tried = [
            bucket - {name for name in bucket if before.get(name)},
            *(earlier for earlier in known if earlier <= bucket),
        ]
        fit = [one for one in tried if len(one) >= least and fits(one, before)]
        if fit:
            chosen |= max(fit, key=lambda one: (len(one), sorted(one)))
        elif known:
            # the one that most of those that are ready tell: one that is made up has one voice.
            # Of several sums at once, one whose member is away; none is waited for in vain
            voices = {one: sum(one in before.get(name, ()) for name in bucket) for one in known}
            short = [one for one in known if not one <= bucket and 2 * voices[one] >= len(one) > 2]
            nearest = max(
                short or known, key=lambda one: (voices[one], len(one & bucket), sorted(one))
            )
            missing |= nearest - bucket
            reason = (
                f"a sum over {', '.join(sorted(nearest))} from the same adapter may have "
                f"been "
                f"opened before"
            )
    if len(chosen) >= need or not reason:
        return Choice(frozenset(chosen), frozenset())
    return Choice(frozenset(), missing, reason)


def eligible(
    need: int, here: Collection[str], signed: Collection[str], sets: Collection[frozenset[str]]
) -> frozenset[str]:
    """Whom to draw from where sums from the same adapter may have been opened already: members that
    are in none of them, else exactly one of these sets, else those of one round's several sums
    together, else whoever is there.

    Whoever is left out is named absent, so the draw's check holds. Without this a cohort of near
    half the roster rarely is drawn so that it has enough new members, or all of the old ones.

    Args:
        need: members of any draw; signed: those that may be in such a sum; sets: `confirmed` ones.
    """
    if len(fresh := frozenset(here).difference(signed)) >= need:
        return fresh
    whole = [one for one in sets if one.issubset(here) and len(one) >= need]
    if not whole:
        alone = (one for one in sets if all(one == other or not one & other for other in sets))
        together = frozenset[str]().union(*(one for one in alone if one.issubset(here)))
        whole = [together] if len(together) >= need else []
    return max(whole, key=lambda one: (len(one), sorted(one)), default=frozenset(here))


def confirmed(reported: Mapping[str, Sets]) -> Sets:
    """The sets that half of their members tell, and that nobody of them contradicts.

    Those that may collude (a third of k) are fewer than half of any set of `need` members (more
    than two thirds of k): they make none up.

    Args:
        reported: member → sets that it says it signed for, of all that have answered.
    """
    return frozenset(
        one
        for one in frozenset[frozenset[str]]().union(*reported.values())
        if 2 * sum(one in reported.get(name, ()) for name in one) >= len(one)
        and fits(one, reported)
    )


def fits(names: frozenset[str], before: Mapping[str, Sets]) -> bool:
    """Would all of `names` sign for a sum over them?"""
    return all(names == earlier for name in names for earlier in before.get(name, ()))
