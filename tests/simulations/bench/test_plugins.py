"""The suite `plugins` on sizes that take seconds: its keys, and servers that are not there."""

from pathlib import Path

import pytest

from quietchoir.core import paths
from quietchoir.plugins.sandbox.probe import probe
from quietchoir.simulations.bench import plugins, suites
from quietchoir.simulations.bench.figures import look_up


def test_a_quick_run_has_every_figure_and_names_servers_that_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not probe().available:
        pytest.skip("nothing here can confine a plugin; run: quietchoir doctor")
    monkeypatch.setenv("QUIETCHOIR_HOME", str(tmp_path / "home"))
    (plugins.servers() / "python").mkdir(parents=True)  # where nothing is installed
    report, rows = suites.run("plugins", quick=True, tell=lambda line: None)
    assert all(isinstance(look_up(report, row.key), int | float) for row in rows)
    assert report["idle"]["plugins"] == 3
    assert report["mcp"]["servers_tried"] == 2 and report["mcp"]["work"] == 0
    assert "no package in there installs a program" in report["mcp"]["servers"]["time"]
    assert paths.home() == tmp_path / "home"
