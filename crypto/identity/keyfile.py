"""A private key's file: readable by its owner alone, and locked if its owner wants that.

Knows file modes, scrypt, AES-GCM and the operating system's keyring through one optional library.
Knows nothing of what kind of key it keeps, nor where a passphrase comes from.
Always: a file says itself how it is locked; wrong passphrase and changed file are not told apart;
neither key nor passphrase appears in a message.

    plain      the key                                       whoever reads the file has it
    scrypt     salt, box                                     ... needs the passphrase too
    keyring    name of the keyring's entry, box              ... needs to be logged in as its owner
                                                             on this machine too

Not covered, in any form: a program that runs as the same user, the memory of a running program, and
what of an earlier plain file the disk still holds after it was locked.
"""

import importlib
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from ...core.errors import AuthenticationError, ConfigError
from ...core.paths import write_atomically

SERVICE = "quietchoir"  # under which the keyring keeps our entries
FILE_BYTES = 4096  # no key file is longer
KEY_BYTES, NONCE_BYTES, TAG_BYTES = 32, 12, 16
SALT_BYTES = 16  # a salt, or the name of an entry
# with r=8: 64 MiB and about 0.2 s per guess; PKCS#8's PBKDF2 at 2,048 steps would cost nothing
SCRYPT_COST = 1 << 16
PLAIN, SCRYPT, KEYRING = "plain", "scrypt", "keyring"

Passphrase = Callable[[Path], str]  # asked only for a file that has one


class Keyring(Protocol):
    """Keeps short texts for one user of this machine; the two functions of the `keyring` library
    that are needed.
    """

    def get_password(self, service: str, username: str) -> str | None:
        """The text kept under these names, if any."""

    def set_password(self, service: str, username: str, password: str) -> None:
        """Keep a text under these names."""


class SystemKeyring:
    """The operating system's keyring: Secret Service, KWallet, Keychain or Credential Manager.

    Raises:
        ConfigError (every method): the library is not installed, or the system has no keyring that
        encrypts.
    """

    def __init__(self) -> None:
        try:
            library: Any = importlib.import_module("keyring")
        except ImportError:
            raise ConfigError(
                "the operating system's keyring needs one more package; run: pip install "
                "'quietchoir[keyring]', "
                "or protect the key with a passphrase"
            ) from None
        backend = library.get_keyring()
        # The library's chainer counts itself as strong, whatever it holds, and falls back to weaker
        # ones: so the first alone.
        self._backend: Any = next(iter(getattr(backend, "backends", ())), backend)
        # the library's own line between keyrings and files in clear
        if getattr(self._backend, "priority", 0) < 1:
            found = type(self._backend).__module__.rpartition(".")[2]
            raise ConfigError(
                f"this system offers no keyring that encrypts (found: {found}); use a passphrase"
            )

    def get_password(self, service: str, username: str) -> str | None:
        found: str | None = self._asked(self._backend.get_password, service, username)
        return found

    def set_password(self, service: str, username: str, password: str) -> None:
        self._asked(self._backend.set_password, service, username, password)

    def _asked(self, call: Callable[..., Any], *words: str) -> Any:
        try:
            return call(*words)
        # each back-end raises its own; the words could hold the key, the type cannot
        except Exception as error:
            raise ConfigError(
                f"the keyring refused ({type(error).__name__}); unlock it, or use a passphrase"
            ) from None


