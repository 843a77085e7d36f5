"""The one table of faults, which the tests and the benchmark read, and how it is gone through.

Knows three federations that go through their faults at the same time, because faults are mostly waiting. Knows nothing of
single faults.
Always: a fault that was not survived does not hide the next one: its federation is founded anew.
"""

import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path

from ..choir import Plan
from . import coordinators, letters, members
from .members import Fault
from .scene import FEW, MANY, Scene

LINES = (
    (FEW, {**members.FAULTS, **letters.FAULTS}),
    (FEW, coordinators.FAULTS),
    (MANY, members.OF_MANY),
)
NAMES = tuple(name for _, faults in LINES for name in faults)


class Play:
    """All faults, going on in a thread for each federation. Use as a context; leaving it early ends them."""

    def __init__(self, tell: Callable[[str], None] = lambda words: None) -> None:
        self.tell = tell
        self.outcomes: dict[str, Future[None]] = {name: Future() for name in NAMES}
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=self.go_through, args=line, name="faults") for line in LINES]

    def __enter__(self) -> "Play":
        """Begin."""
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """End after the faults that are going on."""
        self.ended.set()
        for thread in self.threads:
            thread.join()

    def go_through(self, plan: Plan, faults: Mapping[str, Fault]) -> None:
        """One federation's faults, in order."""
        left = dict(faults)
        while left and not self.ended.is_set():
            with tempfile.TemporaryDirectory(prefix="quietchoir-faults-") as folder:
                self.until_one_is_missed(Path(folder), plan, left)

    def until_one_is_missed(self, folder: Path, plan: Plan, left: dict[str, Fault]) -> None:
        """Faults in one federation, until one breaks it."""
        name = next(iter(left))
        try:
            with Scene(folder, plan) as scene:
                for name in list(left):
                    if self.ended.is_set():
                        return
                    left[name](scene)
                    del left[name]
                    self.outcomes[name].set_result(None)
                    self.tell(f"survived: {name}")
        except Exception as error:  # whatever it is, the fault was not survived
            left.pop(name, None)
            if not self.outcomes[name].done():
                self.outcomes[name].set_exception(error)
            self.tell(f"missed: {name}: {error}")


def score(tell: Callable[[str], None]) -> dict[str, object]:
    """Go through all of them: `faults_tried`, `faults_missed` and, by fault, what went wrong."""
    with Play(tell) as play:
        missed = {name: str(error) for name, one in play.outcomes.items() if (error := one.exception()) is not None}
    return {"faults_tried": len(NAMES), "faults_missed": len(missed), "faults": {"names": list(NAMES), "missed": missed}}
