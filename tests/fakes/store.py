"""What lies in a side's database, looked at from outside, and damaged there."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from quietchoir.federation.store.member import FILE


def names(folder: Path) -> set[str]:
    """Names of a member's records."""
    return {name for (name,) in query(folder / FILE, "SELECT name FROM records")}


def query(path: Path, text: str, *values: Any) -> list[Any]:
    """Any sentence of SQL, on a connection of its own."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(text, values).fetchall()


def damage(folder: Path, name: str) -> None:
    """One bit of a record's body."""
    ((body,),) = query(folder / FILE, "SELECT body FROM records WHERE name = ?", name)
    changed = body[:-1] + bytes([body[-1] ^ 1]) if body else b"x"
    query(folder / FILE, "UPDATE records SET body = ? WHERE name = ?", changed, name)


def everywhere(folder: Path) -> bytes:
    """All bytes of a member's database and its log."""
    return b"".join(path.read_bytes() for path in sorted(folder.glob(f"{FILE}*")))


def contents(folder: Path) -> dict[str, Any]:
    """Every line of every table of the databases below a folder, and every other file's bytes."""
    found: dict[str, Any] = {}
    for path in (one for one in folder.rglob("*") if one.is_file()):
        if path.suffix == ".sqlite":
            tables = query(path, "SELECT name FROM sqlite_schema WHERE type = 'table'")
            found[str(path)] = {name: query(path, f"SELECT * FROM {name}") for (name,) in tables}
        elif ".sqlite-" not in path.name:
            found[str(path)] = path.read_bytes()
    return found
