"""Skills: a folder with a `SKILL.md` becomes a plugin.

Knows the front matter of a skill and the manifest that stands for it. Starts nothing.
Always: a skill is installed, listed, removed and confined as any plugin is; the model sees its
description, and its text only when it asks for it; its scripts run in the sandbox or not at all.

Source: agentskills.io, specification of 2025-12 (name, description, license, metadata.version).
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import ManifestError
from . import manifest
from .hidden import legible
from .manifest import FILE, Manifest

TEXT = "SKILL.md"
SERVER = Path(__file__).with_name("sdk") / "skill_server.py"
SERVES, PUBLISHER = "server.py", "skills"
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,37}[a-z0-9])?")  # an id holds it; the format allows 64
MAX_DESCRIPTION, MAX_FRONT, MAX_DEPTH = 1024, 16 << 10, 8
FRONT = re.compile(r"\A---\r?\n(.*?)\r?\n---\r?\n", re.DOTALL)
RUNS = (".py", ".sh")


def read(folder: Path) -> Manifest:
    """The plugin in `folder`: by its manifest, or as the skill that it holds.

    Raises:
        ManifestError: neither, or one that is refused.
    """
    files = manifest.bundle(folder)
    if FILE in files or TEXT not in files:
        return manifest.parse(files, folder)
    if SERVES in files:
        raise ManifestError(f"{folder / SERVES}: a skill has no such file; rename it")
    table = terms_of(files, folder)
    return manifest.parse(
        {**files, SERVES: SERVER.read_bytes(), FILE: json.dumps(table, indent=1).encode()}, folder
    )


def terms_of(files: Mapping[str, bytes], folder: Path) -> dict[str, Any]:
    """The manifest that stands for a skill. Raises: ManifestError: what of its front matter is
    found, and what is expected.
    """
    path = folder / TEXT
    front = front_of(files[TEXT], path)
    name, description = text_at(front, "name", path), text_at(front, "description", path)
    if not NAME.fullmatch(name):
        raise ManifestError(
            f"{path}: name = {name[:60]!r}; expected 1 to 39 small letters, digits and hyphens"
        )
    if not 0 < len(description) <= MAX_DESCRIPTION:
        raise ManifestError(f"{path}: expected a description of 1 to {MAX_DESCRIPTION} characters")
    if (clean := " ".join(description.split())) != legible(clean):
        raise ManifestError(f"{path}: hidden characters in the description; remove them")
    more = front.get("metadata")
    version = text_at(more, "version", path) if isinstance(more, dict) else ""
    tools = tools_of(name, clean, files)
    return {
        "schema": manifest.SCHEMA,
        "id": f"{PUBLISHER}/{name}",
        "version": version if manifest.VERSION.fullmatch(version) else "0.0.0",
        "kind": "skill",
        "description": clean,
        "entry": SERVES,
        "license": {"spdx": (text_at(front, "license", path) or "NOASSERTION")[:80]},
        "tools_digest": manifest.digest(tools),
        "tools": tools,
    }


def text_at(table: Mapping[str, Any], key: str, path: Path) -> str:
    """A text, empty if there is none. Raises: ManifestError: a list or a table stands there."""
    if not isinstance(value := table.get(key, ""), str):
        raise ManifestError(f"{path}: {key} is a {type(value).__name__}; expected a text")
    return value


def front_of(content: bytes, path: Path) -> dict[str, Any]:
    """The YAML between the first two lines of dashes: texts, lists and tables. A scalar is its
    text, so none can be a day that is not or a number beyond all bounds.

    Raises:
        ManifestError: there is none, or it repeats parts of itself by reference (an alias, of which
        a few lines make a text of any length), names types, or is nested deeper than is read.
    """
    import yaml

    try:
        found = FRONT.match(content.decode("utf-8"))
        written = found[1] if found and len(found[1]) <= MAX_FRONT else ""
        depth = 0
        for event in yaml.parse(written, yaml.BaseLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
                raise ManifestError(
                    f"{path}: line {event.start_mark.line + 2} has an alias (*) or a tag (!); "
                    f"write it out"
                )
            if depth > MAX_DEPTH:
                raise ManifestError(f"{path}: front matter nested deeper than {MAX_DEPTH}")
        front = yaml.load(written, yaml.BaseLoader)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ManifestError(f"{path}: its front matter is not YAML: {error}") from None
    if not isinstance(front, dict):
        raise ManifestError(
            f"{path}: expected name and description between two lines of ---, in at most "
            f"{MAX_FRONT} characters"
        )
    return front


def tools_of(name: str, description: str, files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """What a skill offers: its text and files, and its scripts if it has any."""
    file = {"type": "string", "description": "another file of it; default: its instructions"}
    tools: list[dict[str, Any]] = [
        {
            "name": name,
            "description": f"{description} (A skill: call this first, to read how it is done.)",
            "inputSchema": schema({"file": file}, ()),
            "annotations": {"readOnlyHint": True},
        }
    ]
    if scripts := sorted(one for one in files if one.startswith("scripts/") and one.endswith(RUNS)):
        properties = {
            "script": {"type": "string", "enum": scripts},
            "arguments": {"type": "array", "items": {"type": "string"}},
            "text": {"type": "string", "description": "what it reads from standard input"},
        }
        tools.append(
            {
                "name": f"{name}-run",
                "description": f"Runs a script of the skill {name}, confined, and shows what it "
                f"prints.",
                "inputSchema": schema(properties, ("script",)),
                "annotations": {"readOnlyHint": False},
            }
        )
    return tools


def schema(properties: Mapping[str, Any], required: tuple[str, ...]) -> dict[str, Any]:
    """JSON Schema of a tool's arguments."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": False,
    }
