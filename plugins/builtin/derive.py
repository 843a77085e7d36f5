"""Write the household's tools into its manifest, from the package `home-assistant-intents`.

Knows the package's shape. Runs when the package is upgraded, never on a user's machine:
`python -m quietchoir.plugins.builtin.derive` rewrites `household/manifest.json`; a test notices
when it is out of date.
Always: an intent that has English sentences becomes a tool, with every argument that those
sentences can give.
"""

import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from .. import manifest

FILE = Path(__file__).parent / "household" / manifest.FILE
HEAD: dict[str, Any] = {
    "schema": manifest.SCHEMA,
    "id": "quietchoir/household",
    "version": "0.1.0",
    "kind": "mcp",
    "description": "Acts as your household: lights, covers, climate, media, lists and timers of "
    "the home in home.json.",
    "entry": "server.py",
    "license": {"spdx": "Apache-2.0"},
    "runtime": {"python": ">=3.11"},
    "permissions": {"config": ["home.json"], "storage_bytes": 1 << 20, "private_data": "args"},
    "limits": {"memory_mb": 64, "cpu_s": 60, "processes": 4, "scratch_mb": 1},
}
READS = ("Get", "Status", "Respond", "Nevermind")  # intents that change nothing
PLACES = ("name", "area", "floor", "domain", "device_class")


def tools() -> list[dict[str, Any]]:
    """All tools, by name."""
    package = resources.files("home_assistant_intents")
    described = json.loads(package.joinpath("intents.json").read_text("utf-8"))
    english = json.loads(package.joinpath("data", "en.json").read_text("utf-8"))
    return [
        tool(name, english["intents"][name], english, described.get(name, {}))
        for name in sorted(english["intents"])
    ]


def tool(
    name: str, intent: Mapping[str, Any], english: Mapping[str, Any], described: Mapping[str, Any]
) -> dict[str, Any]:
    """One intent as a tool. An argument is required if the package says so and every English
    sentence gives it.
    """
    sources: dict[str, set[str]] = {}
    always: set[str] | None = None
    for block in intent["data"]:
        implied = set(block.get("slots", {})) | {
            key for key, rule in (block.get("requires_context") or {}).items() if "slot" in rule
        }
        for sentence in block["sentences"]:
            spoken = lists_in(sentence, english["expansion_rules"])
            for slot, name_of_list in spoken:
                sources.setdefault(slot, set()).add(name_of_list)
            given = {slot for slot, _ in spoken} | implied
            always = given if always is None else always & given
        for slot, value in block.get("slots", {}).items():
            sources.setdefault(slot, set()).add("" if isinstance(value, str) else slot)
    known = described.get("slots", {})
    for slot in known:
        sources.setdefault(slot, set())
    required = [
        slot
        for slot in sorted(sources)
        if known.get(slot, {}).get("required") and slot in (always or ())
    ]
    properties = {
        slot: {
            "type": json_type(slot, found, english["lists"]),
            "description": known.get(slot, {}).get("description", ""),
        }
        for slot, found in sorted(sources.items())
    }
    schema = {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
    reads = any(part in name for part in READS)
    description = described.get("description", name)
    return {
        "name": name,
        "description": description,
        "inputSchema": schema,
        "annotations": {"readOnlyHint": reads},
    }


def lists_in(
    text: str, rules: Mapping[str, str], seen: frozenset[str] = frozenset()
) -> set[tuple[str, str]]:
    """(argument, list) of every `{list:argument}` in a sentence and the rules it uses."""
    found = set()
    for spelled in re.findall(r"\{([^}]+)\}", text):
        name_of_list, _, slot = spelled.partition(":")
        found.add((slot or name_of_list, name_of_list))
    for rule in re.findall(r"<([^>]+)>", text):
        if rule in rules and rule not in seen:
            found |= lists_in(rules[rule], rules, seen | {rule})
    return found


def json_type(slot: str, sources: set[str], lists: Mapping[str, Any]) -> str | list[str]:
    """JSON type of an argument: number for ranges, text for words, both if it comes from both."""
    kinds = set()
    for source in sources - {""}:
        listed = lists.get(source, {})
        outputs = [value["out"] for value in listed.get("values", []) if isinstance(value, dict)]
        if "range" in listed or (
            outputs and all(isinstance(value, int | float) for value in outputs)
        ):
            kinds.add("number")
        else:
            kinds.add("string")
    if not kinds:
        kinds = (
            {"string"}
            if slot in PLACES or not slot.endswith(("hours", "minutes", "seconds"))
            else {"number"}
        )
    return kinds.pop() if len(kinds) == 1 else sorted(kinds)


def main() -> None:
    """Rewrite the manifest."""
    found = tools()
    content = HEAD | {"tools_digest": manifest.digest(found), "tools": found}
    FILE.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
