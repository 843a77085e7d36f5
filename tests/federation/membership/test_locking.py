"""The keys of a federation's folder under a lock: owner, coordinator, door."""

import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from quietchoir import cli
from quietchoir.core.errors import AuthenticationError, ConfigError
from quietchoir.crypto.identity import keyfile
from quietchoir.crypto.identity.keys import Identity
from quietchoir.federation.membership import roster
from quietchoir.federation.membership.founding import (
    COORDINATOR_KEY,
    FILE,
    OWNER_KEY,
    TLS_KEY,
    Founding,
    create_federation,
)
from quietchoir.federation.membership.locking import protect, read_tls_key, server_key
from quietchoir.federation.membership.unlock import OPEN, VARIABLE, Lock
from quietchoir.federation.spec.policy import AdapterTable, ModelTable, ProtectionTable, Recipe
from quietchoir.tests.fakes.keyring import ForgetfulKeyring, MemoryKeyring

KEYS = (OWNER_KEY, COORDINATOR_KEY, TLS_KEY)


@pytest.fixture(autouse=True)
def passphrases_are_cheap_to_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyfile, "SCRYPT_COST", 1 << 6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    founding = Founding(
        name="choir",
        address="127.0.0.1:8790",
        model=ModelTable(digest="ab" * 32),
        adapter=AdapterTable(),
        protection=ProtectionTable(),
        recipe=Recipe(),
    )
    create_federation(tmp_path / "choir", founding)
    return tmp_path / "choir"


def public_keys(folder: Path, passphrase: str = "") -> tuple[str, str, bytes]:
    def asked(path: Path) -> str:
        assert passphrase, f"{path} asked for a passphrase"
        return passphrase

    owner, coordinator = (
        Identity.load(folder / name, asked).public.raw.hex()
        for name in (OWNER_KEY, COORDINATOR_KEY)
    )
    door = read_tls_key(folder / TLS_KEY, asked).public_key()
    spki = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return owner, coordinator, door.public_bytes(*spki)


def test_all_three_keys_are_locked_stay_who_they_are_and_open_again(folder: Path) -> None:
    before = public_keys(folder)
    assert protect(folder, Lock(passphrase="many voices")) == KEYS
    for name in KEYS:
        content = (folder / name).read_bytes()
        assert b", scrypt\n" in content and b"PRIVATE" not in content
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    assert public_keys(folder, "many voices") == before
    assert protect(folder, OPEN, asked=lambda path: "many voices") == KEYS
    assert public_keys(folder) == before
    policy = roster.load(folder / FILE)
    assert before[:2] == (policy.owner, policy.coordinator.key)


def test_an_owners_key_that_was_taken_offline_is_not_missed(folder: Path) -> None:
    (folder / OWNER_KEY).unlink()
    assert protect(folder, Lock(keyring=MemoryKeyring())) == (COORDINATOR_KEY, TLS_KEY)
    assert not (folder / OWNER_KEY).exists()


def test_who_cannot_open_one_key_changes_none(folder: Path) -> None:
    protect(folder, Lock(passphrase="many voices"))
    before = {name: (folder / name).read_bytes() for name in KEYS}
    with pytest.raises(AuthenticationError):
        protect(folder, OPEN, asked=lambda path: "a guess")
    with pytest.raises(ConfigError, match="does not give back"):
        protect(folder, Lock(keyring=ForgetfulKeyring()), asked=lambda path: "many voices")
    assert {name: (folder / name).read_bytes() for name in KEYS} == before
    with pytest.raises(ConfigError, match="name the folder"):
        protect(folder.parent, OPEN)


def test_the_door_opens_with_a_locked_key_that_never_lies_on_the_disk_in_clear(
    folder: Path, tmp_path: Path
) -> None:
    protect(folder, Lock(passphrase="many voices"))
    kept, password = server_key(folder / TLS_KEY, tmp_path, lambda path: "many voices")
    assert b"ENCRYPTED PRIVATE KEY" in kept.read_bytes() and kept.stat().st_mode & 0o777 == 0o600
    assert server_key(folder / TLS_KEY, tmp_path, lambda path: "many voices")[1] != password
    certificate = tmp_path / "certificate.pem"
    certificate.write_text(roster.load(folder / FILE).coordinator.certificate)
    kept, password = server_key(folder / TLS_KEY, tmp_path, lambda path: "many voices")
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, kept, password)
    with pytest.raises(ssl.SSLError):
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, kept, "another")
    (folder / TLS_KEY).write_bytes(b"-----BEGIN nothing")
    with pytest.raises(ConfigError, match="restore it"):
        read_tls_key(folder / TLS_KEY)


def test_the_verb_locks_the_folder_and_the_owner_still_signs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, "many voices")
    assert cli.main(["federation", "lock", str(folder), "--protect", "passphrase"]) == 0
    assert "owner.key, coordinator.key, tls.key" in capsys.readouterr().out
    change = ["federation", "change", str(folder / FILE), "--rounds", "7"]
    assert cli.main(change) == 0 and roster.load(folder / FILE).recipe.rounds == 7
    monkeypatch.setenv(VARIABLE, "a guess")
    assert (
        cli.main(change) == 1
        and cli.main(["federation", "lock", str(folder), "--protect", "none"]) == 1
    )
    assert b", scrypt\n" in (folder / TLS_KEY).read_bytes()
    monkeypatch.setenv(VARIABLE, "many voices")
    assert cli.main(["federation", "lock", str(folder), "--protect", "none"]) == 0
    assert b"BEGIN PRIVATE KEY" in (folder / TLS_KEY).read_bytes()
