"""The collections of one node, by name: one file each, so that none can be found in another.

Knows names, and which file stands under each. Knows nothing of what is in them.
Always: a name is a plain word, never a path; what is opened once stays open until `close`, or until
another file stands under its name.
"""

import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import ConfigError, RetrievalError, UnknownEntryError
from .database import Passphrase, obliterate
from .indexing import Embedder, Parser, Progress, Update, changed, drop, dropped, nobody, update
from .search import Search
from .store import CollectionStore, RetrievedPassage

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
ENDING = ".collection"


class Collections:
    """A folder of collections.

    Args:
        passphrase: asked for a collection that is locked, at its first use.
        embedder: gives the embedding model, or None where there is none; called at the first
            question or update, so that a node without collections loads nothing.
    """

    def __init__(
        self,
        folder: Path,
        *,
        passphrase: Passphrase | None = None,
        embedder: Callable[[], Embedder | None] = lambda: None,
    ) -> None:
        self.folder = folder
        self._passphrase = passphrase
        self._embedder = embedder
        self._open: dict[str, Search] = {}
        self._lock = threading.RLock()

    def names(self) -> list[str]:
        """All of them."""
        return sorted(path.name.removesuffix(ENDING) for path in self.folder.glob(f"*{ENDING}"))

    def create(self, name: str, *, locked: bool = False) -> None:
        """Make an empty one.

        Args:
            locked: encrypted, with the passphrase that is asked for now.

        Raises:
            ConfigError: no name for one, there already, or no passphrase. RetrievalError: the disk
            refuses; nothing is left of it.
        """
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} is no name for a collection; take small letters, digits, _ and -"
            )
        if self.path(name).exists():
            raise ConfigError(f"a collection {name} is there already; add to it, or remove it")
        with self._lock:
            store = CollectionStore(self.path(name), passphrase=self._passphrase, locked=locked)
            self._open[name] = Search(store)

    def path(self, name: str) -> Path:
        """Where it lies."""
        return self.folder / f"{name}{ENDING}"

    def search(self, name: str) -> Search:
        """One collection, opened.

        Raises:
            UnknownEntryError: there is none of this name. RetrievalError: it is damaged.
            AuthenticationError, ConfigError: its passphrase is wrong, or nobody is there to ask.
        """
        with self._lock:
            if name not in self.names():  # also what is no name at all
                self._open.pop(name, None)
                raise UnknownEntryError(
                    f"no collection is called {name[:80]!r}; there are: "
                    f"{', '.join(self.names()) or 'none'}. Make it: quietchoir collection create"
                )
            found = self._opened(name)
            if found is None:
                found = Search(CollectionStore(self.path(name), passphrase=self._passphrase))
                self._open[name] = found
            return found

    def _opened(self, name: str) -> Search | None:
        """One that is open, if the file under its name is still the one that was opened."""
        found = self._open.get(name)
        if found is None or found.store.database.stands():
            return found
        self._open.pop(name).store.close()
        return None

    def store(self, name: str) -> CollectionStore:
        """Its file. Raises: as `search`."""
        return self.search(name).store

    def find(
        self, names: Sequence[str], question: str, most: int
    ) -> list[tuple[str, RetrievedPassage]]:
        """The best passages of these collections, each with its collection; of several in turn.

        Raises:
            as `search`.
        """
        searches = [(name, self.search(name)) for name in dict.fromkeys(names)]
        embedder = self._embedder() if searches else None
        lists = [
            [(name, passage) for passage in one.find(question, most, embedder)]
            for name, one in searches
        ]
        ranks = max(map(len, lists), default=0)
        return [one[rank] for rank in range(ranks) for one in lists if rank < len(one)][:most]

    def update(
        self, name: str, parser: Parser, progress: Progress = nobody, *, retry: bool = False
    ) -> Update:
        """Bring one up to what its sources hold now. Raises: as `search`, and `indexing.update`."""
        return update(self.store(name), parser, self._embedder(), progress, retry=retry)

    def changed(self, name: str, suffixes: frozenset[str]) -> bool:
        """Has one of its sources changed? A collection whose passphrase nobody gave yet has not:
        this never asks for one.

        Raises:
            as `search`, and `indexing.changed`.
        """
        with self._lock:
            if name not in self.names():  # to open it would make one
                return False
            if self._opened(name) is None:
                try:
                    self._open[name] = Search(CollectionStore(self.path(name)))
                except ConfigError:
                    return False
        return changed(self.store(name), suffixes)

    def drop(self, name: str, file: str, data: bytes, parser: Parser) -> tuple[str, int]:
        """Put a document that is handed over into one. Returns and raises: as `indexing.drop`, and
        as `search`.
        """
        return drop(self.store(name), parser, file, data, self._embedder())

    def forget(self, name: str, path: str) -> None:
        """Delete one document, or one source with all its documents, from a collection.

        Raises:
            UnknownEntryError: it is neither. RetrievalError: the disk refuses; or another source
            holds the document too, and nothing was changed.
        """
        store = self.store(name)
        documents = store.documents()
        if path in store.sources():
            others = frozenset(store.sources()) - {path}
            # a folder holds no links
            above = () if Path(path).is_symlink() else map(str, Path(path).parents)
            if path in documents and (folders := sorted(others.intersection(above))):
                raise RetrievalError(
                    f"{path}: {folders[0]}, a source of {name} too, holds it; nothing was deleted: "
                    f"move the file away, or forget {folders[0]}"
                )
            store.remove_source(path)
            for document in documents:
                parents = {document, *map(str, Path(document).parents)}
                if path == document or (path in parents and not parents.intersection(others)):
                    store.remove(document)
        elif path in documents and dropped(path):
            store.remove(path)
        else:
            known = ", ".join([*store.sources(), *filter(dropped, documents)])
            raise UnknownEntryError(
                f"{path[:200]} was not added to {name}; in it are: {known or 'no documents'}"
            )
        store.scrub()

    def remove(self, name: str) -> None:
        """Delete a collection: its file is written over, then removed.

        Raises:
            UnknownEntryError: there is none of this name. RetrievalError: the disk refuses.
        """
        if name not in self.names():
            self.search(name)
        with self._lock:
            opened = self._open.pop(name, None)
            if opened is not None:
                opened.store.close()
            obliterate(self.path(name))

    def close(self) -> None:
        """Let all files go."""
        with self._lock:
            for one in self._open.values():
                one.store.close()
            self._open.clear()
