"""A node as a service of its user: the files as systemd and launchd read them, and what is left."""

import plistlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from quietchoir.core import paths
from quietchoir.core.config import Config
from quietchoir.core.errors import ConfigError, QuietchoirError
from quietchoir.service import Service


@dataclass
class Commands:
    """Stands for systemctl and launchctl."""

    fails: str = ""  # a command with this word
    ran: list[str] = field(default_factory=list)

    def __call__(self, command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        self.ran.append(" ".join(command))
        code = 1 if self.fails and self.fails in command else 0
        return subprocess.CompletedProcess(command, code, "active", "Failed to connect to bus")


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path / 'a "home" of 100% $USER'))
    monkeypatch.delenv(paths.MODELS_VARIABLE, raising=False)
    return Commands()


def made(tmp_path: Path, commands: Commands, system: str = "linux", **more: Any) -> Service:
    return Service(Config(), system=system, user_home=tmp_path / "user", run=commands, **more)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_finds_no_fault_in_the_unit(tmp_path: Path, commands: Commands) -> None:
    service = made(tmp_path, commands, federation=tmp_path / "a federation.toml")
    service.install()
    found = subprocess.run(
        ["systemd-analyze", "--user", "--man=no", "verify", str(service.file)],
        capture_output=True,
        text=True,
        env={"XDG_RUNTIME_DIR": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    said = [line for line in found.stderr.splitlines() if service.file.name in line]
    assert (found.returncode, said) == (0, []), found.stderr


def test_a_units_words_are_quoted_as_systemd_wants_them(tmp_path: Path, commands: Commands) -> None:
    text = made(tmp_path, commands, config_file=tmp_path / "of $me at 5%.toml").text().decode()
    assert f'ExecStart="{sys.executable}" "-m" "quietchoir.cli" "--config" "' in text
    assert 'of $$me at 5%%.toml" "serve"' in text
    assert '/a \\"home\\" of 100%% $USER"' in text  # no variable is put in there
    assert "StandardOutput=null" in text  # the page's address has the token in it


@pytest.mark.parametrize("system", ["linux", "darwin"])
@pytest.mark.parametrize("where", [paths.HOME_VARIABLE, paths.MODELS_VARIABLE, "config_file"])
@pytest.mark.parametrize("odd", ["\n", "\r", "\x1f", "\udcff"])
def test_a_path_that_would_make_lines_of_its_own_is_refused(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch,
    system: str, where: str, odd: str,
) -> None:  # fmt: skip
    path, more = f"{tmp_path}/a{odd}ExecStartPre=/bin/false", dict[str, Any]()
    if where == "config_file":
        more = {where: Path(path)}
    else:
        monkeypatch.setenv(where, path)
    service = made(tmp_path, commands, system, **more)
    with pytest.raises(ConfigError, match=r"ExecStartPre.* another name"):
        service.install()
    assert not service.file.exists() and commands.ran == [] and not Path(path).exists()


def test_an_agent_of_launchd_runs_the_same_command(tmp_path: Path, commands: Commands) -> None:
    service = made(tmp_path, commands, "darwin")
    service.install()
    told = plistlib.loads(service.file.read_bytes())
    assert told["ProgramArguments"] == [sys.executable, "-m", "quietchoir.cli", "serve"]
    assert told["EnvironmentVariables"][paths.HOME_VARIABLE] == str(paths.home())
    assert told["ExitTimeOut"] > Config().server.drain_s
    assert commands.ran[0].startswith("launchctl bootstrap gui/")
    service.remove()
    assert not service.file.exists() and "bootout" in commands.ran[-1]


def test_what_is_installed_is_started_told_and_taken_away_and_the_home_stays(
    tmp_path: Path, commands: Commands
) -> None:
    service = made(tmp_path, commands)
    assert service.status() == (False, f"not installed ({service.file} is not there)")
    service.install()
    assert commands.ran[-1] == "systemctl --user enable --now quietchoir.service"
    assert service.status() == (True, f"active ({service.file})")
    with pytest.raises(ConfigError, match="says the same"):
        service.install()
    service.remove()
    assert not service.file.exists() and paths.home().is_dir()
    with pytest.raises(ConfigError, match="nothing is installed"):
        service.remove()


def test_what_cannot_be_started_leaves_no_file(tmp_path: Path, commands: Commands) -> None:
    commands.fails = "enable"
    service = made(tmp_path, commands)
    with pytest.raises(QuietchoirError, match="Failed to connect to bus"):
        service.install()
    assert not service.file.exists()


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_a_file_that_somebody_else_wrote_stays(
    tmp_path: Path, commands: Commands, system: str
) -> None:
    service = made(tmp_path, commands, system)
    service.file.parent.mkdir(parents=True)
    service.file.write_text("[Unit]\n")
    with pytest.raises(ConfigError, match="says something else"):
        service.install()
    with pytest.raises(ConfigError, match="it stays"):
        service.remove()
    assert service.file.read_text() == "[Unit]\n" and commands.ran == []


def test_elsewhere_there_are_no_services(tmp_path: Path, commands: Commands) -> None:
    with pytest.raises(ConfigError, match="this is win32"):
        made(tmp_path, commands, "win32")
