"""Attacks on joint keys, each with an arm that lacks the protection and falls."""

import hashlib
import itertools
from typing import Any

import numpy as np
import pytest

from quietchoir.core.errors import AuthenticationError, ProtocolError, ThresholdError
from quietchoir.crypto.experimental.threshold import (
    Ceremony,
    Contributor,
    Gathering,
    Holder,
    KeyShare,
    PartialReader,
    residues,
    together,
)
from quietchoir.crypto.experimental.threshold.contribution import common, request_id
from quietchoir.crypto.experimental.threshold.lattice import LIMBS, lattice
from quietchoir.crypto.experimental.threshold.partial import (
    CHECK_BYTES,
    NONCE_BYTES,
    Pad,
    _masked,
    _smudged,
)
from quietchoir.crypto.experimental.threshold.plan import PLAIN_MODULUS, PRIMES, Q
from quietchoir.crypto.experimental.threshold.residues import Residues
from quietchoir.crypto.he.parameters import JOINT
from quietchoir.crypto.identity.keys import bind
from quietchoir.tests.fakes.threshold import (
    Circle,
    ciphertext,
    encrypt_under,
    integers,
    key_pair,
    letters,
    looks_uniform,
)

ZEROS = np.zeros((1, JOINT.degree), np.uint64)


@pytest.fixture(scope="module")
def circle() -> Circle:
    return Circle(5, 3)


def phase(pair: Residues, secret: Residues) -> Residues:
    """c0 + a s of one ciphertext [2, 3, N]."""
    return residues.add(pair[0], lattice().multiply(pair[1:], secret)[0])


def test_t_minus_one_shares_and_the_coordinator_open_nothing_and_t_open_all(circle: Circle) -> None:
    pair = ciphertext(circle, circle.gather(1))
    for names in itertools.combinations(circle.names, 2):
        seen = phase(pair, circle.secret_of(names))
        assert lattice().budget(seen) == 0 and looks_uniform(seen)
        with pytest.raises(ProtocolError, match="do not meet"):
            lattice().decode(seen[None])
    seen = phase(pair, circle.secret_of(circle.names[1:4]))  # the unprotected arm: one share more
    assert (circle.plan.packing.unpack(lattice().decode(seen[None])) == circle.sum()).all()
    blank = ciphertext(circle, circle.gather(2, slots=dict.fromkeys(circle.names, ZEROS)))
    assert not looks_uniform(phase(blank, circle.secret_of(circle.names[:3])))
    assert looks_uniform(phase(blank, circle.secret_of(circle.names[:2])))


def test_t_minus_one_shares_guess_which_of_two_sums_it_is_no_better_than_a_coin(
    circle: Circle,
) -> None:
    one, trials, coin = circle.names[:1], 30, np.random.default_rng(1)
    few, enough = circle.secret_of(circle.names[:2], one), circle.secret_of(circle.names[:3], one)
    right = {"few": 0, "enough": 0}
    for trial in range(trials):
        world, a = int(coin.integers(2)), residues.random(bytes([trial]) * 32, LIMBS)
        c0 = lattice().encrypt(circle.any.secret, a[None], ZEROS + np.uint64(world))[0]
        for name, secret in (("few", few), ("enough", enough)):
            # all ones: the constant coefficient is q / T
            first = abs(integers(phase(np.stack([c0, a]), secret))[0])
            right[name] += (
                first > Q // PLAIN_MODULUS // 2 if name == "enough" else first > Q // 4
            ) == world
    assert right["enough"] == trials
    assert 3 <= right["few"] <= 27  # a coin leaves this range less than once in 10^6


def test_the_shares_of_t_minus_one_members_look_the_same_whatever_the_secret() -> None:
    for secret in (
        np.zeros((LIMBS, JOINT.degree), np.uint64),
        np.full((LIMBS, JOINT.degree), 7, np.uint64),
    ):
        shares = residues.split(secret, 3, range(1, 6))
        assert all(looks_uniform(share) for share in shares)
        assert looks_uniform(residues.subtract(shares[0], shares[1]))
        weighted = [
            residues.product(shares[p - 1], residues.weights((1, 2, 3), p, LIMBS))
            for p in (1, 2, 3)
        ]
        # the unprotected arm: t of them
        assert not looks_uniform(residues.add(residues.add(*weighted[:2]), weighted[2]))


