"""Members' votes choose the learning rate, in every mode and after a kill; nobody can be told a
rate that no round of the federation chooses.
"""

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quietchoir.core.errors import MessageError, RoundAborted
from quietchoir.federation.events import StoppedEvent, TuningEvent
from quietchoir.federation.rounds import tuning, validation
from quietchoir.federation.rounds.tuning import (
    APART,
    ENOUGH,
    HIGHEST,
    LOWEST,
    PATIENCE,
    UP,
    check_rates,
)
from quietchoir.federation.spec.policy import GuardTable, ScheduleTable
from quietchoir.federation.store.checkpoint import Store
from quietchoir.federation.training.learner import Counts, Trained
from quietchoir.federation.wire import messages
from quietchoir.tests.fakes.federation import FixedLearner, SilentLink, clients, coordinator, house
from quietchoir.tests.fakes.sealed import LocalCryptoWorker, sealed_clients

SIZE = 60
VOTE = {"guard": GuardTable(rule="vote", margin=0.05)}
AUTO: dict[str, Any] = {"tuning": "auto", "rounds": 14, "server_optimizer": "fedavg"}


class Hill(FixedLearner):
    """Goes up by its rate; an adapter is best at one half, and worse beyond."""

    def __init__(self, rates: list[float], rate: float = 1.0) -> None:
        super().__init__()
        self.rates, self.rate = rates, rate

    def tuned(self, share: float, max_steps: int, least_steps: int) -> "Hill":
        return Hill(self.rates, share)

    def train(self, flat: np.ndarray, seed: int) -> Trained:
        self.rates.append(self.rate)
        change = np.full(SIZE, 0.08 * self.rate, np.float32)
        return Trained(flat=flat + change, examples=5, tokens=100, loss=2.0)

    def evaluate(self, flat: np.ndarray) -> Counts:
        return Counts(int(np.clip(round(100 - 200 * abs(float(flat.mean()) - 0.5)), 0, 100)), 100)


def voted(vote: float | None, *rates: float, kept: bool = True, **verdict: Any) -> Any:
    """A line of history."""
    said = {"accuracy": vote, "near": 0.0, "kept": kept, **verdict}
    return {"kind": messages.TRAIN, "rates": list(rates), "guard": said}


def rate(history: list[Any]) -> float:
    """The next one."""
    [found] = tuning.next_rates(history, halved=False)
    return found


def test_a_rate_rises_with_the_votes_up_to_the_highest_that_is_tried() -> None:
    history: list[Any] = []
    rates: list[float] = []
    for number in range(6):
        rates.append(rate(history))
        history.append(voted(0.1 * (number + 1), rates[-1]))
    assert rates == pytest.approx([min(UP**number, HIGHEST) for number in range(6)])
    assert not tuning.settled(history)


def test_a_step_that_was_undone_halves_the_rate_for_good() -> None:
    history = [voted(0.3, 1.0), voted(0.1, UP, kept=False)]
    assert rate(history) == UP / 2
    more = [voted(0.3 + 0.1 * number, UP / 2) for number in range(1, 6)]
    assert rate([*history, *more]) == UP / 2


def test_votes_that_no_longer_rise_halve_the_rate_and_then_end_the_run() -> None:
    history = [voted(0.5, 1.0)]
    for _ in range(PATIENCE):
        history.append(voted(0.49, UP))
    assert rate(history) == UP / 2 and not tuning.settled(history)
    history += [voted(0.5, UP / 2)] * (ENOUGH - PATIENCE)
    assert "50.0 %" in tuning.settled(history)
    assert not tuning.settled([*history[:-1], voted(0.51, UP / 2)])
    undone = [voted(0.1, 1.0, kept=False)] * ENOUGH
    assert tuning.settled([voted(0.5, 1.0), *undone]) and not tuning.settled(undone)


def test_while_no_answer_is_right_their_tokens_stand_for_them() -> None:
    rising = [voted(0.0, 1.0, near=0.1 * number) for number in range(6)]
    assert rate(rising) == HIGHEST
    still = [voted(0.0, 1.0, near=0.1) for _ in range(1 + PATIENCE)]
    assert rate(still) < 1.0


def test_of_two_rates_the_better_one_goes_on_beside_one_ever_nearer() -> None:
    history: list[Any] = []
    pairs = []
    # the second half of three wins twice, then the first
    for trials in ([0.1, 0.2], [0.4, 0.3], [0.5, 0.4]):
        pairs.append(tuning.next_rates(history, halved=True))
        history.append(voted(max(trials), *pairs[-1], trials=trials))
    assert pairs[0] == (1.0, APART) and len(pairs[1]) == 1  # nothing above the highest is tried
    history, pairs = [], []
    for trials in ([0.2, 0.1], [0.3, 0.4], [0.5, 0.4]):
        pairs.append(tuning.next_rates(history, halved=True))
        history.append(voted(max(trials), *pairs[-1], trials=trials))
    nearer = APART**-0.5
    assert pairs == [(1.0, APART), (1.0, nearer), (nearer, nearer * nearer)]
    assert tuning.next_rates(history, halved=True) == (nearer,)  # enough was tried
    # one half was too small for a sum: nothing is known of either rate
    assert tuning.next_rates([voted(0.3, 1.0, APART)], halved=True) == (1.0, APART)
    undone = [voted(0.1, 1.0, APART, kept=False, trials=[0.1, 0.0])]
    assert rate(undone) == 0.5
    assert tuning.next_rates(undone, halved=True, again=True) == (0.5, 0.25)
    lowest = [voted(0.1, LOWEST, LOWEST, kept=False)]
    assert tuning.next_rates(lowest, halved=True, again=True) == (LOWEST, LOWEST)


