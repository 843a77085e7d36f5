"""The sealed ring under secure aggregation: exact for the members, closed to the coordinator,
hostile bytes contained.
"""

import secrets

import numpy as np
import pytest

from quietchoir.core.errors import CryptoError, ProtocolError, WorkerError
from quietchoir.core.worker import Worker
from quietchoir.crypto.he.bfv import Packing, key_id
from quietchoir.crypto.he.encrypted_ring import (
    MemberService,
    Seal,
    SealedRing,
    SealedTally,
    coefficients,
    open_sum,
)
from quietchoir.crypto.he.parameters import SEALED, RingParameters
from quietchoir.crypto.ring import BitRing
from quietchoir.tests.fakes.sealed import MARK, SEED, CrashingAdder, LocalCryptoWorker, sealed_ring
from quietchoir.tests.fakes.secagg import Cohort, Round

LENGTH, COUNTERS = 20_000, 3


@pytest.fixture(scope="module")
def crypto_worker():
    return LocalCryptoWorker()


def play(cohort, crypto_worker, silent=None, stages=5):
    """A round whose last three values are counters."""
    ring = sealed_ring(
        LENGTH, parties=len(cohort.names), counters=COUNTERS, crypto_worker=crypto_worker
    )
    return ring, Round(cohort, ring=ring).play(silent or {}, stages=stages)


def seal_of(ring) -> Seal:
    assert ring.seal is not None
    return ring.seal


def opened(ring, game):
    tally = game.server.values
    assert isinstance(tally, SealedTally)
    return open_sum(seal_of(ring), SEED, tally.sealed_sum, ring.crypto_worker)


@pytest.mark.parametrize(
    "silent", [{}, {1: ["node-004"]}, {2: ["node-001"]}, {2: ["node-000"], 3: ["node-004"]}]
)
def test_members_open_the_exact_sum_of_the_survivors_and_the_coordinator_the_counters(
    silent, crypto_worker
):
    cohort = Cohort(5, length=LENGTH + COUNTERS, threshold=3)
    ring, game = play(cohort, crypto_worker, silent)
    missing = {name for stage in (0, 1, 2) for name in silent.get(stage, ())}
    expected = cohort.sum(set(cohort.names) - missing)
    assert set(game.result.survivors) == set(cohort.names) - missing
    assert (opened(ring, game) == expected[:LENGTH]).all()
    assert (game.result.total == expected[LENGTH:]).all()
    assert game.result.tokens == sum(cohort.tokens[name] for name in game.result.survivors)


def test_a_scoring_round_seals_nothing_and_counts_all_the_same(crypto_worker):
    cohort = Cohort(4, length=COUNTERS)
    asked = len(crypto_worker.asked)
    game = Round(
        cohort, ring=sealed_ring(0, parties=4, counters=COUNTERS, crypto_worker=crypto_worker)
    ).play()
    assert (game.result.total == cohort.sum(cohort.names)).all()
    assert len(crypto_worker.asked) == asked


def test_an_upload_is_noise_to_a_member_with_the_key_and_an_unmasked_one_is_not(crypto_worker):
    ring = sealed_ring(LENGTH, parties=5, crypto_worker=crypto_worker)
    values = np.full(LENGTH + COUNTERS, 7, np.uint32)
    bare, masked = ring.lift(values), ring.lift(values)
    ring.mask(masked, [(secrets.token_bytes(32), False)])
    read = {}
    for name, words in (("bare", bare), ("masked", masked)):
        tally = ring.tally()
        tally.add(ring.close(words))
        counters = tally.total()
        read[name] = open_sum(seal_of(ring), SEED, tally.sealed_sum, crypto_worker), counters
    assert (read["bare"][0] == 7).all() and (read["bare"][1] == 7).all()  # the unprotected arm
    counts = np.bincount(read["masked"][0] % 64, minlength=64)
    # 63 degrees of freedom: p below 1e-6
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 130
    assert (read["masked"][0] == 7).mean() < 0.01


