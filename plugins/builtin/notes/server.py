"""The notes plugin: what its owner asks the assistant to write down, under titles.

Runs inside a sandbox, on the kit alone. What it keeps lies in its own storage on this node; the
lists and timers of a house are the household's.
Always: a title is one note, whatever its case; a refused request changes nothing.
"""

import time
from typing import Any

from quietchoir_sdk import Storage, ToolFailure, paged, serve, tool  # type: ignore[import-not-found]

MAX_NOTES, MAX_TITLE, MAX_NOTE = 500, 120, 20_000  # notes, and characters
storage = Storage()


def notes() -> dict[str, dict[str, Any]]:
    """Title without case → its note: title, text, changed (s since 1970)."""
    return dict(storage.value or {})


def key(title: str) -> str:
    """What tells titles apart. ToolFailure: no title."""
    words = " ".join(title.split())
    if not words or len(words) > MAX_TITLE:
        raise ToolFailure(f"a title has 1 to {MAX_TITLE} characters; this one has {len(words)}")
    return words.casefold()


def found(title: str) -> dict[str, Any]:
    """The note of that title. ToolFailure: there is none."""
    held = notes()
    if note := held.get(key(title)):
        return note
    known = ", ".join(note["title"] for note in list(held.values())[:10]) or "none yet"
    raise ToolFailure(f"there is no note {title[:MAX_TITLE]!r}; there are: {known}")


def keep(title: str, text: str) -> None:
    """Write one note, in place of the one of its title."""
    held, name = notes(), key(title)
    if len(text) > MAX_NOTE:
        raise ToolFailure(f"a note of {len(text)} characters; at most {MAX_NOTE} are kept")
    if name not in held and len(held) >= MAX_NOTES:
        raise ToolFailure(f"{MAX_NOTES} notes are kept already; delete one first")
    held[name] = {"title": " ".join(title.split()), "text": text, "changed": int(time.time())}
    storage.save(held)


@tool  # type: ignore[untyped-decorator]
def notes_write(title: str, text: str) -> str:
    """Write a note, for example title Shopping, text milk and bread. A note of that title is
    replaced.
    """
    replaced = key(title) in notes()
    keep(title, text)
    return f"{'Replaced' if replaced else 'Wrote'} the note {' '.join(title.split())}."


@tool  # type: ignore[untyped-decorator]
def notes_append(title: str, text: str) -> str:
    """Add a line to the end of a note, or begin one."""
    note = notes().get(key(title), {"title": title, "text": ""})
    keep(note["title"], f"{note['text']}\n{text}" if note["text"] else text)
    return f"Added to the note {' '.join(note['title'].split())}."


@tool(read_only=True)  # type: ignore[untyped-decorator]
def notes_read(title: str, page: int = 1) -> str:
    """Read the note of a title."""
    note = found(title)
    return str(paged([f"{note['title']}:", *note["text"].split("\n")], page))


@tool(read_only=True)  # type: ignore[untyped-decorator]
def notes_list(page: int = 1) -> str:
    """The titles of all notes, the last changed first."""
    held = sorted(notes().values(), key=lambda note: -note["changed"])
    day = "%Y-%m-%d"
    lines = [
        f"{note['title']} ({time.strftime(day, time.localtime(note['changed']))})" for note in held
    ]
    return str(paged(lines or ["There are no notes yet."], page))


@tool(read_only=True)  # type: ignore[untyped-decorator]
def notes_search(text: str, page: int = 1) -> str:
    """Find notes that have a text in their title or in a line."""
    wanted = text.casefold().strip()
    if not wanted:
        raise ToolFailure("say what to look for")
    lines = []
    for note in notes().values():
        hits = [line for line in note["text"].split("\n") if wanted in line.casefold()]
        if hits or wanted in note["title"].casefold():
            lines += [f"{note['title']}: {line.strip()[:200]}" for line in hits or [""]]
    return str(paged(lines or [f"No note has {text[:60]!r} in it."], page))


@tool  # type: ignore[untyped-decorator]
def notes_delete(title: str) -> str:
    """Delete the note of a title."""
    note, held = found(title), notes()
    del held[key(title)]
    storage.save(held)
    return f"Deleted the note {note['title']}."


if __name__ == "__main__":
    serve("quietchoir/notes", "0.1.0")
