"""What reaches the terminal: everybody's letters, and nothing that a terminal obeys.

Knows which characters a terminal acts on. Knows nothing of what the texts say or who wrote them.
Always: whatever a verb prints, ours or a stranger's, goes through `Screen`, and `visible` is the
only filter; a letter is never taken away for being new, joined or of another script. Text in a
table is text, never markup.

Not covered: a terminal that obeys printable characters, letters that look like others, marks piled
on each other.
Source: ECMA-48 (C0, C1); Unicode Standard Annex 9 (explicit formatting); CVE-2021-42574 (what
reordering can hide).
"""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO, cast

from .errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

ENDS = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")  # other ways to end a line
# C0 but tab and line end, DEL, C1, overrides
OBEYED = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u202d\u202e]")
UNSEEN = 1_000_000  # columns of a file or a pipe
SURROGATES = re.compile("[\ud800-\udfff]")  # half a character: it cannot be written
OPENING = {
    "\u202a": "\u202c",
    "\u202b": "\u202c",
    "\u2066": "\u2069",
    "\u2067": "\u2069",
    "\u2068": "\u2069",
}
DIRECTIONS = re.compile("[\u202a-\u202c\u2066-\u2069]")
# escaped in JSON
UNWANTED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """`text` without what a terminal obeys: it cannot move the cursor, rewrite what stands above,
    or reorder what follows.

    Joiners, variation selectors, direction marks and characters newer than Python's tables stay.
    Embeddings and isolates stay where each is closed in its own line, as in Arabic and Hebrew;
    overrides never do.
    """
    if text.isascii() and text.isprintable():
        return text
    cleaned = SURROGATES.sub("\ufffd", OBEYED.sub("", ENDS.sub("\n", text)))
    if not DIRECTIONS.search(cleaned):
        return cleaned
    return "\n".join(_balanced(part) for part in cleaned.split("\n"))


def one_line(text: str) -> str:
    """`visible` text on one line: a name or a reason cannot begin a line of its own."""
    return " ".join(visible(text).split("\n"))


def counted(number: int, noun: str) -> str:
    """`1 member`, `2 members`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def json_line(value: Any) -> str:
    """JSON on one line whose strings hold letters as they are, and everything that `visible`
    takes away as an escape.
    """
    text = json.dumps(value, ensure_ascii=False)
    return UNWANTED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _balanced(part: str) -> str:
    """One line, without direction controls that would reach beyond what they enclose."""
    waiting: list[int] = []  # positions of those that are open
    dropped: set[int] = set()
    for found in DIRECTIONS.finditer(part):
        if found[0] in OPENING:
            waiting.append(found.start())
        elif waiting and OPENING[part[waiting[-1]]] == found[0]:
            waiting.pop()
        else:
            dropped.add(found.start())
    dropped.update(waiting)
    return "".join(letter for at, letter in enumerate(part) if at not in dropped)


class Screen:
    """A stream that writes what is visible. Where the stream's encoding lacks a letter, its number
    stands for it.

    Everything but writing is the stream's own.
    """

    errors = "backslashreplace"  # how `input` writes a prompt

    def __init__(self, stream: TextIO) -> None:
        # where `rich` writes its own colours; what goes into its tables `table` cleans
        self.rich_proxied_file = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)

    def write(self, text: str) -> int:
        """Write one piece."""
        shown, stream = visible(text), self.rich_proxied_file
        try:
            stream.write(shown)
        except UnicodeEncodeError:
            stream.write(shown.encode(stream.encoding, self.errors).decode(stream.encoding))
        return len(text)


@contextmanager
def guarded() -> Iterator[None]:
    """Put a `Screen` before standard output and standard error for the length of the block."""
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = cast("TextIO", Screen(out)), cast("TextIO", Screen(err))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err


def table(*headers: str, ids: tuple[str, ...] = (), **options: Any) -> "Table":
    """A table of `rich` whose cells are text on one line: no markup, nothing that a terminal
    obeys.

    Args:
        ids: headers of the columns whose cells other verbs take: they keep their width, and fold
            where even the terminal is narrower.
    """
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    class Cells(Table):
        def add_row(self, *cells: Any, **more: Any) -> None:
            shown = [Text(one_line(cell)) if isinstance(cell, str) else cell for cell in cells]
            super().add_row(*shown, **more)
            for column, cell in zip(self.columns, shown, strict=False):
                if column.header in ids:
                    column.width = max(column.width or 0, cell_len(f"{cell}"))

    made = Cells(*headers, **options)
    for column in made.columns:
        if column.header in ids:
            column.width, column.overflow = cell_len(f"{column.header}"), "fold"
    return made


def show(shown: "Table") -> None:
    """Print a table: as wide as the terminal, and whole where nobody sees it."""
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=UNSEEN)).print(shown)


def typed(prompt: str) -> str:
    """One line that somebody typed.

    Raises:
        EOFError: the end of the input.
        ConfigError: bytes that are no text in the terminal's encoding.
    """
    try:
        text = input(prompt)
    except UnicodeDecodeError as error:
        raise _not_text(error.encoding) from None
    if SURROGATES.search(text):
        raise _not_text(getattr(sys.stdin, "encoding", None) or "the terminal's encoding")
    return text


def _not_text(encoding: str) -> ConfigError:
    return ConfigError(
        f"what was typed holds letters that {encoding} does not have, as which this terminal's "
        f"input is read; "
        "set LANG=C.UTF-8 (or PYTHONUTF8=1) and unset PYTHONIOENCODING"
    )
