"""What the coordinator's transcript shows: lengths and noise, whatever the updates are."""

from typing import Any

import numpy as np

from quietchoir.crypto.secagg import session
from quietchoir.tests.fakes.coordinator import masked_view, rebuild, uniform
from quietchoir.tests.fakes.secagg import Cohort, Peeled, Round


def test_residues_of_uploads_pass_chi_square_and_plain_updates_do_not() -> None:
    cohort = Cohort(4, length=20_000, bits=8)
    game = Round(cohort).play(stages=3)
    for name, message in game.sent[2].items():
        assert uniform(Peeled(game.session, message, masked_view(game)).values, game.bits)
        assert not uniform(cohort.values[name], game.bits)


def test_two_worlds_with_the_same_sum_look_alike_to_the_coordinator() -> None:
    """Two members swap their updates; the coordinator, who sees everything and an accomplice's
    secrets, must guess.
    """
    cohort = Cohort(3, length=24, threshold=3)
    first, second = cohort.names[:2]
    one, other = cohort.values[first], cohort.values[second]
    coin, right, right_in_clear, sizes = np.random.default_rng(1), 0, 0, set()
    trials = 120
    for trial in range(trials):
        world = int(coin.integers(2))
        cohort.values = {**cohort.values, first: (one, other)[world], second: (other, one)[world]}
        game = Round(cohort, attempt=trial).play(stages=4)
        accomplice = game.clients[cohort.names[2]]._mask
        game.play()
        sizes.add(tuple(len(message) for answers in game.sent for message in answers.values()))
        peeled = Peeled(game.session, game.sent[2][first], masked_view(game))
        at, peer = game.session.numbers[first], game.session.numbers[cohort.names[2]]
        # survivors' seeds are opened
        session.mask_self(peeled, game.session, rebuilt_seed(game, at), subtract=True)
        session.mask_pair(peeled, game.session, accomplice, peer, at, game.server._cards[at].mask)
        right += guess(peeled.values, one, other) == world
        right_in_clear += guess(cohort.values[first], one, other) == world
    assert right_in_clear == trials
    assert abs(right - trials / 2) < 5 * (trials / 4) ** 0.5  # five standard deviations
    assert len(sizes) == 1


def rebuilt_seed(game: Round, at: int) -> bytes:
    shares = {
        number: revelation.shares[at][1:] for number, revelation in game.server._revelations.items()
    }
    chosen = dict(list(shares.items())[: game.server._plan.threshold])
    return rebuild(chosen)


def guess(seen: Any, one: Any, other: Any) -> int:
    """0 if `seen` is more like `one`, by correlation."""
    likeness = [np.corrcoef(seen, candidate)[0, 1] for candidate in (one, other)]
    return int(likeness[1] > likeness[0])
