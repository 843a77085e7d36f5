"""Who this node is: one key that signs, and one that opens the transport.

Knows two files in the node's home, and how they are locked. Knows nothing of federations.
Always: both keys are made here and never leave; only the public card does, and each of them has
signed the other on it.
"""

from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from ...core import paths
from ...core.errors import AuthenticationError, ConfigError
from ...crypto.identity import keyfile
from ...crypto.identity.keys import SIGNATURE_BYTES, Identity, PublicIdentity, bind
from .unlock import OPEN, Asked, Lock

IDENTITY_FILE = "identity.key"
TRANSPORT_FILE = "transport.key"
RESTORED_FILE = "identity.restored"  # beside keys that came out of a backup
TRANSPORT_KIND = "transport"  # what a locked transport key calls itself; an unlocked one is PEM
KEY_HEX = 64  # Ed25519 public key, 32 bytes
# P-384 public key, compressed, 49 bytes: the only kind that Flower's door accepts
TRANSPORT_HEX = 98
POINT_BYTES = 48  # a number of P-384
PROOF_HEX = 2 * (SIGNATURE_BYTES + 2 * POINT_BYTES)
CARD = b"quietchoir public card v1"


@dataclass(frozen=True, slots=True)
class PublicCard:
    """What a node hands to the federation's owner. A card that was parsed came from whoever holds
    both keys.

    Without that, anybody could have a stranger's public key enrolled under a name of their own: the
    stranger would then be refused as enrolled already, or its calls be taken for somebody else's.
    """

    key: str  # Ed25519, hex
    transport: str  # P-384 compressed point, hex
    # hex: the key's signature over the transport key, and that one's over the key
    proof: str = field(repr=False)

    @property
    def text(self) -> str:
        """One line: both keys, and what proves them."""
        return self.key + self.transport + self.proof

    @staticmethod
    def parse(text: str) -> "PublicCard":
        """Read a card from its one line.

        Raises:
            ConfigError: not the line that `quietchoir federation identity` prints, or not of who
            holds the keys.
        """
        line = text.strip().lower()
        if len(line) != KEY_HEX + TRANSPORT_HEX + PROOF_HEX or set(line) - set("0123456789abcdef"):
            old = (
                (" (a card of an earlier version proves nothing)")
                if len(line) == KEY_HEX + TRANSPORT_HEX
                else ""
            )
            raise ConfigError(
                f"the public card has {len(line)} characters, expected "
                f"{KEY_HEX + TRANSPORT_HEX + PROOF_HEX} hexadecimal "
                f"digits{old}; copy the whole line that `quietchoir federation identity` prints on "
                f"the node"
            )
        card = PublicCard(
            line[:KEY_HEX], line[KEY_HEX : KEY_HEX + TRANSPORT_HEX], line[KEY_HEX + TRANSPORT_HEX :]
        )
        transport, proof = transport_point(card.transport), bytes.fromhex(card.proof)
        of_key, of_transport = proof[:SIGNATURE_BYTES], proof[SIGNATURE_BYTES:]
        half = len(of_transport) // 2
        pair = encode_dss_signature(
            int.from_bytes(of_transport[:half], "big"), int.from_bytes(of_transport[half:], "big")
        )
        try:
            PublicIdentity(bytes.fromhex(card.key)).verify(
                CARD, bytes.fromhex(card.transport), of_key
            )
            transport.verify(pair, bind(CARD, bytes.fromhex(card.key)), ec.ECDSA(hashes.SHA384()))
        except (AuthenticationError, InvalidSignature):
            raise ConfigError(
                "the public card was not made by who holds its keys, or was changed; ask its node "
                "for "
                "`quietchoir federation identity` again"
            ) from None
        return card


@dataclass(frozen=True, slots=True)
class NodeKeys:
    """Both private keys of one node."""

    identity: Identity
    transport: ec.EllipticCurvePrivateKey

    @property
    def card(self) -> PublicCard:
        """The public halves, each signed by the other's private one."""
        point = self.transport.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint
        )
        key = self.identity.public.raw
        # a node prints one card, however often it is asked
        same = ec.ECDSA(hashes.SHA384(), deterministic_signing=True)
        pair = decode_dss_signature(self.transport.sign(bind(CARD, key), same))
        proof = self.identity.sign(CARD, point) + b"".join(
            number.to_bytes(POINT_BYTES, "big") for number in pair
        )
        return PublicCard(key.hex(), point.hex(), proof.hex())


