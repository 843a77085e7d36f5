"""Shares rebuild a secret from the threshold on, and not before."""

import secrets
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietchoir.core.errors import ProtocolError, ThresholdError
from quietchoir.crypto.shamir import PRIME, join, split, weights


def test_the_field_is_a_prime_field_that_holds_every_32_byte_secret() -> None:
    assert PRIME > 2**256
    odd, twos = PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for _ in range(40):  # Miller-Rabin: a composite passes all with chance 4**-40
        x = pow(secrets.randbelow(PRIME - 3) + 2, odd, PRIME)
        assert x in (1, PRIME - 1) or any(pow(x, 2**i, PRIME) == PRIME - 1 for i in range(1, twos))


@settings(deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 9), st.integers(0, 5), st.randoms())
def test_any_threshold_of_shares_rebuild_the_secret(
    secret: bytes, threshold: int, more: int, random: Random
) -> None:
    points = random.sample(range(1, 1000), threshold + more)
    shares = dict(zip(points, split(secret, threshold, points), strict=True))
    chosen = random.sample(points, threshold)
    assert join([shares[point] for point in chosen], weights(chosen)) == secret


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
def test_the_smallest_and_largest_secret_survive(secret: bytes) -> None:
    points = list(range(1, 12))
    assert join(split(secret, 7, points)[:7], weights(points[:7])) == secret


def test_one_share_less_fits_every_secret() -> None:
    """With t - 1 shares there is, for any secret at all, a polynomial that gives exactly these
    shares.
    """
    points = [1, 2, 3, 4]
    shares = split(secrets.token_bytes(32), 4, points)[:3]
    for claimed in (bytes(32), secrets.token_bytes(32)):
        at_zero = weights([*points[:3], 99])
        known = sum(
            int.from_bytes(share, "big") * weight
            for share, weight in zip(shares, at_zero, strict=False)
        )
        fourth = (int.from_bytes(claimed, "big") - known) * pow(at_zero[3], -1, PRIME) % PRIME
        assert join([*shares, fourth.to_bytes(33, "big")], at_zero) == claimed


def test_too_few_and_wrong_shares_are_refused() -> None:
    shares = split(b"s" * 32, 3, [1, 2, 3])
    with pytest.raises(ThresholdError):
        join(shares[:2], weights([1, 2, 3]))
    with pytest.raises(ProtocolError):
        join([(1 << 256).to_bytes(33, "big")], [1])
    for wrong in (
        (b"short", 1, [1]),
        (b"s" * 32, 3, [1, 2]),
        (b"s" * 32, 1, [1, 1]),
        (b"s" * 32, 1, [0, 1]),
    ):
        with pytest.raises(ValueError):
            split(*wrong)
    with pytest.raises(ValueError):
        weights([2, 2])
