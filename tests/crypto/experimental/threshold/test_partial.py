"""Parts that are added in the dark: the sum opens exactly, and to nothing else."""

import numpy as np
import pytest

from quietchoir.core.errors import AuthenticationError, CryptoError, ProtocolError
from quietchoir.crypto.experimental.threshold import residues
from quietchoir.crypto.experimental.threshold.lattice import LIMBS
from quietchoir.crypto.experimental.threshold.partial import (
    CHECK_BYTES,
    NONCE_BYTES,
    Pad,
    add_up,
    read_checks,
    write_checks,
)
from quietchoir.crypto.experimental.threshold.plan import PRIMES, RESIDUE_BYTES
from quietchoir.crypto.experimental.threshold.residues import Residues
from quietchoir.tests.fakes.threshold import looks_uniform

ROWS = 2
KEY, NAMED = bytes(range(32)), bytes(range(32, 64))
NUMBERS = (1, 4, 6)


def part(number: int) -> Residues:
    """What a responder would answer."""
    return np.stack([residues.random(bytes([number, row]) * 16, LIMBS) for row in range(ROWS)])


@pytest.fixture(scope="module")
def covered() -> dict[int, bytes]:
    return {number: Pad(KEY, NAMED, ROWS).cover(part(number), number) for number in NUMBERS}


@pytest.fixture(scope="module")
def summed(covered: dict[int, bytes]) -> bytes:
    return add_up([covered[number] for number in NUMBERS], ROWS)


def test_what_was_added_in_the_dark_opens_to_the_exact_sum(
    covered: dict[int, bytes], summed: bytes
) -> None:
    veil, expected = Pad(KEY, NAMED, ROWS), part(NUMBERS[0])
    for number in NUMBERS[1:]:
        expected = residues.add(expected, part(number))
    assert np.array_equal(veil.uncover_sum(NUMBERS, summed), expected)
    assert all(
        np.array_equal(veil.uncover(number, covered[number]), part(number)) for number in NUMBERS
    )
    # one vector, whatever the number of parts
    assert len(summed) == len(covered[1]) + 2 * NONCE_BYTES
    alone = add_up([covered[4]], ROWS)
    assert alone == covered[4] and np.array_equal(veil.uncover_sum((4,), alone), part(4))


def test_a_covered_part_looks_like_chance_and_is_never_the_same_twice() -> None:
    veil, nothing = Pad(KEY, NAMED, ROWS), np.zeros((ROWS, LIMBS, 8192), np.uint64)
    first, second = (
        residues.from_bytes(veil.cover(nothing, 1)[NONCE_BYTES:-CHECK_BYTES], ROWS, LIMBS)
        for _ in range(2)
    )
    assert not looks_uniform(nothing[0])
    for row in range(ROWS):
        assert looks_uniform(first[row]) and looks_uniform(
            residues.subtract(first[row], second[row])
        )
    assert looks_uniform(residues.subtract(first[0], first[1]))
    other = residues.from_bytes(veil.cover(nothing, 2)[NONCE_BYTES:-CHECK_BYTES], ROWS, LIMBS)
    assert looks_uniform(residues.subtract(first[0], other[0]))


def bumped(raw: bytes, at: int, prime: int) -> bytes:
    """The residue at byte `at` plus one."""
    value = (int.from_bytes(raw[at : at + RESIDUE_BYTES], "little") + 1) % prime
    return raw[:at] + value.to_bytes(RESIDUE_BYTES, "little") + raw[at + RESIDUE_BYTES :]


