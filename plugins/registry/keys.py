"""Ed25519 keys of a registry's roles, authors, reviewers and vendors, and the statements they sign.

Knows key files (scrypt behind a passphrase) and the canonical form of JSON. Knows nothing of what
is said.
Always: a statement of one kind is never taken for one of another; private bytes appear in no
message.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from securesystemslib.exceptions import FormatError, UnverifiedSignatureError
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner, Key, Signature, SSlibKey

from ...core.errors import ConfigError, RegistryError
from ...crypto.identity import keyfile
from ..manifest import DIGEST

KIND = "registry"  # what the key file calls itself
KEY_BYTES = 32


def make(path: Path, passphrase: str | None) -> CryptoSigner:
    """A new key in a new file, mode 0600. Raises: ConfigError: something lies there already."""
    private = Ed25519PrivateKey.generate()
    keyfile.write(path, KIND, private.private_bytes_raw(), passphrase=passphrase)
    return CryptoSigner(private)


def load(path: Path, passphrase: str | keyfile.Passphrase | None = None) -> CryptoSigner:
    """The key that `make` wrote.

    Raises:
        ConfigError: no such file, others may read it, or it is no such key.
        AuthenticationError: a wrong passphrase or a changed file.
    """
    raw = keyfile.read(path, KIND, passphrase=passphrase)
    if len(raw) != KEY_BYTES:
        raise ConfigError(f"{path}: the key has {len(raw)} bytes, {KEY_BYTES} expected")
    return CryptoSigner(Ed25519PrivateKey.from_private_bytes(raw))


def public(written: str) -> Key:
    """A public key as people write it: 64 hexadecimal digits. Raises: ConfigError: it is none."""
    try:
        if not DIGEST.fullmatch(written):  # one key is written in one way
            raise ValueError
        return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(bytes.fromhex(written)))
    except ValueError:
        raise ConfigError(
            f"{written[:80]!r} is no public key; expected the {2 * KEY_BYTES} hexadecimal digits "
            f"that `plugin registry key` prints"
        ) from None


def shown(key: Key) -> str:
    """A public key's 64 hexadecimal digits."""
    return str(key.keyval["public"])


def canonical(value: Any) -> bytes:
    """The one form of a JSON value that is signed and hashed.

    Raises:
        RegistryError: numbers with fractions or half characters in it.
    Source: OLPC's canonical JSON, as TUF uses it.
    """
    try:
        return (encode_canonical(value) or "").encode()
    except (FormatError, UnicodeEncodeError, RecursionError) as error:
        raise RegistryError(f"what is to be signed cannot be written down ({error})") from None


def signed(signer: CryptoSigner, kind: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """A statement with its signer's key and signature.

    Args:
        kind: what sort of statement it is; one of another kind does not verify.
    """
    whole = {**said, "key": shown(signer.public_key)}
    return {**whole, "signature": signer.sign(framed(kind, whole)).signature}


def signer_of(kind: str, statement: Mapping[str, Any]) -> str:
    """Whose statement it is: the public key, as `shown`.

    Raises:
        RegistryError: unsigned, of another kind, or changed; which of them is not told.
    """
    whole = {name: value for name, value in statement.items() if name != "signature"}
    try:
        key = public(str(whole.get("key")))
        signature = Signature(key.keyid, str(statement.get("signature")))
        key.verify_signature(signature, framed(kind, whole))
    except (ConfigError, UnverifiedSignatureError, ValueError):
        raise RegistryError(f"a {kind} whose signature does not fit; it is refused") from None
    return shown(key)


def framed(kind: str, whole: Mapping[str, Any]) -> bytes:
    """What is signed: no kind's bytes begin like another's."""
    return f"quietchoir {kind} 1\n".encode() + canonical(whole)
