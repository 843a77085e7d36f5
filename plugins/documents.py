"""Documents into blocks of text, by the built-in plugin `quietchoir/documents` in its sandbox.

Knows the plugin's three tools. Knows nothing of formats or of what becomes of the text.
Always: no document's bytes are parsed outside of the sandbox; what comes back is cleaned of
characters that a reader does not see; a document that breaks the parser breaks itself alone.
"""

import asyncio
import base64
import json
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from ..core.errors import DocumentError, SandboxUnavailableError, ToolError
from ..core.retrieval.chunking import TextBlock
from . import manifest
from .audit import Audit, Call, Outcome
from .hidden import legible
from .host import BUILTIN
from .running import Plugin, plugin_folder
from .sandbox.probe import probe

KINDS = ("csv", "docx", "htm", "html", "markdown", "md", "odt", "pdf", "pptx", "text", "tsv", "txt")
SUFFIXES = frozenset(f".{kind}" for kind in (*KINDS, "xhtml", "xlsx"))  # of what is read
MAX_BYTES = 64 << 20  # of one document
PART_BYTES = 600 << 10  # of it in one call: a line that a plugin reads is at most 1 MiB
CALL_S = 30.0
PARSE_S = 300.0  # a thousand pages of a PDF take about a minute


class DocumentParser:
    """The plugin, started at the first document.

    Used by one task at a time. `close` ends it.
    """

    suffixes = SUFFIXES
    max_bytes = MAX_BYTES

    def __init__(self) -> None:
        terms = manifest.read(BUILTIN / "documents")
        self._plugin = Plugin(terms, plugin_folder(terms.id), {})
        self._audit = Audit(plugin_folder("audit.jsonl"))
        self._confined = False

    async def parse(self, name: str, data: bytes) -> list[TextBlock]:
        """Blocks of the document `data`, which is called `name`.

        Raises:
            DocumentError: too large, damaged, of another kind than its name says, or the parser
            gave up; says what to do.
            SandboxUnavailableError: nothing on this machine can confine the parser.
        """
        if len(data) > MAX_BYTES:
            raise DocumentError(too_large(name, len(data)))
        self._require_sandbox()
        began, received = time.monotonic(), 0
        outcome: Outcome = "failed"
        try:
            for start in range(0, max(1, len(data)), PART_BYTES):
                part = base64.b64encode(data[start : start + PART_BYTES]).decode()
                await self._ask(name, "receive", {"data": part, "begins": not start}, CALL_S)
            count = int(await self._ask(name, "parse", {"name": name}, PARSE_S))
            blocks: list[TextBlock] = []
            while len(blocks) < count:
                answer = await self._ask(name, "read_blocks", {"start": len(blocks)}, CALL_S)
                received += len(answer)
                part_of = [block_of(row, name) for row in json.loads(answer)]
                if not part_of:
                    raise DocumentError(f"{name}: the parser lost a part of it; try again")
                blocks += part_of
            outcome = "ok"
            return blocks
        except ToolError as error:
            raise DocumentError(
                f"{name}: the parser gave up ({error}); split it, or save it in another format"
            ) from error
        finally:
            self._audit.write(
                Call(
                    plugin=self._plugin.manifest.id,
                    tool="parse",
                    sent_bytes=len(data),
                    received_bytes=received,
                    seconds=round(time.monotonic() - began, 4),
                    outcome=outcome,
                )
            )

    async def close(self) -> None:
        """End the plugin, if it runs."""
        await self._plugin.stop()

    def _require_sandbox(self) -> None:
        if not self._confined:
            report = probe()
            if not report.available:
                raise SandboxUnavailableError(
                    f"documents are read in a sandbox only: {report.reason}; {report.advice}"
                )
            self._confined = True

    async def _ask(self, name: str, tool: str, arguments: dict[str, object], wait_s: float) -> str:
        text, ok = await self._plugin.call(tool, arguments, wait_s)
        if not ok:
            raise DocumentError(f"{name}: {legible(text)[:400]}")
        return text


class SandboxedParser:
    """The documents plugin, for code that waits: a `Parser` of `core.retrieval.indexing`.

    Args:
        run: carries a coroutine out, in the loop that the plugin lives in.
    """

    suffixes = DocumentParser.suffixes
    max_bytes = DocumentParser.max_bytes

    def __init__(self, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._parser = DocumentParser()
        self._run = run

    def parse(self, name: str, data: bytes) -> list[TextBlock]:
        """Blocks of one document. Raises: as `DocumentParser.parse`."""
        found: list[TextBlock] = self._run(self._parser.parse(name, data))
        return found

    def close(self) -> None:
        """End the plugin."""
        self._run(self._parser.close())


@contextmanager
def parsing() -> Iterator[SandboxedParser]:
    """A parser with a loop of its own, for one command."""
    with asyncio.Runner() as runner:
        parser = SandboxedParser(runner.run)
        try:
            yield parser
        finally:
            parser.close()


def too_large(name: str, size: int) -> str:
    """What to do about a document of `size` bytes."""
    return (
        f"{name}: {size / 1e6:.0f} MB, at most {MAX_BYTES / 1e6:.0f} MB of one document are read; "
        f"split it, or leave it out"
    )


def block_of(row: object, name: str) -> TextBlock:
    """A block as the plugin wrote it. Raises: DocumentError: it is none."""
    match row:
        case [str(text), int(page), int(line), int(last_line), int(level)] if (
            page >= 0 and 1 <= line <= last_line and 0 <= level <= 6
        ):
            return TextBlock(legible(text), page, line, last_line, level)
    raise DocumentError(f"{name}: the parser answered what is no block; report it")
