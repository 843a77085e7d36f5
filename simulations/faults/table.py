"""The one table of faults, which the tests and the benchmark read, and how it is gone through.

Knows four scenes that go through their faults at the same time, because faults are mostly waiting.
Knows nothing of single faults.
Always: a fault that was not survived does not hide the next one: its scene is set anew; a fault
that this machine cannot be given is left out, with its reason, and counts neither as tried nor as
survived.
"""

import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, as_completed
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from . import coordinators, distance, members, messages
from .distance import FAR, Distance
from .namespaces import NoNamespacesError
from .scene import FEW, MANY, FaultScene

# a scene in a folder; its faults take what it gives
Setting = Callable[[Path], AbstractContextManager[Any]]
Faults = Mapping[str, Callable[[Any], None]]

LINES: tuple[tuple[Setting, Faults], ...] = (
    (partial(FaultScene, plan=FEW), {**members.FAULTS, **messages.FAULTS}),
    (partial(FaultScene, plan=FEW), coordinators.FAULTS),
    (partial(FaultScene, plan=MANY), members.OF_MANY),
    (partial(Distance, plan=FAR), distance.FAULTS),
)
NAMES = tuple(name for _, faults in LINES for name in faults)


class Play:
    """All faults, going on in a thread for each federation. Use as a context; leaving it early
    ends them.
    """

    def __init__(self, tell: Callable[[str], None] = lambda words: None) -> None:
        self.tell = tell
        self.outcomes: dict[str, Future[None]] = {name: Future() for name in NAMES}
        self.ended = threading.Event()
        self.threads = [
            threading.Thread(target=self.go_through, args=line, name="faults") for line in LINES
        ]

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

    def go_through(self, setting: Setting, faults: Faults) -> None:
        """One scene's faults, in order."""
        left = dict(faults)
        while left and not self.ended.is_set():
            with tempfile.TemporaryDirectory(prefix="quietchoir-faults-") as folder:
                self.until_one_is_missed(Path(folder), setting, left)

    def until_one_is_missed(
        self, folder: Path, setting: Setting, left: dict[str, Callable[[Any], None]]
    ) -> None:
        """Faults in one scene, until one breaks it."""
        name = next(iter(left))
        try:
            with setting(folder) as scene:
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
            self.tell(
                f"{'left out' if isinstance(error, NoNamespacesError) else 'missed'}: "
                f"{name}: {error}"
            )


def score(
    tell: Callable[[str], None], keep: Callable[[dict[str, Any]], None] = lambda found: None
) -> dict[str, Any]:
    """Go through all of them: `faults_tried`, `faults_missed` and, by fault, what went wrong.

    Args:
        keep: gets the same after every fault, of those that have ended.
    """
    with Play(tell) as play:
        for number, _ in enumerate(as_completed(play.outcomes.values()), start=1):
            if number < len(NAMES):
                keep(count(play.outcomes))
    return count(play.outcomes)


def count(outcomes: Mapping[str, Future[None]]) -> dict[str, Any]:
    """What the faults that have ended came to."""
    ended = {name: one.exception() for name, one in outcomes.items() if one.done()}
    left_out = {
        name: str(error) for name, error in ended.items() if isinstance(error, NoNamespacesError)
    }
    missed = {
        name: str(error)
        for name, error in ended.items()
        if error is not None and name not in left_out
    }
    names = [name for name in ended if name not in left_out]
    return {
        "faults_tried": len(names), "faults_missed": len(missed),
        "faults": {"names": names, "missed": missed, "left_out": left_out},
    }  # fmt: skip
