"""Files into a collection: what changed, and nothing else.

Knows files, times and digests. Knows nothing of formats: it is given a parser; nor of models: it is
given an embedder.
Always: a document is in the collection whole or as it was before; one that cannot be read is told
and stops nobody else; words are found at once, meanings once they are embedded; vectors of two
models never stand in one collection; nothing is dropped because a disk is away.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..errors import DocumentError
from ..models.embedding.folder import Role
from .chunking import TextBlock, chunked
from .store import CollectionStore, DocumentEntry

BATCH = 128  # chunks that are embedded, and written, at once
Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much


class Parser(Protocol):
    """Whoever reads documents."""

    suffixes: frozenset[str]  # of the files that it reads, with the dot, in small letters
    max_bytes: int  # of one document

    def parse(self, name: str, data: bytes, /) -> Sequence[TextBlock]:
        """Blocks of one document.

        Raises:
            DocumentError: it cannot be read; the sentence says what to do.
        """
        ...


class Embedder(Protocol):
    """An embedding model."""

    @property
    def identity(self) -> str:
        """Of its files; another one means other vectors."""
        ...

    def embed(self, texts: Sequence[str], /, role: Role = "") -> npt.NDArray[np.float32]:
        """Unit vectors of texts that are asked or looked through, [N, D]."""
        ...


@dataclass(slots=True)
class Update:
    """What one update did."""

    read: int = 0  # documents
    replaced: int = 0  # of them, those that were here in another version
    unchanged: int = 0  # and in the collection
    removed: int = 0
    embedded: int = 0  # chunks
    problems: dict[str, str] = field(default_factory=dict)  # path → what to do
    absent: list[str] = field(default_factory=list)  # sources that are not there now
    others: Counter[str] = field(default_factory=Counter)  # files of other kinds, by suffix


def nobody(_what: str, _done: int, _whole: int) -> None:
    """Hears the progress."""


def update(
    store: CollectionStore,
    parser: Parser,
    embedder: Embedder | None = None,
    progress: Progress = nobody,
    *,
    retry: bool = False,
) -> Update:
    """Bring a collection up to what its sources hold now.

    Args:
        embedder: None: words alone are found, until an update with one.
        retry: what could not be read before is read again, though its file is the same: a parser's
            deadline and a permission pass. Who looks every few seconds leaves it alone.

    Raises:
        RetrievalError: the disk refuses; what was done up to then stands, and the next update goes
        on there.
    """
    done = Update()
    before = store.documents()
    store.database.check()
    here: set[str] = set()
    for source in store.sources():
        if not Path(source).exists():
            done.absent.append(source)
            here |= {path for path in before if Path(source) in (Path(path), *Path(path).parents)}
    found = [
        path
        for source in store.sources()
        for path in files(Path(source), parser.suffixes, done.others)
    ]
    for place, path in enumerate(dict.fromkeys(found)):
        progress("documents", place, len(found))
        here.add(str(path))
        take(store, parser, path, before.get(str(path)), done, retry)
    for gone in before.keys() - here:
        if not dropped(gone):
            store.remove(gone)
            done.removed += 1
    if embedder is not None:
        embed(store, embedder, done, progress)
    if done.removed:
        store.scrub()
    elif done.replaced:
        store.database.scrub_log()
    return done


def changed(store: CollectionStore, suffixes: frozenset[str]) -> bool:
    """Would an update find a document that is new, gone, or of another size or time? Looks at names
    and times alone; a source that is not there now has not changed.

    Raises:
        RetrievalError: the collection cannot be read.
    """
    known, here = store.documents(), set[str]()
    for source in map(Path, store.sources()):
        if not source.exists():
            here |= {path for path in known if source in (Path(path), *Path(path).parents)}
            continue
        for path in map(str, files(source, suffixes)):
            here.add(path)
            entry = known.get(path)
            if entry is None or (entry.size, entry.modified_ns) != stated(Path(path)):
                return True
    return any(not dropped(gone) for gone in known.keys() - here)


def dropped(path: str) -> bool:
    """A document that was handed over, and has no file here that could change or go."""
    return not Path(path).is_absolute()


def drop(
    store: CollectionStore, parser: Parser, name: str, data: bytes, embedder: Embedder | None = None
) -> tuple[str, int]:
    """Put a document that is handed over into a collection, in the place of one of its name.

    Args:
        name: with the ending that says what it is; of a path, its last part counts.

    Returns:
        The name that it is kept under, and its number of passages.

    Raises:
        DocumentError: it cannot be read; an earlier one of its name stays. RetrievalError: the
        disk refuses; likewise.
    """
    name = Path(name).name
    replaced = name in store.documents()
    chunks = list(chunked(parser.parse(name, data)))
    entry = DocumentEntry(name, len(data), 0, hashlib.sha256(data).digest())
    count = store.put(entry, chunks)
    if embedder is not None:
        embed(store, embedder, Update(), nobody)
    if replaced:
        store.database.scrub_log()
    return name, count


def files(
    source: Path, suffixes: frozenset[str], others: Counter[str] | None = None
) -> Iterator[Path]:
    """The documents of a source, by name; hidden ones and links are left alone.

    Args:
        others: counts the files of other suffixes.
    """
    if source.is_file():
        yield source
        return
    for folder, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder) / name
            if name.startswith(".") or not regular(path):
                continue
            if path.suffix.lower() in suffixes:
                yield path
            elif others is not None:
                others[path.suffix.lower()] += 1


def regular(path: Path) -> bool:
    """A file, no link: a link could lead out of the folder that its owner added."""
    return path.is_file() and not path.is_symlink()


def take(
    store: CollectionStore,
    parser: Parser,
    path: Path,
    before: DocumentEntry | None,
    done: Update,
    retry: bool,
) -> None:
    """Read one document if it is new or was changed; or could not be read, and `retry` is asked."""
    try:
        state = path.stat()
        same = before is not None and (before.size, before.modified_ns) == (
            state.st_size,
            state.st_mtime_ns,
        )
        if before is not None and same and not (before.problem and retry):
            if before.problem:
                done.problems[str(path)] = before.problem
            else:
                done.unchanged += 1
            return
        if state.st_size > parser.max_bytes:
            raise DocumentError(
                f"{path.name}: {state.st_size / 1e6:.0f} MB, at most "
                f"{parser.max_bytes / 1e6:.0f} MB of one document are read; split it, or leave it "
                f"out"
            )
        data = path.read_bytes()
    except (OSError, DocumentError) as error:
        words = error.strerror if isinstance(error, OSError) else str(error)
        entry = DocumentEntry(str(path), *stated(path), b"", f"{words}")
        refuse(store, entry, before, done)
        return
    entry = DocumentEntry(
        str(path), state.st_size, state.st_mtime_ns, hashlib.sha256(data).digest()
    )
    if before is not None and before.digest == entry.digest and not before.problem:
        store.touch(entry)
        done.unchanged += 1
        return
    try:
        chunks = list(chunked(parser.parse(path.name, data)))
    except DocumentError as error:
        refused = DocumentEntry(entry.path, entry.size, entry.modified_ns, entry.digest, str(error))
        refuse(store, refused, before, done)
        return
    store.put(entry, chunks)
    done.read += 1
    done.replaced += before is not None


def stated(path: Path) -> tuple[int, int]:
    """Size and time, zeros where they cannot be had."""
    try:
        state = path.stat()
    except OSError:
        return 0, 0
    return state.st_size, state.st_mtime_ns


def refuse(
    store: CollectionStore, entry: DocumentEntry, before: DocumentEntry | None, done: Update
) -> None:
    """Tell why a document is not found; what an earlier version of it said is not found either."""
    done.problems[entry.path] = entry.problem
    if before is None or before.chunks or told(before) != told(entry):
        store.put(entry, ())


def told(entry: DocumentEntry) -> tuple[str, int, int]:
    """Why a document is not found, and of which version of its file that holds."""
    return entry.problem, entry.size, entry.modified_ns


def embed(store: CollectionStore, embedder: Embedder, done: Update, progress: Progress) -> None:
    """Vectors for all chunks that have none, of this model alone."""
    store.embed_with(embedder.identity)
    (chunks, have), last = store.count(), 0
    while batch := store.without_vector(last, BATCH):
        progress("chunks", have + done.embedded, chunks)
        texts = [f"{heading}\n{text}" if heading else text for _, heading, text in batch]
        store.put_vectors([id for id, _, _ in batch], embedder.embed(texts, "document"))
        done.embedded += len(batch)
        last = batch[-1][0]
