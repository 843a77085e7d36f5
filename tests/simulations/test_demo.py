"""The demonstration clears up after itself, and after nobody else."""

import sys
from pathlib import Path

import pytest

from quietchoir.core import parts, paths
from quietchoir.core.errors import QuietchoirError
from quietchoir.core.toolcall import ToolCall
from quietchoir.plugins.sandbox.probe import SandboxReport, probe
from quietchoir.simulations import demo
from quietchoir.simulations.demo import clear
from quietchoir.simulations.requests import RequestOutcome


def test_a_second_demo_removes_the_first_and_leaves_other_files(tmp_path: Path) -> None:
    clear(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "compare.json").write_text("{}")
    clear(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".demo", "compare.json"]


def test_a_folder_of_somebody_else_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").write_text("mine")
    with pytest.raises(
        QuietchoirError, match="was not written by a demo; name another folder with --out"
    ):
        clear(tmp_path)
    assert (tmp_path / "data" / "mine").read_text() == "mine"
    assert not (tmp_path / ".demo").exists()


def test_what_is_missing_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_path: Path, embedder_path: Path
) -> None:
    monkeypatch.setattr(
        demo,
        "probe",
        lambda: SandboxReport(False, "bubblewrap (bwrap) is not installed", "install it"),
    )
    monkeypatch.setattr(parts, "missing", lambda extra: ["flwr"])
    monkeypatch.setenv(paths.MODELS_VARIABLE, str(tmp_path / "nothing"))
    monkeypatch.setattr(sys, "argv", ["demo", "--out", str(tmp_path / "out")])
    with pytest.raises(QuietchoirError) as told:
        demo.main()
    words = str(told.value)
    assert words.startswith("nothing was started: ")
    for part in (
        "bubblewrap (bwrap) is not installed; install it",
        "quietchoir[federation]",
        *demo.MODELS,
    ):
        assert part in words
    assert not (tmp_path / "out").exists()


def test_a_complete_machine_lacks_nothing(
    tmp_path: Path, model_path: Path, embedder_path: Path
) -> None:
    if not probe().available:
        pytest.skip("this machine cannot confine")
    assert demo.needs(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("tool", "private", "words"),
    [(False, True, "sandboxed plugin (3 of 60"), (True, False, "passage")],
)
def test_whenever_it_fails_it_says_why(tool: bool, private: bool, words: str) -> None:
    found = {
        "tool_call_ok": tool,
        "private_question_ok": private,
        "requests": {"asked": 60, "right_after": 3},
    }
    [reason] = demo.shortcomings(found)
    assert words in reason
    assert demo.shortcomings({**found, "tool_call_ok": True, "private_question_ok": True}) == []


def test_a_request_is_right_only_if_name_and_arguments_are() -> None:
    meant = ToolCall("HassTurnOn", {"name": "lamp"})
    assert RequestOutcome(
        "lamp on", meant, "", ToolCall("HassTurnOn", {"name": "lamp"}), "on"
    ).right
    assert not RequestOutcome(
        "lamp on", meant, "", ToolCall("HassTurnOn", {"name": "fan"}), "on"
    ).right
    assert not RequestOutcome("lamp on", meant, "hm", None, "").right
