"""Sealed sums: exact, masked inside Z_t, and closed to whoever lacks the key."""

import secrets

import numpy as np
import pytest

from quietchoir.core.errors import ConfigError, CryptoError, ProtocolError
from quietchoir.crypto.he import bfv
from quietchoir.crypto.he.bfv import PLAIN_MODULUS, Adder, BfvMember, Packing, uniform
from quietchoir.crypto.he.parameters import SEALED, SEALED_LARGE

SEED = bytes(range(32))
PACKING = Packing(length=30_000, bits=8, parties=10)


def values(seed, packing=PACKING):
    return np.random.default_rng(seed).integers(
        0, 1 << packing.bits, packing.length, dtype=np.uint8
    )


def rows(slots):
    return [row.tobytes() for row in slots]


def opened(member, parts, packing=PACKING):
    return packing.unpack(
        np.stack([np.frombuffer(row, np.uint64) for row in member.decrypt(*parts)])
    )


@pytest.fixture(scope="module")
def member():
    return BfvMember(SEALED.name, SEED)


@pytest.fixture(scope="module")
def adder():
    return Adder(SEALED.name)


def test_every_member_makes_the_same_key_from_the_seed_and_encrypts_afresh(member, adder):
    other, plain = BfvMember(SEALED.name, SEED), values(1)
    first, second = (
        other.encrypt(*rows(PACKING.pack(plain))),
        other.encrypt(*rows(PACKING.pack(plain))),
    )
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert (opened(member, [adder.add(b"", part)[0] for part in first]) == plain).all()


def test_masked_sums_are_exact_with_dropped_masks_subtracted_in_the_dark(member, adder):
    """Three parties; the third drops out after masking, so its pair masks stay and the
    coordinator takes them away.
    """
    pair = {frozenset(two): secrets.token_bytes(32) for two in ((0, 1), (0, 2), (1, 2))}
    sent = []
    for me in (0, 1):
        slots = PACKING.pack(values(me))
        for other in {0, 1, 2} - {me}:
            slots = PACKING.mask(slots, pair[frozenset((me, other))], subtract=me > other)
        sent.append(member.encrypt(*rows(slots)))
        adder.check(*sent[-1])
    left = PACKING.pack(np.zeros(PACKING.length, np.uint8))
    for me in (0, 1):
        left = PACKING.mask(left, pair[frozenset((me, 2))], subtract=False)
    total = [adder.add(mask.tobytes(), *parts)[0] for mask, *parts in zip(left, *sent, strict=True)]
    assert (opened(member, total) == values(0).astype(np.int64) + values(1)).all()


def test_another_member_who_opens_a_single_masked_upload_reads_chance(member, adder):
    plain = PACKING.pack(values(2))
    bare = member.encrypt(*rows(plain))
    masked = member.encrypt(*rows(PACKING.mask(plain, secrets.token_bytes(32), subtract=False)))
    # the unprotected arm
    assert (opened(member, [adder.add(b"", part)[0] for part in bare]) == values(2)).all()
    read = opened(member, [adder.add(b"", part)[0] for part in masked])
    assert (read == values(2)).mean() < 0.01


@pytest.mark.parametrize("parties", [SEALED.largest_sum - 1, 100])
def test_the_largest_cohorts_still_open_exactly(parties):
    packing = Packing(length=4096, bits=8, parties=parties)
    member, adder = BfvMember(packing.parameters.name, SEED), Adder(packing.parameters.name)
    full = np.full(packing.length, 255, np.uint8)
    parts = [member.encrypt(*rows(packing.pack(full)))[0] for _ in range(parties)]
    zero = np.zeros(packing.parameters.degree, np.uint64).tobytes()
    assert (opened(member, adder.add(zero, *parts), packing) == 255 * parties).all()


def test_more_parts_than_the_noise_allows_and_other_keys_are_refused(member, adder):
    part = member.encrypt(*rows(PACKING.pack(values(3))))[0]
    with pytest.raises(ProtocolError, match="smaller cohort"):
        adder.add(b"", *[part] * SEALED.largest_sum)
    with pytest.raises(ProtocolError, match="noise budget"):
        BfvMember(SEALED.name, bytes(32)).decrypt(*adder.add(b"", part))
    for bad in (b"", part[:-1], bytes(len(part))):
        with pytest.raises(ProtocolError, match="ciphertext part"):
            adder.check(bad)
    with pytest.raises(CryptoError, match="seed"):
        BfvMember(SEALED.name, b"short")
    with pytest.raises(ConfigError, match="under encryption"):
        Packing(length=1, bits=8, parties=SEALED_LARGE.largest_sum + 1)
    with pytest.raises(ConfigError, match="under encryption"):
        Packing(length=1, bits=48, parties=2)
    for wrong in (values(0)[:-1], values(0).astype(np.int64), values(0).astype(np.uint16) + 256):
        with pytest.raises(ValueError, match="expected"):
            PACKING.pack(wrong)


def test_masks_are_uniform_over_the_whole_of_z_t_and_repeatable():
    # the last one rejects half of all draws
    for modulus in (*PLAIN_MODULUS.values(), (1 << 48) + 1):
        found = uniform(SEED, 50_000, modulus)
        assert int(found.max()) < modulus and (found == uniform(SEED, 50_000, modulus)).all()
        counts = np.bincount((found.astype(float) / modulus * 64).astype(int), minlength=64)
        # chi-square, 63 degrees: p about 1e-5
        assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 120
    assert (
        uniform(SEED, 10, PLAIN_MODULUS[SEALED.name])
        == uniform(SEED, 20, PLAIN_MODULUS[SEALED.name])[:10]
    ).all()


def test_a_parameter_costs_no_more_than_stated_on_the_wire():
    for bits, most in ((8, 2.2), (4, 1.5)):
        packing = Packing(length=1_000_000, bits=bits, parties=10)
        assert packing.wire_bytes / packing.length < most


def test_a_key_is_named_without_being_told():
    assert bfv.key_id(SEED) != bfv.key_id(bytes(32)) and SEED not in bfv.key_id(SEED)
