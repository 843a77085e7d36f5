"""The documents plugin: takes a document in parts, gives back its text in blocks.

Runs inside a sandbox, on the kit and on the packages that its manifest names.
Always: one document at a time; a new one, or one that cannot be read, drops the last.
"""

import base64
import binascii
import json
import logging

from quietchoir_sdk import ToolFailure, serve, tool  # type: ignore[import-not-found]

from .formats import Block, Unreadable, read

ANSWER_CHARACTERS = 200_000  # of one answer's blocks; longer ones are asked for again
BLOCK_CHARACTERS = 100_000  # of one block; what is longer comes in several
logging.disable(logging.ERROR)  # pypdf's remarks on odd files are nobody's to read here
received = bytearray()
blocks: list[Block] = []


@tool(read_only=True)  # type: ignore[untyped-decorator]
def receive(data: str, begins: bool) -> str:
    """Take a part of a document, in base64; `begins` drops what was there."""
    if begins:
        received.clear()
        blocks.clear()
    try:
        received.extend(base64.b64decode(data, validate=True))
    except binascii.Error:
        raise ToolFailure("that part is no base64") from None
    return str(len(received))


@tool(read_only=True)  # type: ignore[untyped-decorator]
def parse(name: str) -> str:
    """Read the document that was received, which is called `name`; the number of its blocks."""
    blocks.clear()
    try:
        for block in read(name, bytes(received)):
            for start in range(0, len(block.text), BLOCK_CHARACTERS):
                part = block.text[start : start + BLOCK_CHARACTERS]
                blocks.append(Block(part, block.page, block.line, block.last_line, block.level))
    except Unreadable as error:
        blocks.clear()
        raise ToolFailure(str(error)) from None
    finally:
        received.clear()
    return str(len(blocks))


@tool(read_only=True)  # type: ignore[untyped-decorator]
def read_blocks(start: int) -> str:
    """Blocks from number `start` on, as many as one answer holds: text, page, first line, last
    line, level of a heading or 0.
    """
    found: list[list[str | int]] = []
    size = 0
    for block in blocks[start:]:
        size += len(block.text)
        if found and size > ANSWER_CHARACTERS:
            break
        found.append([block.text, block.page, block.line, block.last_line, block.level])
    return json.dumps(found)


if __name__ == "__main__":
    serve("quietchoir/documents", "0.1.0")
