"""How a federation came to be what it is: every change one signed, numbered entry, chained by
hashes.

Knows entries, signatures and what each kind of change does to the tables. Knows nothing of files or
rounds.
Always: a `Chain` that exists was replayed: entries 1, 2, 3, … without a gap, each naming the hash
of the one before it, each signed by the key that owned the federation at that moment; entry 1 is
signed by the founder's key, from which the federation's number follows; its policy follows from the
entries and from nothing else.

    found    the first policy, whole                 enroll   one member more (and the invitation it
                                                              came with)
    revoke   one member less, its keys for good      rotate   a member's, the coordinator's or the
                                                              owner's key
    change   other values in the policy's tables, other ranks of members, other files of the model

Not covered: an owner who signs two different entries under one number. Whoever has seen one of them
refuses the other, but two groups that never meet can each hold one; an invitation names the entry
that it was made under, and `federation log` prints all.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...core import tables
from ...core.errors import AuthenticationError, RosterError
from ...crypto.identity.keys import Identity, PublicIdentity
from ..spec.policy import Policy, canonical

CONTEXT = b"quietchoir federation entry v1"
ACCEPTED = b"quietchoir federation succession v1"
FOUND, ENROLL, REVOKE, ROTATE, CHANGE = "found", "enroll", "revoke", "rotate", "change"
# not for `change`
FIXED = ("name", "nonce", "founder", "owner", "members", "model", "adapter", "version", "head")
Table = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One change, as it was signed."""

    text: str  # canonical JSON: number, kind, at, previous, change
    signature: str  # hex, of the owner at that moment
    accepted: str = ""  # hex, of the new owner, where the owner changes

    @property
    def digest(self) -> str:
        """Its name in the next entry, hex."""
        return hashlib.sha256(self.text.encode("ascii")).hexdigest()

    def table(self) -> Table:
        """As TOML's types."""
        given = {"entry": self.text, "signature": self.signature}
        return {**given, "accepted": self.accepted} if self.accepted else given

    @staticmethod
    def read(table: Any, where: str) -> "Entry":
        """The entry of a table.

        Raises:
            RosterError: unsigned or malformed.
        """
        known = {"entry", "signature", "accepted"}
        if (
            not isinstance(table, Mapping)
            or set(table) - known
            or not all(isinstance(value, str) for value in table.values())
        ):
            raise RosterError(
                f"{where}an entry of its chain is malformed; ask the owner for the file again"
            )
        if not table.get("entry") or not table.get("signature"):
            raise RosterError(
                f"{where}an entry of its chain is unsigned; ask the owner for the file again"
            )
        return Entry(table["entry"], table["signature"], table.get("accepted", ""))


@dataclass(frozen=True, slots=True)
class Change:
    """What an entry says, read."""

    number: int
    kind: str
    at: int  # seconds since 1970, by the owner's clock: told, not checked
    previous: str
    change: Table
    digest: str


@dataclass(slots=True)
class History:
    """What must be remembered while entries are applied."""

    table: Table = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)  # every key that ever had a part: none comes back
    invitations: set[str] = field(default_factory=set)  # used up

    def new_key(self, key: str, whose: str) -> None:
        """Require that `key` never had a part here.

        Raises:
            RosterError: revoked, rotated away, or somebody's.
        """
        if key in self.keys:
            raise RosterError(
                f"the key of {whose} is or was in this federation already (enrolled already, or "
                f"revoked); make a new one"
            )
        self.keys.add(key)

    def member(self, name: object) -> Table:
        """A member's table.

        Raises:
            RosterError: not in the roster.
        """
        found = next((one for one in self.table["members"] if one["name"] == name), None)
        if found is None:
            raise RosterError(f"{name} is not in the roster; see `quietchoir federation show`")
        return dict(found)


def _found(history: History, change: Table) -> None:
    # the number follows from `founder`: only that key may sign it in
    if change["founder"] != change["owner"]:
        raise RosterError(
            f"the federation's number belongs to key {change['founder']!s:.16}…, but the entry was "
            f"signed by "
            f"{change['owner']!s:.16}…; this is not that federation's file, ask its owner for it"
        )
    history.table = copy.deepcopy(change)
    for member in change.get("members", []):
        _admit(history, member)
    for key, whose in (
        (change["owner"], "the owner"),
        (change["coordinator"]["key"], "the coordinator"),
    ):
        history.new_key(key, whose)


def _admit(history: History, member: Table) -> None:
    history.new_key(member["key"], member["name"])
    if member.get("transport"):
        history.new_key(member["transport"], member["name"])


