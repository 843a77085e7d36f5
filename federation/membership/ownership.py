"""What the owner of a federation may do after its founding: each act is one entry of the chain,
signed and written whole.

Knows the file, the owner's key and the coordinator's keys on this disk. Knows nothing of running
rounds.
Always: the file on disk is the old one or the new one; a key that is replaced lies beside the file
as KEY.next until the file that names it is written, and `settle` finishes what a kill interrupted.

Hazard: whoever holds owner.key decides who belongs. Keep it off the coordinator's machine; these
acts need no network.
"""

import dataclasses
import datetime
import time
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ...core.errors import ConfigError
from ...crypto.identity import keyfile
from ...crypto.identity.keys import Identity
from ..spec.policy import CoordinatorTable, Member, Policy
from . import certificates, roster
from .keys import PublicCard
from .locking import COORDINATOR_KEY, OWNER_KEY, TLS_KEY
from .log import CHANGE, ENROLL, REVOKE, ROTATE
from .unlock import OPEN, Asked, Lock, choose

NEXT = ".next"


def act(
    file: Path,
    owner_key: Path,
    kind: str,
    change: dict[str, Any],
    successor: Identity | None = None,
    asked: Asked | None = None,
) -> Policy:
    """Sign one entry and write the file.

    Raises:
        RosterError: not the owner's key, or the chain does not allow the change.
        ConfigError: the change makes no federation.
    """
    known, asked = roster.read(file), asked or Asked()
    settle(file.parent, known.policy, asked)
    owner = Identity.load(owner_key, asked)
    later = known.extended(kind, change, owner, int(time.time()), successor)
    roster.write(file, later)
    return later.policy


def enroll(
    file: Path,
    owner_key: Path,
    name: str,
    card: PublicCard,
    *,
    expires: int = 0,
    invitation: str = "",
    rank: int = 0,
) -> Policy:
    """Add one member and sign the next version.

    Args:
        expires: seconds since 1970; 0: never.
        rank: first columns of the adapter that it trains; 0: all of them.
        invitation: public key of the invitation that the card came with, hex.

    Raises:
        RosterError: enrolled already, revoked, a used invitation, or the key is not the owner's.
        ConfigError: the file or the name cannot be used.
    """
    member = member_table(name, card, expires, rank)
    return act(file, owner_key, ENROLL, {"member": member, "invitation": invitation})


def revoke(file: Path, owner_key: Path, name: str, reason: str = "") -> Policy:
    """Take one member out; its keys never come back. Raises as `enroll`."""
    return act(file, owner_key, REVOKE, {"name": name, "reason": reason})


def rotate_member(
    file: Path, owner_key: Path, name: str, card: PublicCard, *, expires: int = 0
) -> Policy:
    """Give a member another key; it goes on with its rank. Raises as `enroll`."""
    rank = next((one.rank for one in roster.read(file).policy.members if one.name == name), 0)
    return act(file, owner_key, ROTATE, {"member": member_table(name, card, expires, rank)})


def change(file: Path, owner_key: Path, tables: dict[str, Any]) -> Policy:
    """Other values in the policy's tables: {"recipe": {"rounds": 20}}, or ranks: {"ranks":
    {"ann": 4}}. Raises as `enroll`.
    """
    return act(file, owner_key, CHANGE, tables)


def rotate_coordinator(
    file: Path, owner_key: Path, keys: Path, lock_kind: str | None = None
) -> Policy:
    """A new coordinator.key in `keys`; `way` as `lock_for`. Raises as `enroll`."""
    fresh, asked = Identity.generate(), Asked()
    save_beside(
        fresh, keys / COORDINATOR_KEY, lock_for(lock_kind, keys / COORDINATOR_KEY, owner_key, asked)
    )
    now = roster.read(file).policy.coordinator
    table = dataclasses.asdict(dataclasses.replace(now, key=fresh.public.raw.hex()))
    policy = act(file, owner_key, ROTATE, {"coordinator": table}, asked=asked)
    settle(keys, policy, asked)
    return policy


def rotate_certificate(
    file: Path, owner_key: Path, keys: Path, address: str = "", lock_kind: str | None = None
) -> Policy:
    """A new tls.key in `keys` and its certificate, for another address if one is given; `way` as
    `lock_for`.

    Raises:
        As `enroll`.
    """
    fresh, now = ec.generate_private_key(ec.SECP256R1()), roster.read(file).policy.coordinator
    try:
        moved = CoordinatorTable(address=address or now.address, key=now.key)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    certificate = certificates.self_signed(moved.host, fresh, datetime.datetime.now(datetime.UTC))
    from . import locking

    asked = Asked()
    locking.write_tls_key(
        keys / (TLS_KEY + NEXT), fresh, lock_for(lock_kind, keys / TLS_KEY, owner_key, asked)
    )
    table = dataclasses.asdict(dataclasses.replace(moved, certificate=certificate))
    policy = act(file, owner_key, ROTATE, {"coordinator": table}, asked=asked)
    settle(keys, policy, asked)
    return policy


