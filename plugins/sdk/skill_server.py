"""Serves one skill: its text and files on demand, its scripts as processes of the same sandbox.

`quietchoir plugin install FOLDER` puts this file beside a `SKILL.md`. Knows the bundle that it lies
in. Always: what it reads and runs is a file of that bundle.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from quietchoir_sdk import SERVER, ToolFailure, serve  # type: ignore[import-not-found]

HERE = Path(__file__).resolve().parent
TERMS = json.loads((HERE / "manifest.json").read_text("utf-8"))
RUNNERS = {".py": sys.executable, ".sh": "/bin/sh"}
MAX_TEXT = 64 << 10


def within(name: str) -> Path:
    """A file of the skill; ToolFailure if there is none."""
    path = (HERE / name).resolve()
    if not path.is_relative_to(HERE) or not path.is_file():
        known = sorted(str(one.relative_to(HERE)) for one in HERE.rglob("*") if one.is_file())
        raise ToolFailure(f"no file {name!r} in this skill; it has {', '.join(known)}")
    return path


def read(file: str = "SKILL.md") -> str:
    """The text of one file."""
    return within(file).read_text("utf-8", errors="replace")


def run(script: str, arguments: list[str] | None = None, text: str = "") -> str:
    """What a script prints; ToolFailure if it fails."""
    path = within(script)
    done = subprocess.run(
        [RUNNERS[path.suffix], str(path), *map(str, arguments or ())],
        input=text,
        capture_output=True,
        text=True,
        errors="replace",
        cwd=tempfile.gettempdir(),
    )
    if done.returncode != 0:
        raise ToolFailure(f"{script} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout[:MAX_TEXT]


if __name__ == "__main__":
    for listed, function in zip(TERMS["tools"], (read, run), strict=False):
        SERVER.add(
            function,
            name=listed["name"],
            description=listed["description"],
            schema=listed["inputSchema"],
            read_only=function is read,
        )
    serve(TERMS["id"], TERMS["version"])
