"""Joint keys: sums open exactly for t members, whoever is absent, and for nobody without them."""

import dataclasses
import pickle
import secrets

import numpy as np
import pytest

from quietchoir.core.errors import (
    AuthenticationError,
    BudgetError,
    ConfigError,
    ProtocolError,
    ThresholdError,
)
from quietchoir.crypto.experimental.threshold import (
    REHEARSAL,
    Gathering,
    Holder,
    JointPacking,
    PartialReader,
    ThresholdPlan,
    request,
    residues,
)
from quietchoir.crypto.experimental.threshold.lattice import LIMBS, lattice
from quietchoir.crypto.experimental.threshold.plan import PLAIN_MODULUS, PRIMES, Q
from quietchoir.crypto.he.parameters import JOINT
from quietchoir.crypto.identity.keys import Identity
from quietchoir.tests.fakes.threshold import Circle, ciphertext, integers


@pytest.fixture(scope="module")
def five():
    return Circle(5, 3, length=50_000)  # two ciphertexts


@pytest.fixture(scope="module")
def nine():
    return Circle(9, 5, bits=16)


def test_three_of_five_open_the_exact_sum_whichever_three_they_are(five):
    gathering = five.gather(1)
    for responders in (five.names[:3], five.names[2:], five.names[::2]):
        slots = five.opened(gathering, responders, reader=five.names[1])
        assert (five.plan.packing.unpack(slots) == five.sum()).all()
    assert five.holdings[five.names[2]].memory.opened_rows == 6


def test_five_of_nine_open_the_exact_sum_of_those_who_contributed(nine):
    gathering = nine.gather(1, nine.names[:7])  # two drop out before, four others do not answer
    assert gathering.contributors == tuple(nine.names[:7])
    slots = nine.opened(gathering, nine.names[4:])
    assert (nine.plan.packing.unpack(slots) == nine.sum(nine.names[:7])).all()


def test_a_responder_that_vanishes_is_replaced_and_the_sum_is_the_same(nine):
    gathering, first, second = nine.gather(2), nine.names[:5], nine.names[1:6]
    reading = nine.reader(gathering, first)
    for name in first[1:]:
        reading.receive(name, nine.holders[name].respond(gathering.request(first)))
    assert reading.missing == (first[0],)
    with pytest.raises(ThresholdError, match="node-000"):
        reading.result()
    assert (nine.plan.packing.unpack(nine.opened(gathering, second)) == nine.sum()).all()


def test_masks_inside_the_plaintext_cancel_in_the_opened_sum(five):
    """As in sealed mode: a single contribution would open to chance; a dropped member's masks
    are taken off afterwards.
    """
    pair = {frozenset(two): secrets.token_bytes(32) for two in ((0, 1), (0, 2), (1, 2))}
    slots = {}
    for me in range(3):
        slots[five.names[me]] = five.plan.packing.pack(five.values[five.names[me]])
        for other in {0, 1, 2} - {me}:
            masked = five.plan.packing.mask(
                slots[five.names[me]], pair[frozenset((me, other))], subtract=me > other
            )
            slots[five.names[me]] = masked
    total = five.opened(five.gather(20, five.names[:3], slots), five.names[:3])
    assert (five.plan.packing.unpack(total) == five.sum(five.names[:3])).all()
    left = five.opened(five.gather(21, five.names[:2], slots), five.names[:3])
    for me in (0, 1):
        left = five.plan.packing.mask(left, pair[frozenset((me, 2))], subtract=True)
    assert (five.plan.packing.unpack(left) == five.sum(five.names[:2])).all()


def test_the_largest_values_of_a_full_cohort_do_not_wrap():
    packing = JointPacking(length=8192, bits=55, parties=16)
    assert packing.fields == 1 and packing.width == 59 and packing.modulus == PLAIN_MODULUS
    circle = Circle(3, 2, length=8192, bits=57)
    top = np.full(8192, (1 << 57) - 1, np.uint64)
    slots = {name: circle.plan.packing.pack(top) for name in circle.names}
    opened = circle.plan.packing.unpack(
        circle.opened(circle.gather(1, slots=slots), circle.names[1:])
    )
    assert (opened == 3 * ((1 << 57) - 1)).all()


