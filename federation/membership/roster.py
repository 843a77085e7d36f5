"""The federation file on disk: signed by its owner, numbered, never taken back.

Knows signatures, versions and where a node keeps the file it last accepted. Knows nothing of rounds.
Always: a `Policy` that leaves here was signed by the owner's key that it names; a node goes from one version
only to a later one of the same owner.

Not covered: who the owner is. A node that sees a federation for the first time takes the owner's key from the
file; its user compares the fingerprint that `federation show` prints with the one the owner tells them.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from ...core import paths, tables
from ...core.errors import AuthenticationError, ConfigError, RosterError
from ...crypto.keys import Identity, PublicIdentity
from .policy import Member, Policy, canonical

CONTEXT = b"quietchoir federation file v1"
SIGNATURE = "signature"
NOTE = "# A quietchoir federation. Change it with `quietchoir federation enroll`; any other edit breaks the signature.\n"


def dump(policy: Policy, owner: Identity) -> str:
    """The file's text, signed.

    Raises:
        RosterError: `owner` is not the key that the policy names.
    """
    if owner.public.raw.hex() != policy.owner:
        raise RosterError(f"federation {policy.name} belongs to another key; sign with its owner's key file")
    table = policy.table()
    signature = owner.sign(CONTEXT, canonical(table)).hex()
    return NOTE + render({SIGNATURE: signature, **table})


def parse(table: dict[str, Any], where: str) -> Policy:
    """Check the signature, then the tables.

    Raises:
        RosterError: unsigned, or changed after it was signed.
        ConfigError: an unknown or ill-typed key (only possible in what the owner signed).
    """
    body = {key: value for key, value in table.items() if key != SIGNATURE}
    signature, owner = table.get(SIGNATURE), table.get("owner")
    if not isinstance(signature, str) or not isinstance(owner, str):
        raise RosterError(f"{where}unsigned, expected the owner's signature; ask the owner for the file again")
    try:
        PublicIdentity(bytes.fromhex(owner)).verify(CONTEXT, canonical(body), bytes.fromhex(signature))
    except (AuthenticationError, ValueError):
        raise RosterError(f"{where}the signature does not fit the content; ask the owner for the file again") from None
    return tables.fill(Policy, body, where)


def load(path: Path) -> Policy:
    """Read one federation file.

    Raises:
        RosterError, ConfigError: as `parse` and `tables.read_toml`.
    """
    return parse(tables.read_toml(path), f"{path}: ")


def write(path: Path, policy: Policy, owner: Identity) -> None:
    """Sign and write; the old file stays if anything fails."""
    paths.write_atomically(path, dump(policy, owner).encode("utf-8"))


def enroll(policy: Policy, member: Member) -> Policy:
    """The next version of `policy`, with one member more.

    Raises:
        RosterError: name or key is in the roster already.
    """
    known = policy.member(member.name) or next((other for other in policy.members if other.key == member.key), None)
    if known is not None:
        raise RosterError(f"{known.name} is enrolled already; choose another name or another node")
    return dataclasses.replace(policy, members=(*policy.members, member), version=policy.version + 1)


def accept(path: Path, home: Path) -> Policy:
    """Load `path` for the node in `home`, remember it, and never go back.

    Raises:
        RosterError: as `parse`; or older than, or different from, the version this node has accepted.
    """
    policy = load(path)
    kept = folder(home, policy) / "federation.toml"
    if kept.exists():
        check_newer(policy, load(kept), f"{path}: ")
    paths.private_folder(kept.parent)
    paths.write_atomically(kept, path.read_bytes())
    return policy


def check_newer(offered: Policy, known: Policy, where: str) -> None:
    """Require that `offered` is `known` or a later version of it.

    Raises:
        RosterError: another federation, an older version, or another content under the same number.
    """
    if offered.federation != known.federation:
        raise RosterError(f"{where}another federation than {known.name}; keep their files apart")
    if offered.version < known.version:
        raise RosterError(
            f"{where}version {offered.version} is older than version {known.version}, which is here; get the newest file"
        )
    if offered.version == known.version and offered.digest != known.digest:
        raise RosterError(
            f"{where}two different files call themselves version {known.version}; ask the owner which one is right"
        )


def folder(home: Path, policy: Policy) -> Path:
    """Where a node keeps what belongs to one federation."""
    return home / "federations" / policy.federation.hex()[:32]


def render(table: dict[str, Any], prefix: str = "") -> str:
    """TOML for nested tables of scalars, lists of scalars and lists of tables."""
    lines, tails = [], []
    for key, value in table.items():
        if isinstance(value, dict):
            tails.append(f"\n[{prefix}{key}]\n{render(value, f'{prefix}{key}.')}")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            tails += [f"\n[[{prefix}{key}]]\n{render(item, f'{prefix}{key}.')}" for item in value]
        else:
            lines.append(f"{key} = {scalar(value)}\n")
    return "".join(lines + tails)


def scalar(value: Any) -> str:
    """One TOML value.

    Raises:
        ConfigError: a text with a character that this writer does not spell.
    """
    if isinstance(value, list):
        return "[" + ", ".join(map(scalar, value)) + "]"
    if isinstance(value, str):
        if any((ord(letter) < 32 and letter not in "\n\t") or ord(letter) == 127 for letter in value):
            raise ConfigError(f"{value!r} holds control characters; leave them out")
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(value)
