"""A node's home as one file, and back: whole, checked, and over nothing."""

import errno
import hashlib
import io
import json
import os
import shutil
import sqlite3
import stat
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from quietchoir import backup
from quietchoir.core import paths
from quietchoir.core.config import Config
from quietchoir.core.errors import ConfigError, DataError, QuietchoirError
from quietchoir.federation import client_node
from quietchoir.federation.client_node import ClientOptions
from quietchoir.federation.engines import stateless_client
from quietchoir.federation.membership import founding, keys, ownership, roster
from quietchoir.federation.monitor.member_status import MemberStatus
from quietchoir.federation.spec.policy import (
    AdapterTable,
    ModelTable,
    PrivacyTable,
    ProtectionTable,
    Recipe,
)
from quietchoir.plugins.sandbox import store
from quietchoir.tests.fakes.federation import DIGEST
from quietchoir.tests.fakes.training import CHATTER


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A node's, with a history that somebody is writing."""
    folder = tmp_path / "home"
    files = {
        "token": b"t" * 40, "backup.json": b"{}", "adapters/ab/adapter.bin": bytes(range(256)),
        "models/large.gguf": b"left out", "conversations/state.bin": b"left out",
        "federations/f/member.sqlite": b"left out", "federations/f/federation.toml": b"signed",
        "library/host.key": b"signs", "library/budget-0123456789abcdef.json": b"left out",
        "plugins/stage/9-x/plugin/bundle/server.py": b"runs now",
        "federations/f/taking-part.lock": b"", "collections/house.sqlite": b"encrypted" * 99,
    }  # fmt: skip
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o600)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_belongs_to_a_node_comes_back_as_it_was_and_for_its_owner_alone(
    home: Path, tmp_path: Path
) -> None:
    before, target, again = files_of(home), tmp_path / "b.tar.gz", tmp_path / "again"
    count = backup.back_up(home, target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert files_of(home) == before
    assert backup.restore(target, again) == count
    left_out = (
        "models", "conversations", "federations/f/member", "federations/f/taking", "library/budget",
        "plugins/stage",
    )  # fmt: skip
    assert files_of(again) == {
        name: content for name, content in before.items() if not name.startswith(left_out)
    } | {"library/restored": b""}
    assert not [path for path in again.rglob("*") if stat.S_IMODE(path.stat().st_mode) & 0o077]


def test_a_database_that_is_being_written_is_copied_as_it_stood_at_one_moment(
    home: Path, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(home / "history.sqlite", isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("CREATE TABLE said (words TEXT)")
        writer.execute("INSERT INTO said VALUES ('done')")
        writer.execute("BEGIN")
        writer.execute("INSERT INTO said VALUES ('not yet')")
        assert (home / "history.sqlite-wal").stat().st_size
        backup.back_up(home, tmp_path / "b.tar.gz")
        writer.execute("ROLLBACK")
    backup.restore(tmp_path / "b.tar.gz", tmp_path / "again")
    assert not list((tmp_path / "again").glob("*-wal"))
    with closing(sqlite3.connect(tmp_path / "again" / "history.sqlite")) as reader:
        assert reader.execute("SELECT words FROM said").fetchall() == [("done",)]


def test_a_disk_that_refuses_is_a_sentence_and_leaves_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    target = tmp_path / "out/b.tar.gz"
    target.parent.mkdir()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(QuietchoirError, match="not written, No space left on device"):
        backup.back_up(home, target)
    assert list(target.parent.iterdir()) == []


def test_a_locked_collection_in_use_is_refused_and_no_file_stays(
    home: Path, tmp_path: Path
) -> None:
    log = home / "collections" / "house.sqlite-wal"
    log.write_bytes(b"pages")
    with pytest.raises(ConfigError, match="stop the node first"):
        backup.back_up(home, tmp_path / "b.tar.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    log.write_bytes(b"")
    backup.back_up(home, tmp_path / "b.tar.gz")


def test_neither_a_backup_nor_a_restored_home_is_put_over_something(
    home: Path, tmp_path: Path
) -> None:
    target = tmp_path / "b.tar.gz"
    target.write_bytes(b"mine")
    with pytest.raises(ConfigError, match="is kept"):
        backup.back_up(home, target)
    assert target.read_bytes() == b"mine"
    target.unlink()
    with pytest.raises(ConfigError, match="lies in the home"):
        backup.back_up(home, home / "b.tar.gz")
    backup.back_up(home, target)
    before = files_of(home)
    with pytest.raises(ConfigError, match="holds a node already"):
        backup.restore(target, home)
    assert files_of(home) == before


def test_models_that_are_there_already_stay(home: Path, tmp_path: Path) -> None:
    backup.back_up(home, tmp_path / "b.tar.gz")
    (tmp_path / "again" / "models").mkdir(parents=True)
    (tmp_path / "again" / "models" / "one.gguf").write_bytes(b"pulled")
    backup.restore(tmp_path / "b.tar.gz", tmp_path / "again")
    assert (tmp_path / "again" / "models" / "one.gguf").read_bytes() == b"pulled"


def repacked(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    with tarfile.open(path) as archive:
        files = {
            entry.name: archive.extractfile(entry).read()  # type: ignore[union-attr]  # a file
            for entry in archive
            if entry.isreg()
        }
    change(files)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def forge(files: dict[str, bytes], name: str) -> None:
    """One file more, and a list that names it."""
    files[name] = b"x"
    told = json.loads(files[backup.MANIFEST])
    told["files"][name] = hashlib.sha256(b"x").hexdigest()
    files[backup.MANIFEST] = json.dumps(told).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda files: files.update({"home/token": b"another"}),
        lambda files: files.pop("home/token"),
        lambda files: files.update({"home/extra": b"x"}),
        lambda files: files.pop(backup.MANIFEST),
        lambda files: files.update({backup.MANIFEST: b"{}"}),
        lambda files: forge(files, "home/../../outside"),
        lambda files: forge(files, "home/./token"),
        lambda files: forge(files, "home/models/x"),
        lambda files: forge(files, "home/."),
        lambda files: forge(files, "token"),
        lambda files: forge(files, "/tmp/outside-of-a-home"),
    ],
)
def test_a_backup_that_is_not_what_its_list_says_restores_nothing(
    home: Path, tmp_path: Path, change: Callable[[dict[str, bytes]], None]
) -> None:
    target = tmp_path / "b.tar.gz"
    backup.back_up(home, target)
    repacked(target, change)
    before = files_of(tmp_path)
    with pytest.raises(DataError, match="nothing was restored"):
        backup.restore(target, tmp_path / "again")
    assert files_of(tmp_path) == before and not Path("/tmp/outside-of-a-home").exists()


@pytest.mark.parametrize("size", [0, 100, -100])
def test_a_file_that_is_cut_or_no_backup_restores_nothing(
    home: Path, tmp_path: Path, size: int
) -> None:
    target = tmp_path / "b.tar.gz"
    backup.back_up(home, target)
    target.write_bytes(target.read_bytes()[:size])
    with pytest.raises(DataError, match="nothing was restored"):
        backup.restore(target, tmp_path / "again")
    assert files_of(tmp_path / "again") == {}


def test_a_kept_plugin_comes_back_to_the_last_bit(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "code"
    (code / "node_modules" / ".bin").mkdir(parents=True)
    (code / "node_modules" / "empty").mkdir()
    (code / "node_modules" / "run.js").write_bytes(b"run")
    (code / "node_modules" / "run.js").chmod(0o755)
    (code / "node_modules" / ".bin" / "run").symlink_to("../run.js")
    for name in ("yarn.lock", "member.sqlite", "taking-part.lock", "a.db-wal", "a.db"):
        (code / name).write_bytes(backup.SQLITE + b"or is it?")
    monkeypatch.setenv(paths.HOME_VARIABLE, str(home))
    digest = store.keep(code, None)
    backup.back_up(home, tmp_path / "b.tar.gz")
    backup.restore(tmp_path / "b.tar.gz", tmp_path / "again")
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path / "again"))
    assert store.find(digest, None).is_relative_to(tmp_path / "again")


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "round/../../outside", "absolute"])
def test_a_link_that_leads_out_is_refused_by_name(home: Path, tmp_path: Path, target: str) -> None:
    (home / "adapters" / "round").symlink_to("..")
    (home / "config.toml").symlink_to(home / "token" if target == "absolute" else target)
    with pytest.raises(ConfigError, match=r"config\.toml: a link to .*; put what it names in its"):
        backup.back_up(home, tmp_path / "b.tar.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    (home / "config.toml").unlink()
    backup.back_up(home, tmp_path / "b.tar.gz")


def test_links_that_lead_out_together_restore_nothing(tmp_path: Path) -> None:
    links = {"a/b/up": "../..", "c": "a/b/up/../.."}  # each by its letters alone stays inside
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as archive:
        for name, target in links.items():
            entry = tarfile.TarInfo(f"home/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
        told = {f"home/{name}": f"-> {target}" for name, target in links.items()}
        content = json.dumps({"format": backup.FORMAT, "files": told}).encode()
        entry = tarfile.TarInfo(backup.MANIFEST)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(DataError, match="leads out of a home"):
        backup.restore(tmp_path / "b.tar.gz", tmp_path / "again")
    assert list((tmp_path / "again").iterdir()) == []


def test_keys_that_came_out_of_a_backup_take_part_in_nothing_and_new_ones_do(
    tmp_path: Path,
) -> None:
    asked = founding.Founding(
        name="choir", address="127.0.0.1:9", model=ModelTable(name="own", digest=DIGEST),
        adapter=AdapterTable(), protection=ProtectionTable(bits=16), recipe=Recipe(),
        privacy=PrivacyTable(mechanism="skellam", clip=1.0, noise_multiplier=4.0, epsilon=3.0),
        prompt=CHATTER,
    )  # fmt: skip
    home, again = tmp_path / "home", tmp_path / "again"
    founding.create_federation(tmp_path / "f", asked)
    file, owner = tmp_path / "f" / founding.FILE, tmp_path / "f" / founding.OWNER_KEY
    ownership.enroll(file, owner, "ann", keys.load_or_create(home).card)
    roster.accept(file, home)

    def join(home: Path, file: Path = file) -> None:
        """As far as the examples, which are nowhere."""
        options = ClientOptions(file=file, data=tmp_path / "nowhere", home=home)
        client_node.join(options, Config(), lambda event: None, resting=str)

    with pytest.raises(DataError, match="nowhere"):
        join(home)
    backup.back_up(home, tmp_path / "b.tar.gz")
    backup.restore(tmp_path / "b.tar.gz", again)
    with pytest.raises(ConfigError, match=r"answered and spent twice.*federation rotate"):
        join(again)
    [told] = MemberStatus(again, Config(), lambda _: None).federations()
    assert "came out of a backup" in told["latest"]["words"]
    with pytest.raises(ConfigError, match="answered and spent twice"):
        stateless_client.prove(
            stateless_client.Own(file=file, home=again, data=None, rehearse=0, config=Config()),
            b"nonce",
            1,
        )
    with pytest.raises(DataError, match="nowhere"):
        join(home)  # where they were made they still do
    # a copy of the copy, and a federation that it was backed up before it knew
    shutil.rmtree(again / "federations")
    (tmp_path / "b.tar.gz").unlink()
    backup.back_up(again, tmp_path / "b.tar.gz")
    backup.restore(tmp_path / "b.tar.gz", tmp_path / "third")
    with pytest.raises(ConfigError, match="answered and spent twice"):
        join(tmp_path / "third")
    # what the sentence says to do
    for name in (keys.IDENTITY_FILE, keys.TRANSPORT_FILE):
        (again / name).rename(tmp_path / name)
    ownership.rotate_member(file, owner, "ann", keys.load_or_create(again).card)
    with pytest.raises(DataError, match="nowhere"):
        join(again)
