"""A folder of text becomes passages."""

import numpy as np
import pytest

from quietchoir.core.errors import DataError
from quietchoir.crypto.pir.search import PASSAGE_BYTES
from quietchoir.private_search import index
from quietchoir.private_search.index import PASSAGE_WORDS, Passage
from quietchoir.tests.fakes.search import FakeEmbedder


def test_the_same_folder_gives_the_same_passages_in_the_order_of_its_paths(tmp_path):
    (tmp_path / "b.md").write_text("# Title\n\nBody of b.\n\n" + "word " * 30 + "\n\nend", "utf-8")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.TXT").write_text("Body of a.", "utf-8")
    (tmp_path / "c.pdf").write_text("not read")
    found = index.read_folder(tmp_path)
    assert found == index.read_folder(tmp_path)
    assert [passage.source for passage in found] == ["b.md", "b.md", "deep/a.TXT"]
    assert found[0].text.startswith("# Title\nBody of b.")


def test_hidden_files_and_links_are_not_shared(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    folder = tmp_path / "folder"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "x.txt").write_text("hidden")
    (folder / ".y.txt").write_text("hidden")
    (folder / "link.txt").symlink_to(outside / "secret.txt")
    (folder / "linked").symlink_to(outside)
    (folder / "open.txt").write_text("open")
    assert index.read_folder(folder) == [Passage("open.txt", "open")]


@pytest.mark.parametrize(
    "text",
    [
        "word " * 5000,
        "x" * 9000,
        "ü" * 5000,
        "a\n\n" * 500,
        "\n \n\n",
        "# h\n\n" + "w " * 400,
        "😀" * 3000,
    ],
)
def test_no_text_makes_a_passage_too_long_and_no_character_is_lost(text):
    pieces = list(index.split(text))
    assert "".join("".join(pieces).split()) == "".join(text.split())
    for piece in pieces:
        assert piece and len(piece.split()) <= PASSAGE_WORDS
        assert len(Passage("n" * index.NAME_BYTES, piece).encode()) <= PASSAGE_BYTES


def test_a_passage_survives_its_encoding_and_long_names_keep_their_end():
    passage = Passage("notes/ä.md", "first line\nsecond line")
    assert Passage.decode(passage.encode()) == passage
    from pathlib import Path

    name = index.short_name(Path("ä" * 300) / "end.md")
    assert len(name.encode()) <= index.NAME_BYTES and name.endswith("/end.md")


def test_folders_that_cannot_be_shared_are_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="not a folder"):
        index.read_folder(tmp_path / "none")
    with pytest.raises(DataError, match="no text"):
        index.read_folder(tmp_path)
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"ok \xff\xfe")
    with pytest.raises(DataError, match="not UTF-8 at byte 3"):
        index.read_folder(tmp_path)
    bad.write_text("one\n\n" + "two " * 300)
    monkeypatch.setattr(index, "MAX_PASSAGES", 1)
    with pytest.raises(DataError, match="split the folder"):
        index.read_folder(tmp_path)
    monkeypatch.setattr(index, "FILE_BYTES", 10)
    with pytest.raises(DataError, match="at most 10"):
        index.read_folder(tmp_path)


def test_the_index_holds_a_unit_row_for_each_passage_and_the_probe(tmp_path):
    (tmp_path / "a.txt").write_text("one two\n\n" + "three " * 150)
    built = index.build(tmp_path, FakeEmbedder())
    assert built.embeddings.shape == (len(built.passages), FakeEmbedder().dimension)
    assert np.allclose(np.linalg.norm(built.embeddings, axis=1), 1, atol=1e-5)
    assert np.array_equal(built.probe, FakeEmbedder().embed([index.PROBE])[0])
