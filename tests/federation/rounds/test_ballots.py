"""Open ballots: two of ten that lie cannot keep what hurts the others, nor undo what helps them;
who was in the bad buckets is told; a member casts none that its owner did not consent to.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest

from quietchoir.core.config import ConsentConfig
from quietchoir.core.errors import ConfigError
from quietchoir.federation.aggregation.buckets import buckets
from quietchoir.federation.aggregation.registry import check_freezable
from quietchoir.federation.aggregation.server_optimizer import adapter_digest
from quietchoir.federation.aggregation.update import Statistics
from quietchoir.federation.events import BallotsEvent, SuspectEvent
from quietchoir.federation.membership.consent import check_consent
from quietchoir.federation.rounds.attempt import Answers
from quietchoir.federation.rounds.validation import (
    BALLOT_UNIT,
    MOST,
    Ballots,
    Verdict,
    count,
    judge,
    levels,
    middle_of,
    suspects,
)
from quietchoir.federation.spec.policy import AggregationTable, GuardTable, ScheduleTable
from quietchoir.federation.training.learner import Counts, Trained
from quietchoir.federation.wire import messages
from quietchoir.federation.wire.messages import Ready, Reply, RoundId
from quietchoir.simulations.poisoner import Poisoner, lie_in_ballots
from quietchoir.tests.fakes.federation import FixedLearner, clients, coordinator, house

SIZE = 60
BUCKETS = AggregationTable(rule="median", buckets=3)
SUMS: dict[str, Any] = {"guard": GuardTable(rule="choose"), "aggregation": BUCKETS}
OPEN: dict[str, Any] = {"guard": GuardTable(rule="choose", ballots="open"), "aggregation": BUCKETS}
VERDICT = Verdict(accuracy=0.5, scored=4, best=None, kept=False, reason="by sums")


class Climbing(FixedLearner):
    """Trains upwards; an adapter is as good as it is high, from a half at zeros."""

    def train(self, flat: np.ndarray, seed: int) -> Trained:
        self.trained.append(flat.copy())
        return Trained(flat=flat + np.float32(0.05), examples=5, tokens=100, loss=2.0)

    def evaluate(self, flat: np.ndarray) -> Counts:
        return Counts(int(np.clip(round(50 + 100 * float(flat.mean())), 0, 100)), 100)


class Falling(Climbing):
    """Trains downwards: whatever is made of it is worse."""

    def train(self, flat: np.ndarray, seed: int) -> Trained:
        return Trained(flat=flat - np.float32(0.3), examples=5, tokens=100, loss=2.0)


def liar() -> Poisoner:
    """Flips its change, ten times as long, and lies in every vote."""
    return Poisoner("flip", Climbing(), Climbing(), boost=1.0, lies=True)


def ended(
    tables: dict[str, Any], liars: int = 0, *, mode: str = "plain", rounds: int = 2
) -> tuple[float, Any, Any]:
    """How high the adapter of a run is; its report, and its events. Args: liars: each in another
    bucket of the first round.
    """
    recipe = {"rounds": rounds, "update_range": 2.0}
    home, events = house(12, mode=mode, recipe=recipe, tables=tables), list[Any]()
    split = buckets(home.policy, adapter_digest(np.zeros(SIZE, np.float32)), list(home.members))
    bad = {group[0] for group in split[:liars]}
    parties = clients(home, SIZE, lambda name: liar() if name in bad else Climbing())
    for party in parties.values():
        lie_in_ballots(party)
    run = coordinator(home, parties, SIZE, on_event=events.append)
    report = run.run()
    assert not liars or report.history[0]["split"] == [list(group) for group in split]
    return float(run.state.server.flat.mean()), report, events


@pytest.mark.parametrize("mode", ["plain", "masked"])
def test_two_liars_in_two_of_three_buckets_do_not_keep_an_adapter_that_hurts_the_others(
    mode: str,
) -> None:
    height, report, _ = ended(OPEN, 2, mode=mode)
    trained = [entry for entry in report.history if entry["kind"] == messages.TRAIN]
    assert [entry["guard"]["kept"] for entry in trained] == [True, True]
    assert height > 0.09  # two steps of honest members' length
    assert trained[0]["guard"]["reason"] == "kept: the change of bucket 3 alone"


def test_in_sums_two_liars_in_two_of_three_buckets_decide() -> None:
    hated = [Statistics(scored=4, score=100), Statistics(scored=4, score=100), Statistics(scored=4)]
    liked = [Statistics(scored=4, score=120), Statistics(scored=4, score=120)]
    liked.append(Statistics(scored=4, score=160))  # 40 % at each honest member, none at liars
    bad, good = (judge(SUMS["guard"], [(one, 4) for one in votes], 0.3) for votes in (hated, liked))
    assert bad.accuracy == 0.25 and good.accuracy == 0.3
    farther = [Statistics(scored=4, score=300)] * 2 + [Statistics(scored=4)]  # no bound but this
    assert judge(SUMS["guard"], [(one, 4) for one in farther], 0.3).kept
    policy = house(12, tables=OPEN).policy
    names = [f"p{at}" for at in range(12)]
    lies = dict.fromkeys(names[:2], MOST) | dict.fromkeys(names[2:], -10)
    assert not count(policy, VERDICT, lies, []).kept
    assert count(policy, VERDICT, {name: -vote for name, vote in lies.items()}, []).kept


def test_ballots_are_read_by_the_coordinator_alone_and_its_price_is_told() -> None:
    _, report, events = ended(OPEN)
    [price] = [event.price for event in events if isinstance(event, BallotsEvent)]
    assert "up to 4 a round" in price and "may lie, of 12 members 3" in price
    verdict = report.history[0]["guard"]
    assert verdict["ballots"] == 12 and verdict["rise"] == pytest.approx(0.04, abs=0.03)
    assert report.suspects == [] and not any(isinstance(one, SuspectEvent) for one in events)
    _, closed, _ = ended(SUMS, rounds=1)
    assert closed.history[0]["guard"]["rise"] is None and closed.history[0]["guard"]["ballots"] == 0


def test_a_quarter_of_the_ballots_moves_the_middle_no_farther_than_the_others_lie() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        honest = rng.integers(-MOST, MOST + 1, 8).tolist()
        lies = rng.choice([-MOST, MOST], 2).tolist()
        middle = BALLOT_UNIT * middle_of([*honest, *lies])
        assert min(honest) <= middle <= max(honest)
    assert middle_of([1] * 8 + [MOST] * 2) == middle_of([1] * 8 + [-MOST] * 2) == 1 / BALLOT_UNIT
    assert middle_of([1] * 6 + [MOST] * 4) > 1 / BALLOT_UNIT  # four are more than a quarter


def test_small_losses_add_up_and_what_lies_beyond_the_bounds_is_no_ballot() -> None:
    policy = house(4, tables={"guard": GuardTable(rule="vote", ballots="open", margin=0.05)}).policy
    history: list[dict[str, Any]] = []
    for kept in (True, True, False):  # 2 % lower each: the third passes the margin
        verdict = count(policy, VERDICT, dict.fromkeys("abcd", -1), history)
        assert verdict.kept == kept and verdict.rise == -0.02
        history.append({"guard": dataclasses.asdict(verdict)})
    assert levels(history) == (-0.04, 0.0)
    loud = count(policy, VERDICT, {"a": 10**6, "b": 3, "c": 3, "d": 3}, [])
    assert loud.kept and (loud.ballots, loud.rise) == (3, 0.06)
    few = count(policy, VERDICT, {"a": 1, "b": 2}, [])
    assert not few.kept and "2 ballots, need 3" in few.reason and few.rank == -1.0


def test_a_member_casts_a_ballot_only_between_two_adapters_that_it_scored() -> None:
    own, first = Ballots(most=4), ("run", 1)
    own.note(b"new", Counts(9, 10))
    assert own.cast(b"new", first) == ()
    assert not own.starts(b"old", first)  # it does not know what it began from
    own.note(b"old", Counts(5, 10, near=0.25))
    assert own.starts(b"old", first) and own.cast(b"new", first) == (round(BALLOT_UNIT * 0.15),)
    own.note(b"perfect", Counts(10, 10, near=1.0))
    own.note(b"nothing", Counts(0, 0))
    assert own.cast(b"perfect", first) == (MOST,) and own.cast(b"nothing", first) == ()
    for number in range(100):
        own.note(bytes([number]), Counts(1, 2))
    assert len(own.scores) < 70 and own.cast(bytes([99]), first) == ()  # the parent is forgotten


def test_a_member_casts_no_ballot_in_a_round_that_it_did_not_train_for_nor_more_than_is_told() -> (
    None
):
    own = Ballots(most=2)
    for name in (b"old", b"a", b"b", b"c"):
        own.note(name, Counts(1, 2))
    own.starts(b"old", ("run", 1))
    # the same adapter again, after a lost attempt, is one; a third one is not answered
    assert [own.cast(name, ("run", 1)) for name in (b"a", b"b", b"a", b"c")] == [(0,)] * 3 + [()]
    assert own.cast(b"a", ("run", 2)) == own.cast(b"a", ("other", 1)) == ()
    own.starts(b"old", ("run", 2))
    assert own.cast(b"c", ("run", 2)) == (0,)


@pytest.mark.parametrize("mode", ["plain", "masked"])
def test_of_a_drawn_cohort_only_who_trained_votes_so_all_compare_with_the_same_adapter(
    mode: str,
) -> None:
    """Adapters rise in each round: who compared with an older one would tell a larger rise."""
    guard = {"guard": GuardTable(rule="vote", ballots="open")}
    recipe = {"rounds": 4, "cohort": 4, "update_range": 2.0, "server_optimizer": "fedavg"}
    home = house(12, mode=mode, recipe=recipe, tables=guard)
    parties = clients(home, SIZE, lambda name: Climbing())
    report = coordinator(home, parties, SIZE).run()
    trained = [entry for entry in report.history if entry["kind"] == messages.TRAIN]
    assert len({name for entry in trained for name in entry["parties"]}) > 4  # stale ones are there
    for entry in trained:
        assert entry["guard"]["ballots"] == len(entry["parties"])
        assert entry["guard"]["rise"] == pytest.approx(0.05, abs=0.011)


@pytest.mark.parametrize("ballots, taken", [((3,), {"ann": 3}), ((), {}), ((3, 4), {})])
def test_a_reply_holds_one_ballot_or_none_and_none_where_nobody_votes_openly(
    ballots: tuple[int, ...], taken: dict[str, int]
) -> None:
    payload = messages.encode_ready(Ready(scores=True, ballot=ballots))
    reply = Reply(
        round_id=RoundId("0a" * 16, 1, 1), stage="score", sender="ann", task="", payload=payload
    )
    answers = Answers()
    assert answers.take(reply, house(12, tables=OPEN).policy) and answers.ballots == taken
    assert answers.only(("ann",)).ballots == taken
    closed = Answers()
    assert closed.take(reply, house(12, tables=SUMS).policy) and closed.ballots == {}


def test_a_node_whose_owner_did_not_allow_open_ballots_stays_out() -> None:
    policy = house(12, mode="masked", tables=OPEN).policy
    with pytest.raises(ConfigError, match=r"consent\.open_ballots = true allows that; stay out"):
        check_consent(policy, ConsentConfig())
    check_consent(policy, ConsentConfig(open_ballots=True))
    check_consent(house(12, mode="masked", tables=SUMS).policy, ConsentConfig())


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"mode": "sealed"}, "in sealed mode the coordinator learns nothing"),
        ({"tables": {"schedule": ScheduleTable(rounds="buffered")}}, "synchronous"),
        ({"recipe": {"tuning": "auto"}}, 'recipe.tuning = "fixed"'),
    ],
)
def test_open_ballots_are_refused_where_they_could_not_be_counted(
    changes: dict[str, Any], words: str
) -> None:
    tables = {"guard": OPEN["guard"], **changes.pop("tables", {})}
    with pytest.raises(ValueError, match=words):
        house(12, tables=tables, **changes)
    with pytest.raises(ValueError, match='needs rule = "vote" or "choose"'):
        GuardTable(ballots="open")
    with pytest.raises(ConfigError, match="a member's process ends with each message"):
        check_freezable(house(12, tables=OPEN).policy)


def rounds(split: list[list[str]], ranks: list[float]) -> dict[str, Any]:
    return {"split": split, "guard": {"trials": ranks, "kept": True}}


def dealt(rng: np.random.Generator, bad: set[str]) -> dict[str, Any]:
    """A round of twenty members in five buckets; those that `bad` are in are voted down."""
    order = rng.permutation(20)
    split = [[f"p{at:02}" for at in order[start::5]] for start in range(5)]
    return rounds(split, [-0.2 if bad & set(group) else 0.02 for group in split])


def test_who_is_in_the_bad_buckets_again_and_again_is_suspected_and_nobody_else() -> None:
    rng, bad = np.random.default_rng(3), {"p04", "p11"}
    always = [dealt(rng, bad) for _ in range(16)]
    assert {one.member for one in suspects(always, 0.05)} == bad
    assert all(one.blamed == one.rounds == 16 for one in suspects(always, 0.05))
    # who attacks in every other round is blamed as often as it attacks
    turns = [dealt(rng, bad if at % 2 else set()) for at in range(32)]
    assert {one.member for one in suspects(turns, 0.05)} == bad
    assert suspects(always[:2], 0.05) == []  # two rounds are chance
    alike = [rounds([["a"], ["b"]], [0.3, 0.29])] * 50
    unknown = [rounds([["a"], ["b"]], [0.3, -1.0])] * 50  # too few could score it
    assert suspects([*alike, *unknown, {"guard": None}], 0.05) == []


def test_buckets_that_an_undone_round_repeats_are_one_deal_and_blame_nobody_twice() -> None:
    rng = np.random.default_rng(4)
    once = dealt(rng, {"p04", "p11"})
    lost = {**once, "guard": {**once["guard"], "kept": False}}
    assert suspects([lost] * 16, 0.05) == []
    fresh = [dealt(rng, {"p04", "p11"}) for _ in range(16)]
    undone = [{**one, "guard": {**one["guard"], "kept": False}} for one in fresh]
    twice = [one for both in zip(undone, fresh, strict=True) for one in both]
    assert suspects(twice, 0.05) == suspects(fresh, 0.05) != []


def test_two_that_attack_only_beside_a_third_have_it_named_as_the_hazard_says() -> None:
    rng, history = np.random.default_rng(3), []
    for _ in range(40):
        one = dealt(rng, set())
        for at, group in enumerate(one["split"]):
            if "p07" in group and {"p04", "p11"} & set(group):
                one["guard"]["trials"][at] = -0.2
        history.append(one)
    assert [one.member for one in suspects(history, 0.05)] == ["p07"]


def test_after_an_undone_plain_round_everybody_is_asked_again_not_one_bucket() -> None:
    home = house(12, recipe={"rounds": 3, "update_range": 2.0}, tables=OPEN)
    parties = clients(home, SIZE, lambda name: Falling())
    report = coordinator(home, parties, SIZE).run()
    trained = [entry for entry in report.history if entry["kind"] == messages.TRAIN]
    assert [entry["guard"]["kept"] for entry in trained] == [False] * 3
    assert [(len(entry["parties"]), entry["buckets"]) for entry in trained] == [(12, 3)] * 3


def test_by_chance_hardly_anybody_is_suspected() -> None:
    rng = np.random.default_rng(8)
    wrong = 0
    for _ in range(100):  # a bucket of five is voted down for no reason, in twenty rounds
        history = []
        for _ in range(20):
            one = dealt(rng, set())
            one["guard"]["trials"][int(rng.integers(5))] = -0.2
            history.append(one)
        wrong += bool(suspects(history, 0.05))
    assert wrong <= 5  # 1 of 100 is expected at most
