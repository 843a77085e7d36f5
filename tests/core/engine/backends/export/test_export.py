"""`model export`: a graph in a file says what the engine says, or takes no name."""

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
