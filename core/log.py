"""One line a happening, on standard error: words, or an object of JSON.

Knows levels and times. Never receives prompts, answers, updates or keys: callers log names, counts
and sizes.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

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


class JsonLines(logging.Formatter):
    """An object for each happening: `time` (UTC), `level`, `logger`, `message`, and `exception`
    where there is one.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line; JSON escapes whatever could begin another."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def get(name: str) -> logging.Logger:
    """Logger of one organ, for example `get("federation.coordinator")`."""
    return logging.getLogger(f"quietchoir.{name}")


def start(level: str = "info", form: Literal["lines", "json"] = "lines") -> None:
    """Send the project's happenings of `level` and above to standard error; libraries stay at
    warnings, and in `json` are written in the same form.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonLines()
        if form == "json"
        else Lines("%(asctime)s %(levelname).1s %(name)s: %(message)s", datefmt="%H:%M:%S")
    )
    own = logging.getLogger("quietchoir")
    own.handlers[:] = [handler]
    own.setLevel(level.upper())
    own.propagate = False
    if form == "json":
        logging.getLogger().handlers[:] = [handler]


def say(words: str, level: int = logging.INFO) -> None:
    """A sentence of the program's to its owner, on standard error whatever the level is; in `json`
    an object as all others.
    """
    own = logging.getLogger("quietchoir")
    if own.handlers and isinstance(own.handlers[0].formatter, JsonLines):
        own.handlers[0].handle(own.makeRecord(own.name, level, "", 0, words, (), None))
    else:
        print(words, file=sys.stderr, flush=True)
