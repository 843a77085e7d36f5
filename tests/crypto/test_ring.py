"""Numbers that are summed in the dark."""

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from quietchoir.core.errors import ConfigError, ProtocolError
from quietchoir.crypto.ring import (
    AT_ONCE,
    CHUNK_BYTES,
    BitRing,
    TokenRing,
    add_streams,
    digits,
    expand,
)
from quietchoir.crypto.secagg.tag import PRIMES
from quietchoir.federation.aggregation.update import COUNTER_MODULUS


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 24), st.integers(1, 200), st.integers(0, 2**32))
def test_packing_loses_nothing_and_takes_k_bits(
    length: int, bits: int, parties: int, seed: int
) -> None:
    ring = BitRing(length=length, bits=bits, parties=parties)
    words = (
        np.random.default_rng(seed)
        .integers(0, 1 << ring.bits, length, dtype=np.uint64)
        .astype(ring.dtype)
    )
    packed = ring.pack(words)
    assert len(packed) == ring.wire_bytes <= (length + ring.lane - 1) * ring.bits / 8
    assert np.array_equal(ring.unpack(packed), words)


@pytest.mark.parametrize(
    ("bits", "parties", "k"),
    [(8, 10, 12), (4, 10, 8), (8, 256, 16), (8, 257, 17), (16, 65536, 32), (1, 1, 1)],
)
def test_the_largest_possible_sum_fits_and_one_bit_less_would_not(
    bits: int, parties: int, k: int
) -> None:
    ring = BitRing(length=3, bits=bits, parties=parties)
    most = parties * (2**bits - 1)
    assert ring.bits == k and most < 2**k
    tally = ring.tally()
    full = ring.close(ring.lift(np.full(3, 2**bits - 1, np.uint32)))
    for _ in range(min(parties, 300)):
        tally.add(full)
    assert tally.total().tolist() == [min(parties, 300) * (2**bits - 1)] * 3


@pytest.mark.parametrize(
    ("length", "bits", "parties"), [(0, 8, 3), (1, 0, 3), (1, 25, 256), (1, 32, 2)]
)
def test_a_ring_without_headroom_is_not_built(length: int, bits: int, parties: int) -> None:
    with pytest.raises(ConfigError):
        BitRing(length=length, bits=bits, parties=parties)


def test_values_beyond_the_agreed_bits_are_refused() -> None:
    ring = BitRing(length=2, bits=4, parties=3)
    wrong: Any
    for wrong in (
        np.array([1, 16], np.uint8),
        np.array([1, 2], np.int64),
        np.array([1], np.uint8),
        np.array([[1, 2]], np.uint8),
    ):
        with pytest.raises(ValueError):
            ring.lift(wrong)


