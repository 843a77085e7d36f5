"""The suite `retrieval`, on two FAQs of a question each. No figure is judged here."""

from pathlib import Path

import pytest

from quietchoir.core.errors import ConfigError
from quietchoir.plugins.sandbox.probe import probe
from quietchoir.simulations.bench import retrieval
from quietchoir.simulations.bench.figures import look_up

PYTHON = """<section id="q"><h3><a href="#q">How do I copy a list?</a><a>¶</a></h3>
<p>Call its method of that name, or take a slice from its beginning to its end; deep copies need the
module for them.</p></section>"""
DEBIAN = """<h2 class="title">3.1. Which release is for me?</h2></div></div></div>
<p>Whoever wants quiet takes stable; whoever wants the newest takes testing and reads the
announcements.</p><div class="navfooter"></div>"""


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedder_path: Path) -> Path:
    python, debian = tmp_path / "python3.11/html", tmp_path / "debian/FAQ"
    (python / "faq").mkdir(parents=True)
    debian.mkdir(parents=True)
    (python / "faq/library.html").write_text(PYTHON)
    (python / "tutorial.html").write_text("<h1>Lists</h1><p>A list holds things in order.</p>")
    (python / "contents.html").write_text("<p>How do I copy a list?</p>")
    (debian / "choosing.en.html").write_text(DEBIAN)
    monkeypatch.setattr(retrieval, "DOCS", tmp_path)
    return tmp_path


def test_answers_stand_without_their_questions_and_lists_of_questions_are_left_out(
    docs: Path, tmp_path: Path
) -> None:
    (asked,) = retrieval.lay_out(tmp_path / "set", "python")
    assert asked.question == "How do I copy a list?"
    assert retrieval.lay_out_pages(tmp_path / "set", 10) == 1
    written = {path.name: path.read_text() for path in (tmp_path / "set").iterdir()}
    assert set(written) == {asked.answer, "tutorial.html"}
    assert not any("copy a list" in text for text in written.values())


def test_a_quick_run_has_every_figure(docs: Path) -> None:
    if not probe().available:
        pytest.skip("documents are read in a sandbox only")
    report = retrieval.measure(quick=True, tell=lambda words: None)
    assert report["exact"] and report["questions"] == {"python": 1, "debian": 1}
    for figure in retrieval.figures(report):
        assert look_up(report, figure.key) is not None


def test_without_the_documentation_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "DOCS", tmp_path)
    with pytest.raises(ConfigError, match="apt install python3-doc debian-faq"):
        list(retrieval.questions("python"))
