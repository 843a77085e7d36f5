"""What else of this node holds what was said, or speaks of what is deleted.

Knows computed states on disk, memory's facts and consent, each of a home that may have none of
them. Always: done twice, it is as done once.
"""

import time
from contextlib import closing
from pathlib import Path

from .. import paths
from ..engine.conversations import FOLDER, saved
from ..retrieval.database import Passphrase, obliterate
from ..retrieval.memory import FILE as MEMORY
from ..retrieval.memory import FactStore
from .store import FILE, HistoryStore

FORGOTTEN = "forgotten"  # in the home: when something was deleted last


def forgotten_at(home: Path) -> float:
    """When something was deleted last, in seconds of the file's clock; 0: never."""
    path = home / FORGOTTEN
    return path.stat().st_mtime if path.exists() else 0.0


def forget_saved(home: Path) -> None:
    """Delete what a node saved of computed conversations: they may hold what was deleted. A node
    that runs now saves none at its end.

    Raises:
        RetrievalError: the disk refuses; says which file is left.
    """
    paths.write_atomically(home / FORGOTTEN, f"{time.time()}\n".encode(), mode=0o600)
    for path in saved(home / FOLDER):
        obliterate(path)


def forget_said(home: Path, conversation: str, passphrase: Passphrase) -> None:
    """Delete what memory holds of a conversation and its owner did not keep.

    Raises:
        RetrievalError, AuthenticationError, ConfigError: as `FactStore`.
    """
    if (home / MEMORY).exists():
        with closing(FactStore(home / MEMORY, passphrase=passphrase)) as memory:
            memory.forget_conversation(conversation)


def forget_consent(home: Path, collection: str) -> None:
    """Take back what was said of a collection that is about to be removed.

    Raises:
        DataError: the history is damaged. QuietchoirError: the disk refuses.
    """
    if (home / FILE).exists():
        with closing(HistoryStore(home)) as store:
            store.forget_collection(collection)
