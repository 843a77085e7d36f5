"""The files plugin: lists, searches and reads what its owner granted, and writes where that was
granted too.

Runs inside a sandbox, on the kit alone. A path begins with the name of a granted folder.
Always: what lies outside of the granted folders is not read, by whatever link; nothing is written
over unless it was asked for; texts are looked for as they are, never as patterns.
Not covered: documents (pdf, docx and their like); a collection reads those.
"""

import os
import stat
import time
from collections.abc import Iterator
from errno import EROFS
from pathlib import Path

from quietchoir_sdk import (  # type: ignore[import-not-found]
    DATA,
    ToolFailure,
    granted_folders,
    granted_path,
    paged,
    serve,
    tool,
    write_whole,
)

MAX_BYTES = 4 << 20  # of one file
MAX_FILES, MAX_SEARCHED, MAX_HITS = 20_000, 64 << 20, 200  # of one search
SEARCH_S = 6.0
WINDOW = 80  # characters beside what was found


def name_of(path: Path) -> str:
    """As it is told: below the granted folders, on one line, odd bytes written out."""
    told = os.fsencode(path.relative_to(DATA)).decode("utf-8", "backslashreplace")
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in told)


def content(path: Path) -> bytes:
    """A file's bytes. ToolFailure: no plain file, or too large."""
    try:
        # a named pipe would wait for its writer; a link is what `granted_path` has followed already
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        raise ToolFailure(f"{name_of(path)}: cannot be read ({error.strerror})") from None
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise ToolFailure(f"{name_of(path)}: no file that can be read")
        if about.st_size > MAX_BYTES:
            raise ToolFailure(
                f"{name_of(path)}: {about.st_size >> 20} MB; at most {MAX_BYTES >> 20} MB are read"
            )
        return file.read(MAX_BYTES)


def text_of(data: bytes) -> str | None:
    """A text, None where the bytes are none."""
    if b"\0" in data[:8192] and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    return data.decode("utf-8-sig", "replace")


@tool(read_only=True)  # type: ignore[untyped-decorator]
def files_list(folder: str = "", page: int = 1) -> str:
    """What lies in a granted folder: names, sizes, days. Without a folder: the granted folders."""
    if not folder.strip().strip("/") and len(granted_folders()) > 1:
        return "\n".join(f"{name}/" for name in granted_folders())
    start = granted_path(folder)
    if not start.is_dir():
        raise ToolFailure(f"{name_of(start)} is a file; files_read reads it")
    lines = []
    try:
        entries = sorted(os.scandir(start), key=lambda one: (not one.is_dir(), one.name))
    except OSError as error:
        raise ToolFailure(f"{name_of(start)}: cannot be read ({error.strerror})") from None
    for entry in entries:
        try:
            about = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        told = name_of(Path(entry.path))
        if stat.S_ISDIR(about.st_mode):
            lines.append(f"{told}/")
        else:
            day = time.strftime("%Y-%m-%d", time.localtime(about.st_mtime))
            kind = ", a link" if stat.S_ISLNK(about.st_mode) else ""
            lines.append(f"{told} ({about.st_size} bytes, {day}{kind})")
    return str(paged(lines or [f"{name_of(start)} is empty."], page))


@tool(read_only=True)  # type: ignore[untyped-decorator]
def files_read(path: str, page: int = 1) -> str:
    """Read a text file, for example papers/lease.txt."""
    found = granted_path(path)
    if found.is_dir():
        raise ToolFailure(f"{name_of(found)} is a folder; files_list lists it")
    text = text_of(content(found))
    if text is None:
        raise ToolFailure(
            f"{name_of(found)}: no text. Pictures are the plugin media's; documents are read from "
            f"a collection (quietchoir collection add)"
        )
    return str(paged(text.splitlines() or ["The file is empty."], page))


def walk(start: Path) -> Iterator[Path]:
    """Plain files below `start`, links not followed, in order of names."""
    for folder, below, names in os.walk(start, followlinks=False):
        below.sort()
        yield from (Path(folder, name) for name in sorted(names))


@tool(read_only=True)  # type: ignore[untyped-decorator]
def files_search(text: str, folder: str = "", page: int = 1) -> str:
    """Find files by a text in their name or in their lines; upper and lower case are alike."""
    wanted = text.strip().casefold()
    if not wanted:
        raise ToolFailure("say what to look for")
    inside = folder.strip().strip("/")
    starts = [granted_path(inside)] if inside else list(granted_folders().values())
    ends = time.monotonic() + SEARCH_S
    lines: list[str] = []
    looked = size = 0
    cut = ""
    for path in (path for start in starts for path in walk(start)):
        looked += 1
        if looked > MAX_FILES or size > MAX_SEARCHED or time.monotonic() > ends:
            cut = f"(stopped after {looked - 1} files; name a folder to look in)"
            break
        if len(lines) >= MAX_HITS:
            cut = f"(stopped after {MAX_HITS} places; look for something rarer)"
            break
        if wanted in path.name.casefold():
            lines.append(name_of(path))
        try:
            data = b"" if path.is_symlink() else content(path)
        except ToolFailure:
            continue
        size += len(data)
        for number, line in enumerate((text_of(data) or "").splitlines(), 1):
            at = line.casefold().find(wanted)
            if at >= 0:
                begin = max(0, at - WINDOW)
                lines.append(f"{name_of(path)}:{number}: {line[begin : at + WINDOW].strip()}")
                break  # the first place of each file; reading it shows the others
    lines = [*lines, *([cut] if cut else [])]
    return str(paged(lines or [f"No file has {text[:60]!r} in it."], page))


@tool  # type: ignore[untyped-decorator]
def files_write(path: str, text: str, overwrite: bool = False) -> str:
    """Write a text file into a folder that is granted for writing, as drafts/letter.txt."""
    folder, _, name = path.strip().strip("/").rpartition("/")
    if not name or name in (".", "..") or "\0" in name:
        raise ToolFailure(f"{path[:100]!r} names no file; expected FOLDER/NAME")
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise ToolFailure(f"more than {MAX_BYTES >> 20} MB; write less")
    target: Path = granted_path(folder or "") / name
    if os.path.lexists(target) and not (overwrite and stat.S_ISREG(target.lstat().st_mode)):
        raise ToolFailure(f"{name_of(target)} is there already; choose another name, or overwrite")
    try:
        write_whole(target, text.encode(errors="replace"))
    except OSError as error:
        reason = "its folder is granted to be read only" if error.errno == EROFS else error.strerror
        raise ToolFailure(f"{name_of(target)} was not written: {reason}") from None
    return f"Wrote {name_of(target)}: {len(text)} characters."


if __name__ == "__main__":
    serve("quietchoir/files", "0.1.0")