def test_a_rogue_key_opens_what_is_encrypted_under_a_sum_of_parts_that_were_not_fixed_first(
    circle: Circle,
) -> None:
    """The unprotected arm: the last member sends (its own key) - (the sum of the others' parts)."""
    a = residues.random(bytes(32), LIMBS + 1)
    secret, own = key_pair(a)
    others = [key_pair(a)[1] for _ in range(4)]
    joint = own
    for part in others:
        joint = residues.subtract(joint, part)
    for part in others:
        joint = residues.add(joint, part)
    packed = circle.plan.packing.pack(circle.values[circle.names[0]])
    pair = encrypt_under(joint, a, packed[0])
    assert (lattice().decode(phase(pair, secret[:LIMBS])[None]) == packed).all()


def rogue_ceremony(
    circle: Circle, attempt: int
) -> tuple[dict[str, Ceremony], dict[str, bytes], dict[str, bytes], Residues]:
    """The last member saw everybody's opening, and chose its part so that the joint key is one
    it has the secret of.
    """
    ceremonies = circle.begin(attempt=attempt)
    *honest, last = circle.names
    cards = {name: each.commit() for name, each in ceremonies.items()}
    openings = {name: ceremonies[name].open(cards) for name in honest}
    rogue, true = ceremonies[last], ceremonies[last]._part
    for name in honest:
        rogue._part = residues.subtract(rogue._part, ceremonies[name]._part)
    return ceremonies, cards, openings, true


def test_a_rogue_part_is_refused_because_it_is_not_the_committed_one(circle: Circle) -> None:
    ceremonies, cards, openings, true = rogue_ceremony(circle, 1)
    *honest, last = circle.names
    # truly signed, sealed and complete: only the commitment does not fit
    openings[last] = ceremonies[last].open(cards)
    for name in honest:
        with pytest.raises(
            ProtocolError, match="node-004 opened another part than it committed to"
        ):
            ceremonies[name].finish(letters(ceremonies[name], openings))
    ceremonies[last]._opening, ceremonies[last]._part = b"", true
    openings[last] = ceremonies[last].open(cards)
    assert len({each.finish(letters(each, openings)).key_id for each in ceremonies.values()}) == 1


def test_a_rogue_part_without_commitments_makes_the_joint_key_its_senders_and_fails_the_rehearsal(
    circle: Circle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "quietchoir.crypto.experimental.threshold.dkg.commitment", lambda *_: bytes(32)
    )
    other = Circle.__new__(Circle)
    other.__dict__.update(circle.__dict__, fields={**circle.fields, "attempt": 9})
    ceremonies, cards, openings, true = rogue_ceremony(other, 9)
    last = circle.names[-1]
    openings[last] = ceremonies[last].open(cards)
    other.holdings = {
        name: each.finish(letters(each, openings)) for name, each in ceremonies.items()
    }  # the unprotected arm: accepted
    assert (other.any.joint == true).all()  # the joint key is the last member's alone
    other.plan = other.any.plan
    other.holders = {
        name: Holder(other.holdings[name], other.identities[name]) for name in other.names
    }
    with pytest.raises(ProtocolError, match="do not meet"):
        other.rehearse(other.names[:3])


def test_a_copied_commitment_fixes_nothing_and_shows_up(circle: Circle) -> None:
    """The copier waits for the other's opening, and shows the same part and nonce."""
    ceremonies = circle.begin(attempt=2)
    victim, copier = (ceremonies[name] for name in circle.names[:2])
    cards = {name: each.commit() for name, each in ceremonies.items()}
    copier._card = resigned(circle, circle.names[1], copier, cards[circle.names[0]][32:64])
    cards[circle.names[1]] = copier._card
    openings = {name: each.open(cards) for name, each in ceremonies.items()}
    copier._opening, copier._nonce, copier._part = b"", victim._nonce, victim._part
    openings[circle.names[1]] = copier.open(cards)
    with pytest.raises(ProtocolError, match="node-001 opened another part"):
        ceremonies[circle.names[2]].finish(letters(ceremonies[circle.names[2]], openings))


def resigned(circle: Circle, name: str, ceremony: Ceremony, fixed: bytes) -> bytes:
    body = ceremony._ephemeral.public + fixed
    context = bind("quietchoir joint card 1", ceremony._plan.session, ceremony._number)
    return body + circle.identities[name].sign(context, body)


