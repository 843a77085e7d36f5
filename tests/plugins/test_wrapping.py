"""How an existing server's command is read: what is seen of it inside, and how it runs there."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from quietchoir.core.errors import ConfigError
from quietchoir.plugins import wrapping
from quietchoir.plugins.sandbox.policy import FILES, PYTHON


def environment(folder: Path) -> Path:
    """A virtual environment with one program of a package."""
    site = folder / "lib" / "python3.11" / "site-packages"
    about = site / "server_time-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: server-time\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[console_scripts]\nserver-time = server.time:main\n")
    (folder / "pyvenv.cfg").write_text("")
    (folder / "bin").mkdir()
    for name, text in (("server-time", f"#!{folder}/bin/python\n"), ("python3.11", "")):
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    return site


def test_a_python_program_runs_from_its_environments_packages(tmp_path: Path) -> None:
    site = environment(tmp_path / "venv")
    start = (
        "import sys; from server.time import main; sys.argv[0] = 'server-time'; sys.exit(main())"
    )
    expected = wrapping.Wrapped((PYTHON, "-c", start, "--zone", "x"), site, "3.11")
    program = str(tmp_path / "venv" / "bin" / "server-time")
    assert wrapping.resolve([program, "--zone", "x"], None) == expected
    for words in (["uvx", "server-time"], ["uvx", "server-time@latest"]):
        assert wrapping.resolve([*words, "--zone", "x"], tmp_path / "venv") == expected
    module = [str(tmp_path / "venv" / "bin" / "python3.11"), "-m", "server.time"]
    assert wrapping.resolve(module, None) == wrapping.Wrapped(
        (PYTHON, "-m", "server.time"), site, "3.11"
    )


def test_a_javascript_program_runs_with_its_packages(tmp_path: Path) -> None:
    if shutil.which("node", path="/usr/bin:/usr/local/bin") is None:
        pytest.skip("node is not installed; Debian: apt install nodejs")
    home = tmp_path / "node_modules" / "@x" / "server"
    home.mkdir(parents=True)
    (home / "package.json").write_text('{"bin": {"server": "run.js"}}')
    (home / "run.js").write_text("#!/usr/bin/env node\n")
    (home / "run.js").chmod(0o755)
    links = tmp_path / "node_modules" / ".bin"
    links.mkdir()
    (links / "server").symlink_to("../@x/server/run.js")
    for words, folder in (
        (["npx", "-y", "@x/server@1.2", "a"], tmp_path),
        ([str(links / "server"), "a"], None),
        (["node", str(home / "run.js"), "a"], None),
    ):
        found = wrapping.resolve(words, folder)
        assert found.command[1:] == (f"{FILES}/node_modules/@x/server/run.js", "a")
        assert found.folder == tmp_path.resolve()
    for odd in ("[]", '{"bin": {}}', '{"bin": 3}', '{"bin": {"a": 3}}', '{"bin": "\\u0000"}',
                '{"bin": "../../../../etc/passwd"}', "[" * 9000):  # fmt: skip
        (home / "package.json").write_text(odd)
        with pytest.raises(ConfigError, match="no such package with a program"):
            wrapping.resolve(["npx", "@x/server"], tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["npx", "-y", "@x/server"], "plugins have no network; install it first"),
        (["uvx", "server"], "plugins have no network; install it first"),
        (["no-such-program"], "no such program"),
        (["node", "nowhere.js"], "expected node FILE"),
    ],
)
def test_what_cannot_be_run_without_the_network_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        wrapping.resolve(words, None)


def test_other_hosts_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "servers.json"
    row = {"command": "uvx", "args": ["server-time"], "env": {"A": "b"}, "disabled": False}
    for key in ("mcpServers", "servers"):
        path.write_text(json.dumps({key: {"time": row}}))
        found = wrapping.read_servers(path)["time"]
        assert (found.words, found.environment) == (("uvx", "server-time"), {"A": "b"})
    odd: list[Any] = [[], {"mcpServers": []}, {"mcpServers": {"a": {"url": "https://b"}}}]
    odd += [{"mcpServers": {"a": {"command": "b", "args": ["\0"]}}}]
    odd += [{"mcpServers": {"a": {"command": "b", "args": [1]}}}]
    for table in odd:
        path.write_text(json.dumps(table))
        with pytest.raises(ConfigError, match=r"expected|has no command"):
            wrapping.read_servers(path)


def test_folders_that_hold_secrets_are_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "ann"
    work = home / "my work"
    work.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("QUIETCHOIR_HOME", str(home / "node"))
    (home / "node" / "keys").mkdir(parents=True)
    (home / "way").symlink_to(home)
    for folder in ("/", "/etc", "/proc", "/tmp", home, tmp_path, home / "node/keys", home / "way"):
        with pytest.raises(ConfigError, match="too broad"):
            wrapping.granted([Path(folder)])
    monkeypatch.setenv("QUIETCHOIR_HOME", "/nowhere/else")  # /tmp is not refused for its sake
    for folder in ("/tmp", "/var/tmp", "/mnt"):
        with pytest.raises(ConfigError, match="too broad"):
            wrapping.granted([Path(folder)])
    for folder in ("/etc/ssl", "/proc/1", "/usr/lib", "/var/lib"):
        with pytest.raises(ConfigError, match="is the system's"):
            wrapping.granted([Path(folder)])
    with pytest.raises(ConfigError, match="is the system's"):
        wrapping.resolve(["/bin/sh", "-c", "x"], Path("/etc/ssl"))
    (tmp_path / "bob" / ".ssh").mkdir(parents=True)
    (tmp_path / "bob" / ".ssh" / "x.py").write_text("")
    with pytest.raises(ConfigError, match=r"runs from .*\.ssh is where"):
        wrapping.resolve(["python3", str(tmp_path / "bob" / ".ssh" / "x.py")], None)
    with pytest.raises(ConfigError, match=r"\.ssh is where"):  # of another user, for root
        wrapping.granted([tmp_path / "bob" / ".ssh"])
    monkeypatch.setenv("QUIETCHOIR_HOME", str(home / "node"))
    (home / ".ssh" / "more").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"\.ssh is where programs keep what is theirs"):
        wrapping.granted([home / ".ssh" / "more"])
    (home / "server.py").write_text("")  # beside all that its owner has
    with pytest.raises(ConfigError, match=r"runs from .*ann: too broad"):
        wrapping.resolve(["python3", str(home / "server.py")], None)
    with pytest.raises(ConfigError, match="no such folder"):
        wrapping.granted([home / "nowhere"])
    shown = wrapping.granted([work])
    assert shown == {"my-work": work.resolve()}
    words = wrapping.seen_words(("--db", str(work / "a.db"), "plain"), shown)
    assert words == ("--db", "/data/my-work/a.db", "plain")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["uvx", "mcp-server-time", "--x"], "mcp-server-time"),
        (["npx", "-y", "@x/server-memory@1.0"], "server-memory"),
        (["/a/venv/bin/python", "-m", "server.time"], "server.time"),
    ],
)
def test_a_server_is_called_after_its_program(words: list[str], name: str) -> None:
    assert wrapping.name_of(words) == name
