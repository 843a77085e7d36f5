"""What a coordinator of buffered rounds says to members: train from this version, and: these are
summed now.

Knows two payloads and one answer. Knows nothing of signatures, of protection, or of who keeps what.
Always: `decode_*` returns what is well-formed, or nothing was read. What a group is told is bound
into its masks by `told`, and holds what each of its members was told when it trained: the broadcast
digest of that work, by version.

    train   version, 8 bytes | the work, as `work` spells it       answer: version, digest and state
                                                                   that it trained from
    group   canonical JSON: members with their versions, digest and state for each version, the
            newest version, ranges
                                                                             answer: ready, or spent
"""

import json
import math
from dataclasses import dataclass
from typing import Any

from ...core.errors import MessageError
from ...crypto.identity.keys import digest
from ..spec.policy import canonical
from . import broadcast_digest, work
from .work import Ranges, Work

GROUP = "group"  # make the contribution that is kept ready to be summed with these members'
VERSION_BYTES = 8
DIGEST_BYTES = 32
MAX_GROUP_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Whose contributions are summed."""

    version: int  # steps behind the newest adapter
    # that one's name, where members follow them: what comes of the sum is a step from there
    state: str = ""
    # names, sorted, each with the version that its contribution was trained from
    members: tuple[tuple[str, int], ...]
    # Those versions, ascending: each with the digest of what was told of it, and the name of the
    # state, if they have names.
    adapters: tuple[tuple[int, str, str], ...]
    ranges: Ranges = ()  # as `Work.ranges`

    @property
    def names(self) -> tuple[str, ...]:
        """Who is in it."""
        return tuple(name for name, _ in self.members)

    @property
    def told(self) -> bytes:
        """32 bytes that differ if the coordinator told two members different things about one
        group.
        """
        return broadcast_digest.of_group(encode_group(self))

    def told_of(self, version: int) -> tuple[str, str]:
        """Digest and state that this group names for a version of one of its members."""
        return {one: (told, state) for one, told, state in self.adapters}[version]

    def staleness(self, name: str) -> int:
        """Steps between the adapter that `name` trained from and the newest one."""
        return self.version - dict(self.members)[name]


def split_seed(run: str, version: int) -> bytes:
    """What a group's buckets follow from: the same members on the same version are split alike
    again, as a sum from one adapter must be over the very same members, or none of them.
    """
    return digest("quietchoir group split 1", run, version)


def told_of(version: int, order: Work) -> str:
    """The broadcast digest of work on one version, hex."""
    return broadcast_digest.of_work(
        work.TRAIN, order.header() | {"version": version}, order.flat
    ).hex()


def encode_train(version: int, order: bytes) -> bytes:
    """The version that is meant, and what to do with it: as `work.encode`, or
    `work.encode_told`.
    """
    return encode_version(version) + order


def split_train(payload: bytes) -> tuple[int, bytes]:
    """Read what `encode_train` wrote. Raises MessageError for less than a version."""
    return decode_version(payload[:VERSION_BYTES]), payload[VERSION_BYTES:]


def check_train(order: Work) -> None:
    """Raises MessageError for work for a drawn cohort, which there is none of here, or of a
    state whose name is none.
    """
    if order.cohort or order.absent or order.ranges:
        raise MessageError(
            "work for a drawn cohort came, in a federation of buffered rounds; refused"
        )
    if order.state and (
        len(order.state) != 2 * DIGEST_BYTES or set(order.state) - set("0123456789abcdef")
    ):
        raise MessageError(
            f"the name of a state is {len(order.state)} characters that are no digest; refused"
        )


def encode_version(version: int) -> bytes:
    """A version of the adapter."""
    return version.to_bytes(VERSION_BYTES, "big")


def decode_version(payload: bytes) -> int:
    """Read what `encode_version` wrote.

    Raises:
        MessageError: of another length.
    """
    if len(payload) != VERSION_BYTES:
        raise MessageError(f"a version of {len(payload)} bytes, expected {VERSION_BYTES}; refused")
    return int.from_bytes(payload, "big")


def encode_offer(version: int, told: str, state: str) -> bytes:
    """A member's answer: version and state that its contribution was trained from, and the
    digest of what it was told.
    """
    return encode_version(version) + bytes.fromhex(told + state)


def decode_offer(payload: bytes) -> tuple[int, tuple[str, str]]:
    """Read what `encode_offer` wrote: the version; digest and state.

    Raises:
        MessageError: of another length.
    """
    version, named = payload[:VERSION_BYTES], payload[VERSION_BYTES:]
    if len(named) not in (DIGEST_BYTES, 2 * DIGEST_BYTES):
        raise MessageError(
            f"an offer of {len(payload)} bytes, expected {VERSION_BYTES + DIGEST_BYTES} or "
            f"{DIGEST_BYTES} more; refused"
        )
    return decode_version(version), (named[:DIGEST_BYTES].hex(), named[DIGEST_BYTES:].hex())


def encode_group(group: Group) -> bytes:
    """One spelling of it."""
    lists = {
        name: [list(one) for one in getattr(group, name)]
        for name in ("adapters", "members", "ranges")
    }
    return canonical(lists | {"state": group.state, "version": group.version})


def decode_group(payload: bytes) -> Group:
    """Read what `encode_group` wrote.

    Raises:
        MessageError: malformed, or not in the one spelling.
    """
    fields: Any = None
    if len(payload) <= MAX_GROUP_BYTES:
        try:
            fields = json.loads(payload)
        except (ValueError, RecursionError):
            fields = None
    expected = {"adapters": list, "members": list, "ranges": list, "state": str, "version": int}
    if (
        not isinstance(fields, dict)
        or {key: type(value) for key, value in fields.items()} != expected
    ):
        raise MessageError("the call of a group is malformed; refused")
    members, ranges = rows(fields["members"], [str, int]), rows(fields["ranges"], [int, float])
    adapters = rows(fields["adapters"], [int, str, str])
    group = Group(
        version=fields["version"],
        state=fields["state"],
        members=members,
        adapters=adapters,
        ranges=ranges,
    )
    good = all(math.isfinite(scale) for _, scale in ranges) and encode_group(group) == payload
    if not good or list(group.names) != sorted(set(group.names)):
        raise MessageError(
            "the call of a group is not a sorted list of different names with their "
            "versions; refused"
        )
    if [version for version, *_ in adapters] != sorted({version for _, version in members}):
        raise MessageError(
            "the call of a group does not name one adapter for each of its members' "
            "versions; refused"
        )
    return group


def rows(found: list[Any], kinds: list[type]) -> tuple[tuple[Any, ...], ...]:
    """Lists of these kinds as tuples.

    Raises:
        MessageError: others.
    """
    if not all(isinstance(one, list) and [type(part) for part in one] == kinds for one in found):
        raise MessageError("the call of a group holds what is no member or no range; refused")
    return tuple(tuple(one) for one in found)
