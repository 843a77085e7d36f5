"""Who signs, who agrees on a secret, and how one message is sealed for one reader.

Knows Ed25519, X25519, HKDF and AES-GCM, all from the `cryptography` package. Knows nothing of
rounds or federations.
Always: private bytes appear in no repr, no log, no exception; a context is built from
length-prefixed fields, so that no two different contexts have the same bytes.
"""

import hashlib
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ...core.errors import AuthenticationError, ConfigError
from .. import shared
from . import keyfile

KEY_BYTES = 32
SIGNATURE_BYTES = 64
NONCE_BYTES = 12
TAG_BYTES = 16
BOX_OVERHEAD = NONCE_BYTES + TAG_BYTES  # a sealed box is this much longer than what it holds

FILE_KIND = "identity"  # what its file calls itself


def bind(*fields: bytes | str | int) -> bytes:
    """Join fields so that no two different lists give the same bytes.

    Args:
        fields: bytes, text, or non-negative numbers below 2**64; each is written as type, length (8
        bytes), content.
    """
    out = bytearray()
    for field in fields:
        if isinstance(field, int):
            kind, body = b"i", field.to_bytes(8, "big")
        elif isinstance(field, str):
            kind, body = b"s", field.encode()
        else:
            kind, body = b"b", field
        out += kind + len(body).to_bytes(8, "big") + body
    return bytes(out)


def digest(*fields: bytes | str | int) -> bytes:
    """SHA-256 over `bind(*fields)`, 32 bytes."""
    return hashlib.sha256(bind(*fields)).digest()


def hkdf(secret: bytes, context: bytes, size: int = KEY_BYTES) -> bytes:
    """Derive `size` bytes that are independent of those for any other context.

    Args:
        secret: uniform or nearly so (a Diffie-Hellman result is fine; a passphrase is not).
        context: built by `bind`, so that two purposes never share a key.

    Source: RFC 5869 with SHA-256 and no salt.
    """
    return HKDF(hashes.SHA256(), size, None, context).derive(secret)


def seal_box(key: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """Encrypt for whoever holds `key`: nonce (12 bytes), ciphertext, tag (16 bytes).

    Args:
        key: 32 bytes.
        associated: what the reader must know already (federation, round, sender, receiver); it is
        authenticated, not sent.

    Hazard: random nonces; with one key seal far fewer than 2**32 boxes (here a key lives for one
    attempt or one epoch).
    Source: NIST SP 800-38D (AES-256-GCM).
    """
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, associated)


def open_box(key: bytes, box: bytes, associated: bytes) -> bytes:
    """Decrypt a sealed box.

    Raises:
        AuthenticationError: wrong key, wrong associated data or a changed box; which of them is not
        told.
    """
    if len(box) < BOX_OVERHEAD:
        raise AuthenticationError(
            f"a sealed box has {len(box)} bytes, at least {BOX_OVERHEAD} expected; ask for it again"
        )
    try:
        return AESGCM(key).decrypt(box[:NONCE_BYTES], box[NONCE_BYTES:], associated)
    except InvalidTag:
        raise AuthenticationError(
            "a sealed box did not open; it is refused, ask its sender again"
        ) from None


@dataclass(frozen=True, slots=True)
class PublicIdentity:
    """A party's long-term Ed25519 public key, as the roster lists it."""

    raw: bytes  # 32 bytes

    def __post_init__(self) -> None:
        if len(self.raw) != KEY_BYTES:
            raise AuthenticationError(
                f"a public key has {len(self.raw)} bytes, {KEY_BYTES} expected; check the roster"
            )

    def __bytes__(self) -> bytes:
        return self.raw

    @property
    def fingerprint(self) -> str:
        """64 hex characters for people to compare."""
        return hashlib.sha256(self.raw).hexdigest()

    def verify(self, context: bytes, message: bytes, signature: bytes) -> None:
        """Accept a signature over exactly this context and message, or raise.

        Raises:
            AuthenticationError: wrong key, context, message or signature; which of them is not
            told.
        """
        whole = _signed(context, message)
        if shared.known(self.raw, whole, signature):
            return
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, whole)
        except (InvalidSignature, ValueError):
            raise AuthenticationError(
                f"signature of {self.fingerprint[:16]} does not fit; the message is refused"
            ) from None
        shared.signed(self.raw, whole, signature)