def test_both_ends_of_a_pair_cancel_exactly(crypto_worker):
    ring, key = sealed_ring(LENGTH, parties=5, crypto_worker=crypto_worker), secrets.token_bytes(32)
    values = np.random.default_rng(1).integers(0, 256, LENGTH + COUNTERS, np.uint32)
    words = ring.lift(values)
    before = words.slots.copy(), words.counters.copy()
    ring.mask(words, [(key, False)])
    assert (words.slots != before[0]).mean() > 0.99
    ring.mask(words, [(key, True)])
    assert (words.slots == before[0]).all() and (words.counters == before[1]).all()


def test_contributions_of_other_lengths_keys_and_parameters_never_reach_seal(crypto_worker):
    ring = sealed_ring(LENGTH, parties=5, crypto_worker=crypto_worker)
    payload = ring.close(ring.lift(np.ones(LENGTH + COUNTERS, np.uint32)))
    other = SealedRing(
        Seal(packing=seal_of(ring).packing, key_id=key_id(bytes(32))),
        ring.counters,
        seed=bytes(32),
        crypto_worker=crypto_worker,
    )
    foreign = other.close(other.lift(np.ones(LENGTH + COUNTERS, np.uint32)))
    tally, quiet = ring.tally(), LocalCryptoWorker()
    tally._ring = SealedRing(seal_of(ring), ring.counters, crypto_worker=quiet)
    swapped = payload[:32] + b"otherset" + payload[40:]
    for bad in (b"", payload[:-1], payload + b"\0", foreign, swapped, bytes(len(payload))):
        with pytest.raises(ProtocolError):
            tally.add(bad)
    assert quiet.asked == []
    for bad in (b"", foreign, bytes(len(foreign))):
        with pytest.raises(ProtocolError):
            open_sum(seal_of(ring), SEED, bad, quiet)
    assert quiet.asked == []


def test_a_changed_upload_is_refused_by_its_signature_before_seal_sees_it(crypto_worker):
    cohort = Cohort(4, length=LENGTH + COUNTERS)
    _, game = play(cohort, crypto_worker, stages=2)
    answers = {name: game.ask(name) for name in cohort.names}
    asked = len(crypto_worker.asked)
    rng = np.random.default_rng(3)
    for at in rng.integers(0, len(answers["node-000"]), 40):
        changed = bytearray(answers["node-000"])
        changed[at] ^= 1 << int(rng.integers(8))
        with pytest.raises(CryptoError):
            game.server.receive("node-000", bytes(changed))
    assert len(crypto_worker.asked) == asked
    for name, answer in answers.items():
        game.server.receive(name, answer)


def test_bytes_that_crash_seal_cost_their_sender_its_place_and_nobody_else_anything():
    member, worker = LocalCryptoWorker(), Worker(CrashingAdder)
    ring = sealed_ring(LENGTH, parties=3, crypto_worker=member)
    tally = sealed_ring(LENGTH, parties=3, seed=None, crypto_worker=worker).tally()
    values = [np.full(LENGTH + COUNTERS, value, np.uint32) for value in (1, 2, 3)]
    try:
        tally.add(ring.close(ring.lift(values[0])))
        hostile = bytearray(ring.close(ring.lift(values[1])))
        hostile[ring.seal_bytes - (seal_of(ring).packing.rows - 1) * SEALED.seeded_bytes - 1] = MARK
        with pytest.raises(WorkerError, match="ended with code"):
            tally.add(bytes(hostile))
        tally.add(ring.close(ring.lift(values[2])))
        assert worker.starts == 2
        assert (tally.total() == 4).all()
        assert (open_sum(seal_of(ring), SEED, tally.sealed_sum, member) == 4).all()
    finally:
        worker.close()


