"""One collection's file: sources, documents, chunks, their words and their vectors.

Knows tables. Knows nothing of formats, models or ranking.
Always: a document's chunks, words and vectors come and go in one step; ids are never used twice, so
that a citation never opens another passage; vectors of one model only.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import UnknownEntryError
from .chunking import DocumentChunk
from .database import Passphrase, PrivateDatabase

VERSION = 1
TABLES = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE sources (path TEXT PRIMARY KEY) STRICT;
CREATE TABLE documents (
    id INTEGER PRIMARY KEY AUTOINCREMENT, path TEXT NOT NULL UNIQUE, size INTEGER NOT NULL,
    modified_ns INTEGER NOT NULL, digest BLOB NOT NULL, problem TEXT NOT NULL
) STRICT;
CREATE TABLE chunks (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    document INTEGER NOT NULL REFERENCES documents ON DELETE CASCADE,
    page INTEGER NOT NULL, line INTEGER NOT NULL, last_line INTEGER NOT NULL,
    heading TEXT NOT NULL, text TEXT NOT NULL
) STRICT;
CREATE INDEX of_document ON chunks (document);
CREATE TABLE vectors (
    chunk INTEGER PRIMARY KEY REFERENCES chunks ON DELETE CASCADE, vector BLOB NOT NULL
) STRICT;
CREATE VIRTUAL TABLE words USING fts5 (
    text, heading, content = 'chunks', content_rowid = 'id',
    tokenize = 'porter unicode61 remove_diacritics 2'
);
INSERT INTO words (words, rank) VALUES ('secure-delete', 1);
CREATE TRIGGER chunk_came AFTER INSERT ON chunks BEGIN
    INSERT INTO words (rowid, text, heading) VALUES (new.id, new.text, new.heading); END;
CREATE TRIGGER chunk_went AFTER DELETE ON chunks BEGIN
    INSERT INTO words (words, rowid, text, heading)
    VALUES ('delete', old.id, old.text, old.heading); END
""".strip()
STORED = np.dtype("<f2")  # of a vector's numbers: half of float32, and the ranking stays
PASSAGE = (
    "SELECT chunks.id, documents.path, page, line, last_line, heading, text "
    "FROM chunks JOIN documents ON documents.id = chunks.document "
)


@dataclass(frozen=True, slots=True)
class DocumentEntry:
    """One document as it was when it was read last."""

    path: str
    size: int
    modified_ns: int
    digest: bytes
    problem: str = ""  # why nothing of it is found; empty: all of it is
    chunks: int = 0


@dataclass(frozen=True, slots=True)
class RetrievedPassage:
    """A chunk, and where it stands."""

    id: int
    file: str
    page: int  # 0: the format has no pages
    line: int  # 0: it came without
    last_line: int
    heading: str
    text: str

    @property
    def place(self) -> str:
        """In words, for a reader."""
        lines = f"{self.line}" if self.line == self.last_line else f"{self.line}-{self.last_line}"
        page = f", page {self.page}" if self.page else ""
        return f"{Path(self.file).name}{page}" + (f", line {lines}" if self.line else "")


