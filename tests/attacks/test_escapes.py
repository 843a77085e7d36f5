"""What a plugin tries to get out, in one run: held, and shown to work without one layer."""

import os

import pytest

from quietchoir.plugins.sandbox.probe import Launcher, probe
from quietchoir.simulations.attacks import escapes


async def test_every_attempt_is_held_by_each_launcher_and_its_control_arm_succeeds() -> None:
    if not (found := probe("bubblewrap")).available and not os.environ.get("CI"):
        pytest.skip(f"no sandbox: {found.reason}; {found.advice}")
    here: list[Launcher] = ["bubblewrap"]
    if probe("landlock").available:
        here.append("landlock")
    for launcher, rows in (await escapes.tried(here)).items():
        report = escapes.report(rows)
        assert report["open"] == 0, report["not_held"]
        assert report["controls_failed"] == 0, report["not_held"]
        assert report["tried"] >= 60, report["not_held"]
        known = list(escapes.SEEN) if launcher == "landlock" else []
        assert report["gaps"] == known, launcher
        refused = {row["name"] for row in rows if row["product"] == escapes.NOT_GRANTED}
        granting = {*escapes.ONLINE, *escapes.PLANTING} if launcher == "landlock" else set()
        assert refused == granting, launcher


def test_an_attempt_that_shows_nothing_is_not_called_held() -> None:
    row = escapes.Escape("a", "", "loose")
    perhaps = escapes.Escape("a", "", "loose", everywhere=False)
    gap = escapes.Escape("a", "", "loose", gap=True)
    assert escapes.verdict(row, "open", "EPERM") == "held"
    assert escapes.verdict(row, "open", "open") == "open"
    assert escapes.verdict(row, "EPERM", "EPERM") == "control failed"
    assert escapes.verdict(perhaps, "ENOSYS", "EPERM") == "not here"
    assert escapes.verdict(perhaps, "ENOSYS", "open") == "open"
    assert escapes.verdict(gap, "open", "open", "landlock") == "gap"
    assert escapes.verdict(gap, "open", "open") == "open"
