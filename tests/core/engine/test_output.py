"""Stop texts across pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietchoir.core.engine.output import StopStrings


def through(stops: tuple[str, ...], pieces: list[str]) -> tuple[str, bool]:
    """All that goes out, and whether a stop text was met."""
    filter_, out = StopStrings(stops), ""
    for piece in pieces:
        text, met = filter_.push(piece)
        out += text
        if met:
            return out, True
    return out + filter_.finish(), False


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["one EN", "D two"], ("one ", True)),
        (["one E", "N", "D"], ("one ", True)),
        (["one EN", "ough"], ("one ENough", False)),
        (["END"], ("", True)),
        (["one EN"], ("one EN", False)),
        (["EEND"], ("E", True)),
    ],
)
def test_a_stop_text_is_met_across_pieces_and_never_goes_out(pieces, expected):
    assert through(("END",), pieces) == expected


def test_what_may_begin_a_stop_text_is_held_back_and_no_more_than_that():
    stops = StopStrings(("END",))
    assert stops.push("we E") == ("we ", False)
    assert stops.push("at") == ("Eat", False)


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.text("abc", max_size=20),
    st.data(),
)
def test_the_text_does_not_depend_on_how_it_is_cut(stops, text, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert through(tuple(stops), pieces) == through(tuple(stops), [text])


@given(st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.text("abc", max_size=20))
def test_no_stop_text_ever_goes_out(stops, text):
    out, met = through(tuple(stops), list(text))
    assert text.startswith(out)
    assert not any(stop in out for stop in stops)
    assert met or out == text