def test_a_malformed_vector_leaves_the_sum_unchanged() -> None:
    ring = BitRing(length=3, bits=8, parties=3)
    tally = ring.tally()
    good = ring.close(ring.lift(np.array([1, 2, 3], np.uint8)))
    tally.add(good)
    padding = bytearray(good)
    padding[-1] |= 0x80  # belongs to the sixteenth value of a three-value vector
    for bad in (good[:-1], good + b"\0", b"", bytes(padding)):
        with pytest.raises(ProtocolError):
            tally.add(bad)
    assert tally.total().tolist() == [1, 2, 3]


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
@pytest.mark.parametrize("length", [1, 5, CHUNK_BYTES // 4 + 3])
def test_a_mask_is_the_stream_of_its_key_and_cancels(dtype: str, length: int) -> None:
    key, words = os.urandom(32), np.arange(length).astype(dtype)
    masked = words.copy()
    add_streams(masked, [(key, False)])
    stream = np.frombuffer(expand(key, words.nbytes), dtype)
    assert np.array_equal(masked, words + stream)
    add_streams(masked, [(key, True)])
    assert np.array_equal(masked, words)


def test_many_streams_at_once_are_each_of_them_added() -> None:
    streams = [(os.urandom(32), bool(number % 3)) for number in range(AT_ONCE + 5)]
    words = np.arange(CHUNK_BYTES // 2 + 7).astype("<u2")
    at_once, one_by_one = words.copy(), words.copy()
    add_streams(at_once, streams)
    for key, subtract in streams:
        add_streams(one_by_one, [(key, subtract)])
    assert np.array_equal(at_once, one_by_one) and not np.array_equal(at_once, words)
    add_streams(at_once, [])
    assert np.array_equal(at_once, one_by_one)


def test_every_bit_of_the_key_matters() -> None:
    key = os.urandom(32)
    first = expand(key, 32)
    for bit in range(256):
        other = (int.from_bytes(key, "big") ^ 1 << bit).to_bytes(32, "big")
        assert expand(other, 32) != first


def test_our_own_mistakes_with_masks_are_noticed() -> None:
    words: Any
    for words in (
        np.zeros(4, np.int32),
        np.zeros((2, 2), np.uint16),
        np.zeros(8, np.uint32)[::2],
        np.zeros(4, ">u4"),
    ):
        with pytest.raises(ValueError):
            add_streams(words, [(bytes(32), False)])
    with pytest.raises(ValueError, match="32 expected"):
        add_streams(np.zeros(4, np.uint32), [(bytes(16), False)])


def test_masked_residues_are_uniform() -> None:
    ring = BitRing(length=200_000, bits=6, parties=4)
    words = ring.lift(np.zeros(ring.length, np.uint16))
    ring.mask(words, [(os.urandom(32), False)])
    counts = np.bincount(ring.unpack(ring.close(words)), minlength=256)
    statistic = float(((counts - ring.length / 256) ** 2 / (ring.length / 256)).sum())
    assert chi2.sf(statistic, 255) > 1e-9
    # what updates look like
    plain = np.bincount(np.random.default_rng(0).binomial(255, 0.5, ring.length), minlength=256)
    assert (
        chi2.sf(float(((plain - ring.length / 256) ** 2 / (ring.length / 256)).sum()), 255) < 1e-9
    )


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40))
def test_token_counts_sum_exactly(counts: list[int]) -> None:
    ring = TokenRing(len(counts))
    tally = ring.limbs.tally()
    for count in counts:
        tally.add(ring.limbs.close(ring.lift(count)))
    assert ring.join(tally.total()) == sum(counts)


@pytest.mark.parametrize("count", [-1, 2**32])
def test_a_token_count_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(ValueError):
        TokenRing(3).lift(count)


def seen(frequency: int, modulus: int, bits: int, ways: list[int]) -> float:
    """How much of one number of two, modulo `modulus`, the sums of their digits tell at this
    frequency: the size of its Fourier coefficient, where each digit can be in so many ways.
    """
    found = 1.0
    for place, count in enumerate(ways):
        turn = np.pi * (frequency * pow(2, bits * place, modulus) % modulus) / modulus
        if abs(np.sin(turn)) > 1e-12:
            found *= abs(np.sin(count * turn) / (count * np.sin(turn)))
    return float(found)


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 12, 16])
def test_sums_of_two_numbers_digits_tell_next_to_nothing_of_one(bits: int) -> None:
    dice = np.random.default_rng(bits)
    for modulus in (*PRIMES, COUNTER_MODULUS):
        each, top = digits(bits), (1 << bits) - 1
        # where the moduli, which lie below powers of two, are nearly periodic
        tried = {(odd * modulus >> place) % modulus for place in range(1, 42) for odd in (1, 3, 5)}
        tried |= {(step + 1) % modulus for step in tried}
        tried |= {pow(2, -bits * place, modulus) for place in range(min(each, 40))}
        sums = dice.integers(0, top + 1, (2, each)).sum(axis=0)
        ways = [int(min(one, top) - max(0, one - top) + 1) for one in sums]
        most = max(seen(one, modulus, bits, ways) for one in tried - {0})
        assert most < 1e-9, (modulus, most)
        few = ways[: -(-128 // bits)]  # what was spelled before
        if (bits, modulus) == (2, COUNTER_MODULUS):
            assert max(seen(one, modulus, bits, few) for one in tried - {0}) > 1e-4
