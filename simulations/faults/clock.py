"""`quietchoir` on a clock that is wrong: python -m quietchoir.simulations.faults.clock SECONDS
ARGUMENTS…

Knows this process's own wall clock. Always: the clock that nobody sets (`time.monotonic`) stays
right, as on a real machine.
"""

import datetime
import runpy
import sys
import time


def shift(seconds: float) -> None:
    """Make the wall clock of this process wrong by so much, for whatever is imported after this."""
    right, by = time.time, datetime.timedelta(seconds=seconds)

    class Wrong(datetime.datetime):
        """`datetime.datetime`, off."""

        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Wrong":
            """The wrong time."""
            return super().now(tz) + by

    time.time = lambda: right() + seconds
    datetime.datetime = Wrong  # type: ignore[misc]


if __name__ == "__main__":
    shift(float(sys.argv[1]))
    sys.argv = ["quietchoir", *sys.argv[2:]]
    runpy.run_module("quietchoir.cli", run_name="__main__")
