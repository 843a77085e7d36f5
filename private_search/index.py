"""A folder of text as passages, their embeddings, and the table that they are read from.

Knows files, paragraphs, sizes, and where an index lies. Knows nothing of encryption or of who asks.
Always: the same files give the same passages in the same order; nothing outside the folder is read.
A text is embedded once: every vector is on the disk as soon as it is there, so a build that was
stopped goes on, and one after a change embeds what is new. An index is whole or not there: its
head is written last, when its files are on the disk, names files that no other index has, and holds
their digests, which are checked whenever it is opened.
"""

import fcntl
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ..core import log
from ..core.errors import ConfigError, DataError
from ..core.paths import private_folder, write_atomically
from ..core.screen import visible
from ..crypto.pir import clusters, lwe
from ..crypto.pir.clusters import ClusterLayout, ClusterMap, ClusterTable
from ..crypto.pir.search import MAX_PASSAGES, PassageTable
from ..crypto.pir.table import PASSAGE_BYTES, TableLayout, chunk_bytes, pack

Vectors = npt.NDArray[np.float32]
Item = TypeVar("Item")

SUFFIXES = (".txt", ".md")
FILE_BYTES = 16 << 20
PASSAGE_WORDS = 160  # MiniLM reads 256 word pieces; English has about 1.4 to a word
NAME_BYTES = 200  # of a passage's 2042 bytes, for the name of its file
TEXT_BYTES = PASSAGE_BYTES - NAME_BYTES - 1
PROBE = (
    "A quiet choir sings in the "
    "dark."
)  # embedded by both sides, to see that they use the same model
AT_ONCE = 64  # texts embedded before their vectors go to the disk
DIGEST_BYTES = 16  # that name a text in the file of vectors
HEAD, LOCK = "index.json", "in-use"
PARTS = ("embeddings", "table", "hint")  # arrays of an index, each in a file
NEAR_PARTS = ("order", "near-map", "near-table", "near-hint")  # and of one with clusters
FORMAT = 6  # 5: some passages had two places in its clusters
CLUSTERED_FROM = 50_000  # passages; fewer are scored whole in the same time
LOG = log.get("federation.library")


class Embeds(Protocol):
    """Text to vectors of length 1, [texts, dimension]."""

    def embed(self, texts: list[str]) -> npt.NDArray[np.float32]: ...


@dataclass(frozen=True, slots=True)
class Passage:
    """One piece of one file."""

    source: str  # path inside the folder
    text: str
    folder: str = ""  # the first step of its path, for a classifier; not in the table

    def encode(self) -> bytes:
        """Name, newline, text; at most `PASSAGE_BYTES` when it came from `read_folder`."""
        return f"{self.source}\n{self.text}".encode()

    @staticmethod
    def decode(raw: bytes) -> "Passage":
        """Undo `encode`. Bytes that are no text are shown as the replacement character; what a
        screen obeys, such as an override of the direction of writing, is left out.
        """
        source, _, text = visible(raw.decode("utf-8", "replace")).partition("\n")
        return Passage(source, text)


@dataclass(frozen=True, slots=True)
class Index:
    """Everything a host needs. Arrays are in memory, or paths of .npy files that are mapped."""

    passages: int
    embeddings: Vectors | Path  # [passages, dimension]
    table: PassageTable
    text_bytes: int  # of all passages, packed: what a plain download would cost
    edition: str  # hex; of these very passages, drawn by chance
    probe: Vectors  # [dimension]
    clusters: ClusterTable | None = None  # of a large library
    order: npt.NDArray[np.int64] | None = None  # passages as they stand here, by their numbers

    def ordered(self, passages: Sequence[Item]) -> list[Item]:
        """What belongs to the passages, as they were given, in the order of this index."""
        return list(passages) if self.order is None else [passages[at] for at in self.order]

    def rows(self) -> Vectors:
        """The embeddings, in memory."""
        return np.load(self.embeddings) if isinstance(self.embeddings, Path) else self.embeddings

    @staticmethod
    def of(passages: Sequence[Passage], embeddings: Vectors, probe: Vectors) -> "Index":
        """In memory, of a few passages.

        Raises:
            DataError: a passage that is too long.
        """
        texts = [passage.encode() for passage in passages]
        packed = sum(len(pack(text)) for text in texts)
        table = PassageTable.of(texts)
        return Index(len(texts), embeddings, table, packed, os.urandom(16).hex(), probe)


