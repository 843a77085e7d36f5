"""Who masks with whom, and how many shares open a secret.

Knows numbers and hypergeometric tails. Knows nothing of keys or messages.
Always: complete up to 32 parties; above that every party has the same even number of neighbours on
a shuffled circle, and the numbers come from a failure bound that is computed, not guessed.

The shuffle's seed is a hash of everybody's signed round keys and the session, so the coordinator
does not choose it. It can try subsets of the parties, and its accomplices can try keys: each try is
a lottery ticket, and `GRINDING_BITS` of them are paid for in the security bound.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import exp, inf, lgamma, log

COMPLETE_UP_TO = 32
SECURITY_BITS = 40  # one attempt in 2**40 may give a bad graph by chance ...
GRINDING_BITS = 48  # ... even if the coordinator could try 2**48 graphs during the attempt
# one attempt in 2**20 may have a party whose secrets cannot be rebuilt: it is retried, nothing
# leaks
FAILURE_BITS = 20


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of one graph."""

    degree: int  # neighbours of each party
    threshold: int  # shares, of degree + 1 (a party keeps one of its own), that rebuild a secret


class Graph:
    """Neighbours on a circle in shuffled order: the `degree / 2` nearest on each side, or
    everybody.
    """

    def __init__(self, present: Sequence[int], degree: int, seed: bytes) -> None:
        """Args: present: numbers of the parties; degree: even, or len(present) - 1; seed: 32
        bytes nobody chose.
        """
        self.degree = degree
        self._order = shuffled(present, seed)
        self._places = {party: place for place, party in enumerate(self._order)}

    def neighbours(self, party: int) -> tuple[int, ...]:
        """The parties that mask with `party` and hold its shares, in ascending order."""
        place, reach = self._places[party], self.degree // 2
        circle = self._order[place + 1 :] + self._order[:place]  # everybody else, going round once
        return tuple(
            sorted(circle if self.degree >= len(circle) else circle[:reach] + circle[-reach:])
        )


def shuffled(present: Sequence[int], seed: bytes) -> list[int]:
    """The parties ordered by SHA-256(seed, number): a permutation that is uniform if the hash is
    a random function.
    """
    return sorted(
        present, key=lambda number: hashlib.sha256(seed + number.to_bytes(4, "big")).digest()
    )


@lru_cache(maxsize=256)
def plan(parties: int, corrupt: int, dropped: int) -> Plan | None:
    """The smallest degree k, with its share threshold t, that keeps both bounds; None if only the
    complete graph does.

    *Nothing opens too early.* Let h = k/2. The coordinator sees the graph and then chooses who
    drops. To open a part of the sum alone it must cut the circle between two groups of honest
    survivors. At a cut, h places in a row hold no honest survivor, so the survivor beside it has at
    most h + 1 honest shares of its self-mask left (itself and its other side), and t of them need
    at least t - h - 1 corrupt parties within those h places. The same condition, for both sides of
    a party, keeps corrupt neighbours from opening its secrets alone. Hence, over n windows,

        n * P[Hypergeometric(n, corrupt, h) >= t - h - 1] <= 2^-(SECURITY_BITS + GRINDING_BITS).

    *Everything opens in the end.* A party whose neighbours drop too much cannot be unmasked:

        n * P[Hypergeometric(n - 1, dropped, k) >= k + 2 - t] <= 2^-FAILURE_BITS.

    Args:
        parties: that sent keys.
        corrupt: of them that may collude with the coordinator.
        dropped: of them that may drop out.

    Source: after Bell et al. 2020 (SecAgg+), section 3; the window argument is ours, because there
    dropping out is chance.
    """
    # shares that may be missing; it only grows with the degree, since more draws hit more dropped
    # parties
    slack = 1
    for degree in range(4, parties - 1, 2):
        half = degree // 2
        while log(parties) + log_tail(parties - 1, dropped, degree, slack) > -FAILURE_BITS * log(2):
            slack += 1
        # the highest that opens in the end; it makes the other bound easiest
        threshold = degree + 2 - slack
        if threshold < half + 2:
            continue
        if log(parties) + log_tail(parties, corrupt, half, threshold - half - 1) <= -(
            SECURITY_BITS + GRINDING_BITS
        ) * log(2):
            return Plan(degree, threshold)
    return None


def log_tail(population: int, marked: int, drawn: int, at_least: int) -> float:
    """Natural logarithm of P[X >= at_least] for X hypergeometric: `drawn` out of `population`,
    of which `marked` count.
    """
    if at_least <= max(0, drawn - (population - marked)):
        return 0.0
    if at_least > min(marked, drawn):
        return -inf
    whole = log_choose(population, drawn)
    terms = [
        log_choose(marked, hit) + log_choose(population - marked, drawn - hit) - whole
        for hit in range(at_least, min(marked, drawn) + 1)
    ]
    top = max(terms)
    return min(0.0, top + log(sum(exp(term - top) for term in terms)))


def log_choose(n: int, k: int) -> float:
    """Natural logarithm of the binomial coefficient; -inf where it is zero."""
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) if 0 <= k <= n else -inf
