"""Work that waits until nobody does.

Knows when the engine is idle, and whom to ask for a piece of work. Knows nothing of the work.
Always: no piece begins while somebody waits for an answer; one that fails is told, and the others
go on; after `stop` none runs.
"""

import threading
from collections.abc import Callable, Sequence

from .. import log

LOOK_S = 0.5  # how often is looked whether there is work and nobody waits
logger = log.get("idle")
Work = Callable[[], bool]  # does one short piece; False: there was none


class IdleThread:
    """Does what others left for a quiet moment."""

    def __init__(self, is_idle: Callable[[], bool], works: Sequence[Work]) -> None:
        """`is_idle`: does nobody wait for an answer?"""
        self._is_idle, self._works = is_idle, works
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="quietchoir-idle", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, after the piece that runs."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            done = [self._done(work) for work in self._works]
            if True not in done:
                self._stopped.wait(LOOK_S)

    def _done(self, work: Work) -> bool:
        try:
            return not self._stopped.is_set() and self._is_idle() and work()
        except Exception as error:  # whatever it is, answers do not depend on it
            logger.warning("work for a quiet moment was left undone: %s", error)
            return False
