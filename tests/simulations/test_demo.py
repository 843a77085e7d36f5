"""The demonstration clears up after itself, and after nobody else."""

from pathlib import Path

import pytest

from quietchoir.core.errors import QuietchoirError
from quietchoir.core.toolcall import ToolCall
from quietchoir.simulations.demo import clear
from quietchoir.simulations.requests import Asked


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
    with pytest.raises(QuietchoirError, match="was not written by a demo; name another folder with --out"):
        clear(tmp_path)
    assert (tmp_path / "data" / "mine").read_text() == "mine"
    assert not (tmp_path / ".demo").exists()


def test_a_request_is_right_only_if_name_and_arguments_are() -> None:
    meant = ToolCall("HassTurnOn", {"name": "lamp"})
    assert Asked("lamp on", meant, "", ToolCall("HassTurnOn", {"name": "lamp"}), "on").right
    assert not Asked("lamp on", meant, "", ToolCall("HassTurnOn", {"name": "fan"}), "on").right
    assert not Asked("lamp on", meant, "hm", None, "").right
