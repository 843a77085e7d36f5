"""Every message between a coordinator and its members, and its one spelling.

Knows the bytes, the signatures and what each field must be. Knows nothing of the order of stages,
or of what is done with a message.
Always: what leaves `decode_*` was checked whole, and a `Task` or `Reply` was signed by the right
key for this federation, policy, model and receiver; anything else is a `MessageError`, and nothing
was changed.

    task, reply  b"QCM1" | header length, 4 bytes | header | payload | Ed25519 signature, 64 bytes
    work         header length, 4 bytes | header | vector, float32; or the steps to it
    train        of buffered rounds: version, 8 bytes | work
    offer        the answer to it: version, 8 bytes | digest, 32 bytes | state, 32 or 0 bytes
    group        header: whose contributions are summed
    ready        header: the answer to work, and to a group

A header is canonical JSON; `HEADERS` says what is in it. What other stages carry is made where they
are answered (`crypto/secagg`, `..aggregation`).

The *broadcast digest* is what all members of one attempt were told alike, as 32 bytes that their
masks follow from. A member hashes what *it* was told, as it decoded and checked it, never a digest
that came in a message. Whatever is not named in `MAY_DIFFER` is in the digest, in `crypto.secagg`'s
own (`BOUND_LATER`), or compared with the member's own file (`OWN`), so members that were told
different things are in different sessions and their contributions never meet in a sum. A stage that
nobody put into one of these tables is refused by every member.

Source: Pasquini, Francati, Ateniese 2022, "Eluding secure aggregation in federated learning via
model inconsistency", section 7 (a hash of the model goes into what the masks follow from).
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.errors import AuthenticationError, MessageError
from ...crypto.identity.keys import Identity, PublicIdentity, digest
from ...crypto.shared import once
from ..spec.policy import Policy, canonical

MAGIC = b"QCM1"
SIGNATURE_BYTES, VERSION_BYTES, DIGEST_BYTES = 64, 8, 32
MAX_BYTES = 1 << 30  # of a message
MAX_ENVELOPE_HEADER_BYTES, MAX_HEADER_BYTES = 4096, 1 << 20
TASK_CONTEXT = b"quietchoir task v1"
REPLY_CONTEXT = b"quietchoir reply v1"
RUN = re.compile(r"[0-9a-f]{32}")  # a run's name becomes part of file names

# Stages of work: what is asked before, or instead of, a sum.
TRAIN = "train"  # train from the vector, then contribute the change
SCORE = "score"  # score the vector on held-out examples, contribute the counts
ADOPT = "adopt"  # keep the vector as a finished adapter
UNDO = "undo"  # sealed mode: step to the adapter before the last step, with an optimizer at rest
STAGES = (TRAIN, SCORE, ADOPT, UNDO)
GROUP = "group"  # make the contribution that is kept ready to be summed with these members'
DONE, SPENT = b"", b"spent"  # what a member answers: it is done, or its privacy budget is used up

BROADCAST_PROTOCOL = "quietchoir broadcast 1"

# Stages whose messages are hashed into the broadcast digest, whole but for what MAY_DIFFER names.
HASHED = frozenset({"train", "score", "group", "advertise"})

# Fields of a message's own header that every member compares with what it has.
OWN = {
    "kind": "a task",
    "federation": "of the member's own file",
    "policy": "of the member's own file",
    "model": "of the member's own file",
    "run": "in the session, and the one that the member is in",
    "round": "in the session, and later than any before it",
    "attempt": "in the session, and later than any before it",
    "stage": "in the digest, or the one that comes next",
}

# Stages that come once the session stands, and what binds them.
BOUND_LATER = {
    "share": "the list of keys is in every later signature, and the graph follows from it",
    "mask": "who shared is in every later signature; the boxes are each member's own, sealed and "
    "named by sender and receiver",
    "consistency": "each survivor signs the list that it was shown; the threshold must have signed "
    "the very same",
    "unmask": "signatures over that list: whichever of them a member is shown, enough of them "
    "prove the same survivors",
    "attest": "the opened sum with its tag: a member signs it if it fits what it helped to open, "
    "and no other fits",
    "witness": "each survivor signs the encrypted sum that it was shown; the threshold must have "
    "signed the very same",
    "apply": "signatures over that sum: whichever of them a member is shown, enough of them prove "
    "the same sum",
    "open": "as apply; parts are given for the survivors that this member signed, and for nobody "
    "else",
}

# What members of one attempt may be told differently, and why it is harmless.
MAY_DIFFER = {
    "recipient": "each message is for one member; who is asked is hashed, as the cohort",
    "path": "the steps to the adapter that is meant: where they end is hashed, whatever they "
    "started from",
    "holds": "asks for names of states, says nothing, changes nothing",
    "adopt": "no sum follows from it; it has a place of its own. Of scores a member learns beside "
    "the adapter that its later contributions are made from",
    "undo": "no sum follows from it; the adapter that it leads to is in the state's tag, which "
    "later work names",
    "greet": "asks for a hello, says nothing",
    "deal": "boxes are asked for: their receivers' signed hellos, no two alike",
    "take": "one member's box; the key in it is in the session's ring",
    "hand": "boxes are asked for: their receivers' signed hellos, no two alike",
    "follow": "one member's box; the adapter in it is in the state's tag, which the work names and "
    "the ring holds",
    "commit": "who makes a joint key; the key that comes of it is in the session's ring",
    "reveal": "everybody's signed commitments, compared in the ceremony",
    "finish": "one member's boxes of a ceremony; its rehearsal fails if they do not fit",
    "settle": "parts of the rehearsal; the key that comes of it is in the session's ring",
    "send": "plain mode: the coordinator reads every contribution anyway, there is nothing to bind",
}


# Stages of which one of the tables says what binds them, or why nothing need.
KNOWN = HASHED | BOUND_LATER.keys() | MAY_DIFFER.keys()

Ranges = tuple[tuple[int, float], ...]


class FileVersionError(MessageError):
    """A message under another version of the federation file than the one here."""


@dataclass(frozen=True, slots=True, order=True)
class RoundId:
    """Where in a run a message belongs. Attempts of one run are ordered by (round, attempt)."""

    run: str  # 32 hex digits: chosen once for a coordinator's state folder
    round: int
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The coordinator asks one member for one stage."""

    round_id: RoundId
    stage: str
    recipient: str
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One member answers one task."""

    round_id: RoundId
    stage: str
    sender: str
    task: str  # sha256 of the task's bytes, hex
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One adapter and what to do with it."""

    # [n]; [0] in sealed mode, where members have it and the coordinator does not, and where steps
    # lead to it
    flat: npt.NDArray[np.float32]
    evaluate: bool = False  # while training: score `flat` first
    card: str = ""  # of a finished adapter: its signed card; in sealed mode its evaluation, as JSON
    # sealed mode: tag of the adapter that is meant, hex; where adapters are told as changes: name
    # of the state
    state: str = ""
    ranges: Ranges = ()  # stop and scale of each tensor; empty: the federation's one range
    cohort: tuple[str, ...] = ()  # everybody who is asked, sorted
    # members that the draw would have given before the last of the cohort, but are not there
    absent: tuple[str, ...] = ()
    # the round as the coordinator counts them, from 1: for people, and for the learning rate where
    # it falls; `RoundId.round` also counts those that came to nothing
    round: int = 0
    # of the recipe's learning rate, where rounds choose it (`..rounds.tuning`): one, or one for
    # each half of the cohort
    rates: tuple[float, ...] = (1.0,)

    def header(self) -> dict[str, Any]:
        """Everything but the vector, as JSON's types; what is told is what is hashed."""
        return {name: listed(getattr(self, name)) for name in HEADERS[Work]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What a member answers when its contribution is ready: nothing of how its work went."""

    # it scored held-out answers: so many do is told to all, because few are not summed
    scores: bool
    # members that it signed for in earlier sums from the same adapter
    before: tuple[tuple[str, ...], ...] = ()
    # in a vote whose ballots are open, one: by how much its own score rose (`rounds.validation`)
    ballot: tuple[int, ...] = ()


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
    def broadcast_digest(self) -> bytes:
        """32 bytes that differ if the coordinator told two members different things about one
        group.
        """
        return group_digest(encode_group(self))

    def adapter_of(self, version: int) -> tuple[str, str]:
        """Digest and state that this group names for a version of one of its members."""
        return {one: (digest, state) for one, digest, state in self.adapters}[version]

    def staleness(self, name: str) -> int:
        """Steps between the adapter that `name` trained from and the newest one."""
        return self.version - dict(self.members)[name]


# Fields: from JSON's type to ours, or a ValueError.

Field = Callable[[Any], Any]


def exactly(kind: type) -> Field:
    """A value of this very type: True is no number."""

    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise ValueError(f"found {type(value).__name__}, expected {kind.__name__}")
        return value

    return read


def each(field: Field) -> Field:
    """A list of such values, as a tuple."""

    def read(value: Any) -> Any:
        return tuple(map(field, exactly(list)(value)))

    return read


def row(*fields: Field) -> Field:
    """A list of these, in this order, as a tuple."""

    def read(value: Any) -> Any:
        return tuple(one(part) for one, part in zip(fields, exactly(list)(value), strict=True))

    return read


TEXT, WHOLE, REAL, FLAG = exactly(str), exactly(int), exactly(float), exactly(bool)
NAMES, RANGES = each(TEXT), each(row(WHOLE, REAL))
ENVELOPE: dict[str, Field] = {
    "kind": TEXT,
    "federation": TEXT,
    "policy": TEXT,
    "model": TEXT,
    "run": TEXT,
    "round": WHOLE,
    "attempt": WHOLE,
    "stage": TEXT,
}
# What stands in each header, and nothing else does.
HEADERS: dict[type, dict[str, Field]] = {
    Task: {**ENVELOPE, "recipient": TEXT},
    Reply: {**ENVELOPE, "sender": TEXT, "task": TEXT},
    Work: {
        "evaluate": FLAG,
        "card": TEXT,
        "state": TEXT,
        "ranges": RANGES,
        "cohort": NAMES,
        "absent": NAMES,
        "round": WHOLE,
        "rates": each(REAL),
    },
    Ready: {"scores": FLAG, "before": each(NAMES), "ballot": each(WHOLE)},
    Group: {
        "version": WHOLE,
        "state": TEXT,
        "members": each(row(TEXT, WHOLE)),
        "adapters": each(row(WHOLE, TEXT, TEXT)),
        "ranges": RANGES,
    },
}
assert {one.name for one in dataclasses.fields(Work)} == {*HEADERS[Work], "flat"}


def spell(message: Ready | Work | Group) -> bytes:
    """Its header."""
    return canonical({name: listed(getattr(message, name)) for name in HEADERS[type(message)]})


def parse(kind: type, header: bytes, limit: int = MAX_HEADER_BYTES) -> dict[str, Any]:
    """The fields of a header.

    Raises:
        MessageError: too long, not the one spelling, or not what `HEADERS` says.
    """
    expected = HEADERS[kind]
    try:
        if len(header) > limit:
            raise ValueError(f"{len(header)} bytes, expected at most {limit}")
        fields = json.loads(header)
        if type(fields) is not dict or fields.keys() != expected.keys():
            raise ValueError(f"expected {', '.join(sorted(expected))}")
        if canonical(fields) != header:
            raise ValueError("not in its one spelling")
        return {name: field(fields[name]) for name, field in expected.items()}
    except (ValueError, RecursionError) as error:
        raise MessageError(
            f"the header of a {kind.__name__.lower()} is malformed ({error}); refused"
        ) from None


def listed(value: Any) -> Any:
    """Tuples as lists."""
    return [listed(one) for one in value] if isinstance(value, tuple) else value


def framed(header: bytes) -> bytes:
    """A header behind its length."""
    return len(header).to_bytes(4, "big") + header


def unframed(data: bytes) -> tuple[bytes, bytes]:
    """A header that stands behind its length, and what follows it.

    Raises:
        MessageError: shorter than it says.
    """
    length = int.from_bytes(data[:4], "big")
    if len(data) < 4 + length:
        raise MessageError(f"a header of {length} bytes does not fit into {len(data)}; refused")
    return data[4 : 4 + length], data[4 + length :]


# The envelope: tasks and replies.


def encode_task(task: Task, policy: Policy, coordinator: Identity) -> bytes:
    """Spell and sign `task`."""
    fields = {"kind": "task", "recipient": task.recipient}
    return _seal(task, fields, policy, coordinator, TASK_CONTEXT)


def encode_reply(reply: Reply, policy: Policy, identity: Identity) -> bytes:
    """Spell and sign `reply`."""
    fields = {"kind": "reply", "sender": reply.sender, "task": reply.task}
    return _seal(reply, fields, policy, identity, REPLY_CONTEXT)


def decode_task(data: bytes, policy: Policy, recipient: str) -> Task:
    """Read a task that this federation's coordinator signed for `recipient`.

    Raises:
        MessageError: malformed, foreign, unsigned, for another policy or model, or for somebody
        else.
    """
    fields, payload = split(data, Task)
    coordinator = PublicIdentity(bytes.fromhex(policy.coordinator.key))
    _verify(data, coordinator, TASK_CONTEXT, "the coordinator")
    _check_envelope(fields, policy, "task")
    if fields["recipient"] != recipient:
        raise MessageError(f"a task for {fields['recipient']} came to {recipient}; refused")
    return Task(
        round_id=round_id_of(fields), stage=fields["stage"], recipient=recipient, payload=payload
    )


def decode_reply(data: bytes, policy: Policy, task: bytes) -> Reply:
    """Read a member's reply to exactly `task` (its bytes).

    Raises:
        MessageError: malformed, foreign, unsigned, not from the task's recipient, or an answer to
        something else.
    """
    fields, payload = split(data, Reply)
    asked, _ = split(task, Task)
    member = policy.member(fields["sender"])
    if member is None or member.name != asked["recipient"]:
        raise MessageError(
            f"a reply from {fields['sender']!r} came where {asked['recipient']!r} "
            f"was asked; refused"
        )
    _verify(data, PublicIdentity(bytes.fromhex(member.key)), REPLY_CONTEXT, member.name)
    _check_envelope(fields, policy, "reply")
    common = ENVELOPE.keys() - {"kind"}
    if fields["task"] != fingerprint(task) or any(fields[name] != asked[name] for name in common):
        raise MessageError(
            f"{member.name} answered another task than the one it was asked; refused"
        )
    return Reply(
        round_id=round_id_of(fields),
        stage=fields["stage"],
        sender=member.name,
        task=fields["task"],
        payload=payload,
    )


def split(data: bytes, kind: type[Task] | type[Reply] = Task) -> tuple[dict[str, Any], bytes]:
    """Cut a message into header fields and payload; check form only, not the signature.

    Raises:
        MessageError: too short, too long, or another header than one of this kind.
    """
    if not len(MAGIC) + 4 + SIGNATURE_BYTES <= len(data) <= MAX_BYTES or data[:4] != MAGIC:
        raise MessageError(f"{len(data)} bytes that are no message of this federation; refused")
    header, payload = unframed(data[len(MAGIC) : -SIGNATURE_BYTES])
    return parse(kind, header, MAX_ENVELOPE_HEADER_BYTES), payload


def fingerprint(data: bytes) -> str:
    """Name of one message: sha256, hex."""
    return hashlib.sha256(data).hexdigest()


def round_id_of(fields: Mapping[str, Any]) -> RoundId:
    """What checked header fields name."""
    return RoundId(fields["run"], fields["round"], fields["attempt"])


def _seal(
    message: Task | Reply, own: dict[str, str], policy: Policy, signer: Identity, context: bytes
) -> bytes:
    """Header, payload and signature in one."""
    header = canonical(
        {
            "federation": policy.federation.hex(),
            "policy": policy.digest.hex(),
            "model": policy.model.digest,
            "stage": message.stage,
            **dataclasses.asdict(message.round_id),
            **own,
        }
    )
    body = MAGIC + framed(header) + message.payload
    return body + signer.sign(context, body)


def _verify(data: bytes, sender: PublicIdentity, context: bytes, name: str) -> None:
    """Check the signature at the end of `data`.

    Raises:
        MessageError: not signed by `sender` in this context.
    """
    try:
        sender.verify(context, data[:-SIGNATURE_BYTES], data[-SIGNATURE_BYTES:])
    except AuthenticationError:
        raise MessageError(f"not signed by {name}; refused") from None


def _check_envelope(fields: Mapping[str, Any], policy: Policy, kind: str) -> None:
    """Require this federation, this version of its file, this model and sane numbers.

    Raises:
        MessageError: names the first that differs.
    """
    for name, found, expected in (
        ("kind", fields["kind"], kind),
        ("federation", fields["federation"], policy.federation.hex()),
        ("model", fields["model"], policy.model.digest),
    ):
        if found != expected:
            raise MessageError(f"found {name} {found[:12]}…, expected {expected[:12]}…; refused")
    if fields["policy"] != policy.digest.hex():
        raise FileVersionError(
            f"the sender holds another version of the federation file than version "
            f"{policy.version} here; "
            "give both the newest file and start them again"
        )
    if min(fields["round"], fields["attempt"]) < 0 or not RUN.fullmatch(fields["run"]):
        raise MessageError("round, attempt or run are out of range; refused")


# Work, and the answer to it.


def encode_work(work: Work) -> bytes:
    """The header and the vector."""
    return framed(spell(work)) + work.flat.astype("<f4").tobytes()


def encode_delta_work(work: Work, path: bytes) -> bytes:
    """The same without the vector: `work.state` names it, and `path` leads there
    (`..aggregation.delta_chain`).
    """
    return framed(spell(work)) + path


def split_work(payload: bytes) -> tuple[Work, bytes]:
    """Work without its vector, and what follows the header.

    Raises:
        MessageError: malformed.
    """
    header, values = unframed(payload)
    return Work(flat=np.zeros(0, np.float32), **parse(Work, header)), values


def decode_work(payload: bytes, size: int) -> Work:
    """Read what `encode_work` wrote.

    Raises:
        MessageError: malformed, of another length, or not finite.
    """

    def read() -> Work:
        work, values = split_work(payload)
        if len(values) != 4 * size:
            raise MessageError(f"an adapter of {len(values)} bytes, expected {4 * size}; refused")
        flat = np.frombuffer(values, "<f4").astype(np.float32)
        if not np.isfinite(flat).all():
            raise MessageError("the adapter holds values that are not finite; refused")
        flat.flags.writeable = False  # whoever trains from it leaves it as it is
        return dataclasses.replace(work, flat=flat)

    return once(("work", hashlib.sha256(payload).digest()), size, read)


def encode_ready(ready: Ready) -> bytes:
    """Its header."""
    return spell(ready)


def decode_ready(payload: bytes) -> Ready | None:
    """Read what `encode_ready` wrote; None if it is something else."""
    try:
        return Ready(**parse(Ready, payload))
    except MessageError:
        return None


# Buffered rounds: train from this version; these are summed now.


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


def encode_train(version: int, work: bytes) -> bytes:
    """The version that is meant, and what to do with it: `encode_work`, `encode_delta_work`."""
    return encode_version(version) + work


def split_train(payload: bytes) -> tuple[int, bytes]:
    """Read what `encode_train` wrote. Raises MessageError for less than a version."""
    return decode_version(payload[:VERSION_BYTES]), payload[VERSION_BYTES:]


def check_train(work: Work) -> None:
    """Raises MessageError for work for a drawn cohort, which there is none of here, or of a
    state whose name is none.
    """
    if work.cohort or work.absent or work.ranges:
        raise MessageError(
            "work for a drawn cohort came, in a federation of buffered rounds; refused"
        )
    if work.state and (
        len(work.state) != 2 * DIGEST_BYTES or set(work.state) - set("0123456789abcdef")
    ):
        raise MessageError(
            f"the name of a state is {len(work.state)} characters that are no digest; refused"
        )


def encode_offer(version: int, broadcast: str, state: str) -> bytes:
    """A member's answer: version and state that its contribution was trained from, and the
    digest of what it was told.
    """
    return encode_version(version) + bytes.fromhex(broadcast + state)


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
    """Its header."""
    return spell(group)


def decode_group(payload: bytes) -> Group:
    """Read what `encode_group` wrote.

    Raises:
        MessageError: malformed, or not in the one spelling.
    """
    group = Group(**parse(Group, payload))
    finite = all(math.isfinite(scale) for _, scale in group.ranges)
    if not finite or list(group.names) != sorted(set(group.names)):
        raise MessageError(
            "the call of a group is not a sorted list of different names with their "
            "versions; refused"
        )
    versions = [version for version, *_ in group.adapters]
    if versions != sorted({version for _, version in group.members}):
        raise MessageError(
            "the call of a group does not name one adapter for each of its members' "
            "versions; refused"
        )
    return group


def split_seed(run: str, version: int) -> bytes:
    """What a group's buckets follow from: the same members on the same version are split alike
    again, as a sum from one adapter must be over the very same members, or none of them.
    """
    return digest("quietchoir group split 1", run, version)


def version_digest(version: int, work: Work) -> str:
    """The broadcast digest of work on one version, hex."""
    header = work.header() | {"version": version}
    return work_digest(TRAIN, header, work.flat).hex()


# The broadcast digest.


def work_digest(stage: str, header: dict[str, Any], flat: npt.NDArray[np.float32]) -> bytes:
    """The digest of work.

    Args:
        header: everything but the vector, as JSON's types: all of `Work.header`, whatever it has.
        flat: the adapter as this side was told it, or arrived at it [n]; [0] in sealed mode, where
            the header's `state` is a keyed tag, compared with that of the member's own adapter.
    """
    return digest(
        BROADCAST_PROTOCOL, "work", stage, canonical(header), hashlib.sha256(bits_of(flat)).digest()
    )


def group_digest(call: bytes) -> bytes:
    """The digest of a call for a group, which holds the digests of the work behind each
    contribution.
    """
    return digest(BROADCAST_PROTOCOL, "group", call)


def session_context(broadcast: bytes, ready: bytes) -> bytes:
    """What goes into the session: the digest of the work or group, and the list of who is ready,
    as it was told.
    """
    return digest(BROADCAST_PROTOCOL, "session", broadcast, ready)


def bits_of(vector: npt.NDArray[np.float32]) -> memoryview:
    """All bits of a vector [n], 4 bytes a value, little-endian; without a copy where there need be
    none.
    """
    return np.ascontiguousarray(vector, "<f4").data
