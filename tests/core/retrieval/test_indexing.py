"""Files into collections: what changed, what cannot be read, and a disk or a model that changes."""

import os
from pathlib import Path

import numpy as np
import pytest

from quietchoir.core.errors import RetrievalError, UnknownEntryError
from quietchoir.core.retrieval.indexing import changed, update
from quietchoir.core.retrieval.search import Search
from quietchoir.core.retrieval.store import CollectionStore
from quietchoir.tests.fakes.retrieval import LineParser, WordEmbedder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two documents."""
    made = tmp_path / "documents"
    made.mkdir()
    (made / "lease.txt").write_text("# Lease\nthe rent is due in March\nthe cat may stay\n")
    (made / "recipe.txt").write_text("# Bread\nflour water salt\n")
    return made


@pytest.fixture
def store(tmp_path: Path, folder: Path) -> CollectionStore:
    made = CollectionStore(tmp_path / "home" / "one.collection")
    made.add_source(folder)
    return made


def content(store: CollectionStore) -> list[tuple[object, ...]]:
    """All that can be found."""
    return store.database.rows("SELECT id, document, text FROM chunks ORDER BY id")


def test_only_what_changed_is_read_again(store, folder):
    parser = LineParser()
    assert update(store, parser).read == 2
    (folder / "lease.txt").write_text("# Lease\nthe rent is due in April\n")
    done = update(store, parser)
    assert (done.read, done.unchanged, done.removed) == (1, 1, 0)
    assert parser.parsed == ["lease.txt", "recipe.txt", "lease.txt"]
    texts = [row[2] for row in content(store)]
    assert texts == ["flour water salt", "the rent is due in April"]


def test_a_file_whose_time_alone_changed_is_not_parsed_and_keeps_its_passages(store, folder):
    parser = LineParser()
    update(store, parser, WordEmbedder())
    before = content(store)
    os.utime(folder / "lease.txt", (1, 1))
    assert update(store, parser).unchanged == 2 and len(parser.parsed) == 2
    assert content(store) == before and store.count() == (2, 2)


def test_what_a_changed_document_still_says_is_not_embedded_again(store, folder):
    embedder, other = WordEmbedder(), WordEmbedder("other")
    (folder / "lease.txt").write_text("# Rent\nit is due in March\n# Cat\nit may stay\n")
    update(store, LineParser(), embedder)
    (folder / "lease.txt").write_text("# Cat\nit may stay\n# Rent\nit is due in April\n")
    done = update(store, LineParser(), embedder)
    assert done.embedded == 1 and "April" in embedder.embedded[-1]
    fresh = CollectionStore(store.database.path.with_name("fresh.collection"))
    fresh.add_source(folder)
    update(fresh, LineParser(), embedder)
    said = [row[2] for row in content(store)], [row[2] for row in content(fresh)]
    vectors = [dict(zip(said[n], each.vectors()[1].tolist(), strict=True))
               for n, each in enumerate((store, fresh))]  # fmt: skip
    assert vectors[0] == vectors[1] and len(vectors[0]) == 3
    update(store, LineParser(), other)  # of another model none stays
    assert len(other.embedded) == 3


def test_what_is_gone_from_a_folder_goes_and_a_folder_that_is_away_stays(store, folder, tmp_path):
    update(store, LineParser())
    (folder / "recipe.txt").unlink()
    assert update(store, LineParser()).removed == 1
    folder.rename(tmp_path / "unplugged")
    done = update(store, LineParser())
    assert done.absent == [str(folder)] and not done.removed
    assert [row[2] for row in content(store)] == ["the rent is due in March\nthe cat may stay"]


def test_links_and_hidden_files_are_left_alone(store, folder, tmp_path):
    (tmp_path / "private.txt").write_text("key")
    (folder / "link.txt").symlink_to(tmp_path / "private.txt")
    (folder / ".hidden.txt").write_text("hidden")
    (folder / "loop").symlink_to(folder)
    update(store, LineParser())
    assert {Path(path).name for path in store.documents()} == {"lease.txt", "recipe.txt"}


def test_a_document_that_cannot_be_read_is_told_once_and_stops_nobody(store, folder):
    (folder / "bad.txt").write_bytes(b"\0\0")
    done = update(store, LineParser())
    assert done.read == 2
    assert done.problems == {
        str(folder / "bad.txt"): "bad.txt: named .txt, but its bytes are no text; rename it"
    }
    parser = LineParser()
    done = update(store, parser)
    assert done.problems and not parser.parsed  # as long as it is the same file
    assert done.unchanged == 2  # it is not one of them


@pytest.mark.parametrize("touched", [False, True])
def test_a_document_whose_parser_ran_out_of_time_is_read_when_asked_again_or_touched(
    store, folder, touched
):
    parser = LineParser()
    parser.late = frozenset({"lease.txt"})
    (folder / "bad.txt").write_bytes(b"\0\0")
    assert update(store, parser).read == 1
    late, bad = str(folder / "lease.txt"), str(folder / "bad.txt")
    parser.late = frozenset()
    if touched:
        os.utime(late, (1, 1))
        os.utime(bad, (1, 1))
    done = update(store, parser, retry=not touched)
    assert (done.read, done.unchanged, list(done.problems)) == (1, 1, [bad])
    assert parser.parsed[3:] == ["bad.txt", "lease.txt"]
    assert "the rent is due in March" in str(content(store)[-1][2])
    assert not changed(store, parser.suffixes)  # a node that looks leaves the broken one alone
    assert update(store, parser).problems and len(parser.parsed) == 5


def test_a_file_of_400_mb_is_refused_unread(store, folder):
    with (folder / "big.txt").open("wb") as file:
        file.truncate(400_000_000)  # sparse
    parser = LineParser()
    done = update(store, parser)
    (words,) = done.problems.values()
    assert "400 MB, at most 1 MB of one document are read; split it, or leave it out" in words
    assert "big.txt" not in parser.parsed and done.read == 2


def test_a_version_that_cannot_be_read_takes_the_old_one_out(store, folder):
    update(store, LineParser())
    (folder / "lease.txt").write_bytes(b"\0")
    update(store, LineParser())
    assert [row[2] for row in content(store)] == ["flour water salt"]


def test_another_embedding_model_never_meets_the_vectors_of_the_first(store):
    first, second = WordEmbedder("first"), WordEmbedder("second")
    update(store, LineParser(), first)
    search = Search(store)
    assert search.find("rent", 1, first, "meaning")
    before = store.vectors()[1].copy()
    assert search.find("rent", 1, second, "meaning") == []  # not one comparison across models
    assert search.find("rent", 1, second)[0].file.endswith("lease.txt")  # words still find it
    update(store, LineParser(), second)
    assert store.embedded_by() == "second" and store.count() == (2, 2)
    assert not np.allclose(store.vectors()[1], before)
    assert search.find("rent", 1, second, "meaning")[0].file.endswith("lease.txt")


def test_a_question_and_what_is_looked_through_are_told_apart_to_the_model(store):
    embedder = WordEmbedder()
    update(store, LineParser(), embedder)
    Search(store).find("rent", 1, embedder, "meaning")
    assert set(embedder.roles[:-1]) == {"document"} and embedder.roles[-1] == "query"


def test_a_change_of_model_that_is_cut_off_leaves_vectors_of_one_model_alone(store):
    update(store, LineParser(), WordEmbedder("first"))

    class Breaks(WordEmbedder):
        def embed(self, texts, role=""):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update(store, LineParser(), Breaks("second"))
    assert store.embedded_by() == "second" and store.count() == (2, 0)
    update(store, LineParser(), WordEmbedder("second"))
    assert store.count() == (2, 2)


def test_a_disk_that_fills_up_half_way_leaves_whole_documents_and_the_next_run_goes_on(
    store, folder
):
    for number in range(40):
        lines = "\n".join(f"# part {n}\n{'word ' * 150}{number}" for n in range(20))
        (folder / f"long-{number:02}.txt").write_text(lines)
    (pages,) = store.database.rows("PRAGMA page_count")[0]
    store.database.rows(f"PRAGMA max_page_count = {pages + 150}")
    with pytest.raises(RetrievalError, match="the disk is full; nothing was changed, free some"):
        update(store, LineParser())
    written = store.documents()
    assert 0 < len(written) < 42
    assert all(entry.chunks in (1, 20) for entry in written.values())  # none is there in part
    assert store.database.rows("PRAGMA integrity_check") == [("ok",)]
    store.database.rows("PRAGMA max_page_count = 1000000")
    parser = LineParser()
    update(store, parser)
    assert len(store.documents()) == 42 and len(parser.parsed) == 42 - len(written)


@pytest.mark.parametrize("place", [0, 4096 * 3])
def test_a_damaged_file_is_told_and_left_as_it_is(store, place):
    update(store, LineParser())
    path = store.database.path
    store.close()
    whole = bytearray(path.read_bytes())
    whole[place : place + 4096] = os.urandom(len(whole[place : place + 4096]))
    path.write_bytes(whole)
    with pytest.raises(Exception, match="damaged") as refused:
        CollectionStore(path)
    assert "remove it and add the documents again" in str(refused.value)
    assert path.read_bytes() == whole


def test_a_passage_opens_with_what_stands_around_it_until_its_document_changes(store, folder):
    (folder / "long.txt").write_text("\n".join(f"# part {n}\ntext {n}" for n in range(5)))
    update(store, LineParser())
    (found, *_) = Search(store).find("text 3", 1)
    passage, around = store.passage(found.id)
    assert (passage.text, passage.line, passage.heading) == ("text 3", 8, "part 3")
    assert [one.text for one in around] == ["text 2", "text 3", "text 4"]
    (folder / "long.txt").write_text("something else")
    update(store, LineParser())
    with pytest.raises(UnknownEntryError, match="changed or removed since; ask again"):
        store.passage(found.id)
