"""Bytes at the border: one encoding, and nothing read without a bound."""

import pytest

from quietchoir.core.errors import ProtocolError
from quietchoir.crypto.secagg.messages import Kind, Reader, blob, frame, member_set, number, records

SESSION = bytes(range(32))


def reader(*fields: bytes) -> Reader:
    return Reader(frame(Kind.KEYS, SESSION, *fields), Kind.KEYS, SESSION)


def test_what_is_written_is_read() -> None:
    found = reader(number(3), records({5: b"ab", 1: b"cd"}), member_set([0, 8], 9), blob(b"xyz"))
    assert found.number(4) == 3 and found.records(2, 6) == {1: b"cd", 5: b"ab"}
    assert found.member_set(9) == (0, 8) and found.blob(3) == b"xyz"
    found.done()


@pytest.mark.parametrize("order", [(1, 1), (2, 1), (0, 2, 2)])
def test_records_that_repeat_or_run_backwards_are_refused(order: tuple[int, ...]) -> None:
    body = number(len(order)) + b"".join(number(at) + b"r" for at in order)
    with pytest.raises(ProtocolError, match="twice or out of order"):
        reader(body).records(1, 5)


def test_more_records_or_higher_numbers_than_the_cohort_are_refused() -> None:
    with pytest.raises(ProtocolError):
        reader(number(4) + b"".join(number(at) + b"r" for at in range(4))).records(1, 3)
    with pytest.raises(ProtocolError):
        reader(number(1) + number(3) + b"r").records(1, 3)


def test_a_set_has_no_members_beyond_the_cohort() -> None:
    assert reader(b"\x07").member_set(3) == (0, 1, 2)
    with pytest.raises(ProtocolError, match="beyond the cohort"):
        reader(b"\x0f").member_set(3)


def test_a_length_is_bounded_before_anything_is_read() -> None:
    with pytest.raises(ProtocolError, match="3 at most"):
        reader(blob(b"four")).blob(3)
    with pytest.raises(ProtocolError, match="more expected"):
        reader(b"\xff\xff\xff\xff").blob(1 << 40)


def test_nothing_may_follow() -> None:
    with pytest.raises(ProtocolError, match="1 bytes too many"):
        reader(b"x").done()
