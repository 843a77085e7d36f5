"""A new federation: its owner's key, its coordinator's keys, its signed file.

Knows one folder. Always: nothing that exists is overwritten; the file is written last, so a folder that has it is whole.

    federation.toml   hand it to everybody          owner.key         changes the roster: keep it offline
    coordinator.key   signs tasks                   tls.key           opens the coordinator's door
"""

import datetime
import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from ...core import paths
from ...core.errors import ConfigError
from ...crypto.keys import Identity
from . import certificates, roster
from .identity import PublicCard, write_private_pem
from .policy import AdapterTable, CoordinatorTable, Member, ModelTable, Policy, ProtectionTable, Recipe
from .unlock import Asked

FILE, OWNER_KEY, COORDINATOR_KEY, TLS_KEY = "federation.toml", "owner.key", "coordinator.key", "tls.key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Founding:
    """What the owner decides."""

    name: str
    address: str  # HOST:PORT of the coordinator
    model: ModelTable
    adapter: AdapterTable
    protection: ProtectionTable
    recipe: Recipe


def found(folder: Path, founding: Founding) -> Policy:
    """Make keys, certificate and file in `folder`.

    Raises:
        ConfigError: something is there already.
    """
    for name in (FILE, OWNER_KEY, COORDINATOR_KEY, TLS_KEY):
        if (folder / name).exists():
            raise ConfigError(f"{folder / name}: is there already and is kept; choose another folder")
    owner, coordinator, tls = Identity.generate(), Identity.generate(), ec.generate_private_key(ec.SECP256R1())
    unsigned = CoordinatorTable(address=founding.address, key=coordinator.public.raw.hex())
    certificate = certificates.self_signed(unsigned.host, tls, datetime.datetime.now(datetime.UTC))
    policy = Policy(
        name=founding.name,
        nonce=secrets.token_hex(16),
        owner=owner.public.raw.hex(),
        model=founding.model,
        adapter=founding.adapter,
        protection=founding.protection,
        recipe=founding.recipe,
        coordinator=CoordinatorTable(address=founding.address, key=unsigned.key, certificate=certificate),
    )
    paths.private_folder(folder)
    owner.save(folder / OWNER_KEY)
    coordinator.save(folder / COORDINATOR_KEY)
    write_private_pem(folder / TLS_KEY, tls)
    roster.write(folder / FILE, policy, owner)
    return policy


def enroll(file: Path, owner_key: Path, name: str, card: PublicCard) -> Policy:
    """Add one member and sign the next version.

    Raises:
        RosterError: enrolled already, or the key is not the owner's.
        ConfigError: the file or the name cannot be used.
    """
    policy, owner = roster.load(file), Identity.load(owner_key, Asked())
    try:
        member = Member(name=name, key=card.key, transport=card.transport)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    later = roster.enroll(policy, member)
    roster.write(file, later, owner)
    return later
