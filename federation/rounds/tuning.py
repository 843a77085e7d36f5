"""The learning rate that rounds choose by themselves: from a run's history to the next round's.

Knows released sums of the rounds that are over: votes, and what was undone. Knows nothing of
messages or members.
Always: the same history gives the same rates, so a coordinator that was killed goes on as it would
have; what members are told stays within `check_rates`; nothing is looked at that was not told
anyway (`validation`).

Two rates at once, where the cohort is large enough for a sum of each half (`Policy.trials`), in the
first `TRIALS` rounds: the file's and twice it, and from then on the better one and one beside it,
ever nearer. Members vote on each half's step and on both together, and the best is kept.

Then, or from the first round on, one after the other, in cohorts of any size and in every mode:

    the vote rose      a little more than before, up to the highest rate that is tried
    a step was undone  half of what it was made at, and never that much again; of two rates, half
                       of the lower one and a lower one beside it, over the same two halves
    no rise for long   half, and no more than that from now on; then the run ends

A vote is the share of held-out answers that are right and the share of their tokens that are: the
first adapters get no answer right, and still differ.

Source: halves and votes: successive halving with two candidates, Jamieson, Talwalkar 2016, section
3. One after the other: the bold driver, Vogl et al. 1988, "Accelerating the convergence of the
back-propagation method", section 3 (a little up while the error falls; half, and the step undone,
where it rises). The end: Prechelt 1998, "Early stopping, but when?".

Hazard: whoever lies in a vote moves the rate as it likes (`validation`); it cannot leave
`check_rates`'s bounds. A half's sum is over fewer members than the cohort (`price` says how many);
that halves are tried in the first rounds alone is the coordinator's word, members take them in any.
Not covered: ranks, layers and epochs are as the file says; so are batches, but for members with few
examples, which make theirs smaller by themselves (`LEAST_STEPS`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...core.errors import MessageError
from ..spec.policy import Policy
from ..wire import messages

UNTUNED = (1.0,)  # what members are told where the recipe is fixed, and where nobody trains
UP = 1.25  # after a vote that rose
HIGHEST, LOWEST = 2.0, 2.0**-8  # of the file's learning rate
TRIALS, APART = 3, 2.0  # rounds of two rates, and how many times one is the other at first
PATIENCE = 2  # votes without a rise, one after the other, before the rate is halved
ENOUGH = 4  # votes without a rise, those on steps that were undone too, before the run ends
LEAST_STEPS = 10  # of a member's round: who has few examples trains in smaller batches


@dataclass(slots=True)
class Trend:
    """What a history says so far."""

    rate: float = 1.0
    cap: float = HIGHEST
    apart: float = APART  # the other rate of the next trial, times this one
    tried: int = 0  # trials of two rates
    vote: float = -1.0  # the best
    accuracy: float = 0.0  # of that one
    stale: int = 0  # votes without a rise since the rate was halved
    since: int = 0  # votes since the best

    def note(self, entry: dict[str, Any]) -> None:
        """Take one round that was voted on."""
        verdict, rates = entry["guard"], entry["rates"]
        if verdict["accuracy"] is None:  # too few could score it
            return
        rose, trials = self.rose(verdict), verdict.get("trials", ())
        self.since = 0 if rose else self.since + 1
        if not verdict["kept"]:
            self.lower(min(rates) / 2)
        elif len(rates) == 2:
            self.compare(rates, trials)
        elif rose:
            self.rate, self.stale = min(self.cap, self.rate * UP), 0
        elif (stale := self.stale + 1) < PATIENCE:
            self.stale = stale
        else:
            self.lower(self.rate / 2)

    def rose(self, verdict: dict[str, Any]) -> bool:
        """Is this the best so far?"""
        vote = verdict["accuracy"] + verdict.get("near", 0.0)
        better = bool(verdict["kept"]) and vote > self.vote
        if better:
            self.vote, self.accuracy = vote, verdict["accuracy"]
        return better

    def compare(self, rates: Sequence[float], votes: Sequence[float]) -> None:
        """Go on with the better of two; without both votes (one half was too small for a sum)
        nothing is known.
        """
        self.tried += 1
        if len(votes) != len(rates):
            return
        if votes[1] > votes[0]:
            self.rate = rates[1]
        else:  # look on the other side, and nearer
            self.apart **= -0.5

    def lower(self, rate: float) -> None:
        """Go on with less."""
        self.rate = self.cap = max(LOWEST, rate)
        self.stale = 0


def trend(history: Sequence[dict[str, Any]]) -> Trend:
    """Of a run's rounds; one that is not voted on yet says nothing."""
    found = Trend()
    for entry in history:
        if entry["kind"] == messages.TRAIN and "rates" in entry and "guard" in entry:
            found.note(entry)
    return found


def next_rates(
    history: Sequence[dict[str, Any]], *, halved: bool, again: bool = False
) -> tuple[float, ...]:
    """Of the file's learning rate, for the next round.

    Args:
        halved: the cohort is large enough for two.
        again: two that were undone: members sign for sums of the same halves alone, from the same
        adapter, so two are tried again.
    """
    found = trend(history)
    other = min(found.cap, found.rate * found.apart)
    if again:
        return found.rate, other if other != found.rate else max(LOWEST, found.rate / APART)
    if halved and found.tried < TRIALS and other != found.rate:
        return found.rate, other
    return (found.rate,)


def settled(history: Sequence[dict[str, Any]]) -> str:
    """Why no further round would help; empty if one may."""
    found = trend(history)
    if found.vote < 0 or found.since < ENOUGH:
        return ""
    return (
        f"the members' vote has not risen above {100 * found.accuracy:.1f} % for {found.since} "
        f"rounds, at rates down to {found.rate * 2:.3g} times the file's"
    )


def check_rates(policy: Policy, rates: tuple[float, ...], *, training: bool) -> None:
    """Require rates that rounds of this federation can choose.

    Raises:
        MessageError: others.
    """
    if rates == UNTUNED:
        return
    auto = policy.recipe.tuning == "auto" and training
    most = policy.trials if auto else 1
    if auto and 1 <= len(rates) <= most and all(LOWEST <= rate <= HIGHEST for rate in rates):
        return
    allowed = f"{LOWEST:.2g} to {HIGHEST:g}, {most} at most" if auto else "1"
    told = " and ".join(f"{rate:g}" for rate in rates[:3])
    raise MessageError(f"{told or 'no'} times the learning rate, expected {allowed}; refused")


def price(policy: Policy, size: int) -> str:
    """What it costs, for people. Args: size: values of the adapter."""
    whole = not policy.followed and policy.can.model_held_by == "server"
    told = f", {4 * size / 1e6:.2f} MB down for each member" if whole else ""
    halves = (
        f"; {TRIALS} of them, or as many as the coordinator likes, open two sums, each over "
        f"{policy.smallest_sum} members or more, instead of one, and vote on both and their mean"
        if policy.trials > 1
        else ""
    )
    noise = (
        '; votes are counters, which no epsilon covers (privacy.counters = "exact")'
        if policy.privacy.on
        else ""
    )
    return (
        f"the learning rate follows members' votes, {HIGHEST:g} times the file's at most: each of "
        f"up to {policy.recipe.rounds} rounds is voted on, a sum over at least {policy.needed()} "
        f"members more{told}{halves}; no further training{noise}"
    )