def test_measured_noise_stays_below_the_plans_bound_and_leaves_room_for_the_smudging(nine):
    phase_of = ciphertext(
        nine, nine.gather(3, slots={name: np.zeros((1, 8192), np.uint64) for name in nine.names})
    )
    bare = residues.add(
        phase_of[0], lattice().multiply(phase_of[1:], nine.secret_of(nine.names[:5]))[0]
    )
    assert 0 < max(map(abs, integers(bare))) <= nine.plan.noise
    for n, threshold in ((2, 2), (9, 5), (32, 22), (128, 86)):
        members = {str(number): Identity.generate().public for number in range(n)}
        plan = ThresholdPlan(**{**nine.fields, "members": members, "threshold": threshold})
        wide = 1 << plan.smudging_bits
        # what is opened decodes, always
        assert threshold * wide + plan.noise <= Q // (8 * PLAIN_MODULUS)
        # distance 2^-40 over all openings
        assert n * plan.openings * JOINT.degree * plan.noise << 40 <= 2 * wide
        assert plan.openings >= 1 << 20 and wide > plan.noise << 60
    worst = residues.add(bare, nine_times(nine.plan))
    assert lattice().budget(bare) > 80 and lattice().budget(worst) >= 1


def nine_times(plan):
    """The largest noise that responders may add, in every coefficient."""
    whole = plan.threshold << plan.smudging_bits
    return np.stack([np.full(JOINT.degree, whole % prime, np.uint64) for prime in PRIMES[:LIMBS]])


@pytest.mark.parametrize("bits", [1, 8, 15, 96])
def test_smudging_is_uniform_over_its_whole_range_and_never_twice_the_same(bits):
    values = integers(residues.smudging(bits, LIMBS))
    assert (
        min(values) >= -(1 << bits)
        and max(values) < 1 << bits
        and len(set(values)) >= min(3, 2 << bits)
    )
    counts = np.bincount([(value + (1 << bits)) * 4 >> (bits + 1) for value in values], minlength=4)
    assert ((counts - 2048) ** 2 / 2048).sum() < 30  # chi-square, 3 degrees: p about 10^-6
    assert integers(residues.smudging(96, LIMBS)) != integers(residues.smudging(96, LIMBS))


def test_shares_meet_in_the_secret_for_t_points_alone():
    secret = residues.random(bytes(32), LIMBS)
    shares = residues.split(secret, 3, [1, 2, 5, 9])
    for points, meets in (((1, 5, 9), True), ((1, 2, 5, 9), True), ((2, 9), False)):
        at = {1: 0, 2: 1, 5: 2, 9: 3}
        parts = [
            residues.product(shares[at[p]], residues.weights(points, p, LIMBS)) for p in points
        ]
        total = parts[0]
        for part in parts[1:]:
            total = residues.add(total, part)
        assert (total == secret).all() == meets


def test_only_residues_below_their_prime_are_read():
    polynomial = residues.random(bytes(32), LIMBS)
    raw = residues.to_bytes(polynomial)
    assert (residues.from_bytes(raw, 1, LIMBS)[0] == polynomial).all()
    for bad in (raw[:-1], raw + b"\0", b"\xff" * len(raw), b""):
        with pytest.raises(ProtocolError):
            residues.from_bytes(bad, 1, LIMBS)


def frozen_holder(holder):
    return holder._key_share.memory.encode()


