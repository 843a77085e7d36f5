"""A worse adapter is not kept, in any mode; who votes stays hidden in sums; a liar's counts
weigh as one vote at most.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quietchoir.core.errors import MessageError, RoundAborted
from quietchoir.federation.aggregation.update import Statistics, noise_of
from quietchoir.federation.rounds.validation import best_of, judge
from quietchoir.federation.spec.policy import AggregationTable, GuardTable, PrivacyTable
from quietchoir.federation.store.checkpoint import Store
from quietchoir.federation.training.learner import Counts, Trained
from quietchoir.federation.wire import messages
from quietchoir.tests.fakes.events import tables as as_tables
from quietchoir.tests.fakes.federation import FixedLearner, SilentLink, clients, coordinator, house
from quietchoir.tests.fakes.sealed import (
    LocalCryptoWorker,
    adapter_of,
    client_store_of,
    sealed_clients,
)

SIZE = 60
VOTE = {"guard": GuardTable(rule="vote", margin=0.05)}


class Turning(FixedLearner):
    """Trains upwards, downwards in the rounds that are named; an adapter is as good as it is
    high, up to 1.
    """

    def __init__(self, bad: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.bad = bad

    def train(self, flat: np.ndarray, seed: int) -> Trained:
        self.trained.append(flat.copy())
        step = -0.2 if len(self.trained) in self.bad else 0.1
        return Trained(flat=flat + np.float32(step), examples=5, tokens=100, loss=2.0)

    def evaluate(self, flat: np.ndarray) -> Counts:
        return Counts(int(np.clip(round(float(flat.mean()) * 100), 0, 100)), 100)


def votes(*counts: tuple[int, int]) -> list[tuple[Statistics, int]]:
    return [(Statistics(scored=scored, score=score), 4) for score, scored in counts]


def test_the_verdict_is_the_median_of_buckets_that_can_be_true() -> None:
    guard = GuardTable(rule="vote", margin=0.05)
    assert judge(guard, votes((200, 4)), None).accuracy == 0.5
    assert judge(guard, votes((200, 4)), 0.55).kept and not judge(guard, votes((196, 4)), 0.55).kept
    assert judge(guard, votes((200, 4), (240, 4), (0, 4)), None).accuracy == 0.5
    liar = judge(guard, votes((200, 4), (10**6, 10**4), (401, 4)), None)
    assert (liar.accuracy, liar.scored) == (0.5, 4)
    far = [(Statistics(scored=4, near=40), 4)]
    assert judge(guard, far, None).kept and not judge(guard, far, 0.0, 0.2).kept
    nobody = judge(guard, votes((0, 0)), None)
    assert not nobody.kept and "test.jsonl" in nobody.reason


def test_a_member_has_one_voice_whatever_the_number_of_its_examples() -> None:
    few, many = Statistics.scores(3, 4), Statistics.scores(300, 400)
    assert few == many == Statistics(scored=1, score=75)
    assert Statistics.scores(0, 0) == Statistics()


@pytest.mark.parametrize("mode", ["plain", "masked", "sealed"])
def test_a_worse_adapter_is_undone_and_the_run_goes_on_from_its_parent(mode: str) -> None:
    home, crypto_worker = (
        house(mode=mode, bits=12, recipe={"rounds": 5}, tables=VOTE),
        LocalCryptoWorker(),
    )
    if mode == "sealed":
        members = sealed_clients(
            home, SIZE, lambda name: Turning(bad=(3,)), crypto_worker=crypto_worker
        )
    else:
        members = clients(home, SIZE, lambda name: Turning(bad=(3,)))
    run = coordinator(home, members, SIZE, crypto_worker=crypto_worker)
    report = run.run()
    trained = [entry for entry in report.history if entry["kind"] == messages.TRAIN]
    verdicts = [entry["guard"]["kept"] for entry in trained]
    assert verdicts[:3] == [True, True, False] and all(verdicts[3:])
    assert "more than 0.05 below the best" in trained[2]["guard"]["reason"]
    starts = members["ann"].learner.trained  # type: ignore[attr-defined]
    assert np.allclose(starts[3], starts[2], atol=1e-6)  # the parent, exactly
    after = adapter_of(members["ann"], run.state.run) if mode == "sealed" else run.state.server.flat
    rounds = len(trained) - 3
    # an optimizer at rest: no velocity of before
    expected = float(starts[2].mean()) + (0.1 if rounds == 1 else 0.1 + 0.17)
    assert abs(float(after.mean()) - expected) < 0.01
    assert report.accuracy["after"] == pytest.approx(min(1.0, expected), abs=0.02)
    assert trained[3]["accuracy"] == trained[2]["accuracy"]  # what round four started from
    if mode == "sealed":
        assert (
            len({adapter_of(client, run.state.run).tobytes() for client in members.values()}) == 1
        )


def test_sealed_members_that_missed_the_undoing_are_handed_the_parent() -> None:
    home, crypto_worker = (
        house(5, mode="sealed", bits=12, threshold=3, recipe={"rounds": 5}, tables=VOTE),
        LocalCryptoWorker(),
    )
    members = sealed_clients(
        home, SIZE, lambda name: Turning(bad=(2,)), crypto_worker=crypto_worker
    )
    link = SilentLink(
        {name: client.handle for name, client in members.items()},
        lambda name, message: name == "eve" and b'"stage":"undo"' in message,
    )
    run = coordinator(home, members, SIZE, crypto_worker=crypto_worker, link=link)
    report = run.run()
    assert [entry["guard"]["kept"] for entry in report.history[:2]] == [True, False]
    assert report.history[2]["parties"] == ["ann", "ben", "cat", "dan", "eve"]
    assert len({adapter_of(client, run.state.run).tobytes() for client in members.values()}) == 1


def test_an_undoing_that_too_few_heard_is_tried_again() -> None:
    home, crypto_worker = (
        house(4, mode="sealed", bits=12, threshold=3, recipe={"rounds": 4}, tables=VOTE),
        LocalCryptoWorker(),
    )
    members, lost = (
        sealed_clients(home, SIZE, lambda name: Turning(bad=(2,)), crypto_worker=crypto_worker),
        [True],
    )

    def lose(name: str, message: bytes) -> bool:
        return lost[0] and name != "ann" and b'"stage":"undo"' in message

    def heal(event: dict[str, object]) -> None:
        lost[0] = lost[0] and event["event"] != "aborted"

    link = SilentLink({name: client.handle for name, client in members.items()}, lose)
    run = coordinator(
        home, members, SIZE, crypto_worker=crypto_worker, link=link, on_event=as_tables(heal)
    )
    report = run.run()
    assert len(report.aborted) == 1 and "went back" in report.aborted[0]
    assert [entry["guard"]["kept"] for entry in report.history[:2]] == [True, False]
    starts = members["ben"].learner.trained  # type: ignore[attr-defined]
    assert np.allclose(starts[2], starts[1], atol=1e-6)
    assert {
        client_store_of(client).progress(run.state.run).steps for client in members.values()
    } == {run.state.round}


def test_a_member_undoes_once_for_one_letter_and_never_without_a_step() -> None:
    home, crypto_worker = house(4, mode="sealed"), LocalCryptoWorker()
    members = sealed_clients(home, SIZE, crypto_worker=crypto_worker)
    run = coordinator(home, members, SIZE, crypto_worker=crypto_worker)
    run.train_round()
    ann = members["ann"]
    round_id = messages.RoundId(run.state.run, 9, 1)
    seed = client_store_of(ann).seed(home.policy.digest)
    assert seed is not None
    tag = client_store_of(ann).progress(run.state.run).tag(seed, run.state.run).hex()
    order = messages.encode_work(messages.Work(flat=np.zeros(0, np.float32), state=tag))
    task = messages.Task(round_id=round_id, stage=messages.UNDO, recipient="ann", payload=order)
    message = messages.encode_task(task, home.policy, home.coordinator)
    ann.handle(message)
    progress = client_store_of(ann).progress(run.state.run)
    assert (
        progress.steps == 2
        and not progress.server.flat.any()
        and not progress.server.velocity.any()
    )
    before = ann.ledger.marks.copy()
    with pytest.raises(MessageError):  # a replay
        ann.handle(message)
    assert client_store_of(ann).progress(run.state.run) is progress and ann.ledger.marks == before


def test_a_vote_that_cannot_be_held_keeps_nothing(tmp_path: Path) -> None:
    home = house(mode="masked", recipe={"attempts": 2}, tables=VOTE)
    members = clients(home, SIZE, lambda name: Turning())
    deaf = [True]
    link = SilentLink(
        {name: client.handle for name, client in members.items()},
        lambda name, message: deaf[0] and name in ("cat", "dan") and b'"stage":"score"' in message,
    )
    store = Store(tmp_path)
    run = coordinator(home, members, SIZE, link=link, store=store)
    with pytest.raises(RoundAborted, match="2 of 4 members are ready"):
        run.run()
    assert run.state.round == 0 and not run.state.server.flat.any()
    store.close()
    deaf[0] = False
    store = Store(tmp_path)
    report = coordinator(home, members, SIZE, link=link, store=store).run()
    assert report.rounds == 3 and all(entry["guard"]["kept"] for entry in report.history[:3])
    store.close()


def test_a_sealed_coordinator_killed_before_the_vote_asks_for_it_first(tmp_path: Path) -> None:
    home, crypto_worker = (
        house(4, mode="sealed", bits=12, recipe={"rounds": 3}, tables=VOTE),
        LocalCryptoWorker(),
    )
    members = sealed_clients(
        home, SIZE, lambda name: Turning(bad=(2,)), crypto_worker=crypto_worker
    )
    store = Store(tmp_path)
    doomed = coordinator(home, members, SIZE, crypto_worker=crypto_worker, store=store)
    doomed.train_round()
    doomed.confirm = lambda: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        doomed.train_round()
    store.close()
    store = Store(tmp_path)
    again = coordinator(home, members, SIZE, crypto_worker=crypto_worker, store=store)
    again.train_round()
    assert [entry["guard"]["kept"] for entry in again.state.history] == [True, False, True]
    store.close()


def test_a_margin_below_the_best_is_measured_from_the_best_of_all_rounds() -> None:
    kept = {"kept": True}
    history: list[dict[str, Any]] = [
        {"accuracy": 0.1, "guard": {**kept, "accuracy": 0.5}},
        {"accuracy": 0.5, "guard": {"kept": False, "accuracy": 0.9}},
        {"accuracy": None},
    ]
    assert best_of(history) == 0.5 and best_of([]) is None


def one_pulls_down(name: str) -> FixedLearner:
    return FixedLearner(-0.2 if name == "ann" else 0.05, correct=5)


def test_the_middle_of_three_sums_is_not_moved_by_one() -> None:
    tables = {"aggregation": AggregationTable(rule="median", buckets=3)}
    home = house(12, mode="masked", bits=12, tables=tables)
    run = coordinator(home, clients(home, SIZE, one_pulls_down), SIZE)
    run.train_round()
    assert run.state.history[0]["buckets"] == 3
    assert np.abs(run.state.server.flat - 0.05).max() < 0.003
    plain = house(9, mode="masked", bits=12)
    other = coordinator(plain, clients(plain, SIZE, one_pulls_down), SIZE)
    other.train_round()
    assert abs(float(other.state.server.flat.mean()) - (8 * 0.05 - 0.2) / 9) < 0.003


@pytest.mark.parametrize("stage", ["mask", "unmask"])
def test_a_bucket_that_fails_is_left_out_and_the_others_count(stage: str) -> None:
    tables = {"aggregation": AggregationTable(rule="median", buckets=3)}
    home = house(12, mode="masked", bits=12, threshold=3, tables=tables)
    members = clients(home, SIZE)
    gone: list[str] = []

    def lose(name: str, message: bytes) -> bool:
        if f'"stage":"{stage}"'.encode() in message and not gone:
            gone.append(name)
        return name in gone and f'"stage":"{stage}"'.encode() in message

    run = coordinator(
        home,
        members,
        SIZE,
        link=SilentLink({name: one.handle for name, one in members.items()}, lose),
    )
    run.train_round()
    entry = run.state.history[0]
    assert entry["buckets"] == 2 and len(entry["parties"]) == 8 and gone[0] not in entry["parties"]
    assert np.abs(run.state.server.flat - 0.1).max() < 0.003


def test_every_bucket_adds_noise_enough_for_itself() -> None:
    privacy = PrivacyTable(
        mechanism="discrete-gaussian",
        clip=2.0,
        noise_multiplier=1.0,
        epsilon=99.0,
        counters="exact",
    )
    tables = {"aggregation": AggregationTable(rule="median", buckets=3), "privacy": privacy}
    home = house(12, mode="masked", bits=16, tables=tables)
    noise = noise_of(home.policy, SIZE)
    # of a bucket, not of the cohort, less the one who reads it
    assert noise is not None and noise.honest == 2
    events: list[dict[str, Any]] = []
    reader = as_tables(events.append)
    report = coordinator(home, clients(home, SIZE), SIZE, on_event=reader).run(rounds=1)
    assert ("each over 4 members or more") in events[0][
        "price"
    ] and "noise for its own size" in events[0]["price"]
    assert (
        report.history[0]["buckets"] == 3
        and report.privacy is not None
        and report.privacy["steps"] == 1
    )


def test_tables_that_promise_what_cannot_be_are_refused() -> None:
    for rule, buckets, trim in (
        ("mean", 3, 1),
        ("median", 1, 1),
        ("median", 2, 1),
        ("trimmed-mean", 4, 2),
    ):
        with pytest.raises(ValueError, match="buckets"):
            AggregationTable(rule=rule, buckets=buckets, trim=trim)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="more than half of those that hold a share"):
        median = AggregationTable(rule="median", buckets=3)
        house(mode="sealed", key="threshold", tables={"aggregation": median})
    off = {"rule": "off", "margin": 0.05, "ballots": "sums"}
    assert dataclasses.asdict(GuardTable()) == off