class VectorFile:
    """Vectors by the text they are of, in one file that only grows; a torn or damaged record is
    as if it were not there.
    """

    def __init__(self, path: Path, dimension: int) -> None:
        self._path, self._dimension = path, dimension
        self.found: dict[bytes, Vectors] = {}
        size, kept = DIGEST_BYTES + 4 * dimension + 4, 0
        raw = path.read_bytes() if path.exists() else b""
        for start in range(0, len(raw) - size + 1, size):
            body, check = raw[start : start + size - 4], raw[start + size - 4 : start + size]
            if zlib.crc32(body).to_bytes(4, "big") != check:
                break
            vector = np.frombuffer(body[DIGEST_BYTES:], "<f4").astype(np.float32)
            self.found[body[:DIGEST_BYTES]], kept = vector, start + size
        if kept < len(raw):
            os.truncate(path, kept)

    def add(self, names: Sequence[bytes], vectors: Vectors) -> None:
        """Append these, on the disk when it returns."""
        new = dict(zip(names, vectors, strict=True))
        self.found |= new
        with self._path.open("ab") as file:
            file.write(_records(new))
            file.flush()
            os.fsync(file.fileno())

    def keep(self, names: Sequence[bytes]) -> None:
        """Forget the vectors of all other texts."""
        wanted = set(names)
        if len(wanted) < len(self.found):
            self.found = {name: self.found[name] for name in wanted}
            write_atomically(self._path, _records(self.found), mode=0o600)


def _records(vectors: Mapping[bytes, Vectors]) -> bytes:
    bodies = (name + vector.astype("<f4").tobytes() for name, vector in vectors.items())
    return b"".join(body + zlib.crc32(body).to_bytes(4, "big") for body in bodies)


@contextmanager
def held(room: Path) -> Iterator[None]:
    """Keep the folder of an index, and the budget beside it, for this process.

    Raises:
        ConfigError: another process has it: two hosts of one folder would count its budget twice.
    """
    with (private_folder(room) / LOCK).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                "this folder is served by another process already; end that one, or ask there"
            ) from None
        yield


def build(
    passages: Sequence[Passage],
    embedder: Embeds,
    room: Path,
    tell: Callable[[int, int], None] = lambda done, total: None,
    clustered: bool | None = None,
) -> Index:
    """The index of `passages` in the folder `room`: as it lies there, or made anew of what lies
    there and of what is new.

    Args:
        clustered: with clusters; None: from `CLUSTERED_FROM` passages on.
        tell: hears how many texts of how many are embedded.

    Raises:
        DataError: a passage that is too long.
        ConfigError: the folder cannot be made.
    """
    private_folder(room)
    probe = embedder.embed([PROBE])[0]
    if clustered is None:
        clustered = len(passages) >= CLUSTERED_FROM
    texts = [passage.encode() for passage in passages]
    content = sha256(probe.tobytes() + b"".join(sha256(text).digest() for text in texts))
    content.update(bytes([clustered]))
    if (kept := _kept(room, content.hexdigest(), probe)) is not None:
        return kept
    embeddings = _embedded([passage.text for passage in passages], embedder, probe, room, tell)
    arrays: dict[str, npt.NDArray[Any]] = {}
    if clustered:
        held = clusters.arrange(embeddings)
        order = np.argsort(held, kind="stable")
        embeddings, texts = embeddings[order], [texts[at] for at in order]
        near = clusters.table_of(embeddings, held[order])
        assert not isinstance(near.hint, Path)
        known = np.frombuffer(near.map.encode(), np.uint8)
        arrays = dict(zip(NEAR_PARTS, (order, known, near.table, near.hint), strict=True))
    chunks = [pack(text) for text in texts]
    size = chunk_bytes(chunks)
    table = TableLayout(len(chunks), size).build(chunks)
    edition = os.urandom(16).hex()
    arrays |= dict(zip(PARTS, (embeddings, table, lwe.hint(table)), strict=True))
    digests = {}
    for name, rows in arrays.items():
        with (room / f"{edition}-{name}.npy").open("wb+") as file:
            np.save(file, rows)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            digests[name] = file_digest(file, "sha256").hexdigest()
    head = {
        "format": FORMAT,
        "content": content.hexdigest(),
        "edition": edition,
        "passages": len(chunks),
        "chunk_bytes": size,
        "text_bytes": sum(map(len, chunks)),
        "digests": digests,
    }
    write_atomically(room / HEAD, json.dumps(head).encode(), mode=0o600)
    for old in room.glob("*.npy"):
        if not old.name.startswith(edition):
            old.unlink()
    return _opened(room, head, probe)


