"""Noise in rounds: what is learned in spite of it, what it costs, and that nobody trains on
credit.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quietchoir.core.errors import BudgetError, ConfigError, MessageError, RoundAborted
from quietchoir.crypto.privacy.accountant import compose
from quietchoir.federation.aggregation.update import (
    Codec,
    Statistics,
    SumContext,
    noise_of,
    seed_of,
)
from quietchoir.federation.events import AbortedEvent
from quietchoir.federation.rounds.privacy_accountant import PrivacyAccountant
from quietchoir.federation.spec.policy import GuardTable, PrivacyTable
from quietchoir.federation.store.checkpoint import Store
from quietchoir.federation.store.member import open_member
from quietchoir.federation.training.synthetic_task import SyntheticLearner
from quietchoir.federation.wire import messages
from quietchoir.federation.wire.messages import RoundId
from quietchoir.tests.fakes.buffered import buffered, run_of
from quietchoir.tests.fakes.events import tables
from quietchoir.tests.fakes.federation import (
    FixedLearner,
    SilentLink,
    TickingClock,
    clients,
    coordinator,
    house,
    trainings,
)
from quietchoir.tests.fakes.sealed import LocalCryptoWorker, adapter_of, sealed_clients

SIZE = 256
PRIVATE = PrivacyTable(
    mechanism="discrete-gaussian", clip=2.0, noise_multiplier=4.0, epsilon=50.0, counters="exact"
)


def private(
    mode: str = "plain", members: int = 4, recipe: dict[str, Any] | None = None, **table: Any
) -> Any:
    """A federation with noise."""
    tables = {"privacy": dataclasses.replace(PRIVATE, **table)}
    return house(members, mode=mode, bits=16, recipe=recipe, tables=tables)


def test_the_mean_carries_the_noise_that_the_file_names_and_no_bias() -> None:
    policy, round_id = private().policy, RoundId("0a" * 16, 1, 1)
    noise = noise_of(policy, SIZE)
    # of the fewest in a sum, less the one who reads it
    assert noise is not None and noise.honest == 2
    codec = Codec(SIZE, policy, SumContext(seed=seed_of(policy, round_id)))
    update = np.full(SIZE, 0.05, np.float32)
    found = np.stack(
        [
            codec.decode(
                np.sum(
                    [codec.encode(update, Statistics()) for _ in range(4)], axis=0, dtype=np.int64
                ),
                4,
            )[0]
            for _ in range(40)
        ]
    )
    expected = noise.mean_deviation(4)
    assert abs(found.std() / expected - 1) < 0.05
    assert abs(found.mean() - 0.05) < 5 * expected / np.sqrt(found.size)
    far = update * 100  # norm 80, clipped to 2
    mean, _ = codec.decode(codec.encode(far, Statistics()).astype(np.int64), 1)
    assert np.linalg.norm(mean) < 2.0 + 1.2 * noise.mean_deviation(1) * np.sqrt(SIZE)
    assert (codec.clipped(update), codec.clipped(far)) == (0, SIZE)


def test_a_sealed_run_that_sends_no_counters_delivers_what_its_last_round_made() -> None:
    """No score round stands between the last step and the delivery, so members are asked once
    more what they hold.
    """
    home, crypto_worker = (
        private(
            "sealed", counters="none", noise_multiplier=0.5, epsilon=500.0, recipe={"rounds": 1}
        ),
        LocalCryptoWorker(),
    )
    members = sealed_clients(
        home, SIZE, lambda name: FixedLearner(0.1), crypto_worker=crypto_worker
    )
    report = coordinator(home, members, SIZE, crypto_worker=crypto_worker).run()
    assert report.delivered == sorted(members)


@pytest.mark.parametrize("mode", ["plain", "masked", "sealed"])
@pytest.mark.parametrize("mechanism", ["discrete-gaussian", "skellam"])
def test_a_private_run_learns_the_common_part_and_shows_what_it_spent(
    mode: str, mechanism: str
) -> None:
    home = private(
        mode, mechanism=mechanism, noise_multiplier=0.5, epsilon=500.0, recipe={"rounds": 2}
    )
    crypto_worker = LocalCryptoWorker()
    if mode == "sealed":
        members = sealed_clients(
            home, SIZE, lambda name: FixedLearner(0.1), crypto_worker=crypto_worker
        )
    else:
        members = clients(home, SIZE, lambda name: FixedLearner(0.1))
    run = coordinator(home, members, SIZE, crypto_worker=crypto_worker)
    report = run.run()
    flat = adapter_of(members["ann"], run.state.run) if mode == "sealed" else run.state.server.flat
    noise = noise_of(home.policy, SIZE)
    assert noise is not None
    assert abs(float(flat.mean()) - 0.27) < 6 * 2 * noise.mean_deviation(4) / np.sqrt(SIZE)
    assert flat.std() > 0.5 * noise.mean_deviation(4)
    step = members["ann"].accountant.step
    assert step is not None
    expected = [compose([step] * count, 1e-5).epsilon for count in (1, 2)]
    assert [entry["epsilon"] for entry in report.history[:2]] == pytest.approx(expected)
    assert report.history[2]["epsilon"] is None  # scoring is outside
    assert report.privacy is not None
    assert (
        report.privacy["epsilon"]
        == members["ann"].accountant.spent()["epsilon"]  # type: ignore[index]
        == pytest.approx(expected[1])
    )
    assert (report.privacy["steps"], report.privacy["sampling"], report.privacy["budget"]) == (
        2,
        "not assumed",
        500.0,
    )
    assert "whole update" in report.privacy["unit"]


def test_a_run_stops_at_its_budget_and_still_delivers() -> None:
    home = private("masked", epsilon=1.5, recipe={"rounds": 9})
    members = clients(home, SIZE, lambda name: FixedLearner(0.1))
    events: list[dict[str, Any]] = []
    run = coordinator(home, members, SIZE, on_event=tables(events.append))
    report = run.run()
    assert (
        1 <= report.rounds < 9 and report.privacy is not None and report.privacy["epsilon"] <= 1.5
    )
    assert "the budget is 1.5" in report.stopped and report.aborted == []
    assert report.delivered == sorted(members) and report.history[-1]["kind"] == "score"
    assert all(len(trainings(client)) == report.rounds for client in members.values())
    assert [
        event["event"] for event in events if event["event"] in ("stopped", "score", "delivered")
    ] == ["stopped", "score", "delivered"]


def test_members_keep_their_own_account_whatever_a_coordinator_forgets(tmp_path: Path) -> None:
    home = private("masked", epsilon=1.5, recipe={"rounds": 9})

    def open_parties() -> Any:
        members = clients(home, SIZE, lambda name: FixedLearner(0.1))
        for name, client in members.items():
            client.accountant = PrivacyAccountant(
                home.policy, SIZE, name, open_member(tmp_path / name)
            )
        return members

    first = coordinator(home, open_parties(), SIZE).run()
    again = open_parties()
    fresh = coordinator(home, again, SIZE)  # a new run, which remembers nothing
    report = fresh.run()
    assert first.rounds > 0 and report.rounds == 0
    assert "4 of 4 members have used up their privacy budget" in report.stopped
    assert all(party.learner.trained == [] for party in again.values())


def test_every_attempt_is_paid_for_and_a_scoring_round_is_not() -> None:
    home = private("masked", recipe={"rounds": 1, "attempts": 3})
    members, lost = clients(home, SIZE), [True]

    def lose(name: str, message: bytes) -> bool:
        return lost[0] and name in ("cat", "dan") and b'"stage":"mask"' in message

    link = SilentLink({name: client.handle for name, client in members.items()}, lose)

    def heal(event: dict[str, object]) -> None:
        lost[0] = lost[0] and event["event"] != "aborted"

    report = coordinator(home, members, SIZE, link=link, on_event=tables(heal)).run()
    assert len(report.aborted) == 1 and report.privacy is not None
    assert report.privacy["steps"] == 2
    charged = [name.split("/")[1:] for name, _ in members["ann"].accountant.account.history]
    assert charged == [["1", "1"], ["2", "2"]]  # masked updates had left: that number is used up


def closed_form(multiplier: float, delta: float) -> float:
    """Epsilon of one Gaussian release, without our accountant. Source: Balle, Wang 2018, theorem
    8.
    """
    from scipy import optimize, stats

    mu = 1 / multiplier

    def excess(epsilon: float) -> float:
        tail = stats.norm.cdf(-mu / 2 - epsilon / mu)
        return float(stats.norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * tail - delta)

    return float(optimize.brentq(excess, 1e-6, 100))


@pytest.mark.parametrize(
    "min_cohort, colluders, known", [(3, 0, 1), (3, 1, 1), (5, 2, 2), (10, 0, 1)]
)
def test_a_fellow_member_that_takes_its_own_noise_off_sees_no_more_than_is_charged(
    min_cohort: int, colluders: int, known: int
) -> None:
    """The noise is measured on what members encode; epsilon is counted by a closed form of its
    own.
    """
    privacy = dataclasses.replace(
        PRIVATE, noise_multiplier=1.5, colluders=colluders, counters="none"
    )
    policy = house(
        10, mode="masked", bits=16, min_cohort=min_cohort, tables={"privacy": privacy}
    ).policy
    noise = noise_of(policy, SIZE)
    assert noise is not None
    codec, nothing = (
        Codec(SIZE, policy, SumContext(seed=seed_of(policy, RoundId("0a" * 16, 1, 1)))),
        np.zeros(SIZE, np.float32),
    )

    def contributions(count: int) -> Any:
        return np.stack(
            [codec.encode(nothing, Statistics())[:SIZE].astype(np.int64) for _ in range(count)]
        )

    # the reader's own is off
    others = np.stack([contributions(min_cohort - known).sum(axis=0) for _ in range(200)])
    # deviation that is left, over the sensitivity
    left = float(others.std(axis=0).mean()) / noise.sensitivity
    assert left == pytest.approx(1.5, rel=0.02)
    charged = PrivacyAccountant(policy, SIZE, "ann").charge(RoundId("0a" * 16, 1, 1))
    assert charged is not None
    seen = closed_form(
        noise.deviation * math.sqrt(min_cohort - known) / noise.sensitivity, privacy.delta
    )
    assert seen <= charged.epsilon <= 1.02 * seen


def test_counting_the_readers_own_noise_would_have_promised_too_little() -> None:
    """The unprotected arm: noise dealt out among all three of a cohort, read by one of them."""
    multiplier = next(m / 1000 for m in range(500, 3000) if closed_form(m / 1000, 1e-5) <= 4.09)
    assert closed_form(multiplier * math.sqrt(2 / 3), 1e-5) == pytest.approx(5.18, abs=0.02)


def test_a_letter_that_is_replayed_after_a_lost_ledger_is_charged_again(tmp_path: Path) -> None:
    home, told = private("masked"), []

    def ann() -> Any:
        client = clients(home, SIZE)[
            "ann"
        ]  # its ledger is in memory: lost whenever the node starts
        client.accountant = PrivacyAccountant(
            home.policy, SIZE, "ann", open_member(tmp_path / "ann")
        )
        return client

    link = SilentLink(
        {name: client.handle for name, client in clients(home, SIZE).items()},
        lambda name, message: False,
    )
    coordinator(home, {}, SIZE, link=link).train_round()
    message = next(one for name, one in link.letters if name == "ann" and b'"stage":"train"' in one)
    for _ in range(3):
        party = ann()
        party.handle(message)
        assert len(party.learner.trained) == 1
        told.append(party.accountant.spent())
    assert [one["steps"] for one in told] == [1, 2, 3] and told[0]["epsilon"] < told[1][
        "epsilon"
    ] < told[2]["epsilon"]


def test_a_refused_letter_costs_nothing_and_a_killed_coordinator_remembers(tmp_path: Path) -> None:
    home = private("masked")
    members = clients(home, SIZE)
    store = Store(tmp_path)
    run = coordinator(home, members, SIZE, store=store)
    run.train_round()
    store.close()
    store = Store(tmp_path)
    assert store.database is not None
    assert len(store.database.rows("SELECT * FROM charges")) == 1
    again = coordinator(home, members, SIZE, store=store)
    assert again.scheduler.accountant.spent()["steps"] == 1  # type: ignore[index]
    store.close()
    round_id = RoundId(run.state.run, 1, 1)
    before = members["ann"].accountant.account.history
    task = messages.Task(
        round_id=round_id,
        stage=messages.TRAIN,
        recipient="ann",
        payload=messages.encode_work(messages.Work(flat=np.zeros(SIZE, np.float32))),
    )
    with pytest.raises(MessageError):
        members["ann"].handle(messages.encode_task(task, home.policy, home.coordinator))
    assert members["ann"].accountant.account.history == before


def test_without_counters_nothing_but_the_noised_change_is_sent() -> None:
    home = private("masked", counters="none")
    members = clients(home, SIZE, lambda name: FixedLearner(0.1, correct=7))
    report = coordinator(home, members, SIZE).run()
    assert [entry["kind"] for entry in report.history] == ["train"] * 3  # no scoring round
    assert all(
        (entry["scored"], entry["accuracy"], entry["clipped_share"], entry["loss"])
        == (0, None, 0.0, None)
        for entry in report.history
    )
    codec = Codec(SIZE, home.policy)
    spelled = codec.encode(np.zeros(SIZE, np.float32), Statistics(scored=1, score=70, trained=1))
    assert codec.counters(spelled[SIZE:].astype(np.int64)) == Statistics()


@pytest.mark.parametrize(
    "tables, reason",
    [
        ({"privacy": dataclasses.replace(PRIVATE, colluders=3)}, "somebody must add noise"),
        (
            {
                "privacy": dataclasses.replace(PRIVATE, counters="none"),
                "guard": GuardTable(rule="vote"),
            },
            "votes are counters",
        ),
    ],
)
def test_a_file_that_cannot_hold_its_promise_is_refused(
    tables: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        house(4, tables=tables)
    with pytest.raises(ValueError, match="token counts"):
        house(4, tables={"privacy": dataclasses.replace(PRIVATE, counters="none")}, min_tokens=5)


def test_noise_that_does_not_fit_the_bits_is_said_before_anybody_trains() -> None:
    home = house(4, bits=4, tables={"privacy": PRIVATE})
    with pytest.raises(ConfigError, match="no room for noise"):
        clients(home, SIZE)


def test_a_round_that_cannot_be_paid_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    home = private("masked")
    members = clients(home, SIZE)
    run = coordinator(home, members, SIZE)

    def empty(round_id: RoundId) -> None:
        raise BudgetError("nothing left")

    monkeypatch.setattr(run.scheduler.accountant, "charge", empty)
    report = run.run()
    assert (report.rounds, report.stopped) == (0, "nothing left")
    assert all(trainings(client) == [] for client in members.values())


def test_some_members_without_budget_are_missing_and_the_others_go_on() -> None:
    home = private("masked", members=5, epsilon=2.0, recipe={"rounds": 1})
    members = clients(home, SIZE)
    for number in range(20):
        try:
            members["eve"].accountant.charge(RoundId("0c" * 16, number, 1))
        except BudgetError:
            break
    report = coordinator(home, members, SIZE).run()
    assert report.history[0]["parties"] == ["ann", "ben", "cat", "dan"]
    assert members["eve"].learner.trained == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("liars", [0, 1, 2])
def test_one_member_that_claims_to_be_spent_does_not_end_a_run_and_more_than_a_third_do(
    liars: int, caplog: pytest.LogCaptureFixture
) -> None:
    home = private("masked", members=5, epsilon=1000.0, recipe={"rounds": 2, "attempts": 2})
    members = clients(home, SIZE)
    for name in ("eve", "dan")[:liars]:
        claimed = claiming(members[name].answer)
        members[name].answer = claimed  # type: ignore[method-assign, assignment]
    away = {"cat"}  # for the first attempt: four of five are needed
    link = SilentLink(
        {name: client.handle for name, client in members.items()},
        lambda name, message: name in away,
    )
    run = coordinator(home, members, SIZE, link=link, on_event=lambda event: ended(event, away))
    report = run.run()
    if liars == 2:
        assert report.rounds == 0 and "2 of 5 members have used up" in report.stopped
    else:
        assert (report.rounds, report.stopped) == (2, "")
        assert len(report.history[0]["parties"]) == 4
    assert ("eve says that its privacy budget is used up" in caplog.text) == bool(liars)


def claiming(
    honest: Callable[[messages.Task], bytes], times: int = 1000
) -> Callable[[messages.Task], bytes]:
    """A member that says, whenever it is to train, that it cannot pay for it."""
    left = iter(range(times))

    def answer(task: messages.Task) -> bytes:
        lies = task.stage == messages.TRAIN and next(left, None) is not None
        return messages.SPENT if lies else honest(task)

    return answer


def ended(event: Any, away: set[str]) -> None:
    """Who was away is back once an attempt has failed."""
    if isinstance(event, AbortedEvent):
        away.clear()


@pytest.mark.parametrize("liars", [("eve",), ("eve", "dan")])
def test_a_buffered_run_goes_on_without_a_false_word_of_one_and_ends_at_that_of_a_third(
    liars: tuple[str, ...],
) -> None:
    table = {"privacy": dataclasses.replace(PRIVATE, mechanism="skellam", epsilon=1000.0)}
    home = buffered(
        5, bits=16, schedule={"buffer": 5}, recipe={"rounds": 1}, tables=table, min_cohort=4
    )
    members = clients(home, SIZE)
    for name in liars:  # each twice, and is asked again in time
        claimed = claiming(members[name].answer, 2)
        members[name].answer = claimed  # type: ignore[method-assign, assignment]
    report = run_of(home, members, clock=TickingClock()).run()
    if len(liars) == 1:
        assert (report.rounds, report.stopped) == (1, "")
        assert report.history[0]["parties"] == ["ann", "ben", "cat", "dan", "eve"]
    else:
        assert report.rounds == 0 and "2 of 5 members have used up" in report.stopped


def rehearsal(size: int) -> Callable[[str], SyntheticLearner]:
    return lambda name: SyntheticLearner(size, name)


def test_a_federation_without_the_table_is_as_it_was() -> None:
    home = house(4)
    members = clients(home, SIZE, rehearsal(SIZE))
    report = coordinator(home, members, SIZE).run()
    assert (
        report.privacy is None
        and report.stopped == ""
        and members["ann"].accountant.spent() is None
    )
    assert all(entry["epsilon"] is None for entry in report.history)


def test_too_few_members_abort_before_the_budget_is_blamed() -> None:
    home = private("masked", recipe={"attempts": 1})
    members = clients(home, SIZE)
    link = SilentLink(
        {name: client.handle for name, client in members.items()},
        lambda name, message: name in ("cat", "dan"),
    )
    with pytest.raises(RoundAborted, match="2 of 4 members are ready"):
        coordinator(home, members, SIZE, link=link).run()
