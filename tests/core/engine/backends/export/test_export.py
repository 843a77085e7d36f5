"""`model export`: a graph in a file says what the engine says, or takes no name."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from quietchoir.cli import main
from quietchoir.core import parts
from quietchoir.core.engine.backends.export import verification
from quietchoir.core.engine.backends.native import library
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes.native import architecture, random_weights

KINDS = ("openvino", "onnx")
ENGINE_LOGITS = verification.engine_logits
pytestmark = pytest.mark.skipif(library.available() is not None, reason="no compiled kernels")


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> Weights:
    """What every model's name means here."""
    found = random_weights(architecture())
    monkeypatch.setattr("quietchoir.core.models.weights.load", lambda path: found)
    monkeypatch.setattr("quietchoir.core.models.hub.catalog.find", Path)
    return found


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """A runtime that is installed."""
    kind = str(request.param)
    if lacking := parts.missing(kind):
        pytest.skip(f"{lacking[0]} is not installed")
    return kind


@pytest.mark.usefixtures("weights")
def test_an_exported_graph_says_what_the_engine_says(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "graph"
    assert main(["model", "export", "tiny", f"--{kind}", str(folder)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{folder / verification.FILES[kind][-1]}: ") and "of 96 rows" in said
    assert {path.name for path in folder.iterdir()} == {*verification.FILES[kind]}
    assert main(["model", "export", "tiny", f"--{kind}", str(folder)]) == 2
    assert "is there already and is kept" in capsys.readouterr().err


@pytest.mark.usefixtures("weights")
def test_a_graph_that_says_something_else_takes_no_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = random_weights(architecture(), seed=2)
    monkeypatch.setattr(
        verification, "engine_logits", lambda _, tokens: ENGINE_LOGITS(other, tokens)
    )
    assert main(["model", "export", "tiny", f"--{kind}", str(tmp_path / "graph")]) == 1
    assert "differ from the engine's" in capsys.readouterr().err
    assert [*(tmp_path / "graph").iterdir()] == []


KILLED = """
import os, signal, sys
from pathlib import Path
from quietchoir.core.engine.backends.export import commands, verification
from quietchoir.core.models import weights
from quietchoir.core.models.hub import catalog
kind, folder, point = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
weights.load = catalog.find = lambda found: found
def saved(_, scratch):
    return [(scratch / name).write_bytes(name.encode()) for name in verification.FILES[kind]]
verification.SAVED = {kind: saved}
verification.verify = lambda *_: verification.Verified(96, 96, 0.0)
renames, rename = [], os.rename
def counted(*paths):
    renames.append(paths)
    if len(renames) == point:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*paths)
os.rename = counted
commands.export_model(commands.Namespace(**{"model": "tiny", "onnx": None, kind: folder}))
"""


@pytest.mark.parametrize("point", [1, 2, 3])
@pytest.mark.usefixtures("weights")
def test_what_a_killed_export_left_is_gone_or_whole_behind_the_next(
    kind: str, point: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed before its graph is called checked, before the first name, and between the two."""
    folder, names = tmp_path / "graph", {*verification.FILES[kind]}
    folder.mkdir()
    (folder / ".export-mine").mkdir()  # somebody's own
    ended = subprocess.run([sys.executable, "-c", KILLED, kind, folder, str(point)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert names - {path.name for path in folder.iterdir()}
    code = main(["model", "export", "tiny", f"--{kind}", str(folder)])
    assert {path.name for path in folder.iterdir()} == {*names, ".export-mine"}
    if point == 1:
        assert code == 0
    else:  # it was checked, and has its names now
        assert code == 2 and "is there already and is kept" in capsys.readouterr().err
        assert all((folder / name).read_bytes() == name.encode() for name in names)


@pytest.mark.parametrize("kind", KINDS)
def test_a_runtime_that_is_not_installed_is_named_and_nothing_is_written(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    modules = parts.EXTRAS[kind]
    monkeypatch.setattr(parts, "missing", lambda extra: [modules[0]] if extra == kind else [])
    assert main(["model", "export", "tiny", f"--{kind}", str(tmp_path / "graph")]) == 2
    said = capsys.readouterr().err
    assert f"--{kind} needs {modules[0]}" in said and f"quietchoir[{kind}]" in said
    assert [*tmp_path.iterdir()] == []
