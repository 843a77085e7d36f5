"""A folder of text becomes passages."""

import os
from pathlib import Path

import numpy as np
import pytest

from quietchoir.core.errors import ConfigError, DataError
from quietchoir.crypto.pir.table import PASSAGE_BYTES
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
    assert Passage.decode("a\u202e.md\nsaid\u202e so\tthere\n".encode()).text == "said so\tthere\n"

    name = index.short_name(Path("ä" * 300) / "end.md")
    assert len(name.encode()) <= index.NAME_BYTES and name.endswith("/end.md")


def test_names_that_are_not_utf8_are_shown_and_long_ones_keep_their_folder(tmp_path):
    """A label is the first step of the whole path, not of what was left of it."""
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    odd.mkdir()
    (odd / os.fsdecode(b"na\xefve.md")).write_text("one")
    deep = tmp_path / "sport" / ("x" * 150) / ("y" * 150)
    deep.mkdir(parents=True)
    (deep / "a.md").write_text("two")
    (tmp_path / "top.md").write_text("three")
    found = {passage.text: passage for passage in index.read_folder(tmp_path)}
    assert found["one"] == Passage("caf\\xe9/na\\xefve.md", "one", "caf\\xe9")
    assert found["two"].folder == "sport" and not found["two"].source.startswith("sport")
    assert found["three"].folder == ""
    assert all(Passage.decode(each.encode()).source == each.source for each in found.values())


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
    built = index.build(index.read_folder(tmp_path), FakeEmbedder(), tmp_path / "room")
    assert built.rows().shape == (built.passages, FakeEmbedder().dimension)
    assert np.allclose(np.linalg.norm(built.rows(), axis=1), 1, atol=1e-5)
    assert np.array_equal(built.probe, FakeEmbedder().embed([index.PROBE])[0])


class Counted(FakeEmbedder):
    """Keeps what it was asked to embed; stops after so many texts."""

    def __init__(self, stop_after: float = float("inf")) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.stop_after = stop_after

    def embed(self, texts):
        if len(self.texts) + len(texts) > self.stop_after:
            raise KeyboardInterrupt
        self.texts += texts
        return super().embed(texts)


def passages(count, first=0):
    return [Passage("a.md", f"word{number} and more") for number in range(first, first + count)]


def arrays(built):
    return [np.load(path) for path in files(built)]


def files(built) -> list[Path]:
    return [built.embeddings, built.table.table, built.table.hint]


def test_an_index_is_opened_again_as_it_was_and_a_change_gives_another_edition(tmp_path):
    first = index.build(passages(100), Counted(), tmp_path)
    again = Counted()
    assert index.build(passages(100), again, tmp_path).edition == first.edition
    assert again.texts == [index.PROBE]
    before = arrays(first)
    changed, embedder = passages(100)[:99] + passages(1, 500), Counted()
    second = index.build(changed, embedder, tmp_path)
    assert embedder.texts == [index.PROBE, "word500 and more"]  # one text is new
    assert second.edition != first.edition and second.passages == 100
    assert np.array_equal(arrays(second)[0][:99], before[0][:99])
    assert not files(first)[0].exists() and len(list(tmp_path.glob("*.npy"))) == 3
    # what is no longer served has left no vector behind either
    store = index.VectorFile(next(tmp_path.glob("*.vectors")), 24)
    assert len(store.found) == 100
    vectors = FakeEmbedder().embed([each.text for each in changed])
    in_memory = index.Index.of(changed, vectors, second.probe)
    tables = in_memory.table.table, in_memory.table.hint
    for found, expected in zip(arrays(second)[1:], tables, strict=True):
        assert isinstance(expected, np.ndarray) and np.array_equal(found, expected)
    assert second.text_bytes == in_memory.text_bytes


def test_a_build_that_was_stopped_goes_on_and_embeds_nothing_twice(tmp_path):
    told: list[tuple[int, int]] = []
    stopped = Counted(stop_after=1 + index.AT_ONCE)
    with pytest.raises(KeyboardInterrupt):
        index.build(passages(200), stopped, tmp_path, lambda *now: told.append(now))
    assert not (tmp_path / index.HEAD).exists() and told == [(0, 200), (64, 200)]
    store = next(tmp_path.glob("*.vectors"))
    store.write_bytes(store.read_bytes()[:-5])  # the disk was full in the middle of a record
    went_on = Counted()
    built = index.build(passages(200), went_on, tmp_path)
    assert len(went_on.texts) == 1 + 200 - index.AT_ONCE + 1
    assert np.array_equal(
        arrays(built)[0], FakeEmbedder().embed([each.text for each in passages(200)])
    )


@pytest.mark.parametrize("spoil", ["head", "cut", "gone", "zeros", "type", "elsewhere"])
def test_a_damaged_index_is_built_anew(tmp_path, spoil, caplog):
    first = index.build(passages(70), Counted(), tmp_path)
    if spoil == "head":
        (tmp_path / index.HEAD).write_bytes(b"{")
    elif spoil == "cut":
        files(first)[1].write_bytes(files(first)[1].read_bytes()[:50])
    elif spoil == "zeros":  # as a disk leaves what had a length and no content yet
        raw = files(first)[2].read_bytes()
        files(first)[2].write_bytes(raw[:-500] + bytes(500))
    elif spoil == "type":
        np.save(files(first)[0], np.load(files(first)[0]).astype(float))
    elif spoil == "elsewhere":
        head = tmp_path / index.HEAD
        head.write_text(head.read_text().replace(first.edition, "../../x"))
    else:
        files(first)[0].unlink()
    assert not caplog.records
    again = Counted()
    second = index.build(passages(70), again, tmp_path)
    assert second.edition != first.edition and again.texts == [index.PROBE]
    assert arrays(second)[0].shape == (70, 24)
    assert [record.getMessage()[:9] for record in caplog.records] == ["the index"]
    third = index.build(passages(70), Counted(), tmp_path)
    assert third.edition == second.edition and len(caplog.records) == 1


def test_one_folder_is_served_by_one_process(tmp_path):
    with (
        index.held(tmp_path),
        pytest.raises(ConfigError, match="another process"),
        index.held(tmp_path),
    ):
        pass
    with index.held(tmp_path):
        pass