def test_cards_that_differ_from_member_to_member_end_the_ceremony(circle: Circle) -> None:
    """The coordinator and an accomplice show one card to some and another to the rest, so as to
    choose late.
    """
    ceremonies, late = circle.begin(attempt=3), circle.begin(attempt=3)[circle.names[4]]
    cards = {name: each.commit() for name, each in ceremonies.items()}
    others = {**cards, circle.names[4]: late.commit()}
    openings = {
        name: ceremonies[name].open(cards if name < "node-002" else others)
        for name in circle.names[:4]
    }
    for shown in (ceremonies[circle.names[4]].open(cards), late.open(others)):
        for name in (circle.names[0], circle.names[3]):
            with pytest.raises(AuthenticationError):
                ceremonies[name].finish(
                    letters(ceremonies[name], {**openings, circle.names[4]: shown})
                )


def ntt(polynomial: Residues) -> Residues:
    """[3, N] into SEAL's NTT basis."""
    ring = lattice()
    cipher: Any = ring._load(
        ring._seal.Ciphertext(),
        ring._cipher(np.stack([polynomial, polynomial]), ring._level, ntt=False),
    )
    ring._evaluator.transform_to_ntt_inplace(cipher)
    return ring._read(cipher, 1)[0]


def recovered(part: Residues, a: Residues, key_share: KeyShare, points: list[int]) -> Residues:
    """The share that (part) = λ σ a would mean."""
    weights = residues.weights(points, key_share.number + 1, LIMBS)
    scaled = residues.product(ntt(a), weights)
    inverse = np.stack(
        [
            np.array([pow(int(x), -1, prime) for x in limb], np.uint64)
            for limb, prime in zip(scaled, PRIMES, strict=False)
        ]
    )
    return residues.product(ntt(part), inverse)


def test_a_part_without_smudging_is_the_share_and_with_it_is_not(circle: Circle) -> None:
    points, responders = [1, 2, 3], (0, 1, 2)
    a, share = common(circle.plan, circle.any.key_id, 3), circle.share(circle.names[0])
    weighted = residues.product(share, residues.weights(points, 1, LIMBS))
    bare = lattice().multiply(a, weighted)[0]
    # the unprotected arm: everything
    assert (recovered(bare, a[0], circle.any, points) == share).all()
    smudged = _smudged(circle.any, share, a, responders)[0]
    assert (recovered(smudged, a[0], circle.any, points) == share).mean() < 0.001
    difference = integers(residues.subtract(smudged, bare))
    assert max(map(abs, difference)) > 1 << (circle.plan.smudging_bits - 2)
    assert np.mean([abs(value) > circle.plan.noise << 60 for value in difference]) > 0.999


