"""One line a happening, on standard error.

Knows levels and times. Never receives prompts, answers, updates or keys: callers log names, counts
and sizes.
"""

import logging
import sys

from .screen import one_line, visible


class Lines(logging.Formatter):
    """A line for each happening: what it names cannot begin another line, nor move the cursor."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging calls it so
        """The line, before a traceback."""
        record.message = one_line(record.message)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        """The line, and a traceback where there is one."""
        return visible(super().format(record))


def get(name: str) -> logging.Logger:
    """Logger of one organ, for example `get("federation.coordinator")`."""
    return logging.getLogger(f"quietchoir.{name}")


def start(level: str = "info") -> None:
    """Send the project's lines of `level` and above to standard error; libraries stay at
    warnings.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        Lines("%(asctime)s %(levelname).1s %(name)s: %(message)s", datefmt="%H:%M:%S")
    )
    root = logging.getLogger("quietchoir")
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False
