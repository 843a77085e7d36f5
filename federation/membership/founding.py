"""A new federation: its owner's key, its coordinator's keys, its signed file.

Knows one folder. Always: nothing that exists is overwritten; the file is written last, so a folder
that has it is whole.

    federation.toml   hand it to everybody          owner.key         changes the roster: keep it
                                                                      offline
    coordinator.key   signs tasks                   tls.key           opens the coordinator's door
"""

import datetime
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from ...core import paths
from ...core.errors import ConfigError
from ...core.prompt import HOUSEHOLD, PromptFormat
from ...crypto.identity.keys import Identity
from ..spec.policy import (
    AdapterTable,
    AggregationTable,
    CoordinatorTable,
    DistillationTable,
    GuardTable,
    ModelTable,
    Policy,
    PrivacyTable,
    ProtectionTable,
    Recipe,
    ScheduleTable,
)
from . import certificates, log, roster
from .locking import COORDINATOR_KEY, OWNER_KEY, TLS_KEY, write_tls_key
from .ownership import enroll
from .roster import FILE
from .unlock import OPEN, Lock

__all__ = [
    "COORDINATOR_KEY",
    "FILE",
    "OWNER_KEY",
    "TLS_KEY",
    "Founding",
    "create_federation",
    "enroll",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Founding:
    """What the owner decides."""

    name: str
    address: str  # HOST:PORT of the coordinator
    model: ModelTable
    adapter: AdapterTable
    protection: ProtectionTable
    recipe: Recipe
    privacy: PrivacyTable = field(default_factory=PrivacyTable)
    guard: GuardTable = field(default_factory=GuardTable)
    aggregation: AggregationTable = field(default_factory=AggregationTable)
    schedule: ScheduleTable = field(default_factory=ScheduleTable)
    distillation: DistillationTable = field(default_factory=DistillationTable)
    prompt: PromptFormat = HOUSEHOLD


def create_federation(folder: Path, founding: Founding, lock: Lock = OPEN) -> Policy:
    """Make keys, certificate and file in `folder`.

    Args:
        lock: of the three keys, which are written under it at once: there is no moment with one of
        them in clear.

    Raises:
        ConfigError: something is there already, or a keyring that does not keep what it is given.
    """
    for name in (FILE, OWNER_KEY, COORDINATOR_KEY, TLS_KEY):
        if (folder / name).exists():
            raise ConfigError(
                f"{folder / name}: is there already and is kept; choose another folder"
            )
    owner, coordinator, tls = (
        Identity.generate(),
        Identity.generate(),
        ec.generate_private_key(ec.SECP256R1()),
    )
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
        privacy=founding.privacy,
        guard=founding.guard,
        aggregation=founding.aggregation,
        schedule=founding.schedule,
        distillation=founding.distillation,
        prompt=founding.prompt,
        coordinator=CoordinatorTable(
            address=founding.address, key=unsigned.key, certificate=certificate
        ),
    )
    made = log.create_chain(policy, owner, int(time.time()))  # refuses before anything is on disk
    paths.private_folder(folder)
    files = [folder / name for name in (OWNER_KEY, COORDINATOR_KEY, TLS_KEY, FILE)]
    new = [path for path in files if not path.exists()]
    try:
        owner.save(folder / OWNER_KEY, lock.passphrase, keyring=lock.keyring)
        coordinator.save(folder / COORDINATOR_KEY, lock.passphrase, keyring=lock.keyring)
        write_tls_key(folder / TLS_KEY, tls, lock)
        roster.write(folder / FILE, made)
    except BaseException:  # Ctrl-C too: keys without their file would keep the next one out
        for path in new:
            path.unlink(missing_ok=True)
        raise
    return made.policy
