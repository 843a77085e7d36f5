"""Every kind of tests/compat, as a test: all of its cases are right. And the count itself can be
wrong.
"""

import pytest

from quietchoir.tests import compat


@pytest.mark.parametrize("kind", compat.kinds())
def test_every_case_is_right(kind: str) -> None:
    result = compat.tally(compat.load(kind))
    assert not result.wrong, "\n".join(f"{name}: {wrong}" for name, wrong in result.wrong.items())


def test_a_wrong_case_is_counted_and_named() -> None:
    result = compat.tally(lambda: [("one", ""), ("two", "answered 5, not 4")])
    assert (result.tried, result.wrong) == (2, {"two": "answered 5, not 4"})


def test_a_kind_that_breaks_halfway_is_wrong() -> None:
    def breaks():
        yield "one", ""
        raise ValueError("no more")

    result = compat.tally(breaks)
    assert (
        result.tried == 2
        and ("stopped after 1 cases: ValueError: no more") in result.wrong["(the kind itself)"]
    )


def test_a_kind_that_tries_nothing_or_one_name_twice_is_wrong() -> None:
    assert compat.tally(lambda: []).wrong == {"(the kind itself)": "tried nothing"}
    assert compat.tally(lambda: [("one", ""), ("one", "")]).wrong == {
        "one": "this name comes twice in its kind"
    }


def test_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(LookupError, match="'nothing' is no kind"):
        compat.load("nothing")
