"""Who this node is: one key that signs, and one that opens the transport.

Knows two files in the node's home, and how they are locked. Knows nothing of federations.
Always: both keys are made here and never leave; only the public card does.
"""

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ...core import paths
from ...core.errors import ConfigError
from ...crypto import keyfile
from ...crypto.keys import Identity
from .unlock import OPEN, Asked, Lock

IDENTITY_FILE = "identity.key"
TRANSPORT_FILE = "transport.key"
TRANSPORT_KIND = "transport"  # what a locked transport key calls itself; an unlocked one is PEM
KEY_HEX = 64  # Ed25519 public key, 32 bytes
TRANSPORT_HEX = 98  # P-384 public key, compressed, 49 bytes: the only kind that Flower's door accepts


@dataclass(frozen=True, slots=True)
class PublicCard:
    """What a node hands to the federation's owner."""

    key: str  # Ed25519, hex
    transport: str  # P-384 compressed point, hex

    @property
    def text(self) -> str:
        """One line: both keys."""
        return self.key + self.transport

    @staticmethod
    def parse(text: str) -> "PublicCard":
        """Read a card from its one line.

        Raises:
            ConfigError: not the line that `quietchoir federation identity` prints.
        """
        line = text.strip().lower()
        if len(line) != KEY_HEX + TRANSPORT_HEX or set(line) - set("0123456789abcdef"):
            raise ConfigError(
                f"the public card has {len(line)} characters, expected {KEY_HEX + TRANSPORT_HEX} hexadecimal digits; "
                "copy the whole line that `quietchoir federation identity` prints on the node"
            )
        transport_point(line[KEY_HEX:])
        return PublicCard(line[:KEY_HEX], line[KEY_HEX:])


@dataclass(frozen=True, slots=True)
class NodeKeys:
    """Both private keys of one node."""

    identity: Identity
    transport: ec.EllipticCurvePrivateKey

    @property
    def card(self) -> PublicCard:
        """The public halves."""
        point = self.transport.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint
        )
        return PublicCard(self.identity.public.raw.hex(), point.hex())


def transport_point(text: str) -> ec.EllipticCurvePublicKey:
    """Read a P-384 public key from its compressed point.

    Raises:
        ConfigError: not a point of the curve.
    """
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), bytes.fromhex(text))
    except ValueError:
        raise ConfigError(
            f"transport key {text[:12]}… is no P-384 point; ask its node for `federation identity` again"
        ) from None


def load_or_create(home: Path | None = None, *, lock: Lock = OPEN, asked: keyfile.Passphrase | None = None) -> NodeKeys:
    """Keys of the node that lives in `home`, made on first use with mode 0600.

    Args:
        lock: of files that are made now; those that are there stay as they are.
        asked: for the passphrase of locked files; by default the environment or a person.

    Raises:
        ConfigError: a key file that cannot be read, or nothing that opens it.
        AuthenticationError: a wrong passphrase.
    """
    folder, asked = paths.private_folder(home or paths.home()), asked or Asked()
    signing, transport = folder / IDENTITY_FILE, folder / TRANSPORT_FILE
    if signing.exists():
        identity = Identity.load(signing, asked)
    else:
        identity = Identity.generate()
        identity.save(signing, lock.passphrase, keyring=lock.keyring)
    if transport.exists():
        key = read_transport_key(transport, asked)
    else:
        key = ec.generate_private_key(ec.SECP384R1())
        write_transport_key(transport, key, lock)
    return NodeKeys(identity, key)


def protect(home: Path, lock: Lock, *, asked: keyfile.Passphrase | None = None) -> NodeKeys:
    """Put both keys of a node under another lock. Each file says itself how it is locked, so half-way is no harm.

    Hazard: a disk may still hold what an unlocked file held before; keys that were ever copied in clear are better made anew.

    Raises:
        ConfigError, AuthenticationError: as `load_or_create`.
    """
    keys = load_or_create(home, lock=lock, asked=asked)  # keys made now are never on the disk in clear
    keys.identity.save(home / IDENTITY_FILE, lock.passphrase, keyring=lock.keyring, replace=True)
    write_transport_key(home / TRANSPORT_FILE, keys.transport, lock)
    return keys


def read_transport_key(path: Path, asked: keyfile.Passphrase | None = None) -> ec.EllipticCurvePrivateKey:
    """Load a P-384 private key: PEM, or a locked key file.

    Raises:
        ConfigError: missing, unreadable, of another kind, or nothing that opens it.
        AuthenticationError: a wrong passphrase.
    """
    try:
        content = path.read_bytes()
        if not content.startswith(b"-----BEGIN"):
            content = keyfile.read(path, TRANSPORT_KIND, passphrase=asked or Asked())
        key = serialization.load_pem_private_key(content, None)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a private key ({error}); restore it from your copy") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ConfigError(f"{path}: not a P-384 key; restore it from your copy")
    return key


def write_transport_key(path: Path, key: ec.EllipticCurvePrivateKey, lock: Lock) -> None:
    """PEM if the lock is open, a locked key file if not; over what is there."""
    if lock == OPEN:
        write_private_pem(path, key)
    else:
        keyfile.write(path, TRANSPORT_KIND, _pem(key), passphrase=lock.passphrase, keyring=lock.keyring, replace=True)


def write_private_pem(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Write a private key, readable by its owner alone."""
    paths.write_atomically(path, _pem(key), mode=0o600)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
