"""A folder with SKILL.md is a plugin: read on demand, its scripts confined."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quietchoir.cli import main
from quietchoir.core.config import PluginsConfig
from quietchoir.core.errors import ManifestError
from quietchoir.core.toolcall import ToolCall
from quietchoir.plugins import installing, skills
from quietchoir.plugins.host import PluginHost, available
from quietchoir.plugins.sandbox import landlock
from quietchoir.plugins.sandbox.probe import Launcher, SandboxReport

SKILL = """---
name: word-count
description: Counts words.
  Use it for long texts.
license: Apache-2.0
metadata:
  version: 1.2.3
---
# Counting

Run scripts/count.py with the text; see references/why.md.
"""
COUNT = """import os, sys
try:
    seen = bool(os.listdir({decoy!r}))
except OSError:
    seen = False
print(len(sys.stdin.read().split()), *sys.argv[1:], seen)
"""
# ten times the one before, forty times: none could hold what it would be, written out
BOMB = "[" + ", ".join(["&a0 [x]", *(f"&a{n} [{f'*a{n - 1}, ' * 10}]" for n in range(1, 40))]) + "]"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A skill with a script and a reference."""
    made = tmp_path / "word-count"
    (made / "scripts").mkdir(parents=True)
    (made / "references").mkdir()
    (made / "SKILL.md").write_text(SKILL)
    (made / "scripts" / "count.py").write_text(COUNT.format(decoy=str(tmp_path)))
    (made / "references" / "why.md").write_text("Because.")
    return made


@pytest.mark.parametrize("launcher", ["bubblewrap", "landlock"])
async def test_a_skill_is_installed_read_on_demand_and_run_confined(
    sandbox: SandboxReport,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    launcher: Launcher,
) -> None:
    if launcher == "landlock" and not landlock.begins_programs(landlock.abi()):
        pytest.skip(f"Landlock has version {landlock.abi()} here")
    monkeypatch.setenv("QUIETCHOIR_HOME", str(tmp_path / "home"))
    terms = installing.open_bundle(folder, tmp_path / "unused")
    assert (terms.id, terms.head.version, terms.head.kind) == (
        "skills/word-count",
        "1.2.3",
        "skill",
    )
    installing.install(terms, {})
    host = PluginHost(PluginsConfig(enabled=()), sandbox=launcher)
    await host.start()
    try:
        shown = {tool.name: tool for tool in host.tools()}
        assert "Counts words. Use it for long texts." in shown["word-count"].description
        assert "# Counting" not in shown["word-count"].description
        assert shown["word-count"].effect == "read" and shown["word-count-run"].effect == "write"
        assert (await host.call(ToolCall("word-count"))).text == SKILL
        file = {"file": "references/why.md"}
        assert (await host.call(ToolCall("word-count", file))).text == "Because."
        for other in ("../../quietchoir/inside.py", "/etc/passwd", "nothing.md"):
            assert not (await host.call(ToolCall("word-count", {"file": other}))).ok
        asked: dict[str, Any] = {
            "script": "scripts/count.py",
            "arguments": ["a"],
            "text": "one two three",
        }
        # the folder of the test is there, and not looked into
        assert (await host.call(ToolCall("word-count-run", asked))).text == "3 a False\n"
        assert not (await host.call(ToolCall("word-count-run", {"script": "SKILL.md"}))).ok
    finally:
        await host.stop()
    installing.remove("skills/word-count", forget=True)
    assert "skills/word-count" not in available(installing.installed()).manifests


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text.replace("name: word-count", "name: Word Count"), "small letters"),
        (lambda text: text.replace("description:", "about:"), "expected a description"),
        (lambda text: text.replace("Counts", "Counts\u200b"), "hidden characters"),
        (lambda text: text.replace("---", "***"), "between two lines of ---"),
        (lambda text: text.replace("license:", f"x: {'y' * 20_000}\nlicense:"), "at most 16384"),
        (lambda text: text.replace("license: Apache-2.0", "license: ["), "not YAML"),
        (
            lambda text: text.replace("metadata:", "x: !!python/object:os.system {}\nmetadata:"),
            "a tag",
        ),
        (lambda text: text.replace("license:", f"x: {'[' * 2000}\nlicense:"), "nested deeper"),
        (lambda text: text.replace("license: Apache-2.0", f"license: {BOMB}"), "has an alias"),
        (lambda text: text.replace("metadata:", f"x: {BOMB}\nmetadata:"), "has an alias"),
        (lambda text: text.replace("version: 1.2.3", "version: [1]"), "version is a list"),
        (lambda text: text.replace("name: word-count", f"name: {{a: {'b' * 9000}}}"), "is a dict"),
        (lambda text: text.replace("Counts", '"\\ud800\\x00'), "not YAML"),
    ],
)
def test_a_skill_that_does_not_say_what_it_is_is_refused(
    folder: Path, change: Callable[[str], str], reason: str
) -> None:
    (folder / "SKILL.md").write_text(change(SKILL))
    with pytest.raises(ManifestError, match=reason):
        skills.read(folder)


def test_what_yaml_reads_as_a_day_or_a_number_is_the_text_that_it_was(folder: Path) -> None:
    changed = SKILL.replace("name: word-count", "name: 2026-99-99")
    changed = changed.replace("version: 1.2.3", "version: " + ":".join(["1"] * 7000))
    (folder / "SKILL.md").write_text(changed)
    terms = skills.read(folder)
    assert (terms.id, terms.head.version) == ("skills/2026-99-99", "0.0.0")


def test_a_skill_is_packed_and_named_in_the_configuration_like_any_plugin(
    sandbox: SandboxReport, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUIETCHOIR_HOME", str(tmp_path / "home"))
    assert "skills/word-count" in available([folder]).manifests
    packed = tmp_path / "skill.zip"
    assert main(["plugin", "pack", str(folder), "--out", str(packed)]) == 0
    (tmp_path / "open").mkdir()
    again = installing.open_bundle(packed, tmp_path / "open")
    assert again.files == skills.read(folder).files


def test_a_folder_with_a_manifest_is_what_its_manifest_says(folder: Path) -> None:
    terms = skills.read(folder)
    table: dict[str, Any] = json.loads(terms.files["manifest.json"])
    (folder / "manifest.json").write_text(json.dumps(table | {"version": "9.9.9"}))
    (folder / "server.py").write_bytes(terms.files["server.py"])
    assert skills.read(folder).head.version == "9.9.9"
    (folder / "manifest.json").unlink()
    with pytest.raises(ManifestError, match="a skill has no such file"):
        skills.read(folder)
