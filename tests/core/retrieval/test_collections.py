"""Collections by name: apart from each other, and only under plain names."""

from pathlib import Path

import pytest

from quietchoir.core.errors import ConfigError, RetrievalError, UnknownEntryError
from quietchoir.core.retrieval.collections import Collections
from quietchoir.tests.fakes.retrieval import LineParser, WordEmbedder


@pytest.fixture
def collections(tmp_path: Path) -> Collections:
    """Two, of a document each; both know the word "key"."""
    made = Collections(tmp_path / "home", embedder=WordEmbedder)
    for name, text in (("ann", "the key of ann lies under the mat"), ("ben", "ben lost his key")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "note.txt").write_text(text)
        made.create(name)
        made.store(name).add_source(tmp_path / name)
        made.update(name, LineParser())
    return made


def test_a_question_to_one_collection_finds_nothing_of_another(collections):
    for name, other in (("ann", "ben"), ("ben", "ann")):
        for question in ("key", "where is the key of ann?", "ben lost", "note.txt"):
            found = collections.find([name], question, 50)
            assert all(of == name for of, _ in found)
            assert all(f"/{other}/" not in passage.file for _, passage in found)
            assert all(other not in passage.text for _, passage in found)


def test_the_bytes_of_one_collection_hold_nothing_of_another(collections):
    collections.close()
    assert b"ben lost" not in collections.path("ann").read_bytes()
    assert b"under the mat" not in collections.path("ben").read_bytes()


def test_two_collections_asked_together_give_in_turn_and_say_whose_each_is(collections):
    found = collections.find(["ann", "ben", "ann"], "key", 8)
    assert [name for name, _ in found] == ["ann", "ben"]
    assert collections.find([], "key", 8) == []


def test_nothing_is_embedded_where_no_collection_is_asked(tmp_path):
    def never() -> WordEmbedder:
        raise AssertionError("the model was read")

    assert Collections(tmp_path / "home", embedder=never).find([], "anything", 5) == []


@pytest.mark.parametrize(
    "name", ["../ann", "a/b", "", "Ann", ".hidden", "a" * 65, "ann.collection"]
)
def test_a_name_is_a_plain_word_and_never_a_path(collections, name, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="is no name for a collection"):
        collections.create(name)
    with pytest.raises(UnknownEntryError, match="there are: ann, ben"):
        collections.search(name)
    with pytest.raises(UnknownEntryError):
        collections.remove(name)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_collection_that_another_program_removed_is_told(collections):
    collections.find(["ann"], "key", 1)
    Collections(collections.folder).remove("ann")
    with pytest.raises(UnknownEntryError, match="no collection is called 'ann'"):
        collections.find(["ann"], "key", 1)


def test_a_document_that_a_folder_holds_too_is_not_said_to_be_deleted(collections, tmp_path):
    note, store = tmp_path / "ann" / "note.txt", collections.store("ann")
    store.add_source(note)
    with pytest.raises(RetrievalError, match="holds it; nothing was deleted"):
        collections.forget("ann", str(note))
    assert str(note) in store.documents() and str(note) in store.sources()
    collections.forget("ann", str(tmp_path / "ann"))
    assert str(note) in store.documents()  # named by itself, it stays until it is forgotten
    collections.forget("ann", str(note))
    assert not store.documents()