def test_a_holder_refuses_what_it_must_not_open_and_stays_as_it_was(five):
    me, gathering = five.names[0], five.gather(30, five.names[:4])
    holder = five.holders[me]
    before, good = frozen_holder(holder), gathering.request(five.names[:3])

    def asked(who, whose):
        return good[:8] + five.plan.bitset(who) + five.plan.bitset(whose)

    for wrong, error in (
        (gathering.request(five.names[1:4]), ProtocolError),  # other responders
        (good[:-1], ProtocolError),
        (good + b"\0", ProtocolError),
        (b"", ProtocolError),
        (asked([0, 1], [0, 1, 2, 3]), ThresholdError),  # a lowered threshold
        (asked([0, 1, 2, 3], [0, 1, 2, 3]), ThresholdError),
        (asked([0, 1, 2], [0]), ThresholdError),  # a single member's contribution
        (asked([0, 1, 77], [0, 1, 2, 3]), ProtocolError),  # strangers
        (asked([0, 1, 2], [0, 1, 77]), ProtocolError),
        (bytes(8) + good[8:], ProtocolError),  # a rehearsal of four
    ):
        with pytest.raises(error):
            holder.respond(wrong)
        assert frozen_holder(holder) == before
    holder.respond(good)
    after = frozen_holder(holder)
    for wrong, match in (
        (good, "answered before"),
        (asked([0, 1, 2], [0, 1, 2]), "single member's"),
        (asked([0, 2, 4], [0, 1, 2, 3, 4]), "single member's"),
    ):
        with pytest.raises(ProtocolError, match=match):
            holder.respond(wrong)
        assert frozen_holder(holder) == after


def test_a_reader_refuses_wrong_repeated_and_foreign_parts_and_stays_as_it_was(five):
    gathering, responders = five.gather(40), five.names[:3]
    reading, asked = five.reader(gathering, responders), gathering.request(responders)
    parts = {name: five.holders[name].respond(asked) for name in responders}
    foreign = five.gather(41)
    other = {name: five.holders[name].respond(foreign.request(responders)) for name in responders}
    reading.receive(responders[0], parts[responders[0]])
    flipped = bytearray(parts[responders[1]])
    flipped[1000] ^= 4
    for name, part, error in (
        (responders[0], parts[responders[0]], ProtocolError),  # twice
        (responders[1], parts[responders[0]], AuthenticationError),  # another's under its name
        (responders[1], other[responders[1]], AuthenticationError),  # of another round
        (responders[1], bytes(flipped), AuthenticationError),
        (responders[1], parts[responders[1]][:-1], ProtocolError),
        (responders[1], b"", ProtocolError),
        (five.names[4], parts[responders[1]], ProtocolError),  # no responder
        ("stranger", parts[responders[1]], ProtocolError),
    ):
        with pytest.raises(error):
            reading.receive(name, part)
        assert reading.missing == tuple(responders[1:])
    for name in responders[1:]:
        reading.receive(name, parts[name])
    assert (five.plan.packing.unpack(reading.result()) == five.sum()).all()
    with pytest.raises(ProtocolError, match="request of 5 bytes"):
        PartialReader(five.any, b"short", gathering.total)
    with pytest.raises(ProtocolError, match="polynomials"):
        PartialReader(five.any, asked, gathering.total[:-7])


def test_a_wrong_part_with_a_true_signature_is_noticed_and_others_can_open_instead(five):
    gathering, responders = five.gather(50), five.names[:3]
    wrong = dataclasses.replace(
        five.holdings[responders[0]], shares=(residues.random(bytes(32), LIMBS),) * 5
    )
    reading, asked = five.reader(gathering, responders), gathering.request(responders)
    reading.receive(responders[0], Holder(wrong, five.identities[responders[0]]).respond(asked))
    for name in responders[1:]:
        reading.receive(name, five.holders[name].respond(asked))
    with pytest.raises(ProtocolError, match="do not meet"):
        reading.result()
    assert (five.plan.packing.unpack(five.opened(gathering, five.names[2:])) == five.sum()).all()


