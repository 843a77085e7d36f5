"""How far an adapter can be from zeros, and what a member does not send."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietchoir.core.config import ConsentConfig
from quietchoir.core.errors import DataError, MessageError, RoundAborted
from quietchoir.federation.aggregation.server_optimizer import check_reach, optimizer_of
from quietchoir.federation.aggregation.update import noise_of
from quietchoir.federation.rounds.contribution_buffer import rules_of
from quietchoir.federation.spec.policy import PrivacyTable, Recipe
from quietchoir.federation.store.checkpoint import ServerState
from quietchoir.federation.wire import messages
from quietchoir.tests.fakes.buffered import buffered, run_of
from quietchoir.tests.fakes.federation import (
    ANY_MODE,
    FixedLearner,
    TickingClock,
    clients,
    coordinator,
    house,
    trainings,
)
from quietchoir.tests.fakes.liar import Liar, other_work

SIZE = 40
OPTIMIZERS = ("fedavg", "fedavgm", "fedadam", "fedyogi")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@settings(max_examples=60, deadline=None)
@given(
    momentum=st.floats(0.0, 0.95), memory=st.floats(0.05, 0.999), lr=st.floats(0.01, 4.0),
    signs=st.lists(st.sampled_from([1.0, 1.0, -1.0, 0.0, 0.3]), min_size=1, max_size=40),
)  # fmt: skip
def test_no_run_leaves_its_bounds(
    optimizer: Any, momentum: float, memory: float, lr: float, signs: list[float]
) -> None:
    recipe = Recipe(
        server_optimizer=optimizer,
        server_momentum=momentum,
        server_memory=memory,
        server_lr=lr,
        rounds=40,
    )
    state, server = ServerState.zeros(2), optimizer_of(recipe)
    for rounds, sign in enumerate(signs, start=1):
        state = server.step(state, np.array([sign * 0.2, 0.2], np.float32))
        check_reach(recipe, state, rounds, 0.2)


@pytest.mark.parametrize("optimizer", ["fedavg", "fedavgm"])
def test_the_bound_is_reached_by_a_cohort_that_always_moves_as_far_as_it_may(
    optimizer: Any,
) -> None:
    recipe = Recipe(server_optimizer=optimizer, rounds=20)
    state, server = ServerState.zeros(1), optimizer_of(recipe)
    for _ in range(20):
        state = server.step(state, np.array([0.2], np.float32))
    check_reach(recipe, state, 20, 0.2)
    with pytest.raises(MessageError, match="20 rounds of this federation"):
        check_reach(recipe, state.flat * np.float32(1.01), 20, 0.2)
    with pytest.raises(
        MessageError, match="80 rounds of this federation"
    ):  # whatever round a message claims
        check_reach(recipe, np.full(1, 1e6, np.float32), 10**9, 0.2)


def test_a_mean_with_noise_is_no_longer_than_what_it_may_be() -> None:
    table = PrivacyTable(mechanism="skellam", noise_multiplier=1.0, clip=1.0, epsilon=1000.0)
    home = house(4, mode="masked", bits=16, tables={"privacy": table})
    noise, generator = noise_of(home.policy, 2000), np.random.default_rng(1)
    assert noise is not None
    for _ in range(20):
        update = generator.normal(size=2000)
        total = sum(noise.encode(update, bytes(32)).astype(np.int64) for _ in range(3))
        assert np.linalg.norm(noise.decode_sum(total, 3, bytes(32)) / 3) < noise.farthest(3)
    assert noise.farthest(3) < 100 * noise.clip


@pytest.mark.parametrize("download", ["adapter", "change"])
def test_an_adapter_that_no_round_can_have_made_is_refused(download: str) -> None:
    home = house(4, mode="masked", recipe={"attempts": 1, "download": download})
    members = clients(home, SIZE)
    run = coordinator(home, members, SIZE)
    if download == "adapter":
        Liar(run, sorted(members), other_work(SIZE, flat=np.full(SIZE, 3000.0, np.float32)))
    else:
        run.logbook.keep(
            server=ServerState(np.full(SIZE, 3000.0, np.float32), np.zeros(SIZE, np.float32))
        )
    before = [
        (dict(client.ledger.marks), client.ledger.sums.snapshot()) for client in members.values()
    ]
    with pytest.raises(RoundAborted, match="0 of 4 members are ready"):
        run.train_round()
    assert before == [
        (dict(client.ledger.marks), client.ledger.sums.snapshot()) for client in members.values()
    ]
    assert all(not trainings(client) for client in members.values())


@pytest.mark.parametrize("share, sent", [(0.25, False), (0.75, True)])
def test_an_update_that_is_mostly_cut_is_not_sent(share: float, sent: bool) -> None:
    """`share` of the coordinates is what this owner allows; half of them are cut."""

    class Wild(FixedLearner):
        def train(self, flat: np.ndarray, seed: int) -> Any:
            half = np.where(np.arange(SIZE) % 2, 5.0, 0.01).astype(np.float32)
            return dataclasses.replace(super().train(flat, seed), flat=flat + half)

    home = house(4, mode="masked", recipe={"attempts": 1})
    members = clients(home, SIZE, lambda name: Wild())
    for client in members.values():
        client.consent = dataclasses.replace(ANY_MODE, max_clipped=share)
    run = coordinator(home, members, SIZE)
    if sent:
        run.train_round()
        assert run.state.history[-1]["clipped_share"] == 0.5
        return
    with pytest.raises(RoundAborted, match="0 of 4 members are ready"):
        run.train_round()
    assert all(client.attempt is None for client in members.values())
    order = messages.Work(flat=np.zeros(SIZE, np.float32))
    with pytest.raises(DataError, match=r"20 of 40 coordinates .* consent\.max_clipped allows 25%"):
        ann = members["ann"]
        ann.clipped(
            ann.learner.train(order.flat, 0).flat,
            ann.sum_context(
                run.logbook.begin(),
                dataclasses.replace(order, cohort=tuple(sorted(members))),
                b"",
                b"",
                True,
            ),
        )


def test_where_noise_shortens_updates_nothing_is_withheld() -> None:
    table = PrivacyTable(mechanism="skellam", noise_multiplier=1.0, clip=0.1, epsilon=1000.0)
    home = house(4, mode="masked", bits=16, tables={"privacy": table}, recipe={"attempts": 1})
    run = coordinator(home, clients(home, SIZE), SIZE)
    run.train_round()
    assert len(run.state.history[-1]["parties"]) == 4


def test_a_contribution_that_a_groups_ranges_would_cut_stays_where_it_is() -> None:
    home = buffered(
        mode="masked", recipe={"attempts": 1, "ranges": "tensor"}, schedule={"patience_s": 300.0}
    )
    members = clients(home, 50)
    run = run_of(home, members, clock=TickingClock())
    honest = run.attempt.order

    def narrow(flat: Any, **options: Any) -> messages.Work:
        order = honest(flat, **options)
        return (
            dataclasses.replace(order, ranges=((50, 0.01),)) if options.get("training") else order
        )

    run.attempt.order = narrow  # type: ignore[method-assign]
    with pytest.raises(RoundAborted, match="members are ready"):
        run.learn(1)
    offering = [client for client in members.values() if trainings(client)]
    assert len(offering) >= 3
    for client in offering:
        assert client.buffer is not None
        assert client.buffer.look(run.state.run, rules_of(client.policy)) is not None


def test_an_owner_that_allows_nothing_sensible_is_told() -> None:
    with pytest.raises(ValueError, match="max_clipped = 2"):
        ConsentConfig(max_clipped=2.0)