def _enroll(history: History, change: Table) -> None:
    member, invitation = change["member"], change.get("invitation", "")
    if any(one["name"] == member["name"] for one in history.table["members"]):
        raise RosterError(
            f"{member['name']} is enrolled already; choose another name, or use `federation rotate`"
        )
    if invitation and invitation in history.invitations:
        raise RosterError(
            f"the invitation of {member['name']} was used already; make a new one "
            f"with `federation invite`"
        )
    history.invitations.add(invitation)
    _admit(history, member)
    history.table["members"] = [*history.table["members"], member]


def _revoke(history: History, change: Table) -> None:
    history.member(change["name"])
    history.table["members"] = [
        one for one in history.table["members"] if one["name"] != change["name"]
    ]


def _rotate(history: History, change: Table) -> None:
    if "owner" in change:
        history.new_key(change["owner"], "the new owner")
        history.table["owner"] = change["owner"]
    if "coordinator" in change:
        now, new = history.table["coordinator"], change["coordinator"]
        if new["key"] != now["key"]:
            history.new_key(new["key"], "the coordinator")
        history.table["coordinator"] = new
    if "member" in change:
        new = change["member"]
        now = history.member(new["name"])
        history.new_key(new["key"], new["name"])
        if new.get("transport") and new["transport"] != now.get("transport"):
            history.new_key(new["transport"], new["name"])
        history.table["members"] = [
            new if one["name"] == new["name"] else one for one in history.table["members"]
        ]


def _change(history: History, change: Table) -> None:
    for name, value in change.items():
        if name == "ranks":
            _rank(history, value)
            continue
        more_files = name == "model" and set(value) == {"variants"}  # the model itself stays
        if (name in FIXED and not more_files) or (
            name == "coordinator"
            and value.get("key", "") not in ("", history.table["coordinator"]["key"])
        ):
            raise RosterError(
                f"{name} cannot be changed under way; found a new federation, or use "
                f"enroll, revoke or rotate"
            )
        merged = {**history.table.get(name, {}), **value} if isinstance(value, dict) else value
        history.table[name] = merged


def _rank(history: History, change: Table) -> None:
    for name, rank in change.items():
        new = {**history.member(name), "rank": rank}
        history.table["members"] = [
            new if one["name"] == name else one for one in history.table["members"]
        ]


STEPS: dict[str, Callable[[History, Table], None]] = {
    FOUND: _found, ENROLL: _enroll, REVOKE: _revoke, ROTATE: _rotate, CHANGE: _change,
}  # fmt: skip