def test_flipped_bits_in_a_sum_are_refused_or_read_and_bring_nobody_down(crypto_worker):
    """With a real worker. Low bits drown in a ciphertext's noise, and who may alter it can alter
    the sum: see the README.
    """
    ring = sealed_ring(4096, parties=3, crypto_worker=crypto_worker)
    tally = ring.tally()
    tally.add(ring.close(ring.lift(np.full(4096 + COUNTERS, 5, np.uint32))))
    tally.total()
    worker, rng = Worker(MemberService), np.random.default_rng(8)
    outcomes: set[object] = set()
    try:
        for at in (0, 39, 40, 45, *rng.integers(40, len(tally.sealed_sum), 25)):
            changed = bytearray(tally.sealed_sum)
            changed[at] ^= 1 << int(rng.integers(8))
            try:
                outcomes.add(open_sum(seal_of(ring), SEED, bytes(changed), worker).shape)
            except (CryptoError, WorkerError) as error:
                outcomes.add(type(error))
        assert ProtocolError in outcomes and outcomes <= {ProtocolError, WorkerError, (4096,)}
        assert (open_sum(seal_of(ring), SEED, tally.sealed_sum, worker) == 5).all()
    finally:
        worker.close()


def test_a_sum_under_another_key_is_refused_not_misread(crypto_worker):
    ring = sealed_ring(4096, parties=3, crypto_worker=crypto_worker)
    tally = ring.tally()
    tally.add(ring.close(ring.lift(np.full(4096 + COUNTERS, 5, np.uint32))))
    tally.total()
    for _ in range(5):
        with pytest.raises(ProtocolError, match="noise budget"):
            open_sum(seal_of(ring), secrets.token_bytes(32), tally.sealed_sum, crypto_worker)


def test_a_ciphertext_with_more_noise_than_promised_is_not_sent(crypto_worker, monkeypatch):
    ring = sealed_ring(4096, parties=3, crypto_worker=crypto_worker)
    words = ring.lift(np.ones(4096 + COUNTERS, np.uint32))
    assert SEALED.fresh_budget == 5
    monkeypatch.setattr(RingParameters, "fresh_budget", property(lambda self: 8))
    with pytest.raises(CryptoError, match="noise budget, 8 expected; nothing is sent"):
        ring.close(words)


def test_rings_differ_in_name_when_anything_differs_that_must_be_agreed_on():
    rings = [
        sealed_ring(100, parties=3),
        sealed_ring(101, parties=3),
        sealed_ring(100, parties=5),
        sealed_ring(0, parties=3),
        sealed_ring(100, parties=3, bits=9),
        sealed_ring(100, parties=3, counters=4),
        sealed_ring(100, parties=3, bound=b"another adapter"),
        SealedRing(
            Seal(packing=Packing(length=100, bits=8, parties=3), key_id=bytes(32)),
            BitRing(length=3, bits=8, parties=3),
            crypto_worker=LocalCryptoWorker(),
        ),
    ]
    assert len({ring.name for ring in rings}) == len(rings)
    # the coordinator's, without the key
    assert sealed_ring(100, parties=3, seed=None).name == rings[0].name
    with pytest.raises(RuntimeError, match="without the members' key"):
        sealed_ring(100, parties=3, seed=None).close(rings[0].lift(np.ones(103, np.uint32)))


def test_a_parameter_costs_what_the_readme_says_and_looks_like_noise(crypto_worker):
    ring = sealed_ring(1_000_000, parties=10, crypto_worker=crypto_worker)
    assert ring.wire_bytes / ring.sealed <= 2.8
    assert seal_of(ring).packing.rows * SEALED.ciphertext_bytes / ring.sealed <= 4.2
    small = sealed_ring(LENGTH, parties=10, crypto_worker=crypto_worker)
    words = coefficients(
        seal_of(small), small.close(small.lift(np.zeros(LENGTH + COUNTERS, np.uint32)))
    )
    counts = np.bincount(words, minlength=256)
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() / 255 < 1.6
