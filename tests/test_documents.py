"""The verbs `collection` and `memory`, with the real parser in its sandbox."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from quietchoir import documents
from quietchoir.cli import main
from quietchoir.core.history.remains import FORGOTTEN
from quietchoir.core.history.store import HistoryStore
from quietchoir.core.retrieval.collections import Collections
from quietchoir.plugins.documents import SUFFIXES, parsing
from quietchoir.plugins.sandbox.probe import probe
from quietchoir.tests.fakes.retrieval import docx, pdf


@pytest.fixture(scope="module", autouse=True)
def sandbox() -> None:
    report = probe()
    if not report.available:
        if os.environ.get("CI"):
            pytest.fail(f"no sandbox: {report.reason}; {report.advice}")
        pytest.skip(f"no sandbox: {report.reason}")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node's home without an embedding model: words alone are searched."""
    monkeypatch.setenv("QUIETCHOIR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("QUIETCHOIR_MODELS", str(tmp_path / "no models"))
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "papers"
    made.mkdir()
    (made / "lease.docx").write_bytes(docx("Lease", "The rent is due in March."))
    (made / "manual.pdf").write_bytes(
        pdf(["Press the red button."], ["The fuse is in the cellar."])
    )
    (made / "fake.pdf").write_bytes(docx("Lease"))
    return made


def run(*words: str) -> int:
    return main(list(words))


def texts(collections: Collections, question: str) -> list[str]:
    """What the collection "house" finds."""
    return [passage.text for _, passage in collections.find(["house"], question, 3)]


def wait(true: Callable[[], bool]) -> None:
    """Until another thread has made it so."""
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_folder_is_indexed_searched_and_deleted(home, folder, capfd):
    assert run("collection", "create", "house") == 0
    assert run("collection", "add", "house", str(folder)) == 1  # one could not be read
    said = capfd.readouterr()
    assert "2 documents read, 0 unchanged, 0 gone, 1 not read; 3 passages" in said.out
    for name in ("thread.e\nml", "README", "README.gz", ".hidden.eml", "thread.eml"):
        (folder / name).write_bytes(b"of another kind")
    run("collection", "add", "house", str(folder))
    told = "1 not read; 4 of other kinds left alone (no ending, .gz, .e ml, .eml); 3 passages"
    assert told in capfd.readouterr().out
    run("collection", "add", "house", str(folder / "thread.eml"))
    assert "not read: thread.eml" in capfd.readouterr().err  # named itself, it is told
    assert "not read: fake.pdf: named .pdf, but its bytes are a ZIP archive" in said.err
    assert run("collection", "search", "house", "where is the fuse?") == 0
    assert "[1] manual.pdf, page 2, line 1" in capfd.readouterr().out
    assert run("collection", "remove", "house", str(folder)) == 0
    run("collection", "search", "house", "fuse")
    assert "nothing is found" in capfd.readouterr().out
    with closing(HistoryStore(home)) as store:
        for name in ("house", "work"):
            store.consent("collection", name, "personal")
    assert run("collection", "remove", "house") == 0
    with closing(HistoryStore(home)) as store:
        assert store.consents() == [("collection", "work", "personal")]
    assert list((home / "collections").iterdir()) == []


def test_the_owner_names_the_embedding_model(home, folder, capfd, embedder_path, tmp_path):
    (tmp_path / "other-model").symlink_to(embedder_path)
    home.mkdir()
    (home / "config.toml").write_text(f'[embedding]\nmodel = "{tmp_path / "other-model"}"\n')
    run("collection", "create", "house")
    run("collection", "add", "house", str(folder))
    assert "3 passages, 3 of them found by meaning" in capfd.readouterr().out
    with closing(Collections(home / "collections")) as collections:
        assert collections.store("house").embedded_by().startswith("other-model ")


def test_copies_are_listed_and_what_a_node_saved_of_conversations_is_deleted(home, folder, capfd):
    run("collection", "create", "house")
    copy = home / "collections" / "house.collection.bak"
    copy.write_bytes(b"copied")
    saved = home / "conversations" / "0000-abc.conversation"
    saved.parent.mkdir()
    saved.write_bytes(b"keys and values")
    assert run("collection", "remove", "house") == 0
    assert f"a copy is left, delete it yourself: {copy}" in capfd.readouterr().out
    assert copy.exists() and not saved.exists() and (home / FORGOTTEN).exists()


def test_a_locked_collection_asks_for_its_passphrase_and_search_needs_it(
    home, folder, capfd, monkeypatch
):
    monkeypatch.setenv("QUIETCHOIR_PASSPHRASE", "correct horse")
    assert run("collection", "create", "house", "--locked") == 0
    run("collection", "add", "house", str(folder))
    assert run("collection", "search", "house", "rent") == 0
    assert "lease.docx" in capfd.readouterr().out
    monkeypatch.setenv("QUIETCHOIR_PASSPHRASE", "guess")
    assert run("collection", "search", "house", "rent") == 1
    assert "a wrong passphrase, or damaged" in capfd.readouterr().err
    run("collection", "list")
    assert "wrong passphrase" in " ".join(capfd.readouterr().out.split())


def test_what_is_not_there_is_one_sentence(home, capfd):
    assert run("collection", "search", "house", "x") == 1
    assert "no collection is called 'house'; there are: none" in capfd.readouterr().err
    run("collection", "create", "house")
    assert run("collection", "add", "house", "/nowhere/at/all") == 2
    assert "/nowhere/at/all: not there" in capfd.readouterr().err
    assert run("collection", "create", "../house") == 2


def test_facts_are_listed_edited_and_forgotten(home, capfd):
    assert run("memory", "add", "I drink tea") == 0
    assert run("memory", "edit", "1", "I drink green tea") == 0
    capfd.readouterr()
    run("memory", "list")
    assert "I drink green tea" in " ".join(capfd.readouterr().out.split())
    assert run("memory", "forget", "1") == 0
    assert run("memory", "forget", "1") == 1
    assert b"green tea" not in (home / "memory").read_bytes()


def test_a_watched_folder_is_indexed_as_it_changes_and_a_kill_leaves_it_whole(home, folder):
    run("collection", "create", "house")
    (folder / "fake.pdf").unlink()
    run("collection", "add", "house", str(folder))
    watching = subprocess.Popen(
        [sys.executable, "-m", "quietchoir.cli", "collection", "watch", "house"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert watching.stdout is not None
        assert watching.stdout.readline().startswith("watching ")
        (folder / "new.txt").write_text("the cellar key hangs by the stove")
        assert "1 document read, 2 unchanged" in watching.stdout.readline()
    finally:
        watching.kill()
        watching.communicate()
    found = Collections(home / "collections").find(["house"], "stove", 1)
    assert found[0][1].text == "the cellar key hangs by the stove"


def test_a_node_that_serves_indexes_what_changes_and_asks_for_no_passphrase(
    home, folder, monkeypatch, caplog
):
    def never(path: Path) -> str:
        raise AssertionError(f"asked for the passphrase of {path}")

    monkeypatch.setattr(documents, "SERVED_WATCH_S", 0.05)
    monkeypatch.setattr(documents, "FAILED_WATCH_S", 0.05)
    (folder / "fake.pdf").unlink()
    run("collection", "create", "house")
    run("collection", "add", "house", str(folder))
    monkeypatch.setenv("QUIETCHOIR_PASSPHRASE", "correct horse")
    run("collection", "create", "secret", "--locked")
    busy = threading.Event()
    own = Collections(home / "collections", passphrase=never)
    with parsing() as parser:
        watcher = documents.FolderWatcher(own, lambda: parser, lambda: not busy.is_set())
        watcher.start()
        try:
            (folder / "new.txt").write_text("the cellar key hangs by the stove")
            wait(lambda: "the cellar key hangs by the stove" in texts(own, "the stove"))
            (folder / "lease.docx").unlink()
            wait(lambda: texts(own, "rent") == [])
        finally:
            watcher.stop()
        (folder / "late.txt").write_text("the rent was raised")
        busy.set()  # somebody waits for an answer
        assert not watcher.changed("house")
        busy.clear()
        assert watcher.changed("house") and not watcher.changed("secret")
        assert watcher.index("house")  # it was told to end: nothing more is read
        assert texts(own, "rent") == []
    own.close()
    assert "secret" not in caplog.text


def test_a_collection_that_was_made_anew_by_another_program_is_opened_anew(home, folder):
    (folder / "fake.pdf").unlink()
    run("collection", "create", "house")
    run("collection", "add", "house", str(folder))
    own = Collections(home / "collections")
    assert own.find(["house"], "fuse", 1)
    run("collection", "remove", "house")
    assert not own.changed("house", SUFFIXES) and not own.path("house").exists()
    run("collection", "create", "house")
    assert own.find(["house"], "fuse", 1) == []
    own.close()
