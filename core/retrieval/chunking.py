"""Blocks of a document into chunks that are searched and cited.

Knows headings, pages, lines and lengths. Knows nothing of formats, files or models.
Always: a chunk lies on one page and under one heading; every word of the blocks is in exactly one
chunk; a chunk's lines are those of its words.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

CHUNK_CHARACTERS = 900  # some 200 tokens of English; the embedding model sees 256
SENTENCE = re.compile(r"(?<=[.!?。！？])\s+")
STEP = " › "  # between headings


@dataclass(frozen=True, slots=True)
class TextBlock:
    """A paragraph, a row or a heading of a document, and where it stood; counted from one."""

    text: str
    page: int  # 0: the format has no pages
    line: int
    last_line: int
    level: int = 0  # of a heading, 1 to 6; 0: no heading


@dataclass(frozen=True, slots=True)
class DocumentChunk:
    """What is found, and cited, as one."""

    text: str
    heading: str  # the headings above it, outermost first
    page: int
    line: int
    last_line: int


def chunked(blocks: Iterable[TextBlock]) -> Iterator[DocumentChunk]:
    """Chunks of one document, in reading order."""
    headings: list[TextBlock] = []  # those that stand now, outermost first
    held: list[TextBlock] = []
    bare: TextBlock | None = None  # a heading under which nothing came yet

    def whole() -> Iterator[DocumentChunk]:
        if held:
            path = STEP.join(one.text for one in headings)
            text = "\n".join(block.text for block in held)
            yield DocumentChunk(text, path, held[0].page, held[0].line, held[-1].last_line)
            held.clear()

    for block in blocks:
        if block.level:
            yield from whole()
            if bare is not None and block.level <= bare.level:
                yield of_heading(bare, headings[:-1])
            while headings and headings[-1].level >= block.level:
                headings.pop()
            headings.append(block)
            bare = block
            continue
        bare = None
        for piece in pieces(block):
            size = sum(len(one.text) + 1 for one in held)
            if held and (held[0].page != piece.page or size + len(piece.text) > CHUNK_CHARACTERS):
                yield from whole()
            held.append(piece)
    yield from whole()
    if bare is not None:
        yield of_heading(bare, headings[:-1])


def of_heading(heading: TextBlock, above: list[TextBlock]) -> DocumentChunk:
    """A heading that nothing stands under is found by its own words."""
    path = STEP.join(one.text for one in above)
    return DocumentChunk(heading.text, path, heading.page, heading.line, heading.last_line)


def pieces(block: TextBlock) -> Iterator[TextBlock]:
    """The block, or its lines and sentences in groups of at most `CHUNK_CHARACTERS`."""
    if len(block.text) <= CHUNK_CHARACTERS:
        yield block
        return
    lines = block.text.split("\n")
    numbered = len(lines) == block.last_line - block.line + 1
    held: list[TextBlock] = []
    for number, line in enumerate(lines, block.line):
        first, last = (number, number) if numbered else (block.line, block.last_line)
        for words in shorter(line):
            if held and sum(len(one.text) + 1 for one in held) + len(words) > CHUNK_CHARACTERS:
                yield joined(held)
                held = []
            held.append(replace(block, text=words, line=first, last_line=last))
    yield joined(held)


def joined(parts: list[TextBlock]) -> TextBlock:
    """Several pieces of one block as one."""
    text = "".join(
        ("" if not place else "\n" if part.line != parts[place - 1].line else " ") + part.text
        for place, part in enumerate(parts)
    )
    return replace(parts[0], text=text, last_line=parts[-1].last_line)


def shorter(line: str) -> Iterator[str]:
    """A line's sentences; one that is still too long is cut between words, or through one that is
    longer than a chunk.
    """
    for sentence in SENTENCE.split(line):
        while len(sentence) > CHUNK_CHARACTERS:
            cut = sentence.rfind(" ", 1, CHUNK_CHARACTERS)
            cut = cut if cut > 0 else CHUNK_CHARACTERS
            yield sentence[:cut]
            sentence = sentence[cut:].lstrip()
        if sentence:
            yield sentence
