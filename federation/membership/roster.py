"""The federation file on disk: a chain of signed entries, and the tables they add up to for people
to read.

Knows TOML, where a node keeps the file it last accepted, and what it was invited to. Knows nothing
of rounds, or of what an entry may do (see chain).
Always: a `Policy` that leaves here follows from entries that its owner signed; a node goes on only
along the chain that it knows: never back, never to another entry under a number it has seen or was
invited under. A file that is refused leaves the disk as it was.

Not covered: who the owner is. A node that sees a federation for the first time takes the owner's
key from the file; its user compares the fingerprint that `federation show` prints with the one the
owner tells them (an invitation names the very entry, and is compared here). A node that is kept
away from a newer file goes on with the one it has, until that expires.
"""

import datetime
import json
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...core import paths, tables
from ...core.errors import ConfigError, RosterError
from ..spec.policy import LAST_MOMENT, Policy, check_hex, is_over
from .log import Chain, Entry

CHAIN = "chain"
FILE = "federation.toml"
INVITED_FILE = "invited.json"  # a node's: which federation it was invited to
NOTE = (
    "# A quietchoir federation. Change it with `quietchoir federation …`; any other edit "
    "breaks "
    "the signatures.\n"
)


def dump(chain: Chain) -> str:
    """The file's text: tables first, then the entries that make them."""
    return NOTE + render(
        {**chain.policy.table(), CHAIN: [entry.table() for entry in chain.entries]}
    )


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
        raise RosterError(
            f"{where}the signed chain does not fit the content; ask the owner for the file again"
        )
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
        return parse(tables.parse_toml(text), where)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RosterError(
            f"{where}not a federation file ({type(error).__name__}); refused"
        ) from None


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
        RosterError: as `load`; or `path` is on another branch than what was accepted before, or is
            not the federation that this node was invited to. Nothing was changed.
    """
    chain, where = read(path), f"{path}: "
    kept = folder(home, chain.policy) / FILE
    if kept.exists() and (known := held(kept)).policy.version > chain.policy.version:
        known.covers(chain, where)
        chain = known
    check_invited(chain, home, where)
    return adopt(chain, kept, where)


def held(kept: Path) -> Chain:
    """The copy that a node keeps of what it accepted.

    Raises:
        RosterError, ConfigError: it does not hold any more, or was taken before its founder was
        checked.
    """
    try:
        return read(kept)
    except (RosterError, ConfigError) as error:
        raise type(error)(
            f"{error}; this is the copy that this node kept: if the file at hand is "
            f"right, remove it"
        ) from None


def kept_for(home: Path, federation: str) -> Chain | None:
    """The chain that the node in `home` accepted of the federation of this number; None if there is
    none.

    Raises:
        RosterError, ConfigError: as `held`; or the number is none.
    """
    try:
        check_hex(federation, 32, "federation")
    except ValueError as error:  # it becomes a path
        raise RosterError(f"{error}; refused") from None
    kept = home / "federations" / federation[:32] / FILE
    chain = held(kept) if kept.exists() else None
    return chain if chain is not None and chain.policy.federation.hex() == federation else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Invited:
    """Where the owner's chain was when it invited this node."""

    federation: str  # hex
    # number of the newest entry then; 0: an invitation of an older version, which named none
    version: int = 0
    head: str = ""  # that entry's hash, hex


def invited(home: Path) -> dict[str, Invited]:
    """What this node was invited to, by the federations' names.

    Raises:
        ConfigError: the list is damaged.
    """
    path = home / INVITED_FILE
    if not path.exists():
        return {}
    try:
        given = json.loads(path.read_text("ascii"))
        read = {
            name: {"federation": one} if isinstance(one, str) else one
            for name, one in given.items()
        }
        return {name: tables.fill(Invited, one, f"{path}: ") for name, one in read.items()}
    except (ValueError, RecursionError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"{path}: damaged ({error}); remove it, and compare fingerprints by hand"
        ) from error


def note_invited(home: Path, name: str, new: Invited) -> None:
    """Remember an invitation; of two to one federation, the later one.

    Raises:
        ConfigError: this node was invited to another federation of that name; nothing was changed.
    """
    known = invited(home)
    old = known.get(name, new)
    if old.federation != new.federation:
        raise ConfigError(
            f"this node was invited to another federation called {name} (number "
            f"{old.federation[:12]}…, now "
            f"{new.federation[:12]}…); if the old invitation is void, remove its entry from "
            f"{home / INVITED_FILE}"
        )
    known[name] = max(old, new, key=lambda one: one.version)
    content = json.dumps(
        {title: asdict(one) for title, one in known.items()}, sort_keys=True
    ).encode("ascii")
    paths.write_atomically(home / INVITED_FILE, content, mode=0o600)


def check_invited(chain: Chain, home: Path, where: str = "") -> None:
    """Require that a federation which this node was invited to goes on from what it was invited to.

    Raises:
        RosterError: a file of the same name by another owner; or as `check_goes_on`.
    """
    if (known := invited(home).get(chain.policy.name)) is None:
        return
    if known.federation != chain.policy.federation.hex():
        raise RosterError(
            f"{where}this file calls itself {chain.policy.name}, but it is not the federation that "
            f"the invitation was "
            f"for; ask the one who invited you for the file (or remove {home / INVITED_FILE} if "
            f"you meant this one)"
        )
    check_goes_on(chain, known, where)


def check_goes_on(chain: Chain, known: Invited, where: str) -> None:
    """Require that `chain` is the one that an invitation names, or goes on from it.

    Raises:
        RosterError: another federation, another branch, or from before the invitation.
    """
    if known.federation != chain.policy.federation.hex():
        raise RosterError(
            f"{where}not the federation that the invitation is for; ask the one who invited you"
        )
    if chain.policy.version < known.version:
        raise RosterError(
            f"{where}version {chain.policy.version} is older than version {known.version}, under "
            f"which this node was "
            "invited; get the newest file"
        )
    if known.version and chain.entries[known.version - 1].digest != known.head:
        raise RosterError(
            f"{where}entry {known.version} is not the one that the invitation names; ask the one "
            f"who invited you which "
            "file is right, and take part in no round until then"
        )


def adopt(chain: Chain, kept: Path, where: str) -> Policy:
    """Take `chain` if it goes on from what `kept` holds, on disk first.

    Raises:
        RosterError: it is older or on another branch, or its time is over; nothing was changed.
    """
    check_time(chain.policy, where)
    if kept.exists():
        chain.covers(held(kept), where)
    paths.private_folder(kept.parent)
    write(kept, chain)
    return chain.policy


def check_time(policy: Policy, where: str) -> None:
    """Raises RosterError if the file has expired."""
    if is_over(policy.expires):
        raise RosterError(
            f"{where}version {policy.version} expired on {date(policy.expires)}; get the newest "
            f"file, or let "
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
            f"{over.name}'s key expired on {date(over.expires)} in {policy.name}; ask the owner to "
            f"rotate it: "
            "quietchoir federation rotate"
        )
    raise RosterError(
        f"this node's key {key.hex()[:16]}… is not in the roster of {policy.name}; "
        "send the line of `quietchoir federation identity` to the federation's owner, then take "
        "the new file"
    )


def date(seconds: int) -> str:
    """A moment for people; a number that is none of the years 1970 to 9999 is shown as it is."""
    if not 0 <= seconds <= LAST_MOMENT:
        return f"the impossible moment {seconds}"
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
        if any(
            (ord(letter) < 32 and letter not in "\n\t") or ord(letter) == 127 for letter in value
        ):
            raise ConfigError(f"{value!r} holds control characters; leave them out")
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(value)
