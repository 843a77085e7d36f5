"""Who is asked, and who is summed with whom, follows from a public seed; members refuse anything
else.
"""

from itertools import pairwise

import pytest

from quietchoir.core.errors import MessageError, RoundAborted
from quietchoir.federation.aggregation.buckets import buckets
from quietchoir.federation.aggregation.survivor_sets import eligible
from quietchoir.federation.rounds.attempt import Draw, Outcome
from quietchoir.federation.rounds.scheduler import Synchronous, check, draw, ranking
from quietchoir.federation.spec.policy import AggregationTable
from quietchoir.federation.wire.messages import RoundId
from quietchoir.tests.fakes.federation import SilentLink, clients, coordinator, house

RUN = "0a" * 16
POLICY = house(8, recipe={"cohort": 4}).policy
EVERYBODY = [member.name for member in POLICY.members]


def place(round_: int, attempt: int = 1) -> RoundId:
    return RoundId(RUN, round_, attempt)


def test_the_ranking_changes_with_round_run_and_file_and_not_with_the_attempt() -> None:
    first = ranking(POLICY, place(1))
    assert sorted(first) == EVERYBODY
    assert first == ranking(POLICY, place(1, attempt=7))
    assert len({ranking(POLICY, place(number)) for number in range(1, 9)}) > 6
    assert first != ranking(POLICY, RoundId("0b" * 16, 1, 1))
    assert first != ranking(house(8).policy, place(1))


def test_everybody_is_drawn_about_equally_often() -> None:
    counts = dict.fromkeys(EVERYBODY, 0)
    for number in range(1, 401):
        for name in draw(POLICY, place(number), EVERYBODY).cohort:
            counts[name] += 1
    assert min(counts.values()) > 150 and sum(counts.values()) == 1600  # 200 expected, deviation 10


def test_the_absent_are_passed_over_in_order_and_named() -> None:
    order = ranking(POLICY, place(3))
    here = set(EVERYBODY) - {order[1], order[6]}
    found = draw(POLICY, place(3), here)
    assert found == Draw(tuple(sorted((order[0], order[2], order[3], order[4]))), (order[1],))
    with pytest.raises(RoundAborted, match="2 members are there, need 3"):
        draw(POLICY, place(3), EVERYBODY[:2])


def test_a_member_refuses_every_cohort_but_the_draws() -> None:
    order = ranking(POLICY, place(2))
    fair = draw(POLICY, place(2), EVERYBODY)
    me = order[0]
    check(POLICY, place(2), fair, me)
    wrong = [
        Draw(tuple(sorted((*order[:3], order[5]))), ()),  # somebody skipped without a word
        Draw(fair.cohort[:3], ()),  # too few
        Draw(tuple(sorted(order[:5])), ()),  # too many
        Draw(fair.cohort, (order[7],)),  # an absentee that changes nothing
        Draw(tuple(sorted(order[1:5])), (me,)),  # we are absent, and asked
        Draw(tuple(sorted((*order[:3], "zoe"))), (order[3],)),
        draw(POLICY, place(1), EVERYBODY),  # of another round
    ]
    for found in wrong:
        if found != fair:
            with pytest.raises(MessageError, match="refused"):
                check(POLICY, place(2), found, me)


def test_a_coordinator_that_picks_its_own_cohort_is_answered_by_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = house(8, recipe={"cohort": 3, "attempts": 1}, mode="masked")
    members = clients(home, 20)
    picked = [("ann", "ben", "cat")]
    monkeypatch.setattr(Synchronous, "draw", lambda self, place, *, everybody: Draw(picked[0], ()))
    run = coordinator(home, members, 20)
    with pytest.raises(RoundAborted, match="0 of 3 members are ready"):
        for _ in range(2):  # two draws of 56 being both this one has a chance of 1 in 3000
            run.insist(run.train_round)
    assert len(members["dan"].ledger.marks) == 0


def test_who_was_asked_in_vain_is_not_asked_again_in_that_round() -> None:
    home = house(8, recipe={"cohort": 3, "attempts": 8})
    members = clients(home, 20)
    deaf = ("ann", "ben", "cat")
    link = SilentLink(
        {name: client.handle for name, client in members.items()},
        lambda name, message: name in deaf,
    )
    run = coordinator(home, members, 20, link=link)
    for _ in range(4):
        run.insist(run.train_round)
    assert all(not set(entry["parties"]) & set(deaf) for entry in run.state.history)
    assert all(len(set(entry["asked"])) == 3 for entry in run.state.history)


@pytest.mark.parametrize(
    "ready, expected", [(7, [7]), (8, [4, 4]), (10, [5, 5]), (12, [4, 4, 4]), (14, [4, 5, 5])]
)
def test_buckets_hold_everybody_once_and_never_too_few(ready: int, expected: list[int]) -> None:
    policy = house(
        14, mode="masked", tables={"aggregation": AggregationTable(rule="median", buckets=5)}
    ).policy
    names = tuple(sorted(member.name for member in policy.members))[:ready]
    split = [buckets(policy, bytes([number]) * 32, names) for number in range(1, 7)]
    for one in split:
        assert sorted(len(bucket) for bucket in one) == expected
        assert sorted(name for bucket in one for name in bucket) == list(names)
    if len(expected) > 1:
        assert any(before != after for before, after in pairwise(split))


@pytest.mark.parametrize("size, asked", [(12, 6), (9, 6), (30, 14)])
def test_sums_from_one_adapter_that_came_to_nothing_do_not_stop_a_drawn_cohort(
    size: int, asked: int
) -> None:
    home = house(size, mode="masked", bits=12, recipe={"cohort": asked, "attempts": 3})
    run = coordinator(home, clients(home, 8), 8)
    sums = list[frozenset[str]]()

    def lost() -> Outcome:
        return run.attempt.aggregate(run.scheduler.next_group(evaluate=False))

    for _ in range(4):  # each is lost: its sum is not applied
        sums.append(frozenset(run.insist(lost).parties))
        run.logbook.skip()
    # nobody is in two different sums, and nothing waits for anybody who is not away
    assert all(one == other or not one & other for one in sums for other in sums)
    assert len(run.aborted) <= 1 and run.attempt.missing == frozenset()


def test_whom_no_sum_holds_is_asked_first_then_one_sum_as_it_was_then_whoever_is_there() -> None:
    old = frozenset(EVERYBODY[:4])
    assert eligible(POLICY.needed(), EVERYBODY, old, [old]) == frozenset(EVERYBODY[4:])
    assert eligible(POLICY.needed(), EVERYBODY[:6], old, [old]) == old
    assert eligible(POLICY.needed(), EVERYBODY[1:6], old, [old]) == frozenset(EVERYBODY[1:6])
    assert eligible(POLICY.needed(), EVERYBODY, (), ()) == frozenset(EVERYBODY)
    # several sums of one round, none of which is enough: all that were in them
    halves, both = [frozenset(EVERYBODY[:2]), frozenset(EVERYBODY[2:5])], EVERYBODY[:5]
    assert eligible(4, EVERYBODY[:7], both, halves) == frozenset(both)
    assert eligible(4, EVERYBODY[1:7], both, halves) == frozenset(EVERYBODY[1:7])