def test_a_vote_that_could_not_be_held_says_nothing_of_the_rate() -> None:
    assert rate([voted(None, 1.0, kept=False)]) == 1.0
    old = [voted(0.3, 1.0)]
    del old[0]["guard"]["near"]  # as a run's earlier version wrote it
    assert rate(old) == UP and validation.nearest_of(old) == 0.0
    unvoted = {"kind": messages.TRAIN, "rates": [1.0]}
    assert rate([unvoted]) == 1.0 and rate([{"kind": "score"}]) == 1.0


@pytest.mark.parametrize("mode", ["plain", "masked", "sealed"])
def test_members_train_at_the_rate_that_their_votes_chose(mode: str) -> None:
    home, worker = house(mode=mode, recipe=AUTO, tables=VOTE), LocalCryptoWorker()
    rates: list[float] = []
    if mode == "sealed":
        members = sealed_clients(home, SIZE, lambda name: Hill(rates), crypto_worker=worker)
    else:
        members = clients(home, SIZE, lambda name: Hill(rates))
    told: list[Any] = []
    run = coordinator(home, members, SIZE, crypto_worker=worker, on_event=told.append)
    report = run.run()
    trained = [entry for entry in report.history if entry["kind"] == messages.TRAIN]
    assert sorted(rates) == sorted(entry["rates"][0] for entry in trained for _ in entry["parties"])
    assert trained[0]["rates"] == [1.0] and trained[1]["rates"] == [UP]
    undone = [place for place, one in enumerate(trained) if not one["guard"]["kept"]]
    assert undone and trained[undone[0] + 1]["rates"] == [trained[undone[0]]["rates"][0] / 2]
    after = report.accuracy["after"]
    assert after is not None and after > 0.7
    assert "has not risen" in report.stopped and len(trained) < AUTO["rounds"]
    assert any(isinstance(event, StoppedEvent) for event in told)
    [price] = [event.price for event in told if isinstance(event, TuningEvent)]
    assert "14 rounds" in price and "at least 3 members" in price


def test_a_killed_coordinator_goes_on_with_the_rate_that_came_next(tmp_path: Path) -> None:
    home = house(recipe=AUTO | {"rounds": 8}, tables=VOTE)
    whole = coordinator(home, clients(home, SIZE, lambda name: Hill([])), SIZE).run()
    members = clients(home, SIZE, lambda name: Hill([]))
    for _ in range(3):
        store = Store(tmp_path)
        coordinator(home, members, SIZE, store=store).train_round()
        store.close()
    store = Store(tmp_path)
    report = coordinator(home, members, SIZE, store=store).run()
    store.close()
    rates = [[entry.get("rates") for entry in one.history] for one in (whole, report)]
    assert rates[0] == rates[1] and report.stopped == whole.stopped


@pytest.mark.parametrize(("mode", "least"), [("plain", 3), ("masked", 4)])
def test_halves_of_a_cohort_try_a_rate_each_and_the_better_one_goes_on(
    mode: str, least: int
) -> None:
    home, trained = house(2 * least, mode=mode, recipe=AUTO, tables=VOTE), dict[str, list[float]]()
    members = clients(home, SIZE, lambda name: Hill(trained.setdefault(name, [])))
    report = coordinator(home, members, SIZE).run()
    first = report.history[0]
    assert first["rates"] == [1.0, APART] and first["buckets"] == 2
    assert sorted(one[0] for one in trained.values()) == [1.0] * least + [APART] * least
    # a hill that is far away: the higher rate comes nearer, and nothing higher is tried
    assert first["guard"]["trials"][1] > first["guard"]["trials"][0]
    assert first["guard"]["reason"].endswith("bucket 2 alone")
    assert report.history[1]["rates"] == [APART] and report.history[1]["buckets"] == 1
    after = report.accuracy["after"]
    assert after is not None and after > 0.7
    # one member fewer is no two sums
    few = house(2 * least - 1, mode=mode, recipe=AUTO, tables=VOTE)
    report = coordinator(few, clients(few, SIZE, lambda name: Hill([])), SIZE).run(rounds=1)
    assert report.history[0]["rates"] == [1.0] and report.history[0]["buckets"] == 1