def rotate_owner(file: Path, owner_key: Path, lock_kind: str | None = None) -> Policy:
    """A new key in the place of `owner_key`: the old owner signs the new one in, the new one
    accepts.

    Args:
        way: as `lock_for`.

    Raises:
        As `enroll`.
    """
    fresh, asked = Identity.generate(), Asked()
    waiting = save_beside(fresh, owner_key, lock_for(lock_kind, owner_key, owner_key, asked))
    policy = act(file, owner_key, ROTATE, {"owner": fresh.public.raw.hex()}, fresh, asked)
    waiting.replace(owner_key)
    return policy


def save_beside(fresh: Identity, old: Path, lock: Lock) -> Path:
    """Write the key that is to take the place of `old` as OLD.next."""
    waiting = old.with_name(old.name + NEXT)
    fresh.save(waiting, lock.passphrase, keyring=lock.keyring, replace=True)
    return waiting


def lock_for(lock_kind: str | None, old: Path, owner_key: Path, asked: Asked) -> Lock:
    """How the key that replaces `old` is locked, as it is written: there is no moment with it in
    clear.

    Args:
        lock_kind: one of `unlock.LOCK_KINDS`; None: as `old` is. A passphrase is the owner's
            key's, where that has one: one passphrase opens whatever a run of these verbs needs,
            also the run that finishes what a kill interrupted.

    Raises:
        ConfigError, AuthenticationError: what is locked now does not open: a mistyped passphrase
        must not become the new key's.
    """
    Identity.load(owner_key, asked)
    if lock_kind is None:
        if old.exists():
            open_once(old, asked)
        return lock_of(old, asked)
    known = lock_of(owner_key, asked)
    return (
        known
        if lock_kind == "passphrase" and known.passphrase is not None
        else choose(lock_kind, old)
    )


def open_once(path: Path, asked: Asked) -> None:
    """Require that a key file of either kind opens. Raises as `lock_for`."""
    if path.name == TLS_KEY:
        tls_public(path, asked)
    else:
        Identity.load(path, asked)


def lock_of(path: Path, asked: Asked) -> Lock:
    """How a key file is locked now."""
    first = path.read_bytes().partition(b"\n")[0] if path.exists() else b""
    if first.endswith(f", {keyfile.SCRYPT}".encode()):
        return Lock(passphrase=asked(path))
    return (
        Lock(keyring=keyfile.SystemKeyring())
        if first.endswith(f", {keyfile.KEYRING}".encode())
        else OPEN
    )


def settle(keys: Path, policy: Policy, asked: Asked | None = None) -> None:
    """Put keys in their places that the file names already: a kill came between the two."""
    asked = asked or Asked()
    for name, wanted in ((OWNER_KEY, policy.owner), (COORDINATOR_KEY, policy.coordinator.key)):
        waiting = keys / (name + NEXT)
        if waiting.exists() and Identity.load(waiting, asked).public.raw.hex() == wanted:
            waiting.replace(keys / name)
    waiting = keys / (TLS_KEY + NEXT)
    if waiting.exists() and tls_public(waiting, asked) == certificate_public(
        policy.coordinator.certificate
    ):
        waiting.replace(keys / TLS_KEY)


def tls_public(path: Path, asked: Asked | None = None) -> bytes:
    """The public half of a TLS key file."""
    from .locking import read_tls_key

    return public_bytes(read_tls_key(path, asked).public_key())


def certificate_public(pem: str) -> bytes:
    """The public key in a certificate; empty if there is none."""
    return (
        public_bytes(x509.load_pem_x509_certificate(pem.encode("ascii")).public_key())
        if pem
        else b""
    )


def public_bytes(key: Any) -> bytes:
    """A public key as DER."""
    encoding, kind = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(key.public_bytes(encoding, kind))


def member_table(name: str, card: PublicCard, expires: int = 0, rank: int = 0) -> dict[str, Any]:
    """A line of the roster.

    Raises:
        ConfigError: a name that cannot be used.
    """
    try:
        return dataclasses.asdict(
            Member(name=name, key=card.key, transport=card.transport, expires=expires, rank=rank)
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
