"""Every tensor has the range that the public velocity suggests, nobody can widen it, and all of
a sum have the same.
"""

from typing import Any

import numpy as np
import pytest

from quietchoir.core.errors import MessageError, RoundAborted
from quietchoir.core.models.lora.adapter import Layout
from quietchoir.federation.aggregation.ranges import read_spans, spans, tensor_stops
from quietchoir.federation.aggregation.update import Codec, Statistics, SumContext
from quietchoir.federation.rounds.attempt import RoundAttempt
from quietchoir.federation.spec.policy import AdapterTable
from quietchoir.federation.training.learner import Trained
from quietchoir.federation.wire import messages
from quietchoir.tests.fakes.federation import FixedLearner, clients, coordinator, house
from quietchoir.tests.fakes.liar import Liar, other_work
from quietchoir.tests.fakes.sealed import LocalCryptoWorker, adapter_of, sealed_clients
from quietchoir.tests.fakes.training import tiny_pair

SIZE, STOPS = 300, (100, 300)


class TwoScales(FixedLearner):
    """Moves the first tensor a little and the second one far."""

    def train(self, flat: np.ndarray, seed: int) -> Trained:
        change = np.where(np.arange(SIZE) < STOPS[0], 0.004, 0.1).astype(np.float32)
        return Trained(flat=flat + change, examples=5, tokens=100, loss=2.0)


def test_ranges_follow_the_velocity_within_the_federations_limit() -> None:
    velocity = np.array([0.0, 0.02, -0.04, 0.0, 0.0, 0.9], np.float32)
    found = spans(velocity, (1, 2, 3, 5, 6), 0.2)
    assert [stop for stop, _ in found] == [1, 2, 3, 5, 6]
    assert [round(scale, 6) for _, scale in found] == [0.2, 0.025, 0.05, 0.2, 0.2]
    # never below an eighth
    assert spans(velocity[1:2] / np.float32(1000), (1,), 0.2) == ((1, 0.025),)
    assert [(one.start, one.stop) for one in read_spans(found, 6, 0.2)] == [
        (0, 1),
        (1, 2),
        (2, 3),
        (3, 5),
        (5, 6),
    ]


@pytest.mark.parametrize(
    "given",
    [
        (),
        ((3, 0.1),),
        ((7, 0.1),),
        ((3, 0.1), (3, 0.1), (6, 0.1)),
        ((3, 0.1), (2, 0.1), (6, 0.1)),
        ((6, 0.0),),
        ((6, -0.1),),
        ((6, 0.21),),
        ((6, float("nan")),),
        ((6, float("inf")),),
    ],
)
def test_ranges_that_gap_or_reach_too_far_are_refused(given: tuple[tuple[int, float], ...]) -> None:
    with pytest.raises(MessageError, match="refused"):
        read_spans(given, 6, 0.2)


def test_narrow_ranges_round_finer_and_say_what_they_cut() -> None:
    policy = house(bits=4).policy
    update = np.where(np.arange(SIZE) < 100, 0.004, 0.1).astype(np.float32)
    fine = Codec(SIZE, policy, SumContext(read_spans(((100, 0.025), (300, 0.2)), SIZE, 0.2)))
    coarse = Codec(SIZE, policy)
    errors = [
        np.abs(one.decode(one.encode(update, Statistics()).astype(np.int64), 1)[0] - update)[
            :100
        ].mean()
        for one in (fine, coarse)
    ]
    assert errors[0] < errors[1] / 2
    assert (fine.clipped(update), fine.clipped(update * 3)) == (0, 200)
    assert fine.clipped(np.where(np.arange(SIZE) < 100, 0.03, 0.0).astype(np.float32)) == 100


@pytest.mark.parametrize("mode", ["plain", "masked", "sealed"])
def test_a_run_with_ranges_of_its_tensors_steps_to_where_the_arithmetic_says(mode: str) -> None:
    home = house(mode=mode, bits=8, recipe={"ranges": "tensor", "update_range": 0.2})
    crypto_worker = LocalCryptoWorker()
    members = (
        sealed_clients(home, SIZE, lambda name: TwoScales(), crypto_worker=crypto_worker)
        if mode == "sealed"
        else clients(home, SIZE, lambda name: TwoScales(), stops=STOPS)
    )
    for client in members.values():
        client.stops = STOPS
    run = coordinator(home, members, SIZE, stops=STOPS, crypto_worker=crypto_worker)
    report = run.run()
    flat = adapter_of(members["ann"], run.state.run) if mode == "sealed" else run.state.server.flat
    steps = 1 + 1.7 + (1 + 0.7 * 1.7)
    assert np.abs(flat[:100] - 0.004 * steps).max() < 0.006
    assert np.abs(flat[100:] - 0.1 * steps).max() < 0.006
    # there the coordinator knows no velocity; members derive the same ranges from their own
    if mode != "sealed":
        assert report.history[0]["ranges"] == [0.2, 0.2]
        assert report.history[2]["ranges"][0] < 0.1 < report.history[2]["ranges"][1] == 0.2


def test_members_that_were_told_different_ranges_never_sum() -> None:
    home = house(
        4,
        mode="masked",
        recipe={"ranges": "tensor", "attempts": 1, "download": "adapter"},
        min_cohort=3,
        threshold=3,
    )
    members = clients(home, SIZE)
    run = coordinator(home, members, SIZE, stops=(SIZE,))
    Liar(run, ("ann",), other_work(SIZE, ranges=((SIZE, 0.05),)))
    run.train_round()
    # ann's masks fit nobody else's session
    assert run.state.history[0]["parties"] == ["ben", "cat", "dan"]
    assert np.abs(run.state.server.flat - 0.1).max() < 0.01


def test_a_coordinator_without_ranges_is_refused_where_the_file_asks_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = house(4, recipe={"ranges": "tensor", "attempts": 1})
    honest = RoundAttempt.order

    def forgetful(self: RoundAttempt, flat: Any, **options: Any) -> messages.Work:
        return honest(self, flat, **{**options, "training": False})

    monkeypatch.setattr(RoundAttempt, "order", forgetful)
    with pytest.raises(RoundAborted, match="0 of 4 members are ready"):
        coordinator(home, clients(home, SIZE), SIZE).train_round()


def test_the_tensors_of_a_model_join_and_cover_its_adapter() -> None:
    table, weights = AdapterTable(rank=2, upper_layers=2), tiny_pair()[0]
    stops = tensor_stops(table, weights)
    assert len(stops) == 14 and stops[-1] == Layout(table.shape(), weights.architecture).size
    assert tensor_stops(table, None) == ()
