"""The embedding model behind meanings, read when it is first needed.

Knows when. Knows nothing of encoders or of what is embedded.
"""

import threading
from collections.abc import Callable
from pathlib import Path

from .. import log
from ..engine.embedder import SentenceEmbedder
from ..errors import MissingPartError, ModelNotFoundError

logger = log.get("retrieval")


def at_first_use(
    find: Callable[[], Path], read: Callable[[Path], SentenceEmbedder] | None = None
) -> Callable[[], SentenceEmbedder | None]:
    """A function that reads the model once, at its first call; None where it is not on this disk,
    or nothing here runs it: then words alone are searched, and the log says so once.

    Args:
        read: gives the folder's model, where it is held for others too; None: from the disk.
    """
    lock = threading.Lock()
    found: list[SentenceEmbedder | None] = []

    def embedder() -> SentenceEmbedder | None:
        with lock:
            if not found:
                try:
                    found.append((read or SentenceEmbedder.load)(find()))
                except (ModelNotFoundError, MissingPartError) as error:
                    logger.warning("documents are searched by their words alone: %s", error)
                    found.append(None)
            return found[0]

    return embedder
