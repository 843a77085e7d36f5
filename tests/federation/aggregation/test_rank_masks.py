"""Members of different ranks: who trains what, what a sum is divided by, and no column over
fewer than the minimum.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from quietchoir.core.errors import ConfigError, MessageError, RoundAborted
from quietchoir.crypto.secagg import SecAggServer
from quietchoir.federation.aggregation.base import Contributors
from quietchoir.federation.aggregation.buckets import buckets
from quietchoir.federation.aggregation.delta_chain import origin_of
from quietchoir.federation.aggregation.rank_masks import RankMasks, rank_masks_of
from quietchoir.federation.aggregation.secagg import BucketGroup, agree
from quietchoir.federation.aggregation.update import noise_of
from quietchoir.federation.spec.policy import (
    AdapterTable,
    AggregationTable,
    Policy,
    PrivacyTable,
    check_limit,
    ranks_sentence,
    reached,
)
from quietchoir.federation.wire import messages
from quietchoir.federation.wire.messages import RoundId
from quietchoir.simulations.run import simulate
from quietchoir.simulations.scenario import load
from quietchoir.tests.fakes.federation import (
    FixedLearner,
    House,
    SilentLink,
    clients,
    coordinator,
    house,
)

RANK = 8
SIZE = 30 * RANK
STEP = 0.2 / (2**11 - 1)  # of one member's rounding: update_range over the middle of 12 bits


def mixed(ranks: Mapping[str, int], **options: Any) -> House:
    """A federation of rank 8 whose members train so many columns; min_cohort 3 unless said
    otherwise.
    """
    tables = {"adapter": AdapterTable(rank=RANK), **options.pop("tables", {})}
    home = house(
        len(ranks), tables=tables, **{"mode": "masked", "recipe": {"rounds": 1}, **options}
    )
    members = tuple(dataclasses.replace(one, rank=ranks[one.name]) for one in home.policy.members)
    return dataclasses.replace(home, policy=dataclasses.replace(home.policy, members=members))


BIG = dict.fromkeys(("ann", "ben", "cat"), 0)  # the whole adapter
SMALL = {"dan": 3, "eve": 3}


def columns_of(flat: np.ndarray) -> np.ndarray:
    """Mean of each column [rank]."""
    means: np.ndarray = flat.reshape(-1, RANK).mean(axis=0)
    return means


def stage_of(message: bytes) -> str:
    fields, _ = messages.split(message)
    return str(fields["stage"])


@pytest.mark.parametrize("mode", ["plain", "masked"])
def test_every_column_moves_by_the_mean_of_those_who_train_it(mode: str) -> None:
    home = mixed({**BIG, **SMALL}, mode=mode)
    steps = dict(zip(home.members, (0.03, 0.06, 0.09, 0.12, 0.15), strict=True))
    run = coordinator(home, clients(home, SIZE, lambda name: FixedLearner(steps[name])), SIZE)
    run.train_round()
    found = columns_of(run.state.server.flat)
    assert np.abs(found[:3] - 0.09).max() < STEP and np.abs(found[3:] - 0.06).max() < STEP
    # Divided by everybody, as zero-padding does, the upper columns would have moved by two fifths
    # less:
    assert np.abs(found[3:] - 0.18 / 5).min() > 0.02


def test_columns_that_too_few_train_are_trained_by_nobody() -> None:
    home = mixed({"ann": 0, "ben": 6, "cat": 3, "dan": 3, "eve": 3})
    run = coordinator(home, clients(home, SIZE), SIZE)
    run.train_round()
    found = run.state.server.flat.reshape(-1, RANK)
    assert not found[:, 3:].any() and np.abs(found[:, :3] - 0.1).max() < 3 * STEP
    assert run.state.history[-1]["columns"] == {"3": 5}


@pytest.mark.parametrize("closed", [False, True])
def test_the_lone_large_members_columns_are_read_from_the_sum_unless_the_floor_is_kept(
    closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack needs no malice: a mean over everybody's columns has one member's in clear
    where it trains alone.
    """
    home = mixed({"ann": 0, "ben": 3, "cat": 3, "dan": 3})
    secret = np.random.default_rng(5).normal(0, 0.05, SIZE).astype(np.float32)

    class Secretive(FixedLearner):
        def train(self, flat: np.ndarray, seed: int) -> Any:
            return dataclasses.replace(super().train(flat, seed), flat=flat + secret)

    if not closed:  # each trains what its line says, and nobody watches the columns

        def careless(policy: Policy, cohort: Any, attempt: int) -> RankMasks:
            return RankMasks(RANK, tuple((one.name, one.rank or RANK) for one in policy.members), 1)

        for module in (
            "rounds.client",
            "rounds.scheduler",
            "aggregation.delta_chain",
            "aggregation.update",
        ):
            monkeypatch.setattr(f"quietchoir.federation.{module}.rank_masks_of", careless)
    run = coordinator(
        home,
        clients(home, SIZE, lambda name: Secretive() if name == "ann" else FixedLearner()),
        SIZE,
    )
    run.train_round()
    seen = run.state.server.flat.reshape(-1, RANK)[:, 3:]
    error = np.abs(seen - secret.reshape(-1, RANK)[:, 3:]).max()
    assert not seen.any() if closed else error < 2 * STEP