def residue_of_noise(part: Residues, pair: Residues, circle: Circle) -> list[int]:
    """What members 4 and 5 and the coordinator make of member 1's part, the responders being 1, 2,
    3: e modulo 5.

    σ1 = 3/5 s + (known), λ = 3, so part - (known) + 9/5 c0 = 9/5 (c0 + a s) + smudging; the sum is
    zero, so this is 9/5 e.
    """
    weight = residues.weights((1, 2, 3), 1, LIMBS)
    total = part
    for point in (4, 5):
        at_one = residues.weights((0, 4, 5), point, LIMBS, at=1)
        known = residues.product(
            residues.product(circle.share(circle.names[point - 1]), at_one), weight
        )
        total = residues.subtract(total, lattice().multiply(pair[1:], known)[0])
    kappa = [9 * pow(5, -1, prime) % prime for prime in PRIMES[:LIMBS]]
    total = residues.add(total, residues.product(pair[0], kappa))
    # 9/5 e modulo q = (9 e + wraps q) / 5
    wraps = ((5 * (value % Q) + Q // 2) // Q for value in integers(total))
    return [-wrap * Q * pow(9, -1, 5) % 5 for wrap in wraps]


def test_smudging_alone_tells_noise_to_colluders_outside_and_pair_masks_hide_it(
    circle: Circle,
) -> None:
    gathering = circle.gather(4, slots=dict.fromkeys(circle.names, ZEROS))
    pair = ciphertext(circle, gathering)
    noise = [value % 5 for value in integers(phase(pair, circle.secret_of(circle.names[:3])))]
    smudged = _smudged(circle.any, circle.share(circle.names[0]), pair[1:], (0, 1, 2))
    assert len(set(noise)) == 5
    # the unprotected arm: every coefficient
    assert residue_of_noise(smudged[0], pair, circle) == noise
    masked = _masked(circle.any, smudged, (0, 1, 2), bytes(32))
    right = np.mean(np.equal(residue_of_noise(masked[0], pair, circle), noise))
    assert 0.16 < right < 0.24 and looks_uniform(masked[0])


def test_a_coordinator_that_asks_each_member_for_something_else_gets_uniform_numbers(
    circle: Circle,
) -> None:
    """It asks two members for one sum and the third for another, and an accomplice lends the
    readers' key.
    """
    first, second = circle.gather(5), Gathering(circle.plan, circle.any.key_id, 5)
    second._numbers, second._total = {0, 1, 2}, first._total
    responders = circle.names[:3]
    reading = circle.reader(first, responders)
    for name in responders[:2]:
        reading.receive(name, circle.holders[name].respond(first.request(responders)))
    apart = circle.holders[responders[2]].respond(second.request(responders))
    with pytest.raises(AuthenticationError):
        reading.receive(responders[2], apart)
    other = PartialReader(circle.any, second.request(responders), second.total)
    other.receive(responders[2], apart)
    phases = reading._total
    for part in (*reading._parts.values(), *other._parts.values()):
        phases = residues.add(phases, part)
    assert looks_uniform(phases[0]) and lattice().budget(phases[0]) == 0


def test_a_probe_reads_the_joint_secret_where_senders_choose_c1_and_only_itself_where_they_cannot(
    circle: Circle,
) -> None:
    """A member contributes c1 = q / T instead of an encryption, then reads the opened sum like
    everybody.
    """
    probe = np.zeros((LIMBS, JOINT.degree), np.uint64)
    probe[:, 0] = [Q // PLAIN_MODULUS % prime for prime in PRIMES[:LIMBS]]
    a = residues.random(bytes(32), LIMBS + 1)
    pairs = [key_pair(a) for _ in range(3)]
    secret, joint = pairs[0]
    for other, part in pairs[1:]:
        secret, joint = residues.add(secret, other), residues.add(joint, part)
    total = np.stack([np.zeros_like(probe), probe])
    for _ in range(2):
        total = residues.add(total, encrypt_under(joint, a, ZEROS[0]))
    # the unprotected arm: joint public key
    read = coefficients(lattice().decode(phase(total, secret[:LIMBS])[None])[0])
    assert max(map(abs, read)) == 3 and (
        lattice().budget(phase(encrypt_under(joint, a, ZEROS[0]), secret[:LIMBS])) > 80
    )
    truth = coefficients_of_secret(secret)
    assert read == truth[: len(read)] and not any(truth[len(read) :])

    bad, gathering = (
        circle.names[4],
        circle.gather(7, circle.names[:4], dict.fromkeys(circle.names, ZEROS)),
    )
    own = lattice().multiply(
        common(circle.plan, circle.any.key_id, 7), circle.holdings[bad].secret[:LIMBS]
    )
    body = residues.to_bytes(residues.subtract(probe[None], own))
    context = bind("quietchoir joint contribution 1", circle.any.key_id, 4, 7)
    gathering.receive(
        bad, body + circle.identities[bad].sign(context, hashlib.sha256(body).digest())
    )
    slots = circle.opened(gathering, circle.names[:3], reader=bad)
    assert coefficients(slots[0]) == [1]  # what it sent itself


def coefficients_of_secret(secret: Residues) -> list[int]:
    one = np.zeros((1, LIMBS, JOINT.degree), np.uint64)
    one[..., 0] = 1
    return integers(lattice().multiply(one, secret[:LIMBS])[0])


def coefficients(slots: np.ndarray) -> list[int]:
    ring = lattice()
    plain = ring._seal.Plaintext()
    ring._coder.encode(slots.tolist(), plain)
    read = [plain.data(at) for at in range(plain.significant_coeff_count())]
    return [value - PLAIN_MODULUS if value > PLAIN_MODULUS // 2 else value for value in read]


def test_contributions_and_parts_of_one_key_do_not_fit_another_though_the_members_are_the_same(
    circle: Circle,
) -> None:
    ceremonies = circle.begin(attempt=5)
    cards = {name: each.commit() for name, each in ceremonies.items()}
    openings = {name: each.open(cards) for name, each in ceremonies.items()}
    name = circle.names[0]
    other = ceremonies[name].finish(letters(ceremonies[name], openings))
    with pytest.raises(AuthenticationError):
        circle.gather(8, ()).receive(
            name, Contributor(other, circle.identities[name]).encrypt(8, ZEROS)
        )
    gathering = circle.gather(8)
    reading = circle.reader(gathering, circle.names[:3])
    with pytest.raises(AuthenticationError):
        reading.receive(
            name,
            Holder(other, circle.identities[name]).respond(gathering.request(circle.names[:3])),
        )
    assert reading.missing == tuple(circle.names[:3])


def test_a_coordinator_that_shifts_the_summed_parts_is_noticed_and_without_checks_is_not(
    circle: Circle,
) -> None:
    gathering, responders = circle.gather(90), circle.names[:3]
    asked, reading = gathering.request(responders), circle.reader(gathering, responders)
    parts = {name: circle.holders[name].respond(asked) for name in responders}
    summed = together(circle.plan, asked, parts)
    # q / T: one more in the sum
    head, first = 3 * NONCE_BYTES, [Q // PLAIN_MODULUS % prime for prime in PRIMES[:LIMBS]]
    body = residues.from_bytes(summed[head:-CHECK_BYTES], 1, LIMBS)
    body[0, :, 0] = (body[0, :, 0] + np.array(first, np.uint64)) % np.array(
        PRIMES[:LIMBS], np.uint64
    )
    shifted = summed[:head] + residues.to_bytes(body) + summed[-CHECK_BYTES:]
    with pytest.raises(AuthenticationError, match="not what the responders sent"):
        reading.receive_sum(shifted)
    with pytest.raises(ThresholdError, match="no part from"):
        reading.result()  # and nothing was taken
    reading.receive_sum(summed)
    assert (circle.plan.packing.unpack(reading.result()) == circle.sum()).all()
    with pytest.raises(ProtocolError, match="here already"):
        reading.receive_sum(summed)
    assert reading._summed is not None
    pads = residues.subtract(
        residues.from_bytes(summed[head:-CHECK_BYTES], 1, LIMBS), reading._summed
    )  # the unprotected arm
    opened = lattice().decode(
        residues.add(gathering_phase(gathering), residues.subtract(body, pads))
    )
    assert (
        opened != lattice().decode(residues.add(gathering_phase(gathering), reading._summed))
    ).any()


def gathering_phase(gathering: Gathering) -> Residues:
    return gathering._total


def test_the_coordinator_reads_no_part_and_no_sum_of_parts(circle: Circle) -> None:
    """What passes it of one opening, against what the parts are: with the members' key, zeros;
    without, chance.
    """
    gathering = circle.gather(91, slots=dict.fromkeys(circle.names, ZEROS))
    asked = gathering.request(circle.names[:3])
    parts = {name: circle.holders[name].respond(asked) for name in circle.names[:3]}
    summed = together(circle.plan, asked, parts)
    seen = residues.from_bytes(summed[3 * NONCE_BYTES : -CHECK_BYTES], 1, LIMBS)
    phase_seen = residues.add(gathering._total, seen)[0]
    assert looks_uniform(phase_seen) and lattice().budget(phase_seen) == 0
    reading = circle.reader(gathering, circle.names[:3])
    reading.receive_sum(summed)
    assert not reading.result().any()  # the arm with the members' key


def test_a_responder_may_say_one_thing_to_one_reader_and_another_to_the_next_with_or_without_sums(
    circle: Circle,
) -> None:
    """Not covered, in either form: a responder (any member, since the coordinator chooses)
    shifts the sum for whom it likes.
    """
    gathering, responders = (
        circle.gather(92, slots=dict.fromkeys(circle.names, ZEROS)),
        circle.names[:3],
    )
    asked = gathering.request(responders)
    parts = {name: circle.holders[name].respond(asked) for name in responders[1:]}
    shift, bad = np.zeros((1, LIMBS, JOINT.degree), np.uint64), circle.holdings[responders[0]]
    shift[0, :, 0] = [Q // PLAIN_MODULUS % prime for prime in PRIMES[:LIMBS]]
    named, answers = request_id(bad.key_id, asked), []
    share = circle.share(responders[0])
    honest = _smudged(bad, share, common(circle.plan, bad.key_id, 92), (0, 1, 2))
    for said in (honest, residues.add(honest, shift)):
        covered = Pad(bad.readers, named, 1).cover(_masked(bad, said, (0, 1, 2), named), 0)
        context = bind("quietchoir joint part 1", named, 0)
        signed = covered + circle.identities[responders[0]].sign(
            context, hashlib.sha256(covered).digest()
        )
        for together_ in (False, True):
            reading = circle.reader(gathering, responders)
            if together_:
                reading.receive_sum(together(circle.plan, asked, {**parts, responders[0]: signed}))
            else:
                for name, part in {**parts, responders[0]: signed}.items():
                    reading.receive(name, part)
            answers.append(bool(reading.result().any()))
    assert answers == [False, False, True, True]
