"""The private keys of a federation's own folder under a lock: its owner's, its coordinator's, and
the key of its door.

Knows three files and the two forms of a TLS key: PEM, or a locked key file. Knows nothing of
federation files or networks.
Always: each file says itself how it is locked, so half-way is no harm; a key is opened before any
file is written, and whoever cannot open one changes none; no key reaches the disk in clear on its
way to the door.
"""

import secrets
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ...core.errors import ConfigError
from ...core.paths import write_atomically
from ...crypto.identity import keyfile
from ...crypto.identity.keys import Identity
from .keys import pem_of, read_private_key, write_private_key
from .unlock import Asked, Lock

OWNER_KEY, COORDINATOR_KEY, TLS_KEY = "owner.key", "coordinator.key", "tls.key"
TLS_KIND = "tls"  # what a locked TLS key calls itself; an unlocked one is PEM
SERVER_KEY_FILE = "door.pem"


def protect(
    folder: Path, lock: Lock, *, asked: keyfile.Passphrase | None = None
) -> tuple[str, ...]:
    """Put those of owner.key, coordinator.key and tls.key that lie in `folder` under another lock.

    Args:
        asked: for the passphrase of files that are locked now; by default the environment or a
        person.

    Returns: the names of the files that were written.

    Raises:
        ConfigError: none of them is there, or nothing opens one.
        AuthenticationError: a wrong passphrase. In both cases no file was changed.

    Hazard: a disk may still hold what an unlocked file held before. A coordinator that starts
    without a person needs the keyring, or `QUIETCHOIR_PASSPHRASE`, which other programs of the same
    user can read.
    """
    identities, tls = readable(folder, asked or Asked())
    for name, identity in identities.items():
        identity.save(folder / name, lock.passphrase, keyring=lock.keyring, replace=True)
    if tls is not None:
        write_tls_key(folder / TLS_KEY, tls, lock)
    return (*identities, *([TLS_KEY] if tls is not None else []))


def readable(
    folder: Path, asked: keyfile.Passphrase
) -> tuple[dict[str, Identity], ec.EllipticCurvePrivateKey | None]:
    """The keys that lie in `folder`, opened: those that sign, by file name, and that of the door.

    Raises:
        ConfigError: none of them is there, or nothing opens one.
        AuthenticationError: a wrong passphrase.
    """
    identities = {
        name: Identity.load(folder / name, asked)
        for name in (OWNER_KEY, COORDINATOR_KEY)
        if (folder / name).exists()
    }
    tls = read_tls_key(folder / TLS_KEY, asked) if (folder / TLS_KEY).exists() else None
    if not identities and tls is None:
        raise ConfigError(
            f"{folder}: none of {OWNER_KEY}, {COORDINATOR_KEY}, {TLS_KEY}; name the "
            f"folder of `federation init`"
        )
    return identities, tls


def read_tls_key(path: Path, asked: keyfile.Passphrase | None = None) -> ec.EllipticCurvePrivateKey:
    """Load the coordinator's TLS key. Raises as `keys.read_private_key`."""
    return read_private_key(path, TLS_KIND, asked)


def write_tls_key(path: Path, key: ec.EllipticCurvePrivateKey, lock: Lock) -> None:
    """Over what is there. Raises as `keys.write_private_key`."""
    write_private_key(path, TLS_KIND, key, lock)


def server_key(
    path: Path, scratch: Path, asked: keyfile.Passphrase | None = None
) -> tuple[Path, str]:
    """The TLS key as a server wants it: a file in `scratch`, and the password of this one start
    that opens it.

    Raises:
        As `read_tls_key`.
    """
    password = secrets.token_hex(32)
    kept = scratch / SERVER_KEY_FILE
    locked = pem_of(
        read_tls_key(path, asked), serialization.BestAvailableEncryption(password.encode("ascii"))
    )
    write_atomically(kept, locked, mode=0o600)
    return kept, password
