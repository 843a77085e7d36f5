"""Buffered rounds in one process: who is summed when, what a late contribution counts, and what
a kill costs.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from quietchoir.core.errors import ConfigError, FederationError, RoundAborted
from quietchoir.federation.events import AskedEvent, FederationEvent, WorkEvent
from quietchoir.federation.rounds.attempt import Outcome, ReadyGroup
from quietchoir.federation.rounds.contribution_buffer import ContributionBuffer
from quietchoir.federation.rounds.privacy_accountant import (
    PrivacyAccountant,
    PrivacyAccountants,
    check_books,
)
from quietchoir.federation.rounds.scheduler import Buffered, PatienceError, Synchronous
from quietchoir.federation.rounds.server import RoundServer
from quietchoir.federation.spec.policy import GuardTable, PrivacyTable, weight
from quietchoir.federation.store.checkpoint import Store, open_run
from quietchoir.federation.training.learner import Counts
from quietchoir.federation.training.synthetic_task import SyntheticLearner
from quietchoir.federation.wire import messages
from quietchoir.federation.wire.link import Link
from quietchoir.tests.fakes.buffered import SIZE, NapLink, buffered, buffered_schedule, run_of
from quietchoir.tests.fakes.federation import (
    FixedLearner,
    SilentLink,
    TickingClock,
    clients,
    house,
    trainings,
)

NOISE = PrivacyTable(
    mechanism="skellam", clip=1.0, noise_multiplier=4.0, epsilon=3.0, counters="exact"
)


def stage_of(message: bytes) -> str:
    """What a message asks for."""
    fields, _ = messages.split(message)
    return str(fields["stage"])


def test_a_late_contribution_counts_by_the_root_of_its_staleness() -> None:
    assert [weight(late) for late in (0, 3, 8)] == [1.0, 0.5, pytest.approx(1 / 3)]
    with pytest.raises(ValueError, match="staleness = -1"):
        weight(-1)


def test_a_federation_is_synchronous_unless_its_file_says_otherwise() -> None:
    home = house()
    assert home.policy.schedule.rounds == "synchronous"
    run = RoundServer(home.policy, home.coordinator, NapLink({}), size=SIZE)
    assert isinstance(run.scheduler, Synchronous)


@pytest.mark.parametrize(
    "words, options",
    [
        (r"protection\.mode", {"mode": "sealed"}),
        (r"recipe\.cohort = 0, found 3", {"recipe": {"cohort": 3}}),
        ("buffer = -1", {"schedule": {"buffer": -1}}),
        ("patience_s", {"schedule": {"patience_s": 0.0}}),
    ],
)
def test_what_does_not_fit_buffered_rounds_is_refused_in_the_file(
    words: str, options: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match=words):
        buffered(**options)  # type: ignore[arg-type]


def test_a_link_that_cannot_leave_letters_is_refused_for_buffered_rounds() -> None:
    class Asking:
        def present(self) -> frozenset[str]:
            return frozenset()

        def ask(
            self, messages: Mapping[str, bytes], timeout_s: float
        ) -> Iterator[tuple[str, bytes]]:
            return iter(())

    home, link = buffered(), Asking()
    assert isinstance(link, Asking) and callable(Link)
    with pytest.raises(ConfigError, match="needs `quietchoir coordinate`"):
        RoundServer(home.policy, home.coordinator, link, size=SIZE)
    run = RoundServer(home.policy, home.coordinator, NapLink({}), size=SIZE)
    assert isinstance(run.scheduler, Buffered)


@pytest.mark.parametrize("mode", ["plain", "masked"])
def test_a_run_goes_on_with_whoever_is_ready_and_arrives(mode: str) -> None:
    home = buffered(5, mode=mode, recipe={"rounds": 8})
    members = clients(home, 200, lambda name: SyntheticLearner(200, name))
    report = run_of(home, members).run()
    trained = [entry for entry in report.history if entry["kind"] == "train"]
    assert [entry["round"] for entry in trained] == list(range(1, 9)) and report.aborted == []
    assert all(len(entry["parties"]) == 3 for entry in trained)  # nobody waits for a fourth
    assert max(late for entry in trained for late in entry["staleness"]) > 0
    before, after = report.accuracy["before"], report.accuracy["after"]
    assert before < 0.5 < 0.95 < after  # type: ignore[operator]
    assert report.delivered == sorted(home.members)


def test_members_of_buffered_rounds_name_a_round_as_the_coordinator_does() -> None:
    home, told = buffered(mode="masked", recipe={"rounds": 2}), list[FederationEvent]()
    members = clients(home, SIZE)
    for client in members.values():
        client.on_event = told.append
    run = run_of(home, members, on_event=told.append)
    run.logbook.skip()
    run.run()
    worked = [event for event in told if isinstance(event, WorkEvent)]
    groups = {event.round for event in worked if event.stage == messages.GROUP}
    assert (
        groups == {event.round for event in told if isinstance(event, AskedEvent)} - {3} == {1, 2}
    )
    assert all(
        event.round == (event.version or 0) + 1 for event in worked if event.stage == "train"
    )


@pytest.mark.parametrize("mode", ["plain", "masked"])
def test_the_step_is_the_weighed_mean_over_the_groups_size(mode: str) -> None:
    home = buffered(mode=mode, bits=16)
    members = clients(home, SIZE)
    link = NapLink(members)
    run = run_of(home, members, link)
    buffered_schedule(run).hand_out()
    link.asleep = {"dan"}  # asleep over its message of version 0
    run.learn(1)
    assert (run.state.history[0]["parties"], run.state.history[0]["staleness"]) == (
        ["ann", "ben", "cat"],
        [0, 0, 0],
    )
    assert np.abs(run.state.server.flat - 0.1).max() < 1e-4
    link.asleep = {"cat"}
    run.learn(2)
    assert (run.state.history[1]["parties"], run.state.history[1]["staleness"]) == (
        ["ann", "ben", "dan"],
        [0, 0, 1],
    )
    assert np.abs(run.state.server.flat - 0.1 - 0.1 * (2 + 1 / math.sqrt(2)) / 3).max() < 1e-4


def test_a_member_gets_the_newest_adapter_and_its_scores_count_only_while_it_is_the_newest() -> (
    None
):
    home = buffered(mode="masked", bits=12, recipe={"rounds": 4})
    members = clients(home, SIZE)
    run = run_of(home, members)
    run.learn(4)
    for entry in run.state.history:
        fresh = entry["staleness"].count(0)
        # the score of fewer would be a member's own
        told = fresh if fresh >= home.policy.protection.min_cohort else 0
        assert entry["scored"] == told and entry["accuracy"] == (0.4 if told else None)
    assert {entry["scored"] for entry in run.state.history} >= {0, 3}


def test_a_contribution_that_is_too_stale_is_dropped_and_trained_anew() -> None:
    home = buffered(schedule={"max_staleness": 0})
    members = clients(home, SIZE)
    link = NapLink(members)
    run = run_of(home, members, link)
    buffered_schedule(run).hand_out()
    link.asleep = {"dan"}
    run.learn(2)
    link.asleep = {"ann"}  # dan wakes, and brings what it made of version 0
    run.learn(3)
    assert "dan" in run.state.history[2]["parties"] and run.state.history[2]["staleness"] == [
        0,
        0,
        0,
    ]
    assert [flat.mean() for flat in trainings(members["dan"])] == pytest.approx(
        [0.0, 0.2], abs=1e-3
    )


def test_below_the_minimum_nothing_is_called_and_the_adapter_is_unchanged() -> None:
    home = buffered(mode="masked", schedule={"patience_s": 1e-9})
    members = clients(home, SIZE)
    link = NapLink(members)
    link.asleep = {"cat", "dan"}
    run = run_of(home, members, link)
    with pytest.raises(RoundAborted, match="nobody has contributed"):
        run.run()
    assert run.state.round == 0 and not run.state.server.flat.any()
    assert link.letters and {stage_of(message) for _, message in link.letters} == {"train"}


def test_members_that_go_away_from_a_patient_coordinator_are_waited_for() -> None:
    home = buffered(mode="masked", schedule={"patience_s": 1000.0})
    members = clients(home, SIZE)
    link = NapLink(members)
    run = run_of(home, members, link, patient=True)
    run.learn(1)
    buffered_schedule(run).outbox.cancel()
    link.asleep, buffered_schedule(run).news_at = {"cat", "dan"}, -1e9
    buffered_schedule(run).check_patience()
    link.asleep = set()
    buffered_schedule(
        run
    ).check_patience()  # the time in which they were away is not held against those that are back
    buffered_schedule(run).news_at = -1e9
    with pytest.raises(RoundAborted, match="nobody has contributed"):
        buffered_schedule(run).check_patience()


def test_after_a_group_that_failed_whoever_is_there_goes_on_though_too_few_are() -> None:
    home = buffered(mode="masked", schedule={"patience_s": 30.0})
    members = clients(home, SIZE)
    link = NapLink(members)
    run = run_of(home, members, link, clock=TickingClock())
    aggregate = run.attempt.aggregate

    def fail(group: ReadyGroup) -> Outcome:
        link.asleep = {"cat", "dan"}
        run.attempt.aggregate = aggregate  # type: ignore[method-assign]
        link.letters.clear()
        raise RoundAborted("two went away")

    run.attempt.aggregate = fail  # type: ignore[method-assign]
    with pytest.raises(PatienceError, match="nobody has contributed"):
        run.learn(1)
    assert len(run.aborted) == 1
    asked = {name for name, letter in link.letters if stage_of(letter) == "train"}
    assert asked == {"ann", "ben"}


def test_a_larger_buffer_waits_for_more() -> None:
    home = buffered(6, schedule={"buffer": 5})
    run = run_of(home, clients(home, SIZE))
    run.learn(3)
    assert [len(entry["parties"]) for entry in run.state.history] == [5, 5, 5]


@pytest.mark.parametrize("stage", ["group", "advertise", "share", "mask", "consistency", "unmask"])
def test_a_group_that_fails_is_tried_anew_and_nothing_is_averaged_over_fewer(stage: str) -> None:
    home = buffered(3, mode="masked", threshold=3, recipe={"attempts": 4})
    members, left = clients(home, SIZE), [2]

    def lose(name: str, message: bytes) -> bool:
        if name != "ben" or stage_of(message) != stage or not left[0]:
            return False
        left[0] -= 1
        return True

    link = SilentLink({name: client.handle for name, client in members.items()}, lose)
    run = run_of(home, members, link)
    run.learn(1)
    assert len(run.aborted) == 2 and run.state.round == 1
    assert run.state.history[0]["parties"] == ["ann", "ben", "cat"]
    assert np.abs(run.state.server.flat - 0.1).max() < 0.01
    trained = {name: len(trainings(client)) for name, client in members.items()}
    sent = {"consistency", "unmask"} | ({"mask"} if stage == "mask" else set())
    # what has left a member never leaves it again
    assert trained["ann"] == trained["cat"] == (3 if stage in sent else 1)
    assert trained["ben"] == (3 if stage in ("consistency", "unmask") else 1)


def test_groups_that_fail_again_and_again_end_the_run_with_their_reason() -> None:
    home = buffered(3, mode="masked", recipe={"attempts": 2})
    members = clients(home, SIZE)
    link = SilentLink(
        {name: client.handle for name, client in members.items()},
        lambda name, message: name == "ben" and stage_of(message) == "share",
    )
    run = run_of(home, members, link)
    with pytest.raises(RoundAborted):
        run.run()
    assert len(run.aborted) == 2 and run.state.round == 0 and not run.state.server.flat.any()


def test_a_restarted_coordinator_is_offered_what_members_kept(tmp_path: Path) -> None:
    home = buffered(mode="masked", recipe={"rounds": 3})
    members = clients(home, SIZE)
    store = Store(tmp_path)
    first = run_of(home, members, store=store)
    first.learn(1)
    buffered_schedule(first).hand_out()
    while buffered_schedule(first).outbox.pending:
        buffered_schedule(first).take_in()
    trained = {name: len(trainings(client)) for name, client in members.items()}
    store.close()  # killed: who is ready was in its memory alone
    store = Store(tmp_path)
    again = run_of(home, members, store=store)
    assert again.state.round == 1 and buffered_schedule(again).offers == {}
    again.learn(2)
    assert {name: len(trainings(client)) for name, client in members.items()} == trained
    again.run()
    assert again.state.round == 3 and again.aborted == []
    store.close()


class Judging(FixedLearner):
    """Scores well until the adapter has moved too far."""

    def evaluate(self, flat: np.ndarray) -> Counts:
        return Counts(8 if flat.mean() < 0.15 else 1, 10)


@pytest.mark.parametrize("mode", ["plain", "masked"])
def test_members_vote_between_steps_and_a_worse_adapter_is_undone(mode: str) -> None:
    home = buffered(5, mode=mode, recipe={"rounds": 2}, tables={"guard": GuardTable(rule="vote")})
    run = run_of(home, clients(home, SIZE, lambda name: Judging()))
    run.learn(2)
    assert [entry["guard"]["kept"] for entry in run.state.history] == [True, False]
    assert run.state.server.flat.mean() == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("mode", ["plain", "masked"])
def test_ranges_of_tensors_are_told_to_the_group(mode: str) -> None:
    home = buffered(mode=mode, bits=16, recipe={"ranges": "tensor", "rounds": 3})
    run = run_of(home, clients(home, SIZE, lambda name: FixedLearner(0.02)))
    run.learn(3)
    assert all(entry["ranges"] for entry in run.state.history)
    assert run.state.server.flat.mean() == pytest.approx(
        0.02 * (1 + 2 * (2 + 1 / math.sqrt(2)) / 3), abs=0.01
    )


def test_each_group_charges_its_members_once_and_the_report_names_who_paid_most() -> None:
    home = buffered(5, mode="masked", bits=16, recipe={"rounds": 3}, tables={"privacy": NOISE})
    members = clients(home, SIZE)
    link = NapLink(members)
    run = run_of(home, members, link)
    run.learn(1)
    link.asleep = {"ann"}
    run.learn(3)
    taken = {
        name: sum(name in entry["parties"] for entry in run.state.history) for name in home.members
    }
    for name, client in members.items():
        assert (
            len(client.accountant.account.history)
            == len(buffered_schedule(run).accountants.of(name).account.history)
            == taken[name]
        )
    spent = run.scheduler.accountant.spent()
    assert spent is not None and spent["steps"] == max(taken.values()) < sum(taken.values())
    assert (
        spent["sampling"] == "not assumed" and run.state.history[-1]["epsilon"] == spent["epsilon"]
    )


def test_a_group_that_came_to_nothing_is_paid_for_as_well() -> None:
    home = buffered(3, mode="masked", bits=16, tables={"privacy": NOISE})
    members, lost = clients(home, SIZE), [True]

    def lose(name: str, message: bytes) -> bool:
        return name == "ben" and stage_of(message) == "unmask" and bool(lost and lost.pop())

    run = run_of(
        home, members, SilentLink({name: client.handle for name, client in members.items()}, lose)
    )
    run.learn(1)
    assert len(run.aborted) == 1
    assert {len(client.accountant.account.history) for client in members.values()} == {2}
    assert run.scheduler.accountant.spent()["steps"] == 2  # type: ignore[index]


def test_members_that_have_spent_their_budget_are_asked_no_more_and_the_run_ends_well() -> None:
    tight = dataclasses.replace(NOISE, epsilon=2.0)
    home = buffered(4, bits=16, recipe={"rounds": 50}, tables={"privacy": tight})
    members = clients(home, SIZE)
    report = run_of(home, members).run()
    assert "used up their privacy budget" in report.stopped and 0 < report.rounds < 50
    assert report.privacy is not None and report.privacy["epsilon"] <= 2.0
    trained = {name: len(trainings(client)) for name, client in members.items()}
    paid = {name: len(client.accountant.account.history) for name, client in members.items()}
    # nobody trains for nothing, but for the last one
    assert all(trained[name] - paid[name] <= 1 for name in trained)
    assert report.delivered == sorted(home.members)


def test_the_books_of_one_schedule_are_not_continued_under_another(tmp_path: Path) -> None:
    policy = buffered(bits=16, tables={"privacy": NOISE}).policy
    round_id = messages.RoundId("0a" * 16, 1, 1)
    each, one = (open_run(tmp_path / name) for name in ("each", "any"))
    PrivacyAccountants(policy, SIZE, each).charge(["ann", "ben", "cat"], round_id)
    PrivacyAccountant(policy, SIZE, "any member", one).charge(round_id)
    check_books(each, buffered=True)
    check_books(one, buffered=False)
    for database, other in ((each, False), (one, True)):
        with pytest.raises(FederationError, match=r"schedule\.rounds"):
            check_books(database, buffered=other)


def test_a_later_roster_keeps_what_members_have_made() -> None:
    home = buffered(5, mode="masked")
    members = clients(home, SIZE)
    drawers = {name: party.buffer for name, party in members.items() if party.buffer is not None}
    run = run_of(home, members)
    run.learn(1)
    buffered_schedule(run).hand_out()
    while buffered_schedule(run).outbox.pending:
        buffered_schedule(run).take_in()
    later = dataclasses.replace(home.policy, version=2, members=home.policy.members[:4])
    house_ = dataclasses.replace(
        home, policy=later, members={name: home.members[name] for name in list(home.members)[:4]}
    )
    again = clients(house_, SIZE)
    for name, client in again.items():
        assert client.buffer is not None
        client.buffer = drawers[name]
    # the same members, under the new version
    buffered_schedule(run).outbox.link = run.messenger.link = NapLink(again)
    run.take(later)
    run.learn(2)
    assert all(not trainings(client) for client in again.values())
    other = dataclasses.replace(later, recipe=dataclasses.replace(later.recipe, lr=0.5))
    assert isinstance(drawers["ann"], ContributionBuffer) and other.digest != later.digest
