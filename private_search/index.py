"""A folder of text as passages and their embeddings.

Knows files, paragraphs and sizes. Knows nothing of encryption or of who asks.
Always: the same files give the same passages in the same order; nothing outside the folder is read.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..core.errors import DataError
from ..crypto.pir.search import MAX_PASSAGES, PASSAGE_BYTES

SUFFIXES = (".txt", ".md")
FILE_BYTES = 16 << 20
PASSAGE_WORDS = 160  # MiniLM reads 256 word pieces; English has about 1.4 to a word
NAME_BYTES = 200  # of a passage's 2042 bytes, for the name of its file
TEXT_BYTES = PASSAGE_BYTES - NAME_BYTES - 1
PROBE = (
    "A quiet choir sings in the "
    "dark."
)  # embedded by both sides, to see that they use the same model


class Embeds(Protocol):
    """Text to vectors of length 1, [texts, dimension]."""

    def embed(self, texts: list[str]) -> npt.NDArray[np.float32]: ...


@dataclass(frozen=True, slots=True)
class Passage:
    """One piece of one file."""

    source: str  # path inside the folder
    text: str

    def encode(self) -> bytes:
        """Name, newline, text; at most `PASSAGE_BYTES` when it came from `read_folder`."""
        return f"{self.source}\n{self.text}".encode()

    @staticmethod
    def decode(raw: bytes) -> "Passage":
        """Undo `encode`; bytes that are no text are shown as the replacement character."""
        source, _, text = raw.decode("utf-8", "replace").partition("\n")
        return Passage(source, text)


@dataclass(frozen=True, slots=True)
class Index:
    """Everything a host needs."""

    passages: tuple[Passage, ...]
    embeddings: npt.NDArray[np.float32]  # [passages, dimension]
    probe: npt.NDArray[np.float32]  # [dimension]


def build(folder: Path, embedder: Embeds) -> Index:
    """Read, split and embed `folder`.

    Raises:
        DataError: as `read_folder`.
    """
    passages = read_folder(folder)
    vectors = embedder.embed([passage.text for passage in passages] + [PROBE])
    return Index(tuple(passages), np.ascontiguousarray(vectors[:-1]), vectors[-1])


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
        Passage(short_name(file.relative_to(folder)), text)
        for file in text_files(folder)
        for text in split(read_text(file))
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
    name = re.sub(r"[\x00-\x1f\x7f]", " ", path.as_posix())
    return (
        name
        if len(name.encode()) <= NAME_BYTES
        else name.encode()[-NAME_BYTES:].decode("utf-8", "ignore")
    )


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
