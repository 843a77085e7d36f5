"""A clip that follows the median of members' lengths: by a bit each, within the same epsilon, in
every mode that it is offered in.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from quietchoir.crypto.privacy.accountant import PrivacyStep
from quietchoir.crypto.privacy.noise import Noise
from quietchoir.federation.aggregation.clipping import (
    FARTHEST,
    QuantileClip,
    clip_at,
    joint,
    power,
    stepper_of,
)
from quietchoir.federation.aggregation.server_optimizer import FedAvgM, check_reach
from quietchoir.federation.aggregation.update import noise_of
from quietchoir.federation.events import TrainedEvent
from quietchoir.federation.monitor.event_printer import limits
from quietchoir.federation.spec.policy import (
    BIT_SHARE,
    DistillationTable,
    PrivacyTable,
    Recipe,
    ScheduleTable,
)
from quietchoir.federation.store.checkpoint import ServerState
from quietchoir.tests.fakes.federation import (
    FixedLearner,
    House,
    clients,
    coordinator,
    house,
    trainings,
)
from quietchoir.tests.fakes.sealed import LocalCryptoWorker, adapter_of, sealed_clients

SIZE = 64
LENGTH = 0.1 * math.sqrt(SIZE)  # of what a `FixedLearner` changes
MEMBERS = 12
ADAPTIVE = PrivacyTable(
    mechanism="skellam", clipping="quantile", clip=0.1, noise_multiplier=0.5, epsilon=99.0
)


def adaptive(mode: str = "plain", recipe: dict[str, Any] | None = None, **table: Any) -> House:
    tables = {"privacy": dataclasses.replace(ADAPTIVE, **table)}
    floors = {"min_cohort": MEMBERS - 1, "threshold": 8}
    return house(MEMBERS, mode=mode, bits=16, recipe=recipe, tables=tables, **floors)


def adopted(finished: dict[str, np.ndarray], name: str, flat: np.ndarray, card: str) -> str:
    del card
    finished[name] = flat
    return ""


@pytest.mark.parametrize("start", [0.08, 1.0, 12.0])
def test_the_clip_comes_to_the_median_of_members_lengths(start: float) -> None:
    lengths = np.random.default_rng(1).lognormal(0.0, 0.3, 1000)  # their median is 1
    stepper = QuantileClip(FedAvgM(1.0, 0.7), start, trust=1.0)
    state, clips = ServerState.zeros(3), list[float]()
    for _ in range(12):
        clip = start * power(float(state.flat[-1]))
        bits = np.where(lengths <= clip, 1.0, -1.0) * start * math.sqrt(BIT_SHARE)
        mean = np.array([0.1, -0.2, bits.mean()], np.float32)
        state = stepper.step(state, mean)
        clips.append(clip)
    assert all(0.75 < clip < 1.35 for clip in clips[-3:])
    assert max(clips) <= 2.1 * max(start, 1.0)  # never far beyond: too wide a clip lets noise in


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_one_liar_of_a_hundred_takes_the_clip_to_the_end_of_its_range_and_no_further(
    sign: float,
) -> None:
    """Beyond its length, by filling its bits; within it, it weighs as many bits as fit in it."""
    lengths = np.random.default_rng(1).lognormal(0.0, 0.3, 99)  # their median is 1
    clips = dict[str, float]()
    for liar, bit in (("none", math.sqrt(BIT_SHARE)), ("length", 1.0), ("ring", 1e3)):
        stepper = stepper_of(adaptive("masked", clip=1.0, noise_multiplier=0.1).policy, SIZE + 1)
        state = ServerState.zeros(SIZE + 1)
        for _ in range(20):
            bits = np.where(lengths <= power(float(state.flat[-1])), 1.0, -1.0)
            mean = np.zeros(SIZE + 1, np.float32)
            mean[-1] = (bits.sum() * math.sqrt(BIT_SHARE) + sign * bit) / 100
            state = stepper.step(state, mean)
        clips[liar] = power(float(state.flat[-1]))
    assert 0.9 < clips["none"] < 1.1 and 0.8 < clips["length"] < 1.25
    assert clips["ring"] == (1 / 16 if sign > 0 else 16.0)


def test_the_step_is_in_the_adapters_own_units_whatever_the_clip() -> None:
    """Two clips, one direction: the step goes with the clip, the velocity with the step."""
    stepper = QuantileClip(FedAvgM(1.0, 0.5), 1.0, trust=1.0)
    mean = np.array([0.3, -0.1, 0.0], np.float32)
    low, high = (
        stepper.step(ServerState(np.array([0, 0, at], np.float32), np.zeros(3, np.float32)), mean)
        for at in (0.0, 3.0)
    )
    assert np.allclose(8.0 * low.flat[:2], high.flat[:2]) and low.flat[0] > 0.3
    assert np.allclose(8.0 * low.velocity[:2], high.velocity[:2])


def test_few_members_hardly_move_a_clip_that_their_noise_would_throw_about() -> None:
    noisy = stepper_of(adaptive(noise_multiplier=8.0).policy, SIZE + 1)
    clear = stepper_of(adaptive(noise_multiplier=0.2).policy, SIZE + 1)
    assert isinstance(noisy, QuantileClip) and isinstance(clear, QuantileClip)
    assert noisy.trust < 0.1 and clear.trust > 0.9


@pytest.mark.parametrize("told", [1e-6, 0.1, 1.0, 1e6])
def test_what_a_member_sends_is_within_the_sensitivity_whatever_clip_it_was_told(
    told: float,
) -> None:
    policy = adaptive().policy
    noise = noise_of(policy, policy.carried(SIZE))
    assert noise is not None and noise.length == SIZE + 1
    generator = np.random.default_rng(2)
    for scale in (0.0, 1e-9, 1.0, 1e9):
        update = (scale * generator.normal(size=SIZE)).astype(np.float32)
        sent = joint(policy, update, told)
        assert np.linalg.norm(sent.astype(np.float64)) <= policy.privacy.clip * (1 + 1e-6)
        assert abs(abs(float(sent[-1])) - 0.1 * policy.privacy.clip) < 1e-6
        whole = noise.whole(sent, bytes(32))
        assert math.sqrt(float(whole @ whole)) <= noise.sensitivity


def test_a_member_and_its_bit_are_told_apart_no_better_than_the_epsilon_says() -> None:
    """The best guess from a noised contribution whether it is a member's, or nothing; without
    noise it is always right.
    """
    trials, policy = 400, adaptive().policy
    sent = joint(policy, np.full(SIZE, 1.0, np.float32), 0.05)
    for multiplier, least in ((1.0, 0.2), (0.02, 0.999)):
        noise = Noise(length=SIZE + 1, clip=0.1, multiplier=multiplier, honest=1, bits=16)
        along = sent.astype(np.float64) / np.linalg.norm(sent)
        guesses = [
            sum(
                noise.decode_sum(noise.encode(one, bytes(32)), 1, bytes(32)) @ along > 0.05
                for _ in range(trials)
            )
            / trials
            for one in (sent, np.zeros(SIZE + 1, np.float32))
        ]
        step = PrivacyStep.of(noise)  # the advantage of the best test against a Gaussian
        bound = 2 * norm.cdf(1 / (2 * step.multiplier)) - 1
        assert least < guesses[0] - guesses[1] <= bound + 4 / math.sqrt(trials)


@pytest.mark.parametrize("mode", ["plain", "masked", "sealed"])
def test_a_clip_that_is_too_narrow_widens_and_the_adapter_is_handed_over_without_it(
    mode: str,
) -> None:
    home, crypto_worker = adaptive(mode, {"rounds": 5}), LocalCryptoWorker()
    size, events = home.policy.carried(SIZE), list[Any]()
    assert size == SIZE + 1
    if mode == "sealed":
        members = sealed_clients(
            home, size, lambda name: FixedLearner(0.1), crypto_worker=crypto_worker
        )
    else:
        members = clients(home, size, lambda name: FixedLearner(0.1))
    finished = dict[str, np.ndarray]()
    for name, member in members.items():
        member.adopt = partial(adopted, finished, name)
        member.on_event = events.append
    run = coordinator(home, members, size, crypto_worker=crypto_worker)
    report = run.run()
    assert {flat.size for member in members.values() for flat in trainings(member)} == {SIZE}
    assert len(finished) == MEMBERS and {flat.size for flat in finished.values()} == {SIZE}
    clips = [float(entry.get("clip", 0.0)) for entry in report.history]
    if mode == "sealed":  # it lies with the members' adapter, which the coordinator does not have
        assert set(clips) == {0.0}
        flat = adapter_of(members["ann"], run.state.run)
    else:
        assert clips[0] == 0.1 and clips[4] > 0.12
        flat = run.state.server.flat
    assert clip_at(home.policy, flat) > 0.12 and flat.size == size
    told = [event.shortened for event in events if isinstance(event, TrainedEvent)]
    assert told[0] == pytest.approx(0.1 / LENGTH, abs=1e-3) and "of its length" in limits(
        next(event for event in events if isinstance(event, TrainedEvent))
    )
    if mode != "sealed":  # all moved alike: the mean of changes as they were cut, with momentum
        moved = velocity = 0.0
        for clip in clips[:5]:
            velocity = 0.7 * velocity + min(clip, LENGTH) / LENGTH * 0.1
            moved += velocity
        assert float(flat[:-1].mean()) == pytest.approx(moved, rel=0.4)


def test_an_adapter_beyond_what_any_clip_allows_is_refused() -> None:
    policy = adaptive().policy
    stepper = stepper_of(policy, SIZE + 1)
    state = ServerState.zeros(SIZE + 1)
    state.flat[-1] = np.float32(FARTHEST)
    check_reach(policy.recipe, state, 4, 0.1, stepper)
    state.flat[-1] = np.float32(1e9)
    with pytest.raises(Exception, match="adapter that was told reaches"):
        check_reach(policy.recipe, state, 4, 0.1, stepper)


def test_where_no_clip_could_follow_the_file_is_refused() -> None:
    with pytest.raises(ValueError, match=r'clipping = "quantile" needs schedule\.rounds'):
        dataclasses.replace(adaptive().policy, schedule=ScheduleTable(rounds="buffered"))
    plain = {"server_optimizer": "fedavg", "server_lr": 1.0}
    with pytest.raises(ValueError, match="no adapter whose clip could follow"):
        dataclasses.replace(
            adaptive(recipe=plain).policy,
            distillation=DistillationTable(public="ab" * 32, items=2, answers=2),
        )


@pytest.mark.parametrize(("momentum", "most"), [(0.0, 1.0), (0.7, 1.05)])
def test_noise_that_is_correlated_over_rounds_could_not_spare_more_than_this(
    momentum: float, most: float
) -> None:
    """Everybody is in every round. The finished adapter is a weighted sum of the rounds' means: one
    Gaussian mechanism on that sum alone is the best that any choice of noises can do for it.
    """
    rounds = Recipe().rounds
    weights = list[float]()
    for impulse in range(rounds):
        state, optimizer = ServerState.zeros(1), FedAvgM(1.0, momentum)
        for number in range(rounds):
            state = optimizer.step(state, np.array([float(number == impulse)], np.float32))
        weights.append(float(state.flat[0]))
    independent = math.sqrt(rounds) * math.sqrt(sum(one * one for one in weights))
    best = sum(weights)  # its sensitivity: every round's change along one direction
    assert 1.0 - 1e-6 <= independent / best <= most + 1e-6


@pytest.mark.parametrize("clipping", ["fixed", "quantile"])
def test_no_exact_counter_says_how_many_were_longer_than_the_clip(clipping: str) -> None:
    """Without noise the same counter says how many coordinates were cut."""
    for mechanism, share in (("skellam", 0.0), ("none", 1.0)):
        home = adaptive(
            "plain",
            {"rounds": 1, "update_range": 0.05},
            counters="exact",
            clipping=clipping,
            mechanism=mechanism,
        )
        size, events = home.policy.carried(SIZE), list[Any]()
        members = clients(home, size, lambda name: FixedLearner(0.1))
        for member in members.values():
            member.consent = dataclasses.replace(member.consent, max_clipped=1.0)
            member.on_event = events.append
        trained = coordinator(home, members, size).run().history[0]
        assert trained["loss"] is not None and trained["clipped_share"] == share
        cut = [one.shortened or one.clipped for one in events if isinstance(one, TrainedEvent)]
        assert len(cut) == MEMBERS and all(cut)  # each member is told of its own
