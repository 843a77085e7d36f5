"""A manifest is accepted whole or not at all, and the message says what to mend."""

import json
from pathlib import Path
from typing import Any

import pytest

from quietchoir.core.errors import ManifestError
from quietchoir.plugins import manifest
from quietchoir.plugins.host import BUILTIN

from .conftest import ATTACK, write_bundle


def test_a_plain_manifest_is_read_and_grants_nothing_by_default(tmp_path: Path) -> None:
    terms = manifest.read(write_bundle(tmp_path / "plugin", "pass"))
    assert terms.id == "tests/hostile"
    assert terms.head.permissions == manifest.Permissions(
        config=(), storage_bytes=0, network=(), private_data="args"
    )
    assert set(terms.files) == {"manifest.json", "server.py"}
    assert [tool.name for tool in terms.tools] == ["attack"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "Someone"}, "expected publisher/name"),
        ({"id": "../../etc"}, "expected publisher/name"),
        ({"id": "a/b\n"}, "expected publisher/name"),
        ({"id": "installed/ann"}, "are no publishers"),  # its private folder would hold all of ann
        ({"id": "store/ann"}, "are no publishers"),
        ({"version": "1"}, "three numbers"),
        ({"schema": 2}, "this version reads 1"),
        ({"kind": "exec"}, "kind = 'exec' must be one of 'mcp', 'skill'"),
        ({"entry": "../server.py"}, "expected a Python file inside the bundle"),
        ({"entry": "/usr/bin/x.py"}, "expected a Python file inside the bundle"),
        ({"entry": "", "command": ["/usr/bin/true", "\0"]}, "holds a NUL"),
        ({"entry": "other.py"}, "is not in the bundle"),
        ({"permisions": {}}, "permisions = {} is unknown; did you mean permissions?"),
        ({"permissions": {"exec": True}}, "exec = True is unknown"),
        ({"permissions": {"network": ["*.example.org:443"]}}, "too broad"),
        ({"permissions": {"storage_bytes": -1}}, "storage_bytes is -1"),
        ({"permissions": {"storage_bytes": True}}, "must be a whole number"),
        ({"permissions": {"config": ["../secret"]}}, "plain file name"),
        ({"permissions": {"private_data": "conversation"}}, "must be one of 'none', 'args'"),
        ({"limits": {"memory_mb": 10**6}}, "memory_mb is 1000000"),
        ({"limits": {"processes": 0}}, "processes is 0"),
        ({"runtime": {"python": ">=2"}}, "offers only"),
        ({"license": {"spdx": "MIT", "kind": "commercial"}}, "must be one of 'free'"),
        ({"tools": "all"}, "a list called tools"),
        ({"tools": [ATTACK, ATTACK]}, "share a name"),
        ({"tools": [ATTACK | {"extra": 1}]}, r"tools\[0\]: expected name, description"),
        ({"tools": [ATTACK | {"name": "a b"}]}, "1 to 64 letters"),
        ({"tools": [ATTACK | {"name": "remember"}]}, "is the node's own tool"),
        ({"tools": [ATTACK | {"name": "Remember"}]}, "is the node's own tool"),
        ({"tools": [ATTACK | {"description": "calm\u200b\u202e"}]}, "without hidden characters"),
        ({"tools": [ATTACK | {"inputSchema": {"type": "array"}}]}, "JSON Schema"),
        ({"tools": [ATTACK | {"description": "Something else."}]}, "tools_digest is"),
    ],
)
def test_whatever_is_odd_refuses_the_plugin(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = write_bundle(tmp_path / "plugin", "pass", **changes)
    with pytest.raises(ManifestError, match=message) as caught:
        manifest.read(folder)
    assert str(folder) in str(caught.value)


def test_a_manifest_that_is_nested_as_deep_as_a_parser_goes_is_refused(tmp_path: Path) -> None:
    for depth, ok in ((100, True), (129, False), (900, False), (100_000, False)):
        folder = write_bundle(tmp_path / str(depth), "pass", tools=[ATTACK])
        text = (folder / "manifest.json").read_text()
        deep = ATTACK["inputSchema"] | {"x": "@"}
        table = json.loads(text) | {"tools": [ATTACK | {"inputSchema": deep}]}
        nested = "[" * depth + "]" * depth
        (folder / "manifest.json").write_text(json.dumps(table).replace('"@"', nested))
        with pytest.raises(ManifestError, match="tools_digest" if ok else "nested deeper|not JSON"):
            manifest.read(folder)


def test_a_missing_or_broken_manifest_says_so(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such folder"):
        manifest.read(tmp_path / "nowhere")
    (tmp_path / "plugin").mkdir()
    with pytest.raises(ManifestError, match="no such file"):
        manifest.read(tmp_path / "plugin")
    (tmp_path / "plugin" / "manifest.json").write_text("{")
    with pytest.raises(ManifestError, match="not JSON"):
        manifest.read(tmp_path / "plugin")


def test_a_link_in_a_bundle_is_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "plugin", "pass")
    (folder / "passwords.py").symlink_to("/etc/passwd")
    with pytest.raises(ManifestError, match="plain files"):
        manifest.read(folder)


def test_a_bundle_that_is_too_big_is_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "plugin", "pass")
    with (folder / "padding.bin").open("wb") as file:
        file.truncate(manifest.MAX_BUNDLE_BYTES)
    with pytest.raises(ManifestError, match="make the bundle smaller"):
        manifest.read(folder)


