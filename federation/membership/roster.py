"""The federation file on disk: a chain of signed entries, and the tables they add up to for people to read.

Knows TOML and where a node keeps the file it last accepted. Knows nothing of rounds, or of what an entry may do (see chain).
Always: a `Policy` that leaves here follows from entries that its owner signed; a node goes on only along the chain that it
knows: never back, never to another entry under a number it has seen.

Not covered: who the owner is. A node that sees a federation for the first time takes the owner's key from the
file; its user compares the fingerprint that `federation show` prints with the one the owner tells them (an invitation,
`federation accept`, compares it for them). A node that is kept away from a newer file goes on with the one it has, until
that expires.
"""

import datetime
import json
import tomllib
from pathlib import Path
from typing import Any

from ...core import paths, tables
from ...core.errors import ConfigError, RosterError
from .chain import Chain, Entry
from .policy import Policy, is_over

CHAIN = "chain"
FILE = "federation.toml"
NOTE = "# A quietchoir federation. Change it with `quietchoir federation …`; any other edit breaks the signatures.\n"


def dump(chain: Chain) -> str:
    """The file's text: tables first, then the entries that make them."""
    return NOTE + render({**chain.policy.table(), CHAIN: [entry.table() for entry in chain.entries]})


def parse(table: dict[str, Any], where: str) -> Chain:
    """Check the entries, then that the tables say the same.

    Raises:
        RosterError: unsigned, out of order, or changed after it was signed.
        ConfigError: an unknown or ill-typed key (only possible in what the owner signed).
    """
    body, given = {key: value for key, value in table.items() if key != CHAIN}, table.get(CHAIN)
    entries = tuple(Entry.read(one, where) for one in given) if isinstance(given, list) else ()
    chain = Chain(entries, where)
    try:
        same = tables.fill(Policy, body, where) == chain.policy
    except ConfigError:
        same = False
    if not same:
        raise RosterError(f"{where}the signed chain does not fit the content; ask the owner for the file again")
    return chain


def read(path: Path) -> Chain:
    """Read one federation file, whatever its age.

    Raises:
        RosterError, ConfigError: as `parse` and `tables.read_toml`.
    """
    return parse(tables.read_toml(path), f"{path}: ")


def read_text(text: bytes, where: str) -> Chain:
    """The same from bytes that came over the network.

    Raises:
        RosterError, ConfigError: as `parse`, or no TOML.
    """
    try:
        return parse(tomllib.loads(text.decode("utf-8")), where)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise RosterError(f"{where}not a federation file ({type(error).__name__}); refused") from None


def load(path: Path) -> Policy:
    """The policy of one federation file.

    Raises:
        RosterError, ConfigError: as `read`; or the file's time is over.
    """
    policy = read(path).policy
    check_time(policy, f"{path}: ")
    return policy


def write(path: Path, chain: Chain) -> None:
    """Write the file; the old one stays if anything fails."""
    paths.write_atomically(path, dump(chain).encode("utf-8"))


def accept(path: Path, home: Path) -> Policy:
    """The newest of `path` and what the node in `home` accepted before, remembered there.

    A node never goes back: an older file on its own chain is not taken, the one that is kept stays.

    Raises:
        RosterError: as `load`; or `path` is on another branch than what was accepted before.
    """
    chain, where = read(path), f"{path}: "
    kept = folder(home, chain.policy) / FILE
    if kept.exists():
        known = read(kept)
        if known.policy.version > chain.policy.version:
            known.covers(chain, where)
            chain = known
    return adopt(chain, kept, where)


def adopt(chain: Chain, kept: Path, where: str) -> Policy:
    """Take `chain` if it goes on from what `kept` holds, on disk first.

    Raises:
        RosterError: it is older or on another branch, or its time is over; nothing was changed.
    """
    check_time(chain.policy, where)
    if kept.exists():
        chain.covers(read(kept), where)
    paths.private_folder(kept.parent)
    write(kept, chain)
    return chain.policy


def check_time(policy: Policy, where: str) -> None:
    """Raises RosterError if the file has expired."""
    if is_over(policy.expires):
        raise RosterError(
            f"{where}version {policy.version} expired on {date(policy.expires)}; get the newest file, or let "
            "its owner sign one: quietchoir federation change FED --days N"
        )


def check_member(policy: Policy, key: bytes) -> str:
    """The name of the member whose key this is.

    Raises:
        RosterError: never was one, or its time is over.
    """
    name = policy.name_of(key)
    if name is not None:
        return name
    over = next((member for member in policy.members if member.key == key.hex()), None)
    if over is not None:
        raise RosterError(
            f"{over.name}'s key expired on {date(over.expires)} in {policy.name}; ask the owner to rotate it: "
            "quietchoir federation rotate"
        )
    raise RosterError(
        f"this node's key {key.hex()[:16]}… is not in the roster of {policy.name}; "
        "send the line of `quietchoir federation identity` to the federation's owner, then take the new file"
    )


def date(seconds: int) -> str:
    """A moment for people."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


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
