"""Ways in: a bundle, a packed one, one's own, and any MCP server, wrapped; each asked for, each
copied, each in the same sandbox.
"""

import json
import os
import shutil
import sys
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quietchoir.core.errors import ConfigError, ManifestError, PluginError, ToolError
from quietchoir.plugins import installing, manifest
from quietchoir.plugins.host import available
from quietchoir.plugins.running import plugin_folder
from quietchoir.plugins.sandbox import interpreter, store
from quietchoir.plugins.sandbox.probe import SandboxReport

from .conftest import ATTACK, hostile, write_bundle
from .test_commands import run

SERVER = """
import json, os, sys
TOOLS = [{"name": "look", "title": "Look", "inputSchema": {"type": "object", "properties": {}},
          "outputSchema": {"type": "object"}, "annotations": {"readOnlyHint": True}},
         {"name": "spoil", "description": "Try to write.", "inputSchema": {"type": "object"}}]
for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked:
        continue
    if asked["method"] == "initialize":
        about = {"name": "sees", "version": "2.1.0"}
        result = {"protocolVersion": "2024-11-05", "capabilities": {}, "serverInfo": about}
    elif asked["method"] == "tools/list":
        result = {"tools": TOOLS}
    elif asked["params"]["name"] == "look":
        with open(sys.argv[1] + "/note.txt") as file:
            read = file.read()
        values = {"secret": os.environ["TOKEN"], "read": read, "argument": sys.argv[1],
                  "environment": sorted(os.environ), "args": open("/proc/self/cmdline").read()}
        result = {"content": [], "structuredContent": values}
    else:
        spoiled = []
        for path in (sys.argv[1] + "/note.txt", __file__):
            try:
                open(path, "w")
                spoiled.append(path)
            except OSError:
                pass
        result = {"content": [{"type": "text", "text": str(spoiled)}]}
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"""
JAVASCRIPT = """
const read = require('readline').createInterface({input: process.stdin});
const tool = {name: 'whoami', description: 'Say.', inputSchema: {type: 'object'}};
read.on('line', line => {
  const asked = JSON.parse(line);
  if (asked.id === undefined) return;
  const results = {
    'initialize': {protocolVersion: '2025-06-18', capabilities: {}, serverInfo: {name: 'js'}},
    'tools/list': {tools: [tool]},
    'tools/call': {content: [{type: 'text', text: 'node ' + require('./beside.js')}]},
  };
  console.log(JSON.stringify({jsonrpc: '2.0', id: asked.id, result: results[asked.method]}));
});
"""


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that the plugin's user can reach; pytest's own are root's alone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, public: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and a store of the test's own."""
    monkeypatch.setenv("QUIETCHOIR_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(store, "SHARED", public / "store")
    return tmp_path / "home"


def kept() -> list[Path]:
    """What lies in the store."""
    return sorted(store.root_for(interpreter.unprivileged_user()).iterdir())


@pytest.fixture
def seen(public: Path) -> Path:
    """A folder of the owner's."""
    folder = public / "work"
    folder.mkdir(mode=0o755)
    (folder / "note.txt").write_text("a note")
    return folder


def wrap(tmp_path: Path, seen: Path, *more: str) -> int:
    """Wrap the Python server above."""
    code = tmp_path / "code"
    code.mkdir(exist_ok=True)
    (code / "server.py").write_text(SERVER)
    words = ["--read", str(seen), "--env", "TOKEN=decoy secret", "--yes", *more]
    return run("plugin", "wrap", *words, "--", sys.executable, str(code / "server.py"), str(seen))


