"""A machine that cannot confine: it says why and what to do, and nothing runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quietchoir.core.errors import SandboxUnavailableError
from quietchoir.core.toolcall import ToolCall
from quietchoir.plugins.sandbox import bubblewrap, interpreter, landlock
from quietchoir.plugins.sandbox.probe import SandboxReport, probe

from ..conftest import hostile, write_bundle


def refusing(message: str) -> str:
    """A bubblewrap of a good version that confines nothing."""
    return f'[ "$1" = --version ] && echo bubblewrap 0.9.0 || {{ echo "{message}" >&2; exit 1; }}'


def pretend(
    monkeypatch: pytest.MonkeyPatch, folder: Path, script: str | None, version: int = 0
) -> None:
    """Put `script` in bubblewrap's place, or nothing at all; a kernel with this Landlock."""
    monkeypatch.setattr(landlock, "abi", lambda: version)
    if script is not None:
        (folder / "bwrap").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "bwrap").chmod(0o755)
        folder.chmod(0o755)
        for parent in folder.parents[:3]:
            parent.chmod(parent.stat().st_mode | 0o011)
    monkeypatch.setattr(bubblewrap, "installed", lambda: None)
    # it asks `which` too, and that answers for bubblewrap only now
    system = interpreter.find(interpreter.unprivileged_user())
    monkeypatch.setattr(interpreter, "find", lambda user: system)
    found = None if script is None else str(folder / "bwrap")
    monkeypatch.setattr("shutil.which", lambda name, path="": found)


def test_this_machine_can_confine_and_says_with_what(sandbox: SandboxReport) -> None:
    assert "bwrap" in sandbox.reason and " of " in sandbox.reason
    assert sandbox.advice == ""


@pytest.mark.parametrize(
    ("script", "reason", "advice"),
    [
        (None, "not installed", "apt install bubblewrap"),
        ("echo bubblewrap 0.6.2", "is version 0.6.2", "upgrade"),
        (
            refusing("bwrap: setting up uid map: Permission denied"),
            "setting up uid map",
            "AppArmor",
        ),
        (
            refusing("bwrap: No permissions to create new namespace"),
            "No permissions",
            "unprivileged_userns_clone",
        ),
        (
            '[ "$1" = --version ] && echo bubblewrap 0.9.0 || echo "a socket opened"',
            "a socket opened",
            "see what bwrap says",
        ),
    ],
)
def test_a_machine_that_cannot_confine_says_why_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str | None, reason: str, advice: str
) -> None:
    pretend(monkeypatch, tmp_path, script)
    report = probe()
    assert not report.available
    assert reason in report.reason and "Landlock has version 0" in report.reason
    assert advice in report.advice


def test_where_bubblewrap_cannot_run_landlock_does_and_says_why_and_what_it_lacks(
    shared: SandboxReport, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blocked = refusing("bwrap: setting up uid map: Permission denied")
    pretend(monkeypatch, tmp_path, blocked, landlock.LEAST)
    report = probe()
    assert (report.available, report.launcher) == (True, "landlock")
    assert (
        report.reason.startswith("Landlock (version 4)") and "setting up uid map" in report.reason
    )
    assert "network" in report.reason and "AppArmor" in report.advice
    assert not probe("bubblewrap").available


def test_a_kernel_whose_landlock_is_too_old_confines_nothing(
    shared: SandboxReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: landlock.LEAST - 1)
    report = probe("landlock")
    assert not report.available
    assert "has version 3" in report.reason and "need 4" in report.reason


async def test_without_a_sandbox_the_host_offers_nothing_and_runs_nothing(
    monkeypatch: pytest.MonkeyPatch, hosts: Callable[..., Any], tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path, None)
    host = await hosts(
        write_bundle(tmp_path / "hostile", hostile(f"open({str(tmp_path / 'ran')!r}, 'w')"))
    )
    assert host.tools() == []
    with pytest.raises(SandboxUnavailableError, match="bubblewrap"):
        await host.call(ToolCall("attack"))
    assert not (tmp_path / "ran").exists()
    assert host.plugins["tests/hostile"].connection is None


async def test_a_sandbox_that_vanished_after_the_probe_starts_nothing(
    sandbox: SandboxReport,
    monkeypatch: pytest.MonkeyPatch,
    hosts: Callable[..., Any],
    tmp_path: Path,
) -> None:
    host = await hosts(write_bundle(tmp_path / "hostile", hostile("return 'ran'")))
    pretend(monkeypatch, tmp_path, None)
    with pytest.raises(SandboxUnavailableError, match="not installed"):
        await host.call(ToolCall("attack"))


def test_an_interpreter_that_an_ordinary_user_cannot_reach_is_not_used(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    program = closed / "python3"
    program.write_text("")
    program.chmod(0o755)
    assert not interpreter.reachable(program, interpreter.NOBODY)
    assert interpreter.reachable(Path("/usr/bin/env"), interpreter.NOBODY)
