"""Blocks into chunks."""

from hypothesis import given
from hypothesis import strategies as st

from quietchoir.core.retrieval.chunking import CHUNK_CHARACTERS, TextBlock, chunked

WORDS = st.text(st.characters(codec="utf-8", categories=("L", "N")), min_size=1, max_size=30)
BODIES = st.lists(st.lists(WORDS, min_size=1, max_size=200).map(" ".join), min_size=1, max_size=9)


def blocks_of(bodies: list[str], page: int = 0) -> list[TextBlock]:
    return [TextBlock(text, page, line, line) for line, text in enumerate(bodies, 1)]


@given(BODIES, st.integers(1, 3))
def test_every_word_is_in_exactly_one_chunk_in_its_order(bodies, pages):
    blocks = [block for page in range(pages) for block in blocks_of(bodies, page)]
    found = [word for chunk in chunked(blocks) for word in chunk.text.split()]
    assert found == [word for block in blocks for word in block.text.split()]


@given(BODIES)
def test_no_chunk_is_longer_than_a_chunk(bodies):
    assert all(len(chunk.text) <= CHUNK_CHARACTERS for chunk in chunked(blocks_of(bodies)))


def test_a_chunk_stands_under_all_its_headings_and_never_reaches_into_the_next():
    blocks = [
        TextBlock("Book", 0, 1, 1, 1),
        TextBlock("about all", 0, 2, 2),
        TextBlock("Part", 0, 3, 3, 2),
        TextBlock("about a part", 0, 4, 4),
        TextBlock("Other", 0, 5, 5, 2),
        TextBlock("about another", 0, 6, 6),
    ]
    assert [(chunk.heading, chunk.text, chunk.line) for chunk in chunked(blocks)] == [
        ("Book", "about all", 2),
        ("Book › Part", "about a part", 4),
        ("Book › Other", "about another", 6),
    ]


def test_a_heading_with_nothing_under_it_is_found_by_its_own_words():
    blocks = [
        TextBlock("Book", 0, 1, 1, 1),
        TextBlock("Empty", 0, 2, 2, 2),
        TextBlock("Last", 0, 3, 3, 2),
    ]
    assert [(chunk.heading, chunk.text) for chunk in chunked(blocks)] == [
        ("Book", "Empty"),
        ("Book", "Last"),
    ]


def test_pages_are_never_mixed_and_short_paragraphs_of_one_are_joined():
    blocks = [*blocks_of(["one", "two"], 1), *blocks_of(["three"], 2)]
    assert [(chunk.page, chunk.line, chunk.last_line, chunk.text) for chunk in chunked(blocks)] == [
        (1, 1, 2, "one\ntwo"),
        (2, 1, 1, "three"),
    ]


def test_a_long_paragraph_is_cut_at_its_lines_and_each_part_keeps_its_own():
    lines = [f"line {number} {'word ' * 30}".strip() for number in range(1, 31)]
    block = TextBlock("\n".join(lines), 0, 101, 130)
    parts = list(chunked([block]))
    assert len(parts) > 4
    for part in parts:
        first, last = part.line - 101, part.last_line - 101
        assert part.text == "\n".join(lines[first : last + 1])
