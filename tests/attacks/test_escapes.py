"""What a plugin tries to get out, in one run: held, and shown to work without one layer."""

import os

import pytest

from quietchoir.plugins.sandbox.probe import probe
from quietchoir.simulations.attacks import escapes


async def test_every_attempt_is_held_and_its_control_arm_succeeds() -> None:
    if not (found := probe()).available and not os.environ.get("CI"):
        pytest.skip(f"no sandbox: {found.reason}; {found.advice}")
    report = escapes.report(await escapes.tried())
    assert report["open"] == 0, report["not_held"]
    assert report["controls_failed"] == 0, report["not_held"]
    assert report["tried"] >= 60, report["not_held"]


def test_an_attempt_that_shows_nothing_is_not_called_held() -> None:
    row = escapes.Escape("a", "", "loose")
    perhaps = escapes.Escape("a", "", "loose", everywhere=False)
    assert escapes.verdict(row, "open", "EPERM") == "held"
    assert escapes.verdict(row, "open", "open") == "open"
    assert escapes.verdict(row, "EPERM", "EPERM") == "control failed"
    assert escapes.verdict(perhaps, "ENOSYS", "EPERM") == "not here"
    assert escapes.verdict(perhaps, "ENOSYS", "open") == "open"
