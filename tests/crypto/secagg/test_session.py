"""The sparse graph's shape, and the computation of its size."""

from fractions import Fraction
from itertools import combinations
from math import comb, exp, log

import numpy as np
import pytest

from quietchoir.crypto.secagg.session import (
    FAILURE_BITS,
    GRINDING_BITS,
    SECURITY_BITS,
    Graph,
    log_tail,
    plan,
    shuffled,
)


def exact_tail(population: int, marked: int, drawn: int, at_least: int) -> Fraction:
    hits = range(max(0, at_least), min(marked, drawn) + 1)
    return Fraction(
        sum(comb(marked, hit) * comb(population - marked, drawn - hit) for hit in hits),
        comb(population, drawn),
    )


@pytest.mark.parametrize(
    ("population", "marked", "drawn"),
    [(10, 3, 4), (100, 10, 21), (1000, 100, 90), (9, 0, 4), (9, 9, 4)],
)
def test_the_tail_is_the_exact_hypergeometric_one(population: int, marked: int, drawn: int) -> None:
    for at_least in range(drawn + 2):
        exact = exact_tail(population, marked, drawn, at_least)
        found = log_tail(population, marked, drawn, at_least)
        assert (
            (exp(found) == 0)
            if exact == 0
            else found == pytest.approx(log(exact), rel=1e-8, abs=1e-8)
        )


@pytest.mark.parametrize(
    ("parties", "corrupt", "dropped"), [(100, 10, 10), (100, 10, 5), (1000, 100, 100)]
)
def test_the_plan_keeps_both_bounds_exactly_and_no_smaller_degree_does(
    parties: int, corrupt: int, dropped: int
) -> None:
    found = plan(parties, corrupt, dropped)
    assert found is not None

    def keeps(degree: int, threshold: int) -> bool:
        early = parties * exact_tail(parties, corrupt, degree // 2, threshold - degree // 2 - 1)
        stuck = parties * exact_tail(parties - 1, dropped, degree, degree + 2 - threshold)
        return early <= Fraction(1, 2 ** (SECURITY_BITS + GRINDING_BITS)) and stuck <= Fraction(
            1, 2**FAILURE_BITS
        )

    assert keeps(found.degree, found.threshold)
    smaller = found.degree - 2
    assert not any(keeps(smaller, threshold) for threshold in range(smaller // 2 + 2, smaller + 2))


def test_more_accomplices_or_drop_outs_need_more_neighbours() -> None:
    plans = [
        plan(300, corrupt, dropped) for corrupt, dropped in ((15, 15), (30, 15), (30, 30), (60, 30))
    ]
    degrees = [found.degree for found in plans if found]
    assert len(degrees) == len(plans)
    assert degrees == sorted(degrees) and degrees[0] < degrees[-1]


def test_a_cohort_with_too_many_accomplices_gets_the_complete_graph() -> None:
    assert plan(40, 19, 19) is None


@pytest.mark.parametrize(("parties", "degree"), [(40, 18), (41, 18), (100, 42), (9, 4)])
def test_every_party_has_the_same_number_of_mutual_neighbours(parties: int, degree: int) -> None:
    graph = Graph(range(parties), degree, b"s" * 32)
    for party in range(parties):
        near = graph.neighbours(party)
        assert (
            len(near) == len(set(near)) == degree
            and party not in near
            and list(near) == sorted(near)
        )
        assert all(party in graph.neighbours(other) for other in near)


def test_a_small_graph_is_complete() -> None:
    graph = Graph([2, 5, 7], 2, bytes(32))
    assert [graph.neighbours(party) for party in (2, 5, 7)] == [(5, 7), (2, 7), (2, 5)]


def test_the_shuffle_depends_on_every_bit_of_the_seed_and_not_on_the_order_given() -> None:
    one = shuffled(range(50), bytes(32))
    assert one == shuffled(list(reversed(range(50))), bytes(32)) and sorted(one) == list(range(50))
    assert all(shuffled(range(50), bytes(i) + b"\x01" + bytes(31 - i)) != one for i in range(32))


def test_places_in_the_shuffle_are_uniform() -> None:
    counts = np.zeros((8, 8))
    for seed in range(4000):
        for place, party in enumerate(shuffled(range(8), seed.to_bytes(32, "big"))):
            counts[place, party] += 1
    assert (np.abs(counts - 500) < 6 * 500**0.5).all()


def test_honest_survivors_fall_apart_only_where_half_the_degree_in_a_row_is_missing() -> None:
    """The window argument of `plan`, exhaustively: 11 parties, 4 neighbours each, every set of
    missing parties.
    """
    parties, degree = 11, 4
    graph = Graph(range(parties), degree, bytes(32))
    order = shuffled(range(parties), bytes(32))
    cut_found = False
    for size in range(parties - 1):
        for gone in combinations(range(parties), size):
            alive = set(range(parties)) - set(gone)
            reached, edge = set(), [min(alive)]
            while edge:
                party = edge.pop()
                if party not in reached:
                    reached.add(party)
                    edge += [near for near in graph.neighbours(party) if near in alive]
            windows = [
                {order[(place + step) % parties] for step in range(degree // 2)}
                for place in range(parties)
            ]
            if reached != alive:
                cut_found = True
                assert sum(window.isdisjoint(alive) for window in windows) >= 2
    assert cut_found
