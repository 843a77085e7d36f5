"""Locked node keys: where passphrases come from, and what the verb does."""

import getpass
import logging
import sys
from pathlib import Path

import pytest

from quietchoir import cli
from quietchoir.core.errors import AuthenticationError, ConfigError
from quietchoir.core.retrieval.collections import Collections
from quietchoir.crypto.identity import keyfile
from quietchoir.federation.membership.keys import (
    IDENTITY_FILE,
    TRANSPORT_FILE,
    load_or_create,
    protect,
)
from quietchoir.federation.membership.unlock import VARIABLE, Asked, Lock, choose
from quietchoir.tests.fakes.keyring import KeyringLibrary, MemoryKeyring

FILES = (IDENTITY_FILE, TRANSPORT_FILE)


@pytest.fixture(autouse=True)
def nobody_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable, no terminal; and a passphrase is stretched in a thousandth of the real time."""
    monkeypatch.setattr(keyfile, "SCRYPT_COST", 1 << 6)
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)


def at_a_terminal(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    """A person who answers; returns what they were asked, as it grows."""
    asked: list[str] = []
    pending = iter(answers)

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return next(pending)

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(getpass, "getpass", answer)
    return asked


def identity(home: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = cli.main(["federation", "identity", "--home", str(home), *words])
    said = capsys.readouterr()
    return code, (said.out + said.err).strip()


def test_by_default_nothing_is_locked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert identity(tmp_path, capsys)[0] == 0
    assert b"plain" in (tmp_path / IDENTITY_FILE).read_bytes()
    assert b"BEGIN PRIVATE KEY" in (tmp_path / TRANSPORT_FILE).read_bytes()


def test_protecting_keeps_the_node_who_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = identity(tmp_path, capsys)[1]
    monkeypatch.setenv(VARIABLE, "many voices")
    assert identity(tmp_path, capsys, "--protect", "passphrase") == (0, before)
    for name in FILES:
        assert (
            b", scrypt\n" in (tmp_path / name).read_bytes()
            and b"PRIVATE" not in (tmp_path / name).read_bytes()
        )
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    assert identity(tmp_path, capsys) == (0, before)
    assert identity(tmp_path, capsys, "--protect", "none") == (0, before)
    monkeypatch.delenv(VARIABLE)
    assert identity(tmp_path, capsys) == (0, before)


def test_a_locked_node_without_its_passphrase_says_what_to_do(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    protect(tmp_path, Lock("many voices"))
    code, said = identity(tmp_path, capsys)
    assert code == 2 and VARIABLE in said
    monkeypatch.setenv(VARIABLE, "one voice")
    code, said = identity(tmp_path, capsys)
    assert code == 1 and "wrong passphrase" in said
    assert "voice" not in said + caplog.text


def test_a_new_node_is_locked_before_it_is_written(tmp_path: Path) -> None:
    keys = load_or_create(tmp_path, lock=Lock("many voices"))
    for name in FILES:
        assert b", scrypt\n" in (tmp_path / name).read_bytes()
    with pytest.raises(AuthenticationError):
        load_or_create(tmp_path, asked=lambda path: "one voice")
    assert load_or_create(tmp_path, asked=lambda path: "many voices").card == keys.card


def test_a_person_is_asked_once_for_both_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = protect(tmp_path, Lock("many voices"))
    asked = at_a_terminal(monkeypatch, "many voices")
    assert load_or_create(tmp_path).card == keys.card and len(asked) == 1
    assert "many voices" not in repr(Asked()) + repr(Lock("many voices"))


def test_a_person_changes_the_passphrase_knowing_the_old_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    card = protect(tmp_path, Lock("many voices")).card.text
    at_a_terminal(monkeypatch, "many voices", "more voices", "more voices")
    assert identity(tmp_path, capsys, "--protect", "passphrase") == (0, card)
    assert load_or_create(tmp_path, asked=lambda path: "more voices").card.text == card
    asked = at_a_terminal(monkeypatch, "guess")
    assert identity(tmp_path, capsys, "--protect", "none")[0] == 1 and len(asked) == 1
    assert b", scrypt\n" in (tmp_path / IDENTITY_FILE).read_bytes()


def test_a_passphrase_typed_twice_differently_or_empty_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_a_terminal(monkeypatch, "many voices", "many voice")
    with pytest.raises(ConfigError, match="differ"):
        choose("passphrase", tmp_path / "id.key")
    at_a_terminal(monkeypatch, "", "")
    with pytest.raises(ConfigError, match="protects nothing"):
        choose("passphrase", tmp_path / "id.key")


def test_the_keyring_opens_the_node_without_a_person(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = MemoryKeyring()
    monkeypatch.setitem(sys.modules, "keyring", KeyringLibrary(ring))
    code, card = identity(tmp_path, capsys, "--protect", "keyring")
    assert code == 0 and ring.entries
    assert all(b", keyring\n" in (tmp_path / name).read_bytes() for name in FILES)
    assert identity(tmp_path, capsys) == (0, card)
    ring.entries.clear()
    code, said = identity(tmp_path, capsys)
    assert code == 2 and "no entry" in said


def test_without_a_keyring_nothing_is_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    identity(tmp_path, capsys)
    before = [(tmp_path / name).read_bytes() for name in FILES]
    monkeypatch.setitem(sys.modules, "keyring", None)
    code, said = identity(tmp_path, capsys, "--protect", "keyring")
    assert code == 2 and "quietchoir[keyring]" in said
    assert [(tmp_path / name).read_bytes() for name in FILES] == before


def test_a_wrong_passphrase_of_a_collection_is_asked_for_again_and_a_right_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = at_a_terminal(monkeypatch, "first", "guess", "first")
    made = Collections(tmp_path, passphrase=Asked())
    for name in ("house", "work"):
        made.create(name, locked=True)
    made.close()
    assert len(asked) == 1  # one answer serves both
    own = Collections(tmp_path, passphrase=Asked())
    with pytest.raises(AuthenticationError, match="a wrong passphrase"):
        own.store("house")
    assert own.store("house").locked and own.store("work").locked
    assert len(asked) == 3
    own.close()
