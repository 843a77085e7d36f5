"""What is deleted is gone from the bytes of the files; what is locked stands in none of them. Each
claim has an arm without the protection, in which the same search of the bytes succeeds.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from quietchoir.core.errors import AuthenticationError, ConfigError, UnknownEntryError
from quietchoir.core.retrieval.collections import Collections
from quietchoir.core.retrieval.indexing import update
from quietchoir.core.retrieval.memory import FactStore
from quietchoir.core.retrieval.search import Search
from quietchoir.core.retrieval.store import STORED, CollectionStore
from quietchoir.tests.fakes.retrieval import LineParser, WordEmbedder

SECRET = "zanzibarquotient"  # a word that stands nowhere else
TOLD = f"the code of the safe is {SECRET} and nothing else"


def held(folder: Path) -> bytes:
    """All bytes of all files in a folder."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def vector_of(text: str) -> bytes:
    """A part of its vector, as it is stored."""
    return WordEmbedder().embed([text])[0].astype(STORED).tobytes()[16:48]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Many documents, so that the pages of the file are full; one holds the secret."""
    made = tmp_path / "documents"
    made.mkdir()
    for number in range(60):
        lines = "\n".join(f"# part {n}\n{'plain words ' * 30}{number} {n}" for n in range(8))
        (made / f"plain-{number:02}.txt").write_text(lines)
    (made / "secret-zebra.txt").write_text(TOLD)
    return made


def indexed(path: Path, folder: Path) -> CollectionStore:
    """A collection of the folder, with vectors."""
    store = CollectionStore(path)
    store.add_source(folder)
    update(store, LineParser(), WordEmbedder())
    return store


def test_a_removed_document_is_in_no_byte_of_any_file(tmp_path, folder):
    home = tmp_path / "home"
    store = indexed(home / "one.collection", folder)
    assert SECRET.encode() in held(home) and vector_of(TOLD) in held(home)
    (folder / "secret-zebra.txt").unlink()
    update(store, LineParser(), WordEmbedder())
    left = held(home)  # while it is open: the log is there too
    for trace in (SECRET.encode(), b"zanzibarquoti", vector_of(TOLD), b"secret-zebra"):
        assert trace not in left
    assert store.database.rows("PRAGMA integrity_check") == [("ok",)]
    store.close()
    assert SECRET.encode() not in held(home)


def test_without_our_care_the_same_removal_leaves_the_words_and_the_vector(tmp_path, folder):
    home = tmp_path / "home"
    store = indexed(home / "one.collection", folder)
    store.database.rows("PRAGMA secure_delete = OFF")
    store.database.write("INSERT INTO words (words, rank) VALUES ('secure-delete', 0)")
    store.remove(str(folder / "secret-zebra.txt"))
    assert Search(store).find(SECRET) == []  # gone for whoever asks
    left = held(home)
    assert SECRET.encode() in left and vector_of(TOLD) in left


def test_a_changed_document_leaves_nothing_of_its_old_text_in_the_log(tmp_path, folder):
    home = tmp_path / "home"
    store = indexed(home / "one.collection", folder)
    (folder / "secret-zebra.txt").write_text("the safe was sold")
    update(store, LineParser(), WordEmbedder())
    assert SECRET.encode() not in held(home)
    store.close()


def test_a_removed_collection_leaves_no_file_and_zeros_where_it_was(tmp_path, folder):
    collections = Collections(tmp_path / "home")
    collections.create("one")
    store = collections.store("one")
    store.add_source(folder)
    update(store, LineParser(), WordEmbedder())
    other = tmp_path / "linked"
    os.link(collections.path("one"), other)  # what the disk has of it, under another name
    collections.remove("one")
    assert list((tmp_path / "home").iterdir()) == []
    assert not any(other.read_bytes())
    with pytest.raises(UnknownEntryError):
        collections.search("one")


def test_a_forgotten_fact_is_in_no_byte_of_the_file(tmp_path):
    memory = FactStore(tmp_path / "home" / "memory")
    for number in range(200):
        memory.propose(f"fact {number} about the garden", kept=True)
    fact = memory.propose(TOLD, said=f"remember: {TOLD}", kept=True)
    assert SECRET.encode() in held(tmp_path / "home")
    memory.forget(fact.id)
    assert SECRET.encode() not in held(tmp_path / "home")
    memory.close()


def asks(words: str):
    return lambda path: words


def test_a_locked_collection_holds_text_words_names_and_vectors_in_no_file(tmp_path, folder):
    locked, plain = tmp_path / "locked", tmp_path / "plain"
    traces = (SECRET.encode(), b"secret-zebra", vector_of(TOLD), b"SQLite format", b"CREATE TABLE")
    for home, is_locked in ((locked, True), (plain, False)):
        collections = Collections(home, passphrase=asks("correct horse"), embedder=WordEmbedder)
        collections.create("one", locked=is_locked)
        collections.store("one").add_source(folder)
        collections.update("one", LineParser())
        assert collections.find(["one"], SECRET, 1)[0][1].text == TOLD
        found = [trace in held(home) for trace in traces]  # open: with its log
        assert not any(found) if is_locked else all(found)
        collections.close()
        assert [trace in held(home) for trace in traces] == found


def test_a_locked_file_opens_with_its_passphrase_alone_and_a_wrong_one_changes_nothing(tmp_path):
    path = tmp_path / "memory"
    memory = FactStore(path, passphrase=asks('it\'s "mine"'), locked=True)
    memory.propose("the owner likes tea", kept=True)
    memory.close()
    before = path.read_bytes()
    with pytest.raises(AuthenticationError, match="a wrong passphrase, or damaged"):
        FactStore(path, passphrase=asks("guess"))
    with pytest.raises(ConfigError, match="locked, or damaged; give its passphrase"):
        FactStore(path)
    assert path.read_bytes() == before
    again = FactStore(path, passphrase=asks('it\'s "mine"'))
    assert [fact.text for fact in again.facts()] == ["the owner likes tea"]


def test_a_changed_byte_of_a_locked_file_is_noticed(tmp_path, folder):
    collections = Collections(tmp_path / "home", passphrase=asks("word"))
    collections.create("one", locked=True)
    collections.store("one").add_source(folder)
    collections.update("one", LineParser())
    collections.close()
    path = collections.path("one")
    whole = bytearray(path.read_bytes())
    whole[4096 * 5 + 100] ^= 1
    path.write_bytes(whole)
    with pytest.raises(Exception, match="damaged"):
        Collections(tmp_path / "home", passphrase=asks("word")).search("one")


def test_without_a_passphrase_nothing_is_locked_silently(tmp_path):
    collections = Collections(tmp_path / "home")
    with pytest.raises(ConfigError, match="an empty passphrase protects nothing"):
        collections.create("one", locked=True)
    assert collections.names() == [] and held(tmp_path) == b""


def test_where_nobody_can_be_asked_it_is_said_that_damage_looks_the_same(tmp_path):
    """A locked file is noise to whoever has no key, and so is one whose first page was lost."""

    def nobody(path: Path) -> str:
        raise ConfigError(f"{path}: a passphrase is needed")

    path = tmp_path / "one.collection"
    path.write_bytes(lost := b"\x5a" * 8192)
    with pytest.raises(ConfigError, match=r"is needed\. If it was never locked, it is damaged"):
        CollectionStore(path, passphrase=nobody)
    assert path.read_bytes() == lost


def test_files_are_their_owners_alone(tmp_path, folder):
    store = indexed(tmp_path / "home" / "one.collection", folder)
    for path in (tmp_path / "home").iterdir():
        assert path.stat().st_mode & 0o077 == 0
    store.close()


def test_stored_vectors_rank_as_the_exact_ones_do(tmp_path, folder):
    store = indexed(tmp_path / "home" / "one.collection", folder)
    _, vectors = store.vectors()
    rows = store.database.rows("SELECT heading, text FROM chunks ORDER BY id")
    exact = WordEmbedder().embed([f"{head}\n{text}" if head else text for head, text in rows])
    assert np.abs(vectors - exact).max() < 1e-3
    store.close()
