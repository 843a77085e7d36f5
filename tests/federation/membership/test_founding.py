"""Keys that are locked as they are written: nothing that would open without the passphrase ever
reaches the disk.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from quietchoir import cli
from quietchoir.core import paths
from quietchoir.core.errors import AuthenticationError, ConfigError
from quietchoir.crypto.identity import keyfile
from quietchoir.crypto.identity.keys import Identity
from quietchoir.federation.membership import founding, locking, ownership, roster, unlock
from quietchoir.federation.membership.founding import (
    COORDINATOR_KEY,
    FILE,
    OWNER_KEY,
    TLS_KEY,
    Founding,
)
from quietchoir.federation.membership.locking import read_tls_key
from quietchoir.federation.membership.unlock import VARIABLE, Lock
from quietchoir.federation.spec.policy import AdapterTable, ModelTable, ProtectionTable, Recipe
from quietchoir.tests.fakes.federation import DIGEST
from quietchoir.tests.fakes.keyring import ForgetfulKeyring, MemoryKeyring

KEYS = (OWNER_KEY, COORDINATOR_KEY, TLS_KEY)
INIT = ("--name", "choir", "--model-digest", DIGEST)
WORDS = "many voices, none heard alone"


@pytest.fixture(autouse=True)
def cheap_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyfile, "SCRYPT_COST", 1 << 6)
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, bytes]]]:
    """Everything that was written anywhere, in order: the one function that all key files go
    through.
    """
    seen: list[tuple[str, bytes]] = []
    original = paths.write_atomically

    def note(path: Path, content: bytes, mode: int | None = None) -> None:
        seen.append((path.name, content))
        if mode is None:
            original(path, content)
        else:
            original(path, content, mode=mode)

    for module in (paths, keyfile, locking):
        monkeypatch.setattr(module, "write_atomically", note)
    yield seen
    assert {name for name, _ in seen} & {FILE, *KEYS, *(name + ".next" for name in KEYS)}, (
        "the spy sees nothing"
    )


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = cli.main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out + said.err


def in_clear(written: list[tuple[str, bytes]]) -> list[str]:
    """Names of files that hold a private key without a lock."""
    return [
        name for name, content in written if b", plain\n" in content or b"PRIVATE KEY" in content
    ]


def opens(folder: Path, words: str) -> None:
    """All three keys open with these words, with no others, and are those of the signed file."""
    policy = roster.load(folder / FILE)
    assert Identity.load(folder / OWNER_KEY, words).public.raw.hex() == policy.owner
    assert Identity.load(folder / COORDINATOR_KEY, words).public.raw.hex() == policy.coordinator.key
    door = ownership.public_bytes(read_tls_key(folder / TLS_KEY, lambda path: words).public_key())
    assert door == ownership.certificate_public(policy.coordinator.certificate)
    for name in KEYS:
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    with pytest.raises(AuthenticationError):
        Identity.load(folder / OWNER_KEY, "others")


def test_init_locks_all_three_keys_as_it_writes_them(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    written: list[tuple[str, bytes]],
) -> None:
    monkeypatch.setenv(VARIABLE, WORDS)
    code, said = run(capsys, "federation", "init", tmp_path / "f", *INIT, "--protect", "passphrase")
    assert code == 0 and WORDS not in said
    assert in_clear(written) == [] and {name for name, _ in written} >= set(KEYS)
    opens(tmp_path / "f", WORDS)
    # the owner's key signs
    assert run(capsys, "federation", "change", tmp_path / "f" / FILE, "--rounds", "3")[0] == 0
    code, _ = run(capsys, "federation", "init", tmp_path / "g", *INIT)
    assert code == 0 and in_clear(written) == list(KEYS)  # and without the flag as ever


def test_ctrl_c_while_keys_are_written_leaves_none_and_what_was_there_stays(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(founding, "write_tls_key", interrupted)
        code, said = run(capsys, "federation", "init", tmp_path / "f", *INIT)
    assert code == cli.INTERRUPTED and "nothing is left half-written" in said
    assert not list((tmp_path / "f").iterdir())
    assert run(capsys, "federation", "init", tmp_path / "f", *INIT)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "f").iterdir()}
    assert run(capsys, "federation", "init", tmp_path / "f", *INIT)[0] != 0
    assert {path: path.read_bytes() for path in (tmp_path / "f").iterdir()} == before


@pytest.mark.parametrize("what", ["--owner", "--coordinator", "--certificate"])
def test_rotate_locks_the_new_key_as_it_writes_it(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    written: list[tuple[str, bytes]],
    what: str,
) -> None:
    file = tmp_path / "f" / FILE
    assert run(capsys, "federation", "init", tmp_path / "f", *INIT)[0] == 0
    before = {name: (tmp_path / "f" / name).read_bytes() for name in KEYS}
    written.clear()
    monkeypatch.setenv(VARIABLE, WORDS)
    code, said = run(capsys, "federation", "rotate", file, what, "--protect", "passphrase")
    assert code == 0, said
    assert in_clear(written) == []
    changed = {name for name in KEYS if (tmp_path / "f" / name).read_bytes() != before[name]}
    assert changed == {
        {"--owner": OWNER_KEY, "--coordinator": COORDINATOR_KEY, "--certificate": TLS_KEY}[what]
    }
    assert b", scrypt\n" in (tmp_path / "f" / next(iter(changed))).read_bytes()
    assert not list((tmp_path / "f").glob("*.next"))
    # locked as the one before it, unasked
    assert run(capsys, "federation", "rotate", file, what)[0] == 0
    assert in_clear(written) == []


def test_one_passphrase_opens_everything_that_a_rotation_needs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "f"
    monkeypatch.setenv(VARIABLE, WORDS)
    assert run(capsys, "federation", "init", folder, *INIT, "--protect", "passphrase")[0] == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setenv(VARIABLE, "mistyped")
    for what in ("--owner", "--coordinator", "--certificate"):
        code, said = run(
            capsys, "federation", "rotate", folder / FILE, what, "--protect", "passphrase"
        )
        assert code != 0 and "does not open" in said and "mistyped" not in said
        # nothing is left under a wrong passphrase
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    monkeypatch.setenv(VARIABLE, WORDS)
    for what in ("--owner", "--coordinator", "--certificate"):
        assert (
            run(capsys, "federation", "rotate", folder / FILE, what, "--protect", "passphrase")[0]
            == 0
        )
    opens(folder, WORDS)
    code, said = run(
        capsys, "federation", "rotate", folder / FILE, "--member", "ann", "--protect", "passphrase"
    )
    assert code == 2 and "on its own node" in said


def test_a_rotation_that_was_killed_is_finished_with_the_same_passphrase(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "f"
    monkeypatch.setenv(VARIABLE, WORDS)
    assert run(capsys, "federation", "init", folder, *INIT, "--protect", "passphrase")[0] == 0
    with monkeypatch.context() as killed:
        killed.setattr(
            ownership, "settle", lambda *given: None
        )  # a kill between the file and the key
        ownership.rotate_coordinator(folder / FILE, folder / OWNER_KEY, folder, "passphrase")
    assert (folder / (COORDINATOR_KEY + ".next")).exists()
    ownership.settle(folder, roster.load(folder / FILE))
    opens(folder, WORDS)


def founding_of() -> Founding:
    return Founding(
        name="choir",
        address="127.0.0.1:8790",
        model=ModelTable(digest=DIGEST),
        adapter=AdapterTable(),
        protection=ProtectionTable(),
        recipe=Recipe(),
    )


def test_a_keyring_keeps_what_opens_the_keys_from_the_first_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: list[tuple[str, bytes]]
) -> None:
    keyring = MemoryKeyring()
    monkeypatch.setattr(keyfile, "SystemKeyring", lambda: keyring)
    monkeypatch.setattr(unlock, "SystemKeyring", lambda: keyring)
    folder = tmp_path / "f"
    founding.create_federation(folder, founding_of(), unlock.choose("keyring", folder))
    ownership.rotate_coordinator(folder / FILE, folder / OWNER_KEY, folder, "keyring")
    policy = ownership.rotate_certificate(folder / FILE, folder / OWNER_KEY, folder)
    assert in_clear(written) == []
    assert Identity.load(folder / COORDINATOR_KEY).public.raw.hex() == policy.coordinator.key
    assert all(b", keyring\n" in (folder / name).read_bytes() for name in KEYS)


def test_a_keyring_that_forgets_leaves_no_federation_behind(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    with pytest.raises(ConfigError, match="does not give back"):
        founding.create_federation(folder, founding_of(), Lock(keyring=ForgetfulKeyring()))
    assert not folder.exists() or not list(folder.iterdir())


def test_nobody_to_ask_means_no_keys(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, said = run(capsys, "federation", "init", tmp_path / "f", *INIT, "--protect", "passphrase")
    assert code == 2 and VARIABLE in said and not (tmp_path / "f").exists()
