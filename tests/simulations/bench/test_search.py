"""The suite `search`: what it reads. No figure is judged here."""

from pathlib import Path

import pytest

from quietchoir.simulations.bench import search


def test_documentation_becomes_passages_of_so_many_words_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "DOCS", tmp_path)
    (tmp_path / "python3").mkdir()
    words = " ".join(f"word{number}" for number in range(70))
    page = f"<head><title>No</title></head><script>var no</script><p>{words} &amp; more</p>"
    for name in ("a.html", "b.html"):
        (tmp_path / "python3" / name).write_text(page)
    (tmp_path / "aaa.html").write_text("<p>Another page, of the system itself, with few words.</p>")
    (tmp_path / "link.html").symlink_to(tmp_path / "aaa.html")
    found = list(search.documentation(24))
    assert [passage.source for passage in found] == 3 * ["python3/a.html"] + ["aaa.html"]
    assert all(len(passage.text.split()) <= 24 for passage in found)
    assert " ".join(passage.text for passage in found[:3]) == f"{words} & more"