def _kept(room: Path, content: str, probe: Vectors) -> Index | None:
    """The index that lies there, if it is whole and of this content."""
    try:
        head = json.loads((room / HEAD).read_bytes())
        if head["format"] != FORMAT or head["content"] != content:
            return None
        if set(head["digests"]) not in (set(PARTS), {*PARTS, *NEAR_PARTS}):
            raise ValueError("its parts are others")
        for name, digest in head["digests"].items():
            with (room / f"{head['edition']}-{name}.npy").open("rb") as file:
                if file_digest(file, "sha256").hexdigest() != digest:
                    raise ValueError(f"{name} are not what was written")
        return _opened(room, head, probe)
    except FileNotFoundError as error:
        if error.filename == str(room / HEAD):
            return None  # the first one
        found: Exception = error
    except (OSError, ValueError, LookupError, TypeError) as error:
        found = error
    LOG.warning("the index in %s is damaged and made anew (%s)", room, found)
    return None


def _opened(room: Path, head: dict[str, object], probe: Vectors) -> Index:
    edition, passages, size = str(head["edition"]), int(str(head["passages"])), head["chunk_bytes"]
    embeddings, table, hint = (room / f"{edition}-{name}.npy" for name in PARTS)
    layout = TableLayout(passages, int(str(size)))
    shapes = {
        embeddings: (passages, len(probe)),
        table: layout.shape,
        hint: (layout.rows, lwe.DIMENSION),
    }
    for path, shape in shapes.items():
        if np.load(path, mmap_mode="r").shape != shape:
            raise ValueError(f"{path}: of another index")
    found = Index(
        passages,
        embeddings,
        PassageTable(table, hint, layout),
        int(str(head["text_bytes"])),
        edition,
        probe,
    )
    order, known, near_table, near_hint = (room / f"{edition}-{name}.npy" for name in NEAR_PARTS)
    if not order.exists():  # its digests were compared
        return found
    near = ClusterLayout(passages, len(probe))
    clustered = ClusterTable(
        ClusterMap.decode(np.load(known).tobytes(), near),
        np.load(near_table, mmap_mode="r"),
        near_hint,
    )
    return replace(found, clusters=clustered, order=np.load(order))


def _embedded(
    texts: Sequence[str],
    embedder: Embeds,
    probe: Vectors,
    room: Path,
    tell: Callable[[int, int], None],
) -> Vectors:
    """[texts, dimension], each text embedded once in its life with this model."""
    model = sha256(probe.tobytes()).hexdigest()[:16]
    store = VectorFile(room / f"{model}.vectors", len(probe))
    names = [sha256(text.encode()).digest()[:DIGEST_BYTES] for text in texts]
    missing = {
        name: text for name, text in zip(names, texts, strict=True) if name not in store.found
    }
    new = list(missing)
    for start in range(0, len(new), AT_ONCE):
        tell(len(texts) - len(new) + start, len(texts))
        batch = new[start : start + AT_ONCE]
        store.add(batch, embedder.embed([missing[name] for name in batch]))
    store.keep(names)
    return np.stack([store.found[name] for name in names])


