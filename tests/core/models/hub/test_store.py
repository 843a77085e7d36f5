"""Contents under their hash: one file for two models, and what nobody needs is given up, what is in
use is not.
"""

import fcntl
import hashlib
import mmap
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from quietchoir.cli import main
from quietchoir.core.models.hub import catalog, store
from quietchoir.core.models.hub.catalog import CatalogEntry, CatalogFile

BASE = b"numbers" * 10_000
DIGEST = hashlib.sha256(BASE).hexdigest()


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two entries of the owner's catalog with the same bytes under two names."""
    monkeypatch.setenv("QUIETCHOIR_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("QUIETCHOIR_MODELS", raising=False)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.bin").write_bytes(BASE)
    entries = tuple(
        CatalogEntry(
            name=name,
            licence="MIT",
            source=f"file:{tmp_path / name}",
            files=(CatalogFile(path=f"{name}.bin", sha256=DIGEST, size=len(BASE)),),
        )
        for name in ("one", "two")
    )
    monkeypatch.setattr(catalog, "BUILT_IN", entries)
    return tmp_path / "home" / "models"


def test_the_same_bytes_under_two_names_are_one_file_and_come_once(
    models: Path, tmp_path: Path
) -> None:
    one = catalog.pull("one")
    (tmp_path / "two" / "two.bin").unlink()  # nothing is fetched a second time
    two = catalog.pull("two")
    assert one.samefile(two) and one.samefile(store.blob(DIGEST))
    assert catalog.remove("one") == len(BASE)
    assert two.read_bytes() == BASE
    assert catalog.remove("two") == len(BASE)
    assert [*models.rglob("*")] == []


def test_a_damaged_content_is_not_handed_on(models: Path, tmp_path: Path) -> None:
    one = catalog.pull("one")
    one.write_bytes(BASE[:-1] + b"X")  # of the same size
    two = catalog.pull("two")
    assert two.read_bytes() == BASE and not two.samefile(one)
    assert catalog.pull("one").samefile(two)


def test_garbage_is_shown_then_given_up_and_what_a_model_names_stays(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = catalog.pull("one")
    orphan = models / store.BLOBS / ("ab" * 32)
    orphan.write_bytes(b"left")
    (models / ".partial").mkdir()
    (models / ".partial" / "cd").write_bytes(b"half")
    (models / ".pull-x").mkdir()
    (models / ".pull-x" / "wheel").write_bytes(b"killed")
    (models / ".gguf-y").write_bytes(b"killed")
    (models / "mine.gguf").write_bytes(b"put here by hand")
    assert main(["model", "gc"]) == 0
    said = capsys.readouterr().out
    assert str(orphan) in said and "could be freed" in said
    assert orphan.exists()
    assert main(["model", "gc", "--delete"]) == 0
    assert "free again" in capsys.readouterr().out
    left = {path.relative_to(models).as_posix() for path in models.rglob("*") if path.is_file()}
    assert left == {"one/one.bin", f".blobs/{DIGEST}", "mine.gguf"}
    assert kept.read_bytes() == BASE
    assert store.garbage() == []


def test_a_file_that_takes_its_name_while_programs_are_looked_at_is_no_garbage(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The instance: `model gc` beside a quantisation whose file was named a moment later."""
    models.mkdir(parents=True, exist_ok=True)
    (models / ".gguf-old").write_bytes(b"killed")
    (models / ".gguf-done").write_bytes(b"whole")

    def meanwhile() -> set[tuple[int, int]]:
        (models / ".gguf-new").write_bytes(b"whole")
        (models / ".gguf-done").rename(models / "done.gguf")
        return set()

    monkeypatch.setattr(store, "mapped_files", meanwhile)
    assert [one.path.name for one in store.garbage()] == [".gguf-old"]


def test_what_an_owner_linked_to_and_what_lies_behind_a_link_is_not_given_up(
    models: Path, tmp_path: Path
) -> None:
    """The instance: a folder that `.blobs` was a link to lost every file with a single name."""
    blobs, outside = models / store.BLOBS, tmp_path / "outside"
    blobs.mkdir(parents=True)
    outside.mkdir()
    orphan, named = blobs / ("ab" * 32), blobs / ("cd" * 32)
    orphan.write_bytes(b"left")
    named.write_bytes(b"named")
    (models / "mine").mkdir()
    (models / "mine" / "mine.gguf").symlink_to(named)
    precious = outside / ("ef" * 32)
    precious.write_bytes(b"precious")
    (blobs / ("01" * 32)).symlink_to(precious)
    (blobs / ("23" * 32)).symlink_to(outside / "nowhere")
    (blobs / "notes.txt").write_bytes(b"by hand")
    (models / ".pull-x").symlink_to(outside)
    away = tmp_path / "away"  # a model's folder that is a link
    away.mkdir()
    lent = blobs / ("45" * 32)
    lent.write_bytes(b"lent")
    (away / "model.gguf").symlink_to(lent)
    (away / "back").symlink_to(models)
    (models / "linked").symlink_to(away)
    assert [one.path for one in store.collect()] == [orphan]  # the control: without a link it goes
    orphan.write_bytes(b"left")
    for digest in ("ab", "cd", "45"):
        store.forget(digest * 32)
    assert not orphan.exists() and named.exists() and lent.exists()
    shutil.rmtree(blobs)
    blobs.symlink_to(outside)
    assert store.collect() == []
    assert precious.read_bytes() == b"precious" and (models / "mine" / "mine.gguf").is_symlink()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system has no /proc")
def test_what_a_program_has_mapped_or_a_pull_brings_is_not_given_up(models: Path) -> None:
    (models / store.BLOBS).mkdir(parents=True)
    orphan = models / store.BLOBS / ("ab" * 32)
    orphan.write_bytes(b"mapped" * 1000)
    with orphan.open("rb") as file:
        held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    (found,) = store.garbage()
    assert found.kept == "a program has it open"
    assert store.collect() == [] and orphan.exists()
    held.close()
    lock = models / ".lock-one"
    handle = os.open(lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    (found,) = store.garbage()
    assert found.kept == "a pull is under way"
    os.close(handle)
    assert store.collect() == [replace(found, kept="")]


def test_without_hard_links_files_lie_as_they_are(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuses)
    one, two = catalog.pull("one"), catalog.pull("two")
    assert one.read_bytes() == two.read_bytes() == BASE
    assert not one.samefile(two)