def test_every_change_of_the_sum_is_noticed(covered: dict[int, bytes], summed: bytes) -> None:
    veil, head = Pad(KEY, NAMED, ROWS), len(NUMBERS) * NONCE_BYTES
    polynomial = 8192 * RESIDUE_BYTES
    wrong = [
        bumped(summed, head + (row * LIMBS + limb) * polynomial + 77 * RESIDUE_BYTES, PRIMES[limb])
        for row in range(ROWS) for limb in range(LIMBS)
    ]  # fmt: skip
    wrong += [
        bumped(summed, len(summed) - CHECK_BYTES + at * RESIDUE_BYTES, PRIMES[at % LIMBS])
        for at in range(2 * LIMBS)
    ]
    wrong += [
        bytes([summed[0] ^ 1]) + summed[1:],
        summed[NONCE_BYTES : 2 * NONCE_BYTES] + summed[:NONCE_BYTES] + summed[32:],
    ]
    twice = add_up([covered[1], covered[1], covered[4]], ROWS)
    other = Pad(KEY, bytes(32), ROWS)
    mixed = add_up([covered[1], covered[4], other.cover(part(6), 6)], ROWS)
    for bad in (*wrong, twice, mixed):
        with pytest.raises(AuthenticationError, match="not what the responders sent"):
            veil.uncover_sum(NUMBERS, bad)
    for stranger, numbers in (
        (veil, (1, 4, 5)),
        (other, NUMBERS),
        (Pad(bytes(32), NAMED, ROWS), NUMBERS),
        (veil, (4, 1, 6)),
    ):
        with pytest.raises(AuthenticationError):
            stranger.uncover_sum(numbers, summed)


def test_a_change_that_fits_one_check_is_caught_by_the_other(
    summed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unprotected arm: without checks, a member takes the changed sum for the true one."""
    veil, head = Pad(KEY, NAMED, ROWS), len(NUMBERS) * NONCE_BYTES
    changed = bumped(summed, head, PRIMES[0])
    dots = Pad._dots(veil, np.zeros((ROWS, LIMBS, 8192), np.uint64))
    assert dots == [[0] * LIMBS] * 2
    unit = np.zeros((ROWS, LIMBS, 8192), np.uint64)
    unit[0, 0, 0] = 1
    first, second = (copy[0] for copy in veil._dots(unit))
    checks = read_checks(changed[-CHECK_BYTES:])
    checks[0][0] = (checks[0][0] + first) % PRIMES[0]  # a lucky guess, once in 2^54
    lucky = changed[:-CHECK_BYTES] + write_checks(checks)
    with pytest.raises(AuthenticationError):
        veil.uncover_sum(NUMBERS, lucky)
    # and twice, once in 2^108: the arm with the key
    checks[1][0] = (checks[1][0] + second) % PRIMES[0]
    forged = veil.uncover_sum(NUMBERS, changed[:-CHECK_BYTES] + write_checks(checks))
    assert np.array_equal(residues.subtract(forged, veil.uncover_sum(NUMBERS, summed)), unit)
    monkeypatch.setattr(Pad, "_dots", lambda self, body: [[0] * LIMBS] * 2)
    monkeypatch.setattr(Pad, "_offsets", lambda self, number, nonce: [[0] * LIMBS] * 2)
    blank = changed[:-CHECK_BYTES] + bytes(CHECK_BYTES)
    assert np.array_equal(
        residues.subtract(veil.uncover_sum(NUMBERS, blank), forged), unit * np.uint64(0)
    )


def test_what_is_malformed_is_refused_before_anything_is_computed(
    covered: dict[int, bytes], summed: bytes
) -> None:
    veil = Pad(KEY, NAMED, ROWS)
    high, tail = b"\xff" * RESIDUE_BYTES, len(summed) - CHECK_BYTES
    for bad in (
        b"", summed[:-1], summed + b"\0", summed[NONCE_BYTES:], summed[:48] + high + summed[55:],
        summed[:tail] + high + summed[tail + 7 :],
    ):  # fmt: skip
        with pytest.raises(ProtocolError):
            veil.uncover_sum(NUMBERS, bad)
    for bad in (
        b"",
        covered[1][:-1],
        covered[1][:NONCE_BYTES] + high + covered[1][NONCE_BYTES + 7 :],
    ):
        with pytest.raises(CryptoError):
            veil.uncover(1, bad)
        with pytest.raises(ProtocolError):
            add_up([covered[4], bad], ROWS)