def test_any_server_is_wrapped_from_what_it_says_and_sees_what_its_owner_shows_it(
    sandbox: SandboxReport, tmp_path: Path, seen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wrap(tmp_path, seen) == 0
    said = capsys.readouterr().out
    assert "local/server-py 2.1.0: MCP server sees 2.1.0, wrapped." in said
    assert (
        "may use: read in the folders work; the variables TOKEN; no network; 512 MB of memory"
        in said
    )
    assert "  look (read): \n  spoil (write): Try to write." in said and "decoy" not in said
    assert run("plugin", "run", "local/server-py", "look") == 0
    values = json.loads(capsys.readouterr().out)
    assert values["secret"] == "decoy secret" and values["read"] == "a note"
    assert values["argument"] == "/data/work"
    assert set(values["environment"]) <= {
        *("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "PWD", "PYTHONDONTWRITEBYTECODE"),
        *("PYTHONPATH", "QUIETCHOIR_CONFIG", "TOKEN", "LC_CTYPE"),
    }
    assert run("plugin", "run", "local/server-py", "spoil") == 0
    assert capsys.readouterr().out == "[]\n"
    assert (seen / "note.txt").read_text() == "a note"


def test_a_secret_is_in_a_private_file_alone(
    sandbox: SandboxReport, tmp_path: Path, seen: Path, own_home: Path
) -> None:
    assert wrap(tmp_path, seen) == 0
    holding = [path for path in own_home.rglob("*") if path.is_file()]
    holding = [path for path in holding if b"decoy secret" in path.read_bytes()]
    assert holding == [own_home / "plugins" / "local" / "server-py" / "settings.json"]
    assert holding[0].stat().st_mode & 0o077 == 0
    holding[0].write_text('{"folders": {}}')
    with pytest.raises(ToolError, match=r"asks for work; fill it in"):
        run("plugin", "run", "local/server-py", "look")


def test_a_wrapped_servers_files_are_those_that_were_wrapped_or_it_does_not_run(
    sandbox: SandboxReport, tmp_path: Path, seen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wrap(tmp_path, seen) == 0
    (content,) = kept()
    (tmp_path / "code" / "server.py").write_text("raise SystemExit('changed')")
    assert run("plugin", "run", "local/server-py", "look") == 0  # a copy, so nothing changed
    (content / "server.py").write_text(SERVER + "# more\n")
    with pytest.raises(ManifestError, match="remove it and wrap again"):
        run("plugin", "run", "local/server-py", "look")
    assert run("plugin", "remove", "local/server-py", "--forget") == 0
    assert kept() == []
    assert not (installing.root() / "local" / "server-py").exists()
    assert not plugin_folder("local/server-py").exists()
    with pytest.raises(ConfigError, match="is not installed; installed are: none"):
        run("plugin", "remove", "local/server-py")


def test_a_server_that_does_not_start_leaves_nothing_and_says_why(
    sandbox: SandboxReport, tmp_path: Path
) -> None:
    broken = tmp_path / "code" / "server.py"
    broken.parent.mkdir()
    broken.write_text("raise SystemExit('the oven is on fire')")
    with pytest.raises(PluginError, match=r"ended by itself \(the oven is on fire\)"):
        run("plugin", "wrap", "--yes", "--", sys.executable, str(broken))
    assert kept() == [] and installing.installed() == []


def test_an_owner_who_says_no_lets_nothing_in(
    sandbox: SandboxReport, tmp_path: Path, seen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda prompt: "n")
    bundle = write_bundle(tmp_path / "bundle", hostile("return 'here'"))
    assert run("plugin", "install", str(bundle)) == 1
    assert installing.installed() == []
    monkeypatch.setattr("builtins.input", lambda prompt: "y")
    assert run("plugin", "install", str(bundle)) == 0
    assert [path.name for path in installing.installed()] == ["hostile"]


def test_a_javascript_server_runs_with_what_lies_beside_it(
    sandbox: SandboxReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which("node", path="/usr/bin:/usr/local/bin") is None:
        pytest.skip("node is not installed; Debian: apt install nodejs")
    code = tmp_path / "js"
    code.mkdir()
    (code / "server.js").write_text(JAVASCRIPT)
    (code / "beside.js").write_text("module.exports = process.version.split('.').length")
    assert run("plugin", "wrap", "--yes", "--", "node", str(code / "server.js")) == 0
    capsys.readouterr()
    assert run("plugin", "run", "local/server-js", "whoami") == 0
    assert capsys.readouterr().out == "node 3\n"


def test_a_plugin_of_ones_own_from_nothing_to_a_file_that_others_install(
    sandbox: SandboxReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "counter"
    assert run("plugin", "new", str(mine), "--id", "ann/counter") == 0
    server = mine / "server.py"
    server.write_text(server.read_text().replace("Greet somebody.", "Greet somebody warmly."))
    with pytest.raises(ManifestError, match="offers other tools than its manifest says"):
        run("plugin", "test", str(mine))
    capsys.readouterr()
    assert run("plugin", "dev", str(mine), "greet", '{"name": "Bo"}') == 0
    assert capsys.readouterr().out == "ann/counter: pinned greet\nHello, Bo.\n"
    assert run("plugin", "test", str(mine)) == 0
    packed = [tmp_path / "one.zip", tmp_path / "two.zip"]
    assert run("plugin", "pack", str(mine), "--out", str(packed[0])) == 0
    said = capsys.readouterr().out
    os.utime(server, (0, 0))
    packed[1].write_bytes(installing.pack(manifest.read(mine)))
    assert packed[0].read_bytes() == packed[1].read_bytes()
    assert said.endswith(f"sha256 {installing.digest_of(packed[1].read_bytes())}\n")
    assert run("plugin", "install", "--yes", str(packed[0])) == 0
    assert run("plugin", "run", "ann/counter", "greet") == 0
    assert capsys.readouterr().out.endswith("Hello, you.\n")
    assert run("plugin", "list") == 0
    assert "ann/counter 0.1.0  installed, 1 tools\n" in capsys.readouterr().out


async def test_an_installed_plugin_answers_without_a_line_of_configuration(
    sandbox: SandboxReport, hosts: Callable[..., Any], tmp_path: Path
) -> None:
    from quietchoir.core.toolcall import ToolCall

    terms = manifest.read(write_bundle(tmp_path / "bundle", hostile("return 'here'")))
    installing.install(terms, {})
    host = await hosts(enabled=())
    assert (await host.call(ToolCall("attack"))).text == "here"
    assert (await hosts(enabled=(), installed=False)).tools() == []


def test_dev_keeps_what_the_author_wrote_by_hand(sandbox: SandboxReport, tmp_path: Path) -> None:
    mine = tmp_path / "counter"
    assert run("plugin", "new", str(mine), "--id", "ann/counter") == 0
    path = mine / "manifest.json"
    table = json.loads(path.read_text())
    table["tools"][0]["effect"] = "outside"
    path.write_text(json.dumps(table | {"version": "0.2.0"}))
    assert run("plugin", "dev", str(mine)) == 0
    assert manifest.read(mine).tools[0].effect == "outside"
    assert manifest.read(mine).head.version == "0.2.0"
    before = path.read_bytes()
    (mine / "server.py").write_text("raise SystemExit('half written')")
    with pytest.raises(PluginError, match="half written"):
        run("plugin", "dev", str(mine))
    assert path.read_bytes() == before


def test_an_update_says_what_is_new_and_a_refused_one_leaves_the_old(
    sandbox: SandboxReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_bundle(tmp_path / "bundle", hostile("return 'here'"))
    assert run("plugin", "install", "--yes", str(bundle)) == 0
    wider: dict[str, Any] = {"version": "1.1.0", "permissions": {"storage_bytes": 4096}}
    write_bundle(bundle, hostile("return 'here'"), **wider)
    assert run("plugin", "install", "--yes", str(bundle)) == 0
    assert "version 1.0.0 is here; new: storage 4 KB" in capsys.readouterr().out
    write_bundle(bundle, "pass", tools_digest="00")
    with pytest.raises(ManifestError, match="tools_digest"):
        run("plugin", "install", "--yes", str(bundle))
    (folder,) = installing.installed()
    assert manifest.read(folder).head.version == "1.1.0"


@pytest.mark.parametrize("name", ["../outside.py", "/tmp/outside.py", "folder/"])
def test_an_archive_writes_nothing_outside_of_its_folder(tmp_path: Path, name: str) -> None:
    evil = tmp_path / "evil.zip"
    with zipfile.ZipFile(evil, "w") as archive:
        archive.writestr(name, "planted")
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(ManifestError, match="is no file of a bundle"):
        installing.open_bundle(evil, into)
    assert not (tmp_path / "outside.py").exists() and list(into.iterdir()) == []


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_unpacks_to_what_it_says_or_not_at_all(tmp_path: Path, method: int) -> None:
    packed = tmp_path / "bomb.zip"
    with zipfile.ZipFile(packed, "w", method) as archive:
        archive.writestr("manifest.json", bytes(64 << 20))
    content = bytearray(packed.read_bytes())
    for start, at in ((0, 22), (content.rfind(b"PK\1\2"), 24)):
        content[start + at : start + at + 4] = (10).to_bytes(4, "little")  # "ten bytes"
    packed.write_bytes(content)
    into = tmp_path / "into"
    into.mkdir()
    tracemalloc.start()
    with pytest.raises(ManifestError):
        installing.open_bundle(packed, into)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20 and list(into.iterdir()) == []


def test_a_spoiled_archive_is_refused_with_a_sentence(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", "pass")
    packed = tmp_path / "whole.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in bundle.iterdir():
            archive.write(path, path.name)
    whole = packed.read_bytes()
    (tmp_path / "whole").mkdir()
    assert installing.open_bundle(packed, tmp_path / "whole").id == "tests/hostile"
    for at in range(0, len(whole), 7):
        packed.write_bytes(whole[:at] + bytes(byte ^ 0xFF for byte in whole[at : at + 3]))
        with pytest.raises(ManifestError):
            installing.open_bundle(packed, Path(tempfile.mkdtemp(dir=tmp_path)))


def test_an_owner_who_says_no_to_another_server_keeps_the_one_that_is_here(
    sandbox: SandboxReport,
    tmp_path: Path,
    seen: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert wrap(tmp_path, seen) == 0
    home = plugin_folder("local/server-py").parent.parent
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    other, shown = tmp_path / "other" / "server.py", seen.parent / "other"
    other.parent.mkdir()
    shown.mkdir(mode=0o755)
    other.write_text(SERVER + "# another\n")
    monkeypatch.setattr("builtins.input", lambda prompt: "n")
    words = ["--id", "local/server-py", "--env", "TOKEN=another", "--read", str(shown)]
    assert run("plugin", "wrap", *words, "--", sys.executable, str(other)) == 1
    assert f"reads in other: {shown}" in capsys.readouterr().out
    other.write_text("raise SystemExit(3)")
    with pytest.raises(PluginError, match="ended by itself"):
        run("plugin", "wrap", *words, "--yes", "--", sys.executable, str(other))
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before
    assert run("plugin", "run", "local/server-py", "look") == 0
    other.write_text(SERVER + "# another\n")
    words += ["--read", str(seen)]
    assert run("plugin", "wrap", *words, "--yes", "--", sys.executable, str(other), str(seen)) == 0
    capsys.readouterr()
    assert run("plugin", "run", "local/server-py", "look") == 0  # the control: who says yes
    assert json.loads(capsys.readouterr().out)["secret"] == "another"
    assert len(kept()) == 1  # nothing runs on the first one's files any more


@pytest.mark.parametrize("removed", [False, True])
def test_a_stranger_of_the_same_id_is_not_given_what_its_owner_gave_to_another(
    sandbox: SandboxReport,
    tmp_path: Path,
    seen: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    removed: bool,
) -> None:
    assert wrap(tmp_path, seen) == 0
    if removed:
        assert run("plugin", "remove", "local/server-py") == 0
    asks = {"folders": ["work"], "environment": ["TOKEN"]}
    body = hostile("return os.environ['TOKEN'] + str(os.listdir('/data/work'))")
    posing = write_bundle(tmp_path / "posing", body, id="local/server-py", permissions=asks)
    with pytest.raises(ToolError, match=r"asks for work; fill it in"):  # nor before it is in
        run("plugin", "dev", str(posing), "attack")
    answers = iter(["y", "n"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(answers))
    capsys.readouterr()
    assert run("plugin", "install", str(posing)) == 0
    said = capsys.readouterr().out
    assert "A plugin called local/server-py kept here: settings.json" in said
    assert "settings.json of the one before: set aside" in said
    with pytest.raises(ToolError, match=r"asks for work; fill it in"):
        run("plugin", "run", "local/server-py", "attack")
    private = plugin_folder("local/server-py")
    assert "decoy secret" in (private.with_name("server-py.old-1") / "settings.json").read_text()
    assert run("plugin", "remove", "local/server-py", "--forget") == 0
    assert [path for path in private.parent.iterdir() if path.is_dir()] == []


def test_the_next_version_is_given_what_the_one_before_kept_if_its_owner_says_so(
    sandbox: SandboxReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    granted: dict[str, Any] = {"permissions": {"storage_bytes": 4096}}
    count = "kept = Storage(); kept.save((kept.value or 0) + 1); return str(kept.value)"
    body = hostile(count)
    bundle = write_bundle(tmp_path / "bundle", body, **granted)
    said = []
    for version, more in (("1.0.0", []), ("1.0.0", []), ("1.1.0", ["--same"]), ("1.2.0", [])):
        write_bundle(bundle, body, version=version, **granted)
        assert run("plugin", "install", "--yes", *more, str(bundle)) == 0
        capsys.readouterr()
        assert run("plugin", "run", "tests/hostile", "attack") == 0
        said.append(capsys.readouterr().out.strip())
    assert said == ["1", "2", "3", "1"]  # --yes alone hands nothing on to other bytes


@pytest.mark.parametrize("where", ["command", "title"])
def test_half_a_character_refuses_the_server_with_a_sentence(
    sandbox: SandboxReport, tmp_path: Path, where: str
) -> None:
    server = tmp_path / "code" / "server.py"
    server.parent.mkdir()
    server.write_text(SERVER.replace('"Look"', '"\\ud800"') if where == "title" else SERVER)
    more = ["\ud800"] if where == "command" else []
    with pytest.raises(ManifestError, match="half a character"):
        run("plugin", "wrap", "--yes", "--", sys.executable, str(server), *more)
    assert installing.installed() == [] and kept() == []


def test_an_update_says_which_tool_is_asked_for_less(
    sandbox: SandboxReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for effect in ("write", "read"):
        tool = {**ATTACK, "effect": effect}
        bundle = write_bundle(tmp_path / "bundle", "pass", [tool])
        assert run("plugin", "install", "--yes", str(bundle)) == 0
    assert "new: attack is read, was write" in capsys.readouterr().out


def test_what_is_no_plugin_is_refused_with_a_sentence(tmp_path: Path) -> None:
    stray = tmp_path / "stray"
    stray.write_text("no archive")
    for source in (stray, tmp_path / "nowhere"):
        with pytest.raises(ManifestError, match="no folder and no archive of a plugin"):
            installing.open_bundle(source, tmp_path)
    posing = manifest.read(write_bundle(tmp_path / "posing", "pass", id="quietchoir/posing"))
    with pytest.raises(ManifestError, match="publishes only what comes with it"):
        installing.install(posing, {})
    other = manifest.read(write_bundle(tmp_path / "other", "pass", id="tests/other"))
    mine = manifest.read(write_bundle(tmp_path / "mine", "pass"))
    with pytest.raises(ManifestError, match="both offer the tool attack"):
        installing.install(mine, {other.id: other})
    foreign = write_bundle(tmp_path / "foreign", "pass", entry="", command=["/usr/bin/true"])
    with pytest.raises(ManifestError, match="was wrapped for another node"):
        installing.install(manifest.read(foreign), {})
    assert installing.installed() == [] and "tests/hostile" not in available().manifests


def test_a_folder_with_a_link_out_of_it_is_not_kept(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "inside.txt").write_text("fine")
    (code / "link").symlink_to("inside.txt")
    user = interpreter.unprivileged_user()
    digest = store.keep(code, user)
    assert store.keep(code, user) == digest and store.find(digest, user).name == digest
    (store.find(digest, user) / "inside.txt").unlink()  # as a removal that was cut would leave it
    with pytest.raises(ManifestError, match="remove it and wrap again"):
        store.find(digest, user)
    assert store.keep(code, user) == digest and store.find(digest, user).name == digest
    (code / "link").unlink()
    (code / "link").symlink_to("/etc/passwd")
    with pytest.raises(ManifestError, match="lies outside"):
        store.keep(code, user)
    assert [path.name for path in kept()] == [digest]
