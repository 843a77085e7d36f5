"""Who this node is: one key that signs, and one that opens the transport.

Knows two files in the node's home. Knows nothing of federations.
Always: both keys are made here and never leave; only the public card does.
"""

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ..core import paths
from ..core.errors import ConfigError
from ..crypto.keys import Identity

IDENTITY_FILE = "identity.key"
TRANSPORT_FILE = "transport.key"
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


def load_or_create(home: Path | None = None) -> NodeKeys:
    """Keys of the node that lives in `home`, made on first use with mode 0600.

    Raises:
        ConfigError: a key file that cannot be read.
    """
    folder = paths.private_folder(home or paths.home())
    signing, transport = folder / IDENTITY_FILE, folder / TRANSPORT_FILE
    if not signing.exists():
        Identity.generate().save(signing)
    if not transport.exists():
        write_private_pem(transport, ec.generate_private_key(ec.SECP384R1()))
    return NodeKeys(Identity.load(signing), read_transport_key(transport))


def read_transport_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Load a P-384 private key from PEM.

    Raises:
        ConfigError: missing, unreadable or of another kind.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a private key ({error}); restore it from your copy") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ConfigError(f"{path}: not a P-384 key; restore it from your copy")
    return key


def write_private_pem(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Write a private key, readable by its owner alone."""
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    paths.write_atomically(path, pem, mode=0o600)