def test_a_sum_that_lost_a_large_member_stays_shut_and_the_next_attempt_has_fewer_columns() -> None:
    home = mixed({**BIG, **SMALL}, threshold=3, recipe={"rounds": 1, "attempts": 2})
    members = clients(home, SIZE)
    link = SilentLink(
        {name: client.handle for name, client in members.items()},
        lambda name, message: name == "ann" and stage_of(message) == "mask",
    )
    run = coordinator(home, members, SIZE, link=link)
    report = run.run(rounds=1)
    assert (
        "2 of the 3 members that fill one part of the vector survived, need 3"
    ) in report.aborted[0]
    assert report.history[0]["parties"] == ["ben", "cat", "dan", "eve"]
    flat = run.state.server.flat.reshape(-1, RANK)
    assert not flat[:, 3:].any() and np.abs(flat[:, :3] - 0.1).max() < 3 * STEP


def test_members_refuse_survivors_without_enough_of_a_column_whatever_the_coordinator_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A coordinator that keeps no floor itself, and calls one of the three large members dead."""
    home = mixed({**BIG, **SMALL}, threshold=3, recipe={"rounds": 1, "attempts": 1})
    monkeypatch.setattr(SecAggServer, "_enough", lambda self, found, what: None)
    members = clients(home, SIZE)
    link = SilentLink(
        {name: client.handle for name, client in members.items()},
        lambda name, message: name == "ann" and stage_of(message) == "mask",
    )
    with pytest.raises(RoundAborted, match="0 members signed the survivors"):
        coordinator(home, members, SIZE, link=link).run(rounds=1)
    for client in members.values():
        assert client.ledger.sums.snapshot().count(b'"opened": []') == 1  # no share left anybody


def test_too_few_ready_large_members_are_told_before_anything_is_masked() -> None:
    home = mixed({**BIG, **SMALL}, recipe={"rounds": 1, "attempts": 1})
    members = clients(home, SIZE)
    link = SilentLink(
        {name: client.handle for name, client in members.items()},
        lambda name, message: name == "cat" and stage_of(message) == "train",
    )
    with pytest.raises(
        RoundAborted, match="2 of the 3 members that train 8 columns are in it, need 3"
    ):
        coordinator(home, members, SIZE, link=link).run(rounds=1)
    assert not any(stage_of(message) == "advertise" for _, message in link.letters)


def test_every_bucket_has_enough_members_of_the_largest_rank() -> None:
    ranks = {name: 0 if number < 8 else 2 for number, name in enumerate(house(12).members)}
    home = mixed(ranks, tables={"aggregation": AggregationTable(rule="median", buckets=3)})
    names, adapter = tuple(sorted(ranks)), bytes(32)
    shares = rank_masks_of(home.policy, names, 1)
    assert shares is not None
    found = buckets(home.policy, adapter, names, shares)
    assert len(found) == 2 and len(buckets(home.policy, adapter, names)) == 3
    assert all(len(shares.full_rank.intersection(bucket)) == 4 for bucket in found)
    assert sorted(name for bucket in found for name in bucket) == list(names)
    assert all(not shares.short(bucket) for bucket in found)


def test_noise_reaches_every_coordinate_also_of_a_member_that_trains_few() -> None:
    """The claim is over the whole vector: whoever contributes adds its share everywhere,
    whatever it trains.
    """
    private = PrivacyTable(
        mechanism="skellam", clip=1.0, noise_multiplier=2.0, epsilon=500.0, counters="exact"
    )
    home = mixed({**BIG, "dan": 2, "eve": 2}, bits=16, tables={"privacy": private})
    members = clients(home, SIZE, lambda name: FixedLearner(0.0))
    run = coordinator(home, members, SIZE)
    run.train_round()
    spread = run.state.server.flat.reshape(-1, RANK).std(axis=0)
    drawn = noise_of(home.policy, SIZE)
    assert drawn is not None
    # five noises, divided by 5 or 3
    low, high = (drawn.deviation / drawn.scale * np.sqrt(5) / count for count in (5, 3))
    assert np.abs(spread[:2] / low - 1).max() < 0.5 and np.abs(spread[2:] / high - 1).max() < 0.5
    assert members["dan"].accountant.step == members["ann"].accountant.step


def test_who_trains_what_follows_from_the_file_the_cohort_and_the_attempt() -> None:
    home = mixed({"ann": 0, "ben": 6, "cat": 6, "dan": 3, "eve": 3})
    everybody = tuple(home.members)
    by_attempt = [rank_masks_of(home.policy, everybody, attempt) for attempt in (1, 2, 3, 9)]
    assert [dict(one.columns) if one else {} for one in by_attempt] == [
        {"ann": 6, "ben": 6, "cat": 6, "dan": 3, "eve": 3}, *[dict.fromkeys(everybody, 3)] * 3,
    ]  # fmt: skip
    shares = by_attempt[0]
    assert (
        shares is not None and shares.full_rank == {"ann", "ben", "cat"} and shares.of("dan") == 3
    )
    assert shares.behind(("ann", "dan")).tolist() == [2, 2, 2, 1, 1, 1, 0, 0]
    sums = np.ones(2 * RANK)
    assert (
        shares.mean(sums, ("ann", "dan")).tolist()
        == [0.5] * 3 + [1.0] * 3 + [0.0] * 2 + [0.5] * 3 + [1.0] * 3 + [0.0] * 2
    )
    assert rank_masks_of(house(5).policy, everybody, 1) is None
    assert reached([8, 6, 3], 5) == 3
    with pytest.raises(ConfigError, match="a floor of 3 among 2"):
        group = BucketGroup.of(
            ("ann", "ben", "dan", "eve"), 5, Contributors(("ann", "ben", "dan", "eve"))
        )
        agree(
            home.policy,
            RoundId("0c" * 16, 1, 1),
            group,
            SIZE,
            counted=True,
            context=b"",
            shares=shares,
        )


@pytest.mark.parametrize("mode", ["plain", "masked"])
def test_what_a_member_sends_in_columns_that_nobody_trains_is_dropped(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = mixed(dict.fromkeys(("ann", "ben", "cat", "dan"), 3), mode=mode)
    # members that break the rule
    monkeypatch.setattr(RankMasks, "trained", lambda self, name, size: np.ones(size, bool))
    run = coordinator(home, clients(home, SIZE), SIZE)
    run.train_round()
    assert not run.state.server.flat.reshape(-1, RANK)[:, 3:].any()


def test_a_file_whose_ranks_cannot_be_kept_is_refused_and_the_owner_of_a_node_has_a_say() -> None:
    for rank in (-1, RANK + 1):
        with pytest.raises(ValueError, match=f"ann trains rank {rank}"):
            mixed({"ann": rank, "ben": 0, "cat": 0})
    with pytest.raises(ValueError, match="min_tokens = 0"):
        mixed({**BIG, **SMALL}, min_tokens=5)
    policy = mixed({**BIG, **SMALL}).policy
    check_limit(policy, "dan", 3)
    check_limit(policy, "ann", 0)
    with pytest.raises(
        ConfigError,
        match=r"asks rank 8 of ann, but training.max_rank allows "
        r"4.*--member-rank ann=4",
    ):
        check_limit(policy, "ann", 4)
    assert ranks_sentence(policy) == (
        "3 of rank 8, 2 of rank 3; all send the whole vector; a column's sum is over at least 3 "
        "that train it"
    )
    assert ("columns above 3 are trained by fewer than 3") in str(
        ranks_sentence(mixed({"ann": 0, "ben": 3, "cat": 3}).policy)
    )
    assert ranks_sentence(house(3).policy) is None


def test_a_letter_about_another_cohort_is_refused_so_nobody_trains_alone() -> None:
    """Who is asked decides who trains what; the draw decides who is asked."""
    home = mixed({**BIG, **SMALL})
    members, round_id = clients(home, SIZE), RoundId("0c" * 16, 1, 1)
    origin = origin_of(SIZE)
    order = messages.Work(
        flat=np.zeros(SIZE, np.float32), state=origin, cohort=("ann", "dan", "eve"), absent=("ben",)
    )
    task = messages.Task(
        round_id=round_id,
        stage=messages.TRAIN,
        recipient="ann",
        payload=messages.encode_delta_work(order, bytes.fromhex(origin)),
    )
    with pytest.raises(MessageError, match="not the draw"):
        members["ann"].handle(messages.encode_task(task, home.policy, home.coordinator))
    assert members["ann"].learner.trained == []  # type: ignore[attr-defined]


def test_the_scenario_of_mixed_nodes_goes_on_after_a_large_one_fell_silent() -> None:
    """Ranks, speeds and a drop-out together, as `simulate run heterogeneous` prints them."""
    scenario = load("heterogeneous")
    short = dataclasses.replace(scenario.population, values=512)
    report = simulate(dataclasses.replace(scenario, population=short), None)
    counts = [entry.get("columns") for entry in report.history if entry["kind"] == "train"]
    assert counts == [
        {"4": 6, "8": 4, "16": 3} if number != 3 else {"4": 6, "8": 4} for number in range(1, 7)
    ]
    assert (
        len(report.aborted) == 1 and ("round 3, attempt 1: 2 of the 3 members") in report.aborted[0]
    )
    assert report.accuracy["after"] == 1.0