class Identity:
    """A party's long-term Ed25519 key.

    Hazard: whoever reads the file is this party. `save` writes mode 0600; give a passphrase or a
    keyring where others read the disk or its backups. Not covered: the memory of a running program,
    which Python cannot wipe.
    """

    __slots__ = ("_private", "public")

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = PublicIdentity(private.public_key().public_bytes_raw())

    @classmethod
    def generate(cls) -> Self:
        """A new identity from the operating system's generator."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(
        cls,
        path: Path,
        passphrase: str | keyfile.Passphrase | None = None,
        *,
        keyring: keyfile.Keyring | None = None,
    ) -> Self:
        """Read an identity written by `save`.

        Args:
            passphrase: or what to ask for it; asked only if the file is locked with one.
            keyring: instead of the operating system's, for a file that is locked with one.

        Raises:
            ConfigError: no such file, others may read it, not an identity, or what opens it is not
            there. AuthenticationError: wrong passphrase or a changed file.
        """
        raw = keyfile.read(path, FILE_KIND, passphrase=passphrase, keyring=keyring)
        if len(raw) != KEY_BYTES:
            raise ConfigError(
                f"{path}: the key has {len(raw)} bytes, {KEY_BYTES} expected; "
                f"restore it from a backup"
            )
        return cls(Ed25519PrivateKey.from_private_bytes(raw))

    def save(
        self,
        path: Path,
        passphrase: str | None = None,
        *,
        keyring: keyfile.Keyring | None = None,
        replace: bool = False,
    ) -> None:
        """Write the private key, readable by its owner alone (mode 0600); locked if a passphrase or
        a keyring is given.

        Args:
            replace: overwrite the file that is there, to put the same identity under another lock.

        Raises:
            ConfigError: another identity is there already; it is kept, because a lost identity
                cannot be made again. Or an empty passphrase, or a keyring that does not keep what
                it is given.
            QuietchoirError: the disk is full or not writable; nothing half-written stays.
        """
        raw = self._private.private_bytes_raw()
        keyfile.write(path, FILE_KIND, raw, passphrase=passphrase, keyring=keyring, replace=replace)

    def sign(self, context: bytes, message: bytes) -> bytes:
        """64 bytes that fit this context and message only.

        Args:
            context: what the signature is for (protocol, federation, round), built by `bind`.
        """
        whole = _signed(context, message)
        signature = self._private.sign(whole)
        shared.signed(self.public.raw, whole, signature)
        return signature

    def __repr__(self) -> str:
        return f"Identity({self.public.fingerprint[:16]})"

    def __reduce__(self) -> str:
        raise TypeError("an identity is not pickled; save it to a file with mode 0600 instead")


class Ephemeral:
    """An X25519 key pair that lives for one attempt of one round.

    Hazard: `private_bytes` exists because the key is shared among the members (Shamir), and for
    `secagg.snapshot`; never write it anywhere else.
    """

    __slots__ = ("_private", "public")

    def __init__(self, private: bytes) -> None:
        """Take 32 private bytes; X25519 clamps them, so every value is a key."""
        self._private = X25519PrivateKey.from_private_bytes(private)
        self.public = self._private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> Self:
        """A new pair from the operating system's generator."""
        return cls(secrets.token_bytes(KEY_BYTES))

    def agree(self, peer: bytes, context: bytes) -> bytes:
        """The 32-byte key that the holder of `peer` also derives for the same context.

        Raises:
            AuthenticationError: `peer` is not a public key that can give a shared secret.

        Source: RFC 7748, section 6.1 (the all-zero result is refused), then HKDF.
        """
        try:
            return hkdf(self._private.exchange(X25519PublicKey.from_public_bytes(peer)), context)
        except ValueError:
            raise AuthenticationError(
                "a peer's X25519 key gives no shared secret; its message is refused"
            ) from None

    def private_bytes(self) -> bytes:
        """The 32 private bytes, for Shamir sharing and for `secagg.snapshot` only."""
        return self._private.private_bytes_raw()

    def __repr__(self) -> str:
        return f"Ephemeral(public {self.public.hex()[:16]})"

    def __reduce__(self) -> str:
        raise TypeError("an ephemeral key is not pickled; a retry makes a new one")


def _signed(context: bytes, message: bytes) -> bytes:
    return bind("quietchoir signature 1", context, message)
