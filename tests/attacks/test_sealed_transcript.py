"""Sealed mode before the strongest pair it may meet: a coordinator, and a member that gave it
the members' key.
"""

from typing import Any

import numpy as np

from quietchoir.crypto.he.encrypted_ring import SealedTally, open_sum
from quietchoir.crypto.secagg import session
from quietchoir.tests.attacks.test_secagg_transcript import guess, rebuilt_seed
from quietchoir.tests.fakes.coordinator import masked_view
from quietchoir.tests.fakes.sealed import SEED, LocalCryptoWorker, sealed_ring
from quietchoir.tests.fakes.secagg import Cohort, Peeled, Round

LENGTH, COUNTERS, TRIALS = 24, 3, 40


def test_two_worlds_with_the_same_sum_look_alike_even_to_whoever_decrypts_every_upload() -> None:
    """Two members swap their updates. The pair opens the upload, peels the self-mask and the
    accomplice's, and must guess.
    """
    crypto_worker, cohort = LocalCryptoWorker(), Cohort(3, length=LENGTH + COUNTERS, threshold=3)
    first, second, accomplice = cohort.names
    one, other = cohort.values[first], cohort.values[second]
    coin, right, right_unmasked, sizes = np.random.default_rng(2), 0, 0, set()
    for trial in range(TRIALS):
        world = int(coin.integers(2))
        cohort.values = {**cohort.values, first: (one, other)[world], second: (other, one)[world]}
        ring = sealed_ring(LENGTH, parties=3, counters=COUNTERS, crypto_worker=crypto_worker)
        game = Round(cohort, attempt=trial, ring=ring).play(stages=4)
        secret = game.clients[accomplice]._mask
        game.play()
        sizes.add(tuple(len(message) for answers in game.sent for message in answers.values()))
        peeled = Peeled(game.session, game.sent[2][first], masked_view(game))
        at, peer = game.session.numbers[first], game.session.numbers[accomplice]
        session.mask_self(peeled, game.session, rebuilt_seed(game, at), subtract=True)
        session.mask_pair(peeled, game.session, secret, peer, at, game.server._cards[at].mask)
        right += guess(decrypted(ring, peeled), one[:LENGTH], other[:LENGTH]) == world
        # the unprotected arm: the same upload, encrypted and not masked
        bare = Peeled.__new__(Peeled)
        bare._tally = ring.tally()
        bare._tally.add(ring.close(ring.lift(cohort.values[first])))
        right_unmasked += guess(decrypted(ring, bare), one[:LENGTH], other[:LENGTH]) == world
    assert right_unmasked == TRIALS
    assert abs(right - TRIALS / 2) < 5 * (TRIALS / 4) ** 0.5  # five standard deviations
    assert len(sizes) == 1


def decrypted(ring: Any, peeled: Peeled) -> Any:
    """What the members' key makes of one upload, once the masks are off that the pair knows."""
    tally = peeled._tally
    assert isinstance(tally, SealedTally)
    tally.total()
    return open_sum(ring.seal, SEED, tally.sealed_sum, ring.crypto_worker)
