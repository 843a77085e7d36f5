"""One line a happening, on standard error.

Knows levels and times. Never receives prompts, answers, updates or keys: callers log names, counts and sizes.
"""

import logging
import sys


def get(name: str) -> logging.Logger:
    """Logger of one organ, for example `get("federation.coordinator")`."""
    return logging.getLogger(f"quietchoir.{name}")


def start(level: str = "info") -> None:
    """Send the project's lines of `level` and above to standard error; libraries stay at warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(name)s: %(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger("quietchoir")
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False
