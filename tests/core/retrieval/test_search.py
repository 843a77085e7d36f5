"""Questions to passages."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietchoir.core.retrieval.chunking import DocumentChunk
from quietchoir.core.retrieval.search import (
    DEPTH,
    FUSION,
    Search,
    VectorIndex,
    fused,
    sketched,
    telling_words,
)
from quietchoir.core.retrieval.store import CollectionStore, DocumentEntry
from quietchoir.tests.fakes.retrieval import WordEmbedder

TEXTS = ("the rent is due in March", "the cat may stay", "flour, water and salt")


def filled(path: Path, texts: tuple[str, ...] = TEXTS) -> CollectionStore:
    """A collection of one document with these passages."""
    store, embedder = CollectionStore(path), WordEmbedder()
    chunks = [DocumentChunk(text, "", 0, line, line) for line, text in enumerate(texts, 1)]
    store.put(DocumentEntry("/home/ann/notes.txt", 1, 1, b""), chunks)
    store.embed_with(embedder.identity)
    ids = [row[0] for row in store.database.rows("SELECT id FROM chunks ORDER BY id")]
    store.put_vectors(ids, embedder.embed(texts))
    return store


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Search:
    return Search(filled(tmp_path_factory.mktemp("search") / "one.collection"))


def test_both_ways_find_the_passage_and_say_where_it_stands(search):
    for way in ("words", "meaning", "hybrid"):
        found = search.find("when is the rent due?", 1, WordEmbedder(), way)
        assert [(one.text, one.place) for one in found] == [(TEXTS[0], "notes.txt, line 1")]


def test_a_word_is_found_in_its_other_forms_and_without_its_accents(search):
    assert search.find("cats stayed", 1)[0].text == TEXTS[1]
    assert search.find("märch", 1)[0].text == TEXTS[0]


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_no_question_is_read_as_a_query_language(search, question):
    search.find(question, 3, WordEmbedder() if question.strip() and question.isalnum() else None)


@pytest.mark.parametrize("question", ['salt" OR "rent', "NOT salt", "text: rent", "NEAR(rent", "*"])
def test_operators_are_words(search, question):
    search.find(question)
    assert all(part.startswith('"') for part in telling_words(question))


def test_ranks_are_fused_as_the_paper_says_each_list_with_its_share():
    both = 2 / (FUSION + 2)
    assert both > 1 / (FUSION + 1)  # second in both lists beats first in one
    assert fused([(0.5, [1, 2, 3]), (0.5, [4, 2, 5])])[0] == 2
    assert fused([(0.5, []), (0.5, [7])]) == [7]
    assert fused([(0.3, [1]), (0.7, [2])]) == [2, 1]


def test_what_another_program_changes_is_seen_by_the_next_question(tmp_path):
    path = tmp_path / "one.collection"
    search = Search(filled(path))
    assert search.find("rent", 3, WordEmbedder(), "meaning")[0].text == TEXTS[0]
    other = CollectionStore(path)
    other.remove("/home/ann/notes.txt")
    other.close()
    assert search.find("rent", 3, WordEmbedder(), "meaning") == []


def test_beside_meaning_words_of_many_passages_are_left_out_and_alone_they_count(tmp_path):
    texts = ("the boiler hums", "the boiler leaks", "the boiler is loud", *TEXTS, "a lamp", "a key")
    search = Search(filled(tmp_path / "many.collection", texts))
    (leaking,) = search.by_words("does the boiler leak?", rare=True)
    assert search.store.passages([leaking])[0].text == "the boiler leaks"
    assert len(search.by_words("does the boiler leak?")) == 3
    assert len(search.by_words("boiler", rare=True)) == 3  # all it has
    search.store.close()


def test_among_many_vectors_short_ones_say_which_are_worth_comparing():
    rng = np.random.default_rng(3)
    wide = rng.normal(size=(6000, 40)) @ rng.normal(size=(40, 128)) + rng.normal(size=(6000, 128))
    vectors = (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float32)
    ids = np.arange(6000) + 7
    whole = VectorIndex(ids, vectors, None)
    short = VectorIndex(ids, vectors, sketched(vectors))
    for query in vectors[:10]:
        nearest = whole.nearest(query)
        assert nearest == [int(id) for id in ids[np.argsort(-(vectors @ query))[:DEPTH]]]
        found = short.nearest(query)
        assert found[0] == nearest[0] and len(set(found) & set(nearest)) >= 0.98 * DEPTH


def test_how_many_passages_hold_a_word_is_asked_once_until_the_file_changes(tmp_path, monkeypatch):
    search = Search(filled(tmp_path / "one.collection"))
    asked, count = [], search.store.matches

    def matches(word):
        asked.append(word)
        return count(word)

    monkeypatch.setattr(search.store, "matches", matches)
    for _ in range(2):
        search.by_words("rent boiler", rare=True)
    assert sorted(asked) == ['"boiler"', '"rent"']
    search.store.remove("/home/ann/notes.txt")
    search.by_words("rent boiler", rare=True)
    assert len(asked) == 4
    search.store.close()