def test_a_gathering_takes_one_signed_contribution_of_each_member_and_asks_exactly_t(five):
    gathering, part = Gathering(five.plan, five.any.key_id, 60), five.contribute(five.names[0], 60)
    flipped = bytearray(part)
    flipped[9] ^= 1
    for name, message, error in (
        ("stranger", part, ProtocolError),
        (five.names[0], part[:-1], ProtocolError),
        (five.names[0], bytes(flipped), AuthenticationError),
        (five.names[1], part, AuthenticationError),
        # of another round
        (five.names[0], five.contribute(five.names[0], 61), AuthenticationError),
    ):
        with pytest.raises(error):
            gathering.receive(name, message)
        assert gathering.contributors == () and not any(gathering.total)
    gathering.receive(five.names[0], part)
    total = gathering.total
    with pytest.raises(ProtocolError, match="before"):
        gathering.receive(five.names[0], part)
    assert gathering.total == total
    with pytest.raises(ThresholdError, match="1 contributions"):
        gathering.request(five.names[:3])
    gathering.receive(five.names[1], five.contribute(five.names[1], 60))
    for responders in (
        five.names[:2],
        five.names[:4],
        [five.names[0]] * 3,
        [*five.names[:3], five.names[0]],
    ):
        with pytest.raises(ThresholdError, match=r"exactly 3|different"):
            gathering.request(responders)
    with pytest.raises(ValueError, match="below t"):
        five.contribute(five.names[0], 62, np.full((2, JOINT.degree), PLAIN_MODULUS, np.uint64))


def test_a_key_stops_opening_when_its_smudging_is_used_up(five):
    holder, memory = five.holders[five.names[0]], five.any.memory
    asked, spent = five.gather(70, five.names[:2]).request(five.names[:3]), memory.opened_rows
    memory.opened_rows = five.plan.openings - 1  # a sum here has two ciphertexts
    before = memory.encode()
    with pytest.raises(BudgetError, match="make a new one"):
        holder.respond(asked)
    assert memory.encode() == before
    memory.opened_rows = spent
    holder.respond(asked)


def test_a_round_is_encrypted_for_once_because_twice_would_show_the_difference(five):
    packed, degree = five.plan.packing.pack(five.values[five.names[0]]), JOINT.degree
    five.contribute(five.names[0], 80)
    before = five.any.memory.encode()
    with pytest.raises(ProtocolError, match="another number"):
        five.contribute(five.names[0], 80)
    assert five.any.memory.encode() == before
    with pytest.raises(ValueError, match="rehearsal"):
        five.contribute(five.names[0], REHEARSAL)
    # the unprotected arm: what two under one polynomial tell
    a = residues.random(bytes(32), LIMBS)[None]
    first = lattice().encrypt(five.any.secret, a, packed[:1])
    second = lattice().encrypt(five.any.secret, a, np.zeros((1, degree), np.uint64))
    assert (lattice().decode(residues.subtract(first, second)) == packed[:1]).all()


def test_a_rehearsal_opens_zeros_and_shows_shares_that_do_not_fit_their_part(nine):
    nine.rehearse(nine.names[:5])
    nine.rehearse(nine.names[4:])
    other = Circle(3, 2)
    other.holders[other.names[0]] = Holder(
        dataclasses.replace(
            other.any, shares=(residues.random(bytes(32), LIMBS), *other.any.shares[1:])
        ),
        other.identities[other.names[0]],
    )
    with pytest.raises(ProtocolError, match="do not meet"):
        other.rehearse(other.names[:2])
    with pytest.raises(ProtocolError, match="rehearsal over 2 members"):
        request(other.plan, REHEARSAL, other.names[:2], other.names[:2])


def test_a_plan_that_makes_no_sense_cannot_be_made(five):
    twin = five.identities[five.names[0]].public
    for change in (
        {"threshold": 1},
        {"threshold": 2},  # two disjoint sets of two
        {"threshold": 6},
        {"min_parties": 1},
        {"federation": b"short"},
        {"epoch": -1},
        {"members": {"a": twin, "b": twin}},
        {"members": {str(number): Identity.generate().public for number in range(129)}},
        {"bits": 58},
    ):
        with pytest.raises(ConfigError):
            _ = ThresholdPlan(**{**five.fields, **change}).packing
    sessions = {
        ThresholdPlan(**{**five.fields, **change}).session
        for change in ({}, {"epoch": 2}, {"attempt": 1}, {"threshold": 4})
    }
    assert len(sessions) == 4


def test_no_secret_is_printed_or_pickled(five):
    text = repr(five.any)
    assert (
        "share" not in text
        and "secret" not in text
        and "pairs" not in text
        and five.any.readers.hex() not in text
    )
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(five.any)