def write(
    path: Path,
    kind: str,
    raw: bytes,
    *,
    passphrase: str | None = None,
    keyring: Keyring | None = None,
    replace: bool = False,
) -> None:
    """Write a private key, mode 0600; locked with a passphrase or a keyring if one is given.

    Args:
        kind: what key it is, one word; a file of one kind is not read as another.
        replace: overwrite a file that is there (the same key under another lock).

    Raises:
        ConfigError: a key is there already and is kept; an empty passphrase; a keyring that does
        not keep what it is given. QuietchoirError: the disk is full or not writable; nothing
        half-written stays.

    Source: RFC 7914 (scrypt), NIST SP 800-38D (AES-256-GCM).
    """
    if path.exists() and not replace:
        raise ConfigError(
            f"{path}: there is a key already; it is kept, choose another path or move it away"
        )
    if passphrase is not None and keyring is not None:
        raise ValueError(
            "a key is locked with a passphrase or with a keyring, not with both"
        )  # our bug
    if passphrase is None and keyring is None:
        write_atomically(path, _header(kind, PLAIN) + raw, mode=0o600)
        return
    name = secrets.token_bytes(SALT_BYTES)
    header = _header(kind, SCRYPT if keyring is None else KEYRING) + name
    key = _entrust(keyring, name) if keyring is not None else _stretch(path, passphrase or "", name)
    nonce = secrets.token_bytes(NONCE_BYTES)
    write_atomically(path, header + nonce + AESGCM(key).encrypt(nonce, raw, header), mode=0o600)


def read(
    path: Path,
    kind: str,
    *,
    passphrase: str | Passphrase | None = None,
    keyring: Keyring | None = None,
) -> bytes:
    """The private key that `write` put there.

    Args:
        passphrase: or what to ask for it; asked only if the file is locked with one.
        keyring: instead of the operating system's.

    Raises:
        ConfigError: no such file, others may read it, not a key of this kind, or what opens it is
        not there. AuthenticationError: wrong passphrase or a changed file.
    """
    content = _private(path)
    for lock in (PLAIN, SCRYPT, KEYRING):
        if content.startswith(_header(kind, lock)):
            break
    else:
        raise ConfigError(
            f"{path}: not the {kind} key of a quietchoir node; point at the right "
            f"file or make a new one"
        )
    at = len(_header(kind, lock))
    if lock == PLAIN:
        return content[at:]
    name = content[at : at + SALT_BYTES]
    box = content[at + SALT_BYTES :]
    key = (
        _fetch(path, name, keyring or SystemKeyring())
        if lock == KEYRING
        else _stretch(path, _given(path, passphrase), name)
    )
    try:
        return AESGCM(key).decrypt(box[:NONCE_BYTES], box[NONCE_BYTES:], content[: at + SALT_BYTES])
    except (InvalidTag, ValueError):
        raise AuthenticationError(
            f"{path}: it does not open: a wrong passphrase, or a changed file; try again or "
            f"restore it from a backup"
        ) from None


def _header(kind: str, lock: str) -> bytes:
    return f"quietchoir {kind} 1, {lock}\n".encode()


def _given(path: Path, passphrase: str | Passphrase | None) -> str:
    if passphrase is None:
        raise ConfigError(f"{path}: this key is locked; give its passphrase")
    return passphrase if isinstance(passphrase, str) else passphrase(path)


def _stretch(path: Path, passphrase: str, salt: bytes) -> bytes:
    if not passphrase:
        raise ConfigError(
            f"{path}: an empty passphrase protects nothing; give one, or leave the key unlocked"
        )
    return Scrypt(salt=salt, length=KEY_BYTES, n=SCRYPT_COST, r=8, p=1).derive(passphrase.encode())


def _entrust(keyring: Keyring, name: bytes) -> bytes:
    """A fresh key, kept by the keyring, and read back before anything depends on it."""
    key = secrets.token_bytes(KEY_BYTES)
    keyring.set_password(SERVICE, name.hex(), key.hex())
    if keyring.get_password(SERVICE, name.hex()) != key.hex():
        raise ConfigError(
            "the keyring does not give back what it was given; nothing was written, "
            "use a passphrase"
        )
    return key


def _fetch(path: Path, name: bytes, keyring: Keyring) -> bytes:
    kept = keyring.get_password(SERVICE, name.hex())
    try:
        key = bytes.fromhex(kept or "")
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError(
            f"{path}: this user's keyring has no entry {name.hex()[:8]}… of {SERVICE}; log in as "
            f"who locked it, on that machine"
        )
    return key


def _private(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if os.name == "posix" and mode & 0o077:
                raise ConfigError(
                    f"{path}: mode {mode:04o} lets others read this private key; "
                    f"run: chmod 600 {path}"
                )
            return file.read(FILE_BYTES)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot read the private key ({error.strerror}); create one or check the path"
        ) from error