def read_folder(folder: Path) -> list[Passage]:
    """Passages of all text and Markdown files under `folder`, in the order of their paths.

    Hidden files and links are left out: a link could show a file that its owner did not mean to
    share.

    Raises:
        DataError: no such folder, nothing to read in it, a file that is not UTF-8 or too large, or
        too many passages.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder; name the folder whose texts you want to share")
    passages = [
        Passage(short_name(path), text, printable(path.parts[0]) if path.parts[1:] else "")
        for path in (file.relative_to(folder) for file in text_files(folder))
        for text in split(read_text(folder / path))
    ]
    if not passages:
        raise DataError(
            f"{folder}: no text in it; put {' or '.join(SUFFIXES)} files there and start again"
        )
    if len(passages) > MAX_PASSAGES:
        raise DataError(
            f"{folder}: {len(passages)} passages, at most {MAX_PASSAGES} in one "
            f"library; split the folder"
        )
    return passages


def text_files(folder: Path) -> Iterator[Path]:
    """Visible regular files with a known suffix, sorted."""
    for path in sorted(folder.rglob("*")):
        steps = [
            folder.joinpath(*path.relative_to(folder).parts[: depth + 1])
            for depth in range(len(path.relative_to(folder).parts))
        ]
        hidden = any(step.name.startswith(".") or step.is_symlink() for step in steps)
        if path.suffix.lower() in SUFFIXES and not hidden and path.is_file():
            yield path


def read_text(file: Path) -> str:
    """The file's text.

    Raises:
        DataError: too large, unreadable, or not UTF-8.
    """
    try:
        if file.stat().st_size > FILE_BYTES:
            raise DataError(
                f"{file}: {file.stat().st_size} bytes, at most {FILE_BYTES}; split it "
                f"or take it out"
            )
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}: not UTF-8 at byte {error.start}; save it as UTF-8 or take it out"
        ) from error
    except OSError as error:
        raise DataError(
            f"{file}: cannot be read ({error.strerror}); mend its rights or take it out"
        ) from error


def short_name(path: Path) -> str:
    """The path with forward slashes, on one line, its end kept if it is too long."""
    name = printable(path.as_posix())
    return (
        name
        if len(name.encode()) <= NAME_BYTES
        else name.encode()[-NAME_BYTES:].decode("utf-8", "ignore")
    )


def printable(name: str) -> str:
    """A name of the file system on one line; bytes of it that are not UTF-8 as \\xNN."""
    readable = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f]", " ", readable)


def split(text: str) -> Iterator[str]:
    """Paragraphs; short neighbours joined, long ones cut between words, so that each piece fits
    a passage.
    """
    gathered = ""
    # A heading is read with what follows it, also where that has to be cut.
    attached = re.sub(r"(?m)^(#{1,6} .*)\n\s*\n", r"\1\n", text.replace("\r\n", "\n"))
    for paragraph in re.split(r"\n\s*\n", attached):
        for piece in cut(paragraph.strip()):
            joined = f"{gathered}\n\n{piece}" if gathered else piece
            # A short line, a greeting or a title, belongs to what follows it.
            if fits(joined) and (not gathered or len(gathered.split()) < PASSAGE_WORDS // 8):
                gathered = joined
            else:
                yield gathered
                gathered = piece
    if gathered:
        yield gathered


def cut(paragraph: str) -> Iterator[str]:
    """The paragraph whole if it fits, otherwise in pieces of whole words; a giant word is cut
    between characters.
    """
    gathered = ""
    for word in pieces_of_words(re.findall(r"\S+\s*", paragraph)):
        if gathered and not fits(gathered + word):
            yield gathered.strip()
            gathered = ""
        gathered += word
    if gathered:
        yield gathered.strip()


def pieces_of_words(words: Sequence[str]) -> Iterator[str]:
    """Words, none longer than a passage."""
    for word in words:
        # 4: bytes of the longest character
        step = len(word) if len(word.encode()) <= TEXT_BYTES else TEXT_BYTES // 4
        for start in range(0, len(word), step):
            yield word[start : start + step]


def fits(text: str) -> bool:
    """True if `text` can be one passage."""
    return len(text.split()) <= PASSAGE_WORDS and len(text.encode()) <= TEXT_BYTES