def transport_point(text: str) -> ec.EllipticCurvePublicKey:
    """Read a P-384 public key from its compressed point.

    Raises:
        ConfigError: not a point of the curve.
    """
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), bytes.fromhex(text))
    except ValueError:
        raise ConfigError(
            f"transport key {text[:12]}… is no P-384 point; ask its node for `federation identity` "
            f"again"
        ) from None


def load_or_create(
    home: Path | None = None, *, lock: Lock = OPEN, asked: keyfile.Passphrase | None = None
) -> NodeKeys:
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
        (folder / RESTORED_FILE).unlink(missing_ok=True)  # these came out of none
    if transport.exists():
        key = read_transport_key(transport, asked)
    else:
        key = ec.generate_private_key(ec.SECP384R1())
        write_private_key(transport, TRANSPORT_KIND, key, lock)
    return NodeKeys(identity, key)


def member_keys(home: Path) -> NodeKeys:
    """The same, to take part in a federation with.

    Raises:
        ConfigError, AuthenticationError: as `load_or_create`; or they came out of a backup.
    """
    if why := why_restored(home):
        raise ConfigError(why)
    return load_or_create(home)


def why_restored(home: Path) -> str:
    """Why the keys in `home` take no part in any federation; "": they may."""
    if not (home / RESTORED_FILE).exists():
        return ""
    return (
        f"the keys in {home} came out of a backup, which does not know what they have answered and "
        f"spent in privacy since: with them it could be answered and spent twice. Move "
        f"{IDENTITY_FILE} and {TRANSPORT_FILE} away, and have the federation's owner put the card "
        f"of `quietchoir federation identity` in place of the old one (federation rotate)"
    )


def protect(home: Path, lock: Lock, *, asked: keyfile.Passphrase | None = None) -> NodeKeys:
    """Put both keys of a node under another lock. Each file says itself how it is locked, so
    half-way is no harm.

    Hazard: a disk may still hold what an unlocked file held before; keys that were ever copied in
    clear are better made anew.

    Raises:
        ConfigError, AuthenticationError: as `load_or_create`.
    """
    # keys made now are never on the disk in clear
    keys = load_or_create(home, lock=lock, asked=asked)
    keys.identity.save(home / IDENTITY_FILE, lock.passphrase, keyring=lock.keyring, replace=True)
    write_private_key(home / TRANSPORT_FILE, TRANSPORT_KIND, keys.transport, lock)
    return keys


def read_transport_key(
    path: Path, asked: keyfile.Passphrase | None = None
) -> ec.EllipticCurvePrivateKey:
    """Load a P-384 private key. Raises as `read_private_key`."""
    key = read_private_key(path, TRANSPORT_KIND, asked)
    if not isinstance(key.curve, ec.SECP384R1):
        raise ConfigError(f"{path}: not a P-384 key; restore it from your copy")
    return key


def read_private_key(
    path: Path, kind: str, asked: keyfile.Passphrase | None = None
) -> ec.EllipticCurvePrivateKey:
    """Load a private key of an elliptic curve: PEM, or a locked key file.

    Args:
        kind: what a locked one calls itself.

    Raises:
        ConfigError: missing, unreadable, of another kind, or nothing that opens it.
        AuthenticationError: a wrong passphrase.
    """
    try:
        content = path.read_bytes()
        if not content.startswith(b"-----BEGIN"):
            content = keyfile.read(path, kind, passphrase=asked or Asked())
        key = serialization.load_pem_private_key(content, None)
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: cannot be read as a private key ({error}); restore it from your copy"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path}: not a key of this program's; restore it from your copy")
    return key


def write_private_key(path: Path, kind: str, key: ec.EllipticCurvePrivateKey, lock: Lock) -> None:
    """PEM, readable by its owner alone, if the lock is open, a locked key file if not; over what is
    there.

    Raises:
        ConfigError: a keyring that does not keep what it is given.
        QuietchoirError: the disk refuses; the file is as it was.
    """
    content = pem_of(key, serialization.NoEncryption())
    if lock == OPEN:
        paths.write_atomically(path, content, mode=0o600)
        return
    keyfile.write(
        path, kind, content, passphrase=lock.passphrase, keyring=lock.keyring, replace=True
    )


def pem_of(
    key: ec.EllipticCurvePrivateKey, closed: serialization.KeySerializationEncryption
) -> bytes:
    """A private key as PEM."""
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, closed)