class Cliff(Hill):
    """Falls off at once when it steps too far."""

    def tuned(self, share: float, max_steps: int, least_steps: int) -> "Cliff":
        return Cliff(self.rates, share)

    def evaluate(self, flat: np.ndarray) -> Counts:
        at = float(flat.mean())
        return Counts(int(np.clip(round(60 + 200 * at if at < 0.05 else 0), 0, 100)), 100)


def test_after_a_trial_that_was_undone_members_sum_the_same_halves_to_the_runs_end(
    tmp_path: Path,
) -> None:
    home = house(8, mode="masked", recipe=AUTO | {"rounds": 5}, tables=VOTE)
    members, away = clients(home, SIZE, lambda name: Cliff([])), set[str]()
    link = SilentLink({name: one.handle for name, one in members.items()}, lambda name, _: False)
    everybody = link.present()
    link.present = lambda: everybody - away  # type: ignore[method-assign]

    with closing(Store(tmp_path)) as store:
        run = coordinator(home, members, SIZE, store=store, link=link)
        run.train_round()
        [first] = run.state.history
        assert first["rates"] == [1.0, APART] and first["buckets"] == 2
        assert not first["guard"]["kept"] and not run.state.server.flat.any()

        # one sum over all of them is what no member signs for, and nobody is waited for in vain
        chosen = run.attempt.rates
        run.attempt.rates = lambda flat, cohort: (0.5,)  # type: ignore[method-assign]
        with pytest.raises(RoundAborted, match="may have been opened before"):
            run.train_round()
        assert not run.attempt.missing
        run.attempt.rates = chosen  # type: ignore[method-assign]
        # one of a half is away: it is waited for
        away.add("hal")
        with pytest.raises(RoundAborted, match="waiting for hal"):
            run.train_round()
        assert run.attempt.awaited(link.present()) == {"hal"}
        away.clear()

    with closing(Store(tmp_path)) as store:  # killed; it remembers no sets, members tell them
        run = coordinator(home, members, SIZE, store=store, link=link)
        report = run.run()
    assert len(run.aborted) == 1 and "may have been opened before" in run.aborted[0]
    assert report.rounds == len(report.history) == 5
    second = report.history[1]
    assert second["rates"] == [0.5, 0.25] and second["buckets"] == 2 and second["guard"]["kept"]
    undone = [place for place, one in enumerate(report.history[:-1]) if not one["guard"]["kept"]]
    assert len(undone) > 1  # and again, with the sets known: no attempt is lost
    assert all(report.history[place + 1]["buckets"] == 2 for place in undone)
    after = report.accuracy["after"]
    assert after is not None and after > 0.6


def test_a_half_that_is_too_small_for_a_sum_is_summed_with_the_other() -> None:
    home = house(8, mode="masked", recipe=AUTO, tables=VOTE)
    members = clients(home, SIZE, lambda name: Hill([]))
    link = SilentLink(
        {name: client.handle for name, client in members.items()},
        lambda name, message: name == "hal" and b'"stage":"train"' in message,
    )
    report = coordinator(home, members, SIZE, link=link).run(rounds=1)
    first = report.history[0]
    assert (first["rates"], first["buckets"]) == ([1.0, APART], 1) and len(first["parties"]) == 7
    assert not first["guard"]["trials"]


def test_a_member_takes_no_rate_that_its_federation_cannot_choose() -> None:
    fixed = house().policy
    auto, large = (house(count, recipe=AUTO, tables=VOTE).policy for count in (4, 6))
    check_rates(fixed, (1.0,), training=True)
    for one in (LOWEST, 0.5, HIGHEST):
        check_rates(auto, (one,), training=True)
        check_rates(large, (one, 1.0), training=True)
        for policy, rates, training in (
            (fixed, (one,), True), (auto, (one, 1.0), True), (auto, (one,), False),
            (large, (one, 1.0, 1.0), True), (large, (), True),
        ):  # fmt: skip
            with pytest.raises(MessageError, match="times the learning rate, expected"):
                check_rates(policy, rates, training=training)
    for one in (0.0, -1.0, LOWEST / 2, HIGHEST * 1.01, float("inf"), float("nan")):
        with pytest.raises(MessageError, match="times the learning rate"):
            check_rates(large, (1.0, one), training=True)
    home = house(mode="masked", recipe=AUTO, tables=VOTE)
    run = coordinator(home, clients(home, SIZE), SIZE)
    run.attempt.rates = lambda flat, cohort: (100.0,)  # type: ignore[method-assign]
    with pytest.raises(RoundAborted, match="0 of 4 members are ready"):
        run.run()
    assert not run.state.server.flat.any()


def test_a_recipe_that_tunes_wants_votes_and_rounds_that_wait() -> None:
    with pytest.raises(ValueError, match=r'needs guard\.rule = "vote"'):
        house(recipe={"tuning": "auto"})
    with pytest.raises(ValueError, match="synchronous"):
        house(
            recipe={"tuning": "auto"}, tables={**VOTE, "schedule": ScheduleTable(rounds="buffered")}
        )
    assert house(recipe={"tuning": "auto"}, tables=VOTE).policy.axes.tuned
