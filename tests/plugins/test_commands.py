"""The verbs `plugin list` and `plugin run`, as the command line calls them."""

import argparse
from pathlib import Path

import pytest

from quietchoir import doctor
from quietchoir.core.config import Config, PluginsConfig
from quietchoir.core.errors import ConfigError, QuietchoirError, ToolError
from quietchoir.plugins import commands
from quietchoir.plugins.sandbox.probe import Launcher, SandboxReport

from .conftest import hostile, write_bundle


def run(*words: str) -> int:
    """Parse and run, as `cli.main` does."""
    top = argparse.ArgumentParser()
    top.add_argument("--config", type=Path)
    commands.register(top.add_subparsers())
    chosen = top.parse_args(words)
    return int(chosen.run(chosen))


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for each test."""
    monkeypatch.setenv("QUIETCHOIR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_list_shows_what_a_plugin_may_do_and_whether_it_can_be_confined(
    sandbox: SandboxReport, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("plugin", "list") == 0
    shown = capsys.readouterr().out
    assert "quietchoir/household 0.1.0  enabled, 42 tools\n" in shown
    assert (
        "may use: files home.json; storage 1024 KB; no network; 64 MB of memory; 4 processes of "
        "60 s of a processor each; 2 MB of scratch space in memory"
    ) in shown
    assert "sandbox: bubblewrap" in shown


@pytest.mark.parametrize("launcher", ["landlock", "bubblewrap"])
def test_what_cannot_be_held_here_is_listed_as_off_with_the_reason(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    launcher: Launcher,
) -> None:
    """By the list and by doctor, as the node does it."""
    report = SandboxReport(True, f"{launcher} confines them", launcher=launcher)
    monkeypatch.setattr("quietchoir.plugins.sandbox.probe.probe", lambda *wanted: report)
    monkeypatch.setattr("quietchoir.plugins.host.probe", lambda *wanted: report)
    folder = write_bundle(tmp_path / "hostile", "pass", permissions={"network": ["example.org"]})
    settings = PluginsConfig(enabled=("tests/hostile", "quietchoir/household"), folders=(folder,))
    monkeypatch.setattr("quietchoir.core.config.load", lambda path: Config(plugins=settings))
    assert run("plugin", "list") == 0
    shown = capsys.readouterr().out
    found = doctor.plugins(Config(plugins=settings))
    why = "off: it asks for the network, which is granted where bubblewrap confines it"
    assert (f"enabled; {why}" in shown) is (launcher == "landlock")
    assert ("off: tests/hostile: it asks for the network" in found.text) is not found.well
    assert found.well is (launcher == "bubblewrap") and not found.essential
    assert "quietchoir/household 0.1.0  enabled, 42 tools\n" in shown


def test_run_carries_out_one_call(
    sandbox: SandboxReport, home_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handed = f"home.json={home_file}"
    assert (
        run(
            "plugin",
            "run",
            "quietchoir/household",
            "HassTurnOn",
            '{"name": "stereo"}',
            "--file",
            handed,
        )
        == 0
    )
    assert capsys.readouterr().out == "Turned on the stereo (bedroom).\n"
    assert (
        run(
            "plugin",
            "run",
            "quietchoir/household",
            "HassTurnOn",
            '{"name": "toaster"}',
            "--file",
            handed,
        )
        == 1
    )


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        (("quietchoir/household", "HassTurnOn", "{"), ConfigError, "is not JSON"),
        (("quietchoir/household", "HassTurnOn", "[1]"), ConfigError, "must be an object"),
        (
            ("quietchoir/household", "HassTurnOn", "{}", "--file", "home"),
            ConfigError,
            "must be NAME=PATH",
        ),
        (
            ("quietchoir/househald", "HassTurnOn"),
            ConfigError,
            "^no plugin is called 'quietchoir/househald'; installed are: quietchoir/calculator, ",
        ),
        (("quietchoir/household", "HassTurnOm"), ToolError, "42 tools are HassTurnOn"),
        (("quietchoir/household", "HassTurnOn"), ToolError, r"home\.json: no such file"),
    ],
)
def test_a_mistake_is_one_sentence(
    sandbox: SandboxReport, words: tuple[str, ...], kind: type[QuietchoirError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        run("plugin", "run", *words)


def test_a_plugin_of_ones_own_is_a_folder_that_the_configuration_names(
    sandbox: SandboxReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_bundle(tmp_path / "mine", hostile("return 'here'"))
    settings = tmp_path / "config.toml"
    broken = write_bundle(tmp_path / "broken", "pass", tools_digest="00")
    settings.write_text(
        f'[plugins]\nfolders = ["{bundle}", "{broken}"]\nenabled = ["tests/hostile"]\n'
    )
    assert run("--config", str(settings), "plugin", "list") == 0
    shown = capsys.readouterr().out
    assert "tests/hostile 1.0.0  enabled, 1 tools\n" in shown
    assert "may use: no network; 64 MB of memory; 6 processes" in shown
    assert f"{broken}  refused: {broken}/manifest.json: tools_digest is '00'" in shown
    assert run("--config", str(settings), "plugin", "run", "tests/hostile", "attack") == 0
    assert capsys.readouterr().out == "here\n"
    with pytest.raises(ConfigError, match="'tests/hostile'"):
        run("plugin", "run", "tests/hostile", "attack")  # nobody named its folder
