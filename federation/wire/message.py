"""What crosses the border: tasks from the coordinator, replies from members.

Knows the bytes and the signatures. Knows nothing of what a payload means or of the order of stages.
Always: a `Task` or `Reply` that leaves `decode_*` was signed by the right key for this federation,
policy, model and receiver; anything else is a `MessageError`, and nothing was changed.

    b"QCM1" | header length, 4 bytes | header, canonical JSON | payload | Ed25519 signature of all
    before it, 64 bytes
"""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.errors import AuthenticationError, MessageError
from ...crypto.identity.keys import Identity, PublicIdentity
from ..spec.policy import Policy, canonical

MAGIC = b"QCM1"
SIGNATURE_BYTES = 64
MAX_HEADER_BYTES = 4096
MAX_BYTES = 1 << 30
TASK_CONTEXT = b"quietchoir task v1"
REPLY_CONTEXT = b"quietchoir reply v1"
RUN = re.compile(r"[0-9a-f]{32}")  # a run's name becomes part of file names


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where in a run a message belongs. Attempts of one run are ordered by (round, attempt)."""

    run: str  # 32 hex digits: chosen once for a coordinator's state folder
    round: int
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The coordinator asks one member for one stage."""

    place: Place
    stage: str
    recipient: str
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One member answers one task."""

    place: Place
    stage: str
    sender: str
    task: str  # sha256 of the task's bytes, hex
    payload: bytes


def encode_task(task: Task, policy: Policy, coordinator: Identity) -> bytes:
    """Spell and sign `task`."""
    fields = {"kind": "task", "recipient": task.recipient, **frame(task.place, task.stage, policy)}
    return seal(fields, task.payload, coordinator, TASK_CONTEXT)


def encode_reply(reply: Reply, policy: Policy, identity: Identity) -> bytes:
    """Spell and sign `reply`."""
    fields = {
        "kind": "reply",
        "sender": reply.sender,
        "task": reply.task,
        **frame(reply.place, reply.stage, policy),
    }
    return seal(fields, reply.payload, identity, REPLY_CONTEXT)


def decode_task(data: bytes, policy: Policy, recipient: str) -> Task:
    """Read a task that this federation's coordinator signed for `recipient`.

    Raises:
        MessageError: malformed, foreign, unsigned, for another policy or model, or for somebody
        else.
    """
    fields, payload = split(data, {"kind": str, "recipient": str, **FRAME})
    verify(
        data, PublicIdentity(bytes.fromhex(policy.coordinator.key)), TASK_CONTEXT, "the coordinator"
    )
    check_frame(fields, policy, "task")
    if fields["recipient"] != recipient:
        raise MessageError(f"a task for {fields['recipient']} came to {recipient}; refused")
    return Task(place=place_of(fields), stage=fields["stage"], recipient=recipient, payload=payload)


def decode_reply(data: bytes, policy: Policy, task: bytes) -> Reply:
    """Read a member's reply to exactly `task` (its bytes).

    Raises:
        MessageError: malformed, foreign, unsigned, not from the task's recipient, or an answer to
        something else.
    """
    fields, payload = split(data, {"kind": str, "sender": str, "task": str, **FRAME})
    asked, _ = split(task, {"kind": str, "recipient": str, **FRAME})
    member = policy.member(fields["sender"])
    if member is None or member.name != asked["recipient"]:
        raise MessageError(
            f"a reply from {fields['sender']!r} came where {asked['recipient']!r} "
            f"was asked; refused"
        )
    verify(data, PublicIdentity(bytes.fromhex(member.key)), REPLY_CONTEXT, member.name)
    check_frame(fields, policy, "reply")
    if fields["task"] != fingerprint(task) or any(fields[key] != asked[key] for key in FRAME):
        raise MessageError(
            f"{member.name} answered another task than the one it was asked; refused"
        )
    return Reply(
        place=place_of(fields),
        stage=fields["stage"],
        sender=member.name,
        task=fields["task"],
        payload=payload,
    )


FRAME: dict[str, type] = {
    "attempt": int,
    "federation": str,
    "model": str,
    "policy": str,
    "round": int,
    "run": str,
    "stage": str,
}


def frame(place: Place, stage: str, policy: Policy) -> dict[str, Any]:
    """Header fields that tasks and replies share."""
    return {
        "federation": policy.federation.hex(),
        "policy": policy.digest.hex(),
        "model": policy.model.digest,
        "stage": stage,
        **dataclasses.asdict(place),
    }


def check_frame(fields: dict[str, Any], policy: Policy, kind: str) -> None:
    """Require this federation, this version of its file, this model and sane numbers.

    Raises:
        MessageError: names the first that differs.
    """
    if fields["kind"] != kind:
        raise MessageError(f"found a {fields['kind']!r} where a {kind} was expected; refused")
    if fields["federation"] != policy.federation.hex():
        raise MessageError(
            f"found federation {fields['federation'][:12]}…, expected "
            f"{policy.federation.hex()[:12]}…; refused"
        )
    if fields["model"] != policy.model.digest:
        raise MessageError(
            f"found model {fields['model'][:12]}…, expected {policy.model.digest[:12]}…; refused"
        )
    if fields["policy"] != policy.digest.hex():
        raise MessageError(
            f"the sender holds another version of the federation file than version "
            f"{policy.version} here; "
            "give both the newest file and start them again"
        )
    if min(fields["round"], fields["attempt"]) < 0 or not RUN.fullmatch(fields["run"]):
        raise MessageError("round, attempt or run are out of range; refused")


def fingerprint(data: bytes) -> str:
    """Name of one message: sha256, hex."""
    return hashlib.sha256(data).hexdigest()


def place_of(fields: dict[str, Any]) -> Place:
    """The place named in checked header fields."""
    return Place(fields["run"], fields["round"], fields["attempt"])


def seal(fields: dict[str, Any], payload: bytes, identity: Identity, context: bytes) -> bytes:
    """Header, payload and signature in one."""
    header = canonical(fields)
    body = MAGIC + len(header).to_bytes(4, "big") + header + payload
    return body + identity.sign(context, body)


def verify(data: bytes, sender: PublicIdentity, context: bytes, name: str) -> None:
    """Check the signature at the end of `data`.

    Raises:
        MessageError: not signed by `sender` in this context.
    """
    try:
        sender.verify(context, data[:-SIGNATURE_BYTES], data[-SIGNATURE_BYTES:])
    except AuthenticationError:
        raise MessageError(f"not signed by {name}; refused") from None


def split(data: bytes, expected: dict[str, type]) -> tuple[dict[str, Any], bytes]:
    """Cut a message into header fields and payload; check form only, not the signature.

    Raises:
        MessageError: too short, too long, not canonical, or with other fields than `expected`.
    """
    start = len(MAGIC) + 4
    if not start + SIGNATURE_BYTES <= len(data) <= MAX_BYTES or not data.startswith(MAGIC):
        raise MessageError(f"{len(data)} bytes that are no message of this federation; refused")
    length = int.from_bytes(data[len(MAGIC) : start], "big")
    header = data[start : start + length]
    if length > MAX_HEADER_BYTES or start + length + SIGNATURE_BYTES > len(data):
        raise MessageError(f"a header of {length} bytes does not fit into {len(data)}; refused")
    try:
        fields = json.loads(header)
        good = isinstance(fields, dict) and canonical(fields) == header
    except (ValueError, RecursionError):
        good = False
    if not good or set(fields) != set(expected):
        raise MessageError(
            f"the header is not the canonical JSON of {', '.join(sorted(expected))}; refused"
        )
    for key, kind in expected.items():
        if type(fields[key]) is not kind:
            raise MessageError(f"header field {key} must be {kind.__name__}; refused")
    return fields, data[start + length : -SIGNATURE_BYTES]


def bits_of(vector: npt.NDArray[np.float32]) -> memoryview:
    """All bits of a vector [n], 4 bytes a value, little-endian; without a copy where there need be
    none.
    """
    return np.ascontiguousarray(vector, "<f4").data