def test_the_digest_sees_names_descriptions_and_schemas_in_any_order() -> None:
    other = {"name": "other", "description": "Other.", "inputSchema": {"type": "object"}}
    assert manifest.digest([ATTACK, other]) == manifest.digest([other, ATTACK])
    for change in (
        {"name": "a"},
        {"description": "b"},
        {"inputSchema": {"type": "object", "x": 1}},
    ):
        assert manifest.digest([ATTACK, other | change]) != manifest.digest([ATTACK, other])


def test_the_households_manifest_is_what_the_intents_package_says_today() -> None:
    from quietchoir.plugins.builtin import derive

    written = json.loads((BUILTIN / "household" / "manifest.json").read_text("utf-8"))
    assert written["tools"] == derive.tools(), "run: python -m quietchoir.plugins.builtin.derive"
    assert written["tools_digest"] == manifest.digest(derive.tools())


@pytest.mark.parametrize(
    ("said", "annotations", "effect"),
    [
        (None, {}, "write"),
        (None, {"readOnlyHint": True}, "read"),
        (None, {"readOnlyHint": False}, "write"),
        (None, {"readOnlyHint": True, "openWorldHint": True}, "outside"),
        (None, {"readOnlyHint": "yes"}, "write"),
        ("read", {}, "read"),
        ("outside", {"readOnlyHint": True}, "outside"),
        ("read", {"readOnlyHint": False}, "write"),
        ("read", {"openWorldHint": True}, "outside"),
    ],
)
def test_what_a_tool_does_is_the_weightier_of_what_is_said_and_else_a_change(
    said: str | None, annotations: dict[str, object], effect: str
) -> None:
    item = {"name": "t", "description": "d", "inputSchema": {"type": "object"}}
    item |= {"annotations": annotations} | ({"effect": said} if said else {})
    assert manifest.tool_entry(item, "here").effect == effect


def test_an_unknown_effect_refuses_the_manifest() -> None:
    item = {"name": "t", "description": "d", "inputSchema": {"type": "object"}, "effect": "none"}
    with pytest.raises(ManifestError, match="expected one of read, write, outside"):
        manifest.tool_entry(item, "here")


@pytest.mark.parametrize("text", ["MIT\nmay use: nothing", "MIT\u202e", "x" * 201])
def test_a_licence_begins_no_line_of_its_own(tmp_path: Path, text: str) -> None:
    write_bundle(tmp_path / "good", "", license={"spdx": "MIT"})
    assert manifest.read(tmp_path / "good").head.license.spdx == "MIT"  # the control
    write_bundle(tmp_path / "bad", "", license={"spdx": text})
    with pytest.raises(ManifestError, match="a line that a reader sees whole"):
        manifest.read(tmp_path / "bad")