class CollectionStore:
    """One collection's open file.

    Raises:
        RetrievalError, AuthenticationError, ConfigError: as `PrivateDatabase`.
    """

    def __init__(
        self, path: Path, *, passphrase: Passphrase | None = None, locked: bool = False
    ) -> None:
        self.database = PrivateDatabase(path, TABLES, VERSION, passphrase=passphrase, locked=locked)

    @property
    def locked(self) -> bool:
        """Is the file encrypted?"""
        return self.database.locked

    def sources(self) -> list[str]:
        """Files and folders that its owner added."""
        return [path for (path,) in self.database.rows("SELECT path FROM sources ORDER BY path")]

    def add_source(self, path: Path) -> None:
        """Remember a file or a folder; its documents come with the next update."""
        self.database.write("INSERT OR IGNORE INTO sources VALUES (?)", str(path))

    def remove_source(self, path: str) -> None:
        """Forget it; its documents are the caller's to remove."""
        self.database.write("DELETE FROM sources WHERE path = ?", path)

    def documents(self) -> dict[str, DocumentEntry]:
        """Every document, by its path."""
        return {
            row[0]: DocumentEntry(*row)
            for row in self.database.rows(
                "SELECT path, size, modified_ns, digest, problem, "
                "(SELECT count(*) FROM chunks WHERE document = documents.id) "
                "FROM documents ORDER BY path"
            )
        }

    def touch(self, entry: DocumentEntry) -> None:
        """The same content under another time."""
        self.database.write(
            "UPDATE documents SET size = ?, modified_ns = ? WHERE path = ?",
            entry.size,
            entry.modified_ns,
            entry.path,
        )

    def put(self, entry: DocumentEntry, chunks: Iterable[DocumentChunk]) -> int:
        """Put a document in the place of the one of this path; returns its number of chunks. Those
        that say what one of its earlier version said keep that one's vector.

        Raises:
            RetrievalError: the disk refuses; the document that was there still is.
        """
        with self.database.step():
            embedded = {
                (heading, text): vector
                for heading, text, vector in self.database.rows(
                    "SELECT heading, text, vector FROM chunks JOIN vectors ON chunk = chunks.id "
                    "WHERE document = (SELECT id FROM documents WHERE path = ?)",
                    entry.path,
                )
            }
            self.remove(entry.path)
            number = self.database.write(
                "INSERT INTO documents (path, size, modified_ns, digest, problem) "
                "VALUES (?, ?, ?, ?, ?)",
                entry.path,
                entry.size,
                entry.modified_ns,
                entry.digest,
                entry.problem,
            )
            rows = [
                (number, one.page, one.line, one.last_line, one.heading, one.text) for one in chunks
            ]
            self.database.write_many(
                "INSERT INTO chunks (document, page, line, last_line, heading, text) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                rows,
            )
            if embedded:
                made = self.database.rows(
                    "SELECT id, heading, text FROM chunks WHERE document = ?", number
                )
                vectors = [(id, embedded.get((heading, text))) for id, heading, text in made]
                self.database.write_many(
                    "INSERT INTO vectors VALUES (?, ?)", [one for one in vectors if one[1]]
                )
        return len(rows)

    def remove(self, path: str) -> None:
        """Take a document away, with all that was made of it."""
        with self.database.step():
            # by hand: a cascade fires no trigger of ours unless it is asked to, and the words
            # must go with the text
            self.database.write(
                "DELETE FROM chunks WHERE document = (SELECT id FROM documents WHERE path = ?)",
                path,
            )
            self.database.write("DELETE FROM documents WHERE path = ?", path)

    def embedded_by(self) -> str:
        """Which model made the vectors; empty: there are none yet."""
        found = self.database.rows("SELECT value FROM settings WHERE name = 'embedding'")
        return str(found[0][0]) if found else ""

    def embed_with(self, identity: str) -> None:
        """From now on the vectors are this model's; those of another one go."""
        with self.database.step():
            if self.embedded_by() != identity:
                self.database.write("DELETE FROM vectors")
                self.database.write(
                    "INSERT OR REPLACE INTO settings VALUES ('embedding', ?)", identity
                )

    def without_vector(self, after: int, most: int) -> list[tuple[int, str, str]]:
        """Chunks beyond the id `after` that have none yet: id, heading, text."""
        return self.database.rows(
            "SELECT id, heading, text FROM chunks WHERE id > ? AND NOT EXISTS "
            "(SELECT 1 FROM vectors WHERE chunk = chunks.id) ORDER BY id LIMIT ?",
            after,
            most,
        )

    def put_vectors(self, ids: Sequence[int], vectors: npt.NDArray[np.float32]) -> None:
        """Vectors of chunks, [N, D], made by the model of `embed_with`."""
        rows = [
            (id, vector.astype(STORED).tobytes()) for id, vector in zip(ids, vectors, strict=True)
        ]
        self.database.write_many("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)

    def vectors(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """All of them: chunks' ids [N], vectors [N, D]."""
        rows = self.database.rows("SELECT chunk, vector FROM vectors ORDER BY chunk")
        ids = np.fromiter((row[0] for row in rows), np.int64, len(rows))
        whole = np.frombuffer(b"".join(row[1] for row in rows), STORED)
        return ids, whole.reshape(len(rows), -1 if len(rows) else 0).astype(np.float32)

    def count(self) -> tuple[int, int]:
        """Chunks, and those of them that have a vector."""
        ((chunks, vectors),) = self.database.rows(
            "SELECT (SELECT count(*) FROM chunks), (SELECT count(*) FROM vectors)"
        )
        return chunks, vectors

    def by_words(self, query: str, most: int) -> list[int]:
        """Chunks that match an FTS5 query, by BM25, the best first."""
        rows = self.database.rows(
            "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rank LIMIT ?", query, most
        )
        return [row[0] for row in rows]

    def matches(self, query: str) -> int:
        """How many chunks match an FTS5 query; far cheaper than ranking them."""
        found: int = self.database.rows("SELECT count(*) FROM words WHERE words MATCH ?", query)[0][
            0
        ]
        return found

    def passages(self, ids: Sequence[int]) -> list[RetrievedPassage]:
        """Passages in this order; those that are gone are left out."""
        marks = ", ".join("?" * len(ids))
        rows = self.database.rows(f"{PASSAGE} WHERE chunks.id IN ({marks})", *ids)
        found = {row[0]: RetrievedPassage(*row) for row in rows}
        return [found[id] for id in ids if id in found]

    def passage(self, id: int) -> tuple[RetrievedPassage, list[RetrievedPassage]]:
        """One passage, with those around it in its document.

        Raises:
            UnknownEntryError: its document was changed or removed since.
        """
        here = self.passages([id])
        if not here:
            raise UnknownEntryError(
                f"passage {id} is gone: its document was changed or removed since; ask again"
            )
        around = self.database.rows(
            f"{PASSAGE} WHERE document = (SELECT document FROM chunks WHERE chunks.id = ?) "
            "AND chunks.id BETWEEN ? AND ? ORDER BY chunks.id",
            id,
            id - 1,
            id + 1,
        )
        return here[0], [RetrievedPassage(*row) for row in around]

    def scrub(self) -> None:
        """See that nothing of what was deleted is left in the file; it is written anew.

        Raises:
            RetrievalError: as `PrivateDatabase.scrub`.
        """
        # Terms stay in the index's inner pages as separators until it is written anew.
        self.database.write("INSERT INTO words (words) VALUES ('optimize')")
        self.database.compact()
        self.database.scrub_log()

    def close(self) -> None:
        """Let the file go."""
        self.database.close()
