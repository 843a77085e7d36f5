"""Our code through the real `keyring` library, with back-ends that need no desktop."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keyring
import pytest
from keyring.backends import chainer, fail, null

from quietchoir.core.errors import ConfigError
from quietchoir.crypto.identity.keyfile import SERVICE, SystemKeyring
from quietchoir.crypto.identity.keys import Identity
from quietchoir.tests.fakes import keyring_file
from quietchoir.tests.fakes.keyring_file import FileKeyring


@pytest.fixture
def entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `FileKeyring` keeps what it is given; it is the one that the library has chosen."""
    monkeypatch.setenv(keyring_file.VARIABLE, str(tmp_path / "entries.json"))
    choose(monkeypatch, FileKeyring())
    return tmp_path / "entries.json"


def choose(monkeypatch: pytest.MonkeyPatch, backend: object) -> None:
    """Make `backend` the library's for this test."""
    monkeypatch.setattr("keyring.core._keyring_backend", backend)


def test_a_key_is_kept_and_opened_through_the_real_library(entries: Path, tmp_path: Path) -> None:
    path, identity = tmp_path / "identity.key", Identity.generate()
    identity.save(path, keyring=SystemKeyring())
    assert Identity.load(path).public == identity.public
    ((name, kept),) = json.loads(entries.read_text()).items()
    assert name.startswith(SERVICE + " ") and len(bytes.fromhex(kept)) == 32
    assert (
        bytes.fromhex(kept) not in path.read_bytes()
        and identity._private.private_bytes_raw() not in path.read_bytes()
    )
    keyring.delete_password(SERVICE, name.removeprefix(SERVICE + " "))
    with pytest.raises(ConfigError, match="no entry"):
        Identity.load(path)


@pytest.mark.parametrize("backend", [fail.Keyring(), null.Keyring()])
def test_where_the_library_has_nothing_that_keeps_a_key_the_owner_is_told_and_nothing_is_written(
    backend: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(monkeypatch, backend)
    with pytest.raises(ConfigError, match="no keyring that encrypts"):
        Identity.generate().save(tmp_path / "identity.key", keyring=SystemKeyring())
    assert list(tmp_path.iterdir()) == []


class WeakKeyring(FileKeyring):
    """What the library calls usable and not recommended: a file in clear."""

    priority = 0.5


class WeakestKeyring(WeakKeyring):
    priority = 0.25


@pytest.mark.parametrize(
    ("held", "good"), [((WeakKeyring, WeakestKeyring), False), ((WeakKeyring, FileKeyring), True)]
)
def test_a_chain_of_keyrings_counts_as_its_strongest_link_and_only_that_one_is_used(
    held: tuple[type[FileKeyring], ...],
    good: bool,
    entries: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    links = [kind() for kind in held]
    monkeypatch.setattr("keyring.backend.get_all_keyring", lambda: links)
    choose(monkeypatch, chainer.ChainerBackend())
    assert keyring.get_keyring().priority == 10  # so the library itself would say yes to both
    if not good:
        with pytest.raises(ConfigError, match="encrypts"):
            SystemKeyring()
        return
    used: list[str] = []
    monkeypatch.setattr(WeakKeyring, "set_password", lambda self, *words: used.append("weak"))
    Identity.generate().save(tmp_path / "identity.key", keyring=SystemKeyring())
    assert used == [] and len(json.loads(entries.read_text())) == 1


def test_a_node_is_locked_and_opened_by_other_processes_of_its_owner(tmp_path: Path) -> None:
    def identity(backend: str, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PYTHON_KEYRING_BACKEND": backend,
            keyring_file.VARIABLE: str(tmp_path / "entries.json"),
        }
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "quietchoir.cli",
                "federation",
                "identity",
                "--home",
                str(tmp_path / "home"),
                *words,
            ],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    locked = identity(keyring_file.NAME, "--protect", "keyring")
    assert locked.returncode == 0, locked.stderr
    assert b", keyring\n" in (tmp_path / "home" / "identity.key").read_bytes()
    assert identity(keyring_file.NAME).stdout == locked.stdout
    refused = identity("keyring.backends.fail.Keyring")
    assert (
        refused.returncode == 2
        and "no keyring that encrypts" in refused.stderr
        and locked.stdout not in refused.stdout
    )
