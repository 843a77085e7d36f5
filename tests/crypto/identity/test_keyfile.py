"""Key files: plain, locked with a passphrase, locked with a keyring."""

import secrets
import sys
import traceback
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from quietchoir.core.errors import AuthenticationError, ConfigError
from quietchoir.crypto.identity import keyfile
from quietchoir.crypto.identity.keyfile import SystemKeyring, read, write
from quietchoir.crypto.identity.keys import Identity
from quietchoir.tests.fakes.keyring import (
    BrokenKeyring,
    ForgetfulKeyring,
    KeyringLibrary,
    MemoryKeyring,
)

RAW = secrets.token_bytes(32)
REAL_COST = keyfile.SCRYPT_COST


@pytest.fixture(autouse=True)
def passphrases_are_cheap_to_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousandth of the time; `test_keys` and the first test below pay the real price."""
    monkeypatch.setattr(keyfile, "SCRYPT_COST", 1 << 6)


def private(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def test_files_written_before_there_was_a_keyring_still_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyfile, "SCRYPT_COST", REAL_COST)
    salt, nonce = bytes(range(16)), bytes(12)
    header = b"quietchoir identity 1, scrypt\n" + salt
    key = Scrypt(salt=salt, length=32, n=1 << 16, r=8, p=1).derive(b"many voices")
    locked = private(tmp_path / "locked", header + nonce + AESGCM(key).encrypt(nonce, RAW, header))
    plain = private(tmp_path / "plain", b"quietchoir identity 1, plain\n" + RAW)
    assert Identity.load(locked, "many voices").public == Identity.load(plain).public


def test_a_key_in_the_keyring_opens_there_and_nowhere_else(tmp_path: Path) -> None:
    mine, path, identity = MemoryKeyring(), tmp_path / "id.key", Identity.generate()
    identity.save(path, keyring=mine)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Identity.load(path, keyring=mine).public == identity.public
    ((service, _), kept), content = next(iter(mine.entries.items())), path.read_bytes()
    assert service == "quietchoir" and bytes.fromhex(kept) not in content
    assert identity._private.private_bytes_raw() not in content
    with pytest.raises(ConfigError, match="no entry"):
        Identity.load(path, keyring=MemoryKeyring())
    other = MemoryKeyring()
    other.entries = dict.fromkeys(mine.entries, secrets.token_bytes(32).hex())
    with pytest.raises(AuthenticationError, match="does not open"):
        Identity.load(path, keyring=other)
    other.entries = dict.fromkeys(mine.entries, "no hex")
    with pytest.raises(ConfigError, match="no entry"):
        Identity.load(path, keyring=other)


def test_two_files_have_two_entries(tmp_path: Path) -> None:
    ring = MemoryKeyring()
    write(tmp_path / "a", "identity", RAW, keyring=ring)
    write(tmp_path / "b", "identity", RAW, keyring=ring)
    assert len(ring.entries) == 2 and read(tmp_path / "a", "identity", keyring=ring) == RAW


def test_nothing_is_written_when_the_keyring_keeps_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give back"):
        write(tmp_path / "a", "identity", RAW, keyring=ForgetfulKeyring())
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("change", ["last byte", "salt", "header", "short"])
def test_a_changed_file_never_opens(tmp_path: Path, change: str) -> None:
    write(tmp_path / "a", "identity", RAW, passphrase="many voices")
    content = bytearray((tmp_path / "a").read_bytes())
    if change == "short":
        content = content[: len(b"quietchoir identity 1, scrypt\n") + 20]
    else:
        content[{"last byte": -1, "salt": 32, "header": 18}[change]] ^= 1
    private(tmp_path / "b", bytes(content))
    with pytest.raises((AuthenticationError, ConfigError)):
        read(tmp_path / "b", "identity", passphrase="many voices")


def test_a_key_of_one_kind_is_not_read_as_another(tmp_path: Path) -> None:
    write(tmp_path / "a", "identity", RAW, passphrase="many voices")
    with pytest.raises(ConfigError, match="transport key"):
        read(tmp_path / "a", "transport", passphrase="many voices")


def test_a_passphrase_is_asked_for_only_if_the_file_has_one(tmp_path: Path) -> None:
    asked: list[Path] = []

    def ask(path: Path) -> str:
        asked.append(path)
        return "many voices"

    write(tmp_path / "plain", "identity", RAW)
    write(tmp_path / "locked", "identity", RAW, passphrase="many voices")
    assert read(tmp_path / "plain", "identity", passphrase=ask) == RAW and asked == []
    assert read(tmp_path / "locked", "identity", passphrase=ask) == RAW and asked == [
        tmp_path / "locked"
    ]
    with pytest.raises(ConfigError, match="empty"):
        write(tmp_path / "none", "identity", RAW, passphrase="")
    assert not (tmp_path / "none").exists()


def test_a_lock_is_changed_only_when_asked_to(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write(path, "identity", RAW)
    with pytest.raises(ConfigError, match="kept"):
        write(path, "identity", RAW, passphrase="many voices")
    assert read(path, "identity") == RAW
    write(path, "identity", RAW, passphrase="many voices", replace=True)
    assert RAW not in path.read_bytes() and read(path, "identity", passphrase="many voices") == RAW


def test_neither_key_nor_passphrase_is_in_any_exception(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = BrokenKeyring()
    monkeypatch.setitem(sys.modules, "keyring", KeyringLibrary(ring))
    write(tmp_path / "locked", "identity", RAW, passphrase="many voices")
    ring.entries["quietchoir", "x"] = RAW.hex()
    private(tmp_path / "kept", b"quietchoir identity 1, keyring\n" + bytes(16) + bytes(60))
    for attempt in (
        lambda: read(tmp_path / "locked", "identity", passphrase="one voice"),
        lambda: read(tmp_path / "locked", "identity"),
        lambda: read(tmp_path / "kept", "identity"),
        lambda: write(tmp_path / "new", "identity", RAW, keyring=SystemKeyring()),
    ):
        with pytest.raises((AuthenticationError, ConfigError)) as caught:
            attempt()
        said = "".join(traceback.format_exception_only(caught.value)) + repr(caught.value.__cause__)
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
        assert not any(word in said for word in ("voice", RAW.hex(), repr(RAW)))


def test_without_the_library_or_a_keyring_that_encrypts_the_owner_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(ConfigError, match=r"quietchoir\[keyring\]"):
        SystemKeyring()
    plaintext = MemoryKeyring()
    plaintext.priority = 0
    monkeypatch.setitem(sys.modules, "keyring", KeyringLibrary(plaintext))
    with pytest.raises(ConfigError, match="encrypts"):
        SystemKeyring()


def test_the_systems_keyring_is_found_by_a_file_that_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "keyring", KeyringLibrary(MemoryKeyring()))
    write(tmp_path / "a", "identity", RAW, keyring=SystemKeyring())
    assert read(tmp_path / "a", "identity") == RAW


def test_a_key_has_one_lock(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not with both"):
        keyfile.write(tmp_path / "a", "identity", RAW, passphrase="x", keyring=MemoryKeyring())