class Chain:
    """All entries of one federation, and the policy that they add up to."""

    def __init__(self, entries: tuple[Entry, ...], where: str = "") -> None:
        """Replay and check.

        Args:
            where: the beginning of every message.

        Raises:
            RosterError: unsigned, changed, out of order, or an entry that the ones before it do not
            allow. ConfigError: tables that make no federation (only possible in what the owner
            signed).
        """
        if not entries:
            raise RosterError(
                f"{where}unsigned, expected the owner's chain of entries; ask the "
                f"owner for the file again"
            )
        self.entries, self.changes = entries, tuple(read(entry, where) for entry in entries)
        self._history = History()
        previous = ""
        for number, (entry, change) in enumerate(zip(entries, self.changes, strict=True), 1):
            if (change.number, change.previous) != (number, previous) or (change.kind == FOUND) != (
                number == 1
            ):
                raise RosterError(
                    f"{where}entry {number} does not follow the one before it; ask "
                    f"the owner for the file again"
                )
            self._apply(entry, change, where)
            previous = change.digest
        table = {**self._history.table, "version": len(entries), "head": previous}
        self.policy: Policy = tables.fill(Policy, table, where)

    def _apply(self, entry: Entry, change: Change, where: str) -> None:
        """One entry: whose signature it must bear follows from the entries before it."""
        history = self._history
        try:
            owner = change.change["owner"] if change.kind == FOUND else history.table["owner"]
            check(owner, CONTEXT, entry.text, entry.signature)
            STEPS[change.kind](history, change.change)
            if history.table["owner"] != owner:  # nobody becomes owner without holding the key
                check(history.table["owner"], ACCEPTED, entry.text, entry.accepted)
        except AuthenticationError:
            raise RosterError(
                f"{where}the signature of entry {change.number} does not fit the content; ask the "
                f"owner for the file again"
            ) from None
        except RosterError as error:
            raise RosterError(f"{where}entry {change.number}, {change.kind}: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError):
            raise RosterError(
                f"{where}entry {change.number}, {change.kind!r:.20}: malformed; ask "
                f"for the file again"
            ) from None

    def ever(self, table: str, key: str) -> frozenset[str]:
        """All values that `key` of one of the policy's tables has had, the present one among
        them.
        """
        given = (change.change.get(table) for change in self.changes)
        return frozenset(one[key] for one in given if isinstance(one, dict) and key in one)

    @property
    def model_digests(self) -> frozenset[str]:
        """Digests of all files that the owner ever declared to be the federation's model."""
        tables_ = [
            change.change["model"]
            for change in self.changes
            if isinstance(change.change.get("model"), dict)
        ]
        variants = frozenset(
            one["digest"] for table in tables_ for one in table.get("variants", ())
        )
        return variants | {self.policy.model.digest}

    @property
    def member_keys(self) -> frozenset[str]:
        """Ed25519 keys of everybody who is or was a member, hex."""
        first = self.changes[0].change.get("members", [])
        return frozenset(one["key"] for one in first) | self.ever("member", "key")

    def extended(
        self, kind: str, change: Table, owner: Identity, at: int, successor: Identity | None = None
    ) -> "Chain":
        """The chain with one entry more.

        Args:
            successor: the new owner, where the owner changes.

        Raises:
            RosterError: `owner` is not the owner's key, or the change is not allowed.
            ConfigError: the change makes no federation.
        """
        if owner.public.raw.hex() != self.policy.owner:
            raise RosterError(
                f"federation {self.policy.name} belongs to another key; sign with "
                f"its owner's key file"
            )
        entry = sign(
            len(self.entries) + 1, kind, at, self.entries[-1].digest, change, owner, successor
        )
        return Chain((*self.entries, entry))

    def covers(self, known: "Chain", where: str) -> None:
        """Require that this chain is `known` or goes on from it.

        Raises:
            RosterError: another federation, an older version, or another entry under a number that
            is known.
        """
        mine, theirs = self.policy, known.policy
        if mine.federation != theirs.federation:
            raise RosterError(
                f"{where}another federation than {theirs.name}; keep their files apart"
            )
        for number, (offered, held) in enumerate(zip(self.entries, known.entries, strict=False), 1):
            if offered.digest != held.digest:
                raise RosterError(
                    f"{where}two different entries call themselves number {number}; ask the owner "
                    f"which one is right, "
                    "and take part in no round until then"
                )
        if mine.version < theirs.version:
            raise RosterError(
                f"{where}version {mine.version} is older than version {theirs.version}, which is "
                f"here; get the newest file"
            )


def create_chain(policy: Policy, owner: Identity, at: int = 0) -> Chain:
    """A chain of one entry.

    Raises:
        RosterError: `owner` is not the key that the policy names.
    """
    if owner.public.raw.hex() != policy.owner:
        raise RosterError(
            f"federation {policy.name} belongs to another key; sign with its owner's key file"
        )
    table = {key: value for key, value in policy.table().items() if key not in ("version", "head")}
    return Chain((sign(1, FOUND, at, "", {**table, "founder": policy.owner}, owner),))


def sign(
    number: int,
    kind: str,
    at: int,
    previous: str,
    change: Table,
    owner: Identity,
    successor: Identity | None = None,
) -> Entry:
    """Spell and sign one entry."""
    body = {"number": number, "kind": kind, "at": at, "previous": previous, "change": change}
    text = canonical(body).decode("ascii")
    signed = owner.sign(CONTEXT, text.encode("ascii")).hex()
    return Entry(
        text,
        signed,
        "" if successor is None else successor.sign(ACCEPTED, text.encode("ascii")).hex(),
    )


def read(entry: Entry, where: str) -> Change:
    """What an entry says; its form is checked, its signature is not.

    Raises:
        RosterError: not the canonical JSON of an entry.
    """
    try:
        body = json.loads(entry.text)
        if set(body) != {"number", "kind", "at", "previous", "change"} or canonical(
            body
        ) != entry.text.encode("ascii"):
            raise ValueError
        kinds = (
            type(body["number"]),
            type(body["at"]),
            type(body["previous"]),
            type(body["change"]),
        )
        if kinds != (int, int, str, dict) or body["kind"] not in STEPS:
            raise ValueError
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise RosterError(
            f"{where}an entry of its chain is malformed; ask the owner for the file again"
        ) from None
    return Change(**body, digest=entry.digest)


def check(key: str, context: bytes, text: str, signature: str) -> None:
    """Raises AuthenticationError unless `key` signed `text`."""
    try:
        given = bytes.fromhex(signature)
    except ValueError:
        raise AuthenticationError("not a signature") from None
    PublicIdentity(bytes.fromhex(key)).verify(context, text.encode("ascii"), given)
