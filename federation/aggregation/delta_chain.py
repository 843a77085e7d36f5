"""How one state of the server follows from another, in few bytes and without loss: the opened sums
that lead there, how they travel, and what those whose sums they are sign about them.

Knows the round's sums (small whole numbers around a centre), the federation's rules for what
follows from them, what a member may be told, and signatures of the roster. Knows nothing of
messages, or of who holds which state.
Always: from the same state the same step gives the same next state, bit for bit, or the names
differ and nothing is used; bytes from somebody else are measured against the federation's own
numbers before anything is allocated or inflated for them; all that a step does beside its integers
(ranges, rotation, rule, who is divided by) follows from the reader's own file and state; what is
signed says which sum it was, of whom, in which attempt, in which ranges, and from which state of
the adapter the step that it makes starts.

    sum     the integers that the coordinator opened, of each bucket; the member decodes and
            combines them, and steps as the coordinator did
    rest    the same adapter, with an optimizer that remembers nothing: after a change was undone.
            Where there is a guard
    whole   everything anew: adapter, velocity, and second moments if the optimizer has them. It
            follows from nothing, so who takes it relies on others (`..rounds.model_broadcast`)

Floats of an adapter look like noise to a compressor; their sums do not, which is why the sums
travel: packed to the bits of the sum, or as deflated bytes where that is less. They are signed
where their members can check them.
"""

import functools
import hashlib
import json
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...core.errors import AuthenticationError, ConfigError, CryptoError, DataError, MessageError
from ...crypto.identity.keys import PublicIdentity, bind
from ...crypto.ring import BitRing, middle
from ...crypto.secagg.session import COMPLETE_UP_TO
from ...crypto.secagg.tag import PRIMES, Tag
from ..spec.policy import Policy, canonical
from ..store.checkpoint import ServerState, Vector
from ..wire.messages import RoundId, bits_of
from .base import Sum
from .clipping import stepper_of
from .ranges import read_spans, spans
from .rank_masks import RankMasks, rank_masks_of
from .server_optimizer import combine, levelled, optimizer_of
from .update import Codec, SumContext, seed_of

Integers = npt.NDArray[np.int64] | npt.NDArray[np.uint32]
PACKINGS = ("bits", "deflate")
KEPT = "kept"  # not the integers but their digest: for a member that signed them, and has them
LEVEL = 1  # of zlib; runs and frequencies are all there is to find, see `deflate`
MAX_PARTIES = 1 << 16
PROTOCOL = "quietchoir opened sum 2"
NUMBER_BYTES = 4  # of a tag's number
NAME_BYTES = 32
LENGTHS_BYTES = 8  # before each step: of its header and of its body
MAX_STEPS = 256  # of one path
MAX_HEADER_BYTES = 1 << 20
BEYOND = 1.0 + 1e-5  # times the range: what float32 makes of a mean that lies on its edge
FIELDS = {"asked": list, "attempt": int, "bucket": int, "kind": str, "round": int, "totals": list}
TOTAL = [str, int, list, dict, int]  # packing, parties, names, signatures in hex, bytes of its body
ALL = -1  # all buckets, combined by the file's rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """One opened sum."""

    packing: str
    parties: int  # whose contributions are in it
    # theirs, where that matters: members train different ranks, or signed the sum
    names: tuple[str, ...] = ()
    proof: Mapping[str, bytes] = field(default_factory=dict)  # their signatures
    body: bytes = field(repr=False)
    # where it is unpacked already, or was kept; on no wire
    whole: Integers | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step, ready to travel."""

    kind: Literal["sum", "rest", "whole"]
    round: int = 0  # sum: the place's, which the noise's rotation follows from
    attempt: int = 0  # sum: the place's
    asked: tuple[str, ...] = ()  # the same: whom the draw gave
    bucket: int = ALL  # sum: whose mean is the change; a guard may have kept one bucket's alone
    totals: tuple[Total, ...] = ()  # sum: of each bucket
    state: bytes = b""  # whole

    def kept_by(self, name: str) -> "Step":
        """The same for a member that signed one of these sums: it has the integers."""
        totals = tuple(
            replace(one, packing=KEPT, body=digest_of(one.whole))
            if name in one.proof and one.whole is not None
            else one
            for one in self.totals
        )
        return replace(self, totals=totals)

    def encode(self) -> bytes:
        """Length of the header, length of the body, both."""
        totals = [
            [
                one.packing,
                one.parties,
                list(one.names),
                {name: text.hex() for name, text in one.proof.items()},
                len(one.body),
            ]
            for one in self.totals
        ]
        fields = {
            "kind": self.kind,
            "round": self.round,
            "attempt": self.attempt,
            "bucket": self.bucket,
        }
        header = canonical({**fields, "asked": list(self.asked), "totals": totals})
        body = self.state + b"".join(one.body for one in self.totals)
        return len(header).to_bytes(4, "big") + len(body).to_bytes(4, "big") + header + body


def name_of(state: ServerState) -> str:
    """64 hex digits that differ between any two states."""
    found = hashlib.sha256(b"quietchoir server state 1")
    for vector in state.vectors:
        found.update(bits_of(vector))
    return found.hexdigest()


@functools.lru_cache(maxsize=8)
def origin_of(size: int) -> str:
    """The name of the state that every run starts from: everybody has it."""
    return name_of(ServerState.zeros(size))


class UnprovenError(MessageError):
    """A sum that too few of those whose sum it is have signed."""


class DeltaChain:
    """What makes steps, and goes them.

    Args:
        size: values of the adapter; stops: where its tensors end.
        run: what the rotations of its rounds follow from, besides the file.
    """

    def __init__(self, policy: Policy, size: int, run: str, stops: Sequence[int] = ()) -> None:
        self.policy, self.size, self.run, self.stops = policy, size, run, tuple(stops) or (size,)
        adaptive = policy.privacy.adaptive
        self.optimizer = stepper_of(policy, size) if adaptive else optimizer_of(policy.recipe)
        # then columns differ in who trains them
        self.mixed = any(member.rank for member in policy.members)

    def of_sums(
        self, sums: Sequence[Sum], round_id: RoundId, asked: Sequence[str], bucket: int = ALL
    ) -> Step:
        """The step of a round's opened sums [>= n each]; what follows the first n values (counters)
        is left out.

        Args:
            asked: whom the draw of this place gave; bucket: whose mean is the change.
        """
        who = tuple(sorted(asked)) if self.mixed else ()
        totals = tuple(self._total(one) for one in sums)
        return Step(
            kind="sum",
            round=round_id.round,
            attempt=round_id.attempt,
            asked=who,
            bucket=bucket,
            totals=totals,
        )

    def change(self, state: ServerState, step: Step, start: str = "") -> Vector:
        """What a `sum` adds up to [n], for a round that began at `state`.

        Args:
            start: that state's name; empty to believe the sum: the coordinator does, which opened
            it.

        Raises:
            UnprovenError: too few of those whose sum it is signed it.
            MessageError: not of this federation's numbers.
            DataError: sums that so many members cannot have, or a change that none of them could
            make.
        """
        policy, recipe = self.policy, self.policy.recipe
        most = max(policy.aggregation.buckets, 2 if recipe.tuning == "auto" else 1)
        if not 1 <= len(step.totals) <= most or not ALL <= step.bucket < len(step.totals):
            raise MessageError(
                f"a step of {len(step.totals)} sums, of which {step.bucket} counts; refused"
            )
        check_once(step.totals)
        if step.bucket != ALL and not policy.guard.on:
            raise MessageError(
                "a step of one bucket alone, in a federation without a guard that "
                "could choose it; refused"
            )
        wanted = recipe.ranges == "tensor"
        given = spans(state.velocity, self.stops, recipe.update_range) if wanted else ()
        ranges = read_spans(given, self.size, recipe.update_range) if wanted else ()
        round_id = RoundId(self.run, step.round, step.attempt)
        sum_context = SumContext(
            ranges, seed_of(policy, round_id), shares=self._shares(step), start=start
        )
        codec, wholes = (
            Codec(self.size, policy, sum_context),
            [self._integers(one) for one in step.totals],
        )
        if start and attested(policy):
            self._proven(round_id, wholes, step.totals, sum_context)
        means = [
            codec.mean(whole, one.parties, one.names)
            for whole, one in zip(wholes, step.totals, strict=True)
        ]
        for mean in means:  # with noise its length is bounded, without it each coordinate
            found = float(
                np.linalg.norm(mean) if codec.noise is not None else np.abs(mean).max(initial=0.0)
            )
            if found > BEYOND * codec.largest:
                raise DataError(
                    f"a change that reaches {found:.3g}, {codec.largest:.3g} at most in a round"
                )
        means = levelled(means, policy.aggregation, codec.largest)
        return (
            combine(means, policy.aggregation.rule, policy.aggregation.trim)
            if step.bucket == ALL
            else means[step.bucket]
        )

    def go(self, state: ServerState, step: Step, start: str) -> ServerState:
        """The state after `step`, from the one called `start`.

        Raises:
            UnprovenError: as `change`.
            MessageError: a step that this federation cannot have made; nothing was changed.
        """
        try:
            if step.kind == "rest":
                if not self.policy.guard.on:
                    raise MessageError(
                        "a change was undone, in a federation without a guard that "
                        "could undo it; refused"
                    )
                return state.at_rest()
            if step.kind == "whole":
                found = ServerState.decode(step.state, self.size)
            else:
                found = self.optimizer.step(state, self.change(state, step, start))
        except (ValueError, ConfigError, CryptoError, DataError) as error:
            raise MessageError(f"a step of the adapter that cannot be: {error}; refused") from error
        if not all(np.isfinite(vector).all() for vector in found.vectors):
            raise MessageError(
                "a step to an adapter that holds values that are not finite; refused"
            )
        return found

    def _shares(self, step: Step) -> RankMasks | None:
        """Who trained what. Raises MessageError where the step does not say it, or too few
        trained a column.
        """
        if not self.mixed:
            return None
        if not step.asked or any(
            len(one.names) != one.parties or set(one.names) - set(step.asked) for one in step.totals
        ):
            raise MessageError(
                "a step that does not say whose sums it is made of, where members train different "
                "ranks; refused"
            )
        shares = rank_masks_of(self.policy, step.asked, step.attempt)
        reasons = [] if shares is None else [shares.short(one.names) for one in step.totals]
        if any(reasons):
            raise MessageError(
                f"a step of a sum that is not opened: {next(filter(None, reasons))}; refused"
            )
        return shares

    def _proven(
        self,
        round_id: RoundId,
        wholes: Sequence[Integers],
        totals: Sequence[Total],
        sum_context: SumContext,
    ) -> None:
        """Require that enough of those whose sums these are signed them. Raises UnprovenError."""
        for whole, one in zip(wholes, totals, strict=True):
            digest = one.body if one.packing == KEPT else digest_of(whole)
            signed = statement(self.policy, round_id, digest, one.names, sum_context)
            found = len(signed_by(self.policy, signed, one.names, one.proof))
            need = max(witnesses(one.parties), least_of(self.policy))
            if len(set(one.names)) != one.parties or found < need:
                raise UnprovenError(
                    f"{found} of {one.parties} members signed the sum of round {round_id.round}, "
                    f"need {need}: it is not gone by"
                )

    def _total(self, one: Sum) -> Total:
        """One sum as it travels."""
        packing, body = one.packed or pack(
            one.total[: self.size], len(one.parties), self.policy.protection.bits
        )
        names = one.parties if self.mixed or one.proof else ()
        return Total(
            packing=packing,
            parties=len(one.parties),
            names=names,
            proof=one.proof,
            body=body,
            whole=one.total[: self.size],
        )

    def _integers(self, total: Total) -> Integers:
        if total.parties < self.policy.protection.min_cohort:
            raise MessageError(f"a sum over {total.parties} members; refused")
        if total.whole is not None:
            return total.whole
        return unpack(
            total.packing, total.body, self.size, total.parties, self.policy.protection.bits
        )


def join(start: str, steps: list[bytes]) -> bytes:
    """A path: the name of the state that it starts from, 32 zeros where it needs none, and its
    steps.
    """
    return (bytes.fromhex(start) if start else bytes(NAME_BYTES)) + b"".join(steps)


def least_of(policy: Policy) -> int:
    """Signatures without which no sum is gone by, however few it is said to be over: more than
    those that may collude, by the reader's own file.

    Else accomplices would sign what they made up among themselves. Not more than that: a sum from
    before the roster grew is still one.
    """
    return (policy.drawn // 3 if policy.aggregation.buckets == 1 else policy.colluders) + 1


def check_once(totals: Sequence[Total]) -> None:
    """Require that no member is in two of a step's sums, nor one sum there twice, to count more.

    Raises:
        MessageError: one is.
    """
    named = [name for one in totals for name in one.names]
    if len(set(named)) != len(named):
        raise MessageError("a step of sums that a member is in twice; refused")


def starts_whole(taken: Sequence[Step]) -> bool:
    """Does a path of these steps begin with a whole state? What comes of it was followed by nobody.

    Raises:
        MessageError: there is one later on, from where on nothing is followed either.
    """
    if any(step.kind == "whole" for step in taken[1:]):
        raise MessageError("a path to an adapter that passes through a whole one; refused")
    return any(step.kind == "whole" for step in taken)


def split(path: bytes) -> tuple[str, list[Step]]:
    """Read what `join` wrote.

    Raises:
        MessageError: malformed, or too many steps.
    """
    start, at, steps = path[:NAME_BYTES], NAME_BYTES, list[Step]()
    if len(start) != NAME_BYTES:
        raise MessageError(f"a path to an adapter of {len(path)} bytes; refused")
    while at < len(path):
        header, body = (
            int.from_bytes(path[at + offset : at + offset + 4], "big") for offset in (0, 4)
        )
        at += LENGTHS_BYTES
        if len(steps) == MAX_STEPS or header > MAX_HEADER_BYTES or at + header + body > len(path):
            raise MessageError(
                "a path to an adapter that is longer than it says, or has too many steps; refused"
            )
        steps.append(read(path[at : at + header], path[at + header : at + header + body]))
        at += header + body
    return start.hex() if any(start) else "", steps


def read(header: bytes, body: bytes) -> Step:
    """One step.

    Raises:
        MessageError: malformed.
    """
    fields: Any = None
    try:
        fields = json.loads(header)
        good = (
            canonical(fields) == header
            and {key: type(value) for key, value in fields.items()} == FIELDS
        )
        good = (
            good
            and fields["kind"] in ("sum", "rest", "whole")
            and min(fields["round"], fields["attempt"]) >= 0
            and max(fields["round"], fields["attempt"]) < 1 << 63
        )
        good = good and all(
            [type(part) for part in one] == TOTAL and one[0] in (*PACKINGS, KEPT)
            for one in fields["totals"]
        )
        names = [name for one in fields["totals"] for name in one[2]] if good else []
        good = good and all(isinstance(name, str) for name in (*fields["asked"], *names))
        good = good and all(min(one[1], one[4]) >= 0 for one in fields["totals"])
        sizes = [one[4] for one in fields["totals"]] if good else []
        proofs = (
            [
                {name: bytes.fromhex(text) for name, text in one[3].items()}
                for one in fields["totals"]
            ]
            if good
            else []
        )
        good = (
            good
            and (fields["kind"] == "sum") == bool(sizes)
            and (fields["kind"] == "whole" or sum(sizes) == len(body))
        )
    except (ValueError, AttributeError, TypeError, RecursionError):
        good = False
    if not good:
        raise MessageError("the header of a step is malformed; refused")
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    totals = tuple(
        Total(
            packing=packing,
            parties=parties,
            names=tuple(names),
            proof=proof,
            body=body[end - size : end],
        )
        for (packing, parties, names, _, size), proof, end in zip(
            fields["totals"], proofs, ends, strict=True
        )
    )
    rest = {name: fields[name] for name in ("kind", "round", "attempt", "bucket")}
    return Step(
        **rest,
        asked=tuple(fields["asked"]),
        totals=totals,
        state=body if fields["kind"] == "whole" else b"",
    )


# Opened sums: as they travel, and what is signed about them.


def attested(policy: Policy) -> bool:
    """Do members check and sign the sums that they are shown?

    Where they follow the adapter by them, and no sum can have more members than share with each
    other.
    """
    small = policy.cohort_size() <= COMPLETE_UP_TO
    return policy.protection.mode == "masked" and policy.followed and small


def witnesses(parties: int) -> int:
    """Signatures under a sum of so many members, before anybody else goes by it: no two sums of
    one attempt get as many.
    """
    return 2 * parties // 3 + 1


def pack(whole: Integers, parties: int, bits: int) -> tuple[str, bytes]:
    """A sum [n] of `parties` values of `bits` bits as it travels."""
    ring = BitRing(length=len(whole), bits=bits, parties=parties)
    packed = ring.pack(whole.astype(ring.dtype))
    deflated = deflate(spread(whole, parties * middle(bits), width(parties, bits)))
    return ("deflate", deflated) if len(deflated) < len(packed) else ("bits", packed)


def unpack(packing: str, body: bytes, size: int, parties: int, bits: int) -> Integers:
    """Read what `pack` wrote.

    Raises:
        MessageError: another length, or no sum of a number of members that there can be.
        ProtocolError: bits where no value lies.
    """
    if not 1 <= parties <= MAX_PARTIES:
        raise MessageError(f"a sum over {parties} members; refused")
    if packing == "bits":
        return BitRing(length=size, bits=bits, parties=parties).unpack(body).astype(np.uint32)
    each = width(parties, bits)
    return gathered(inflate(body, each * size), parties * middle(bits), each)


def encode_shown(packed: tuple[str, bytes], tags: Tag) -> bytes:
    """A sum, as `pack` made it, with its tag, for those whose sum it is to check: packing, tag,
    body.
    """
    packing, body = packed
    return (
        bytes([PACKINGS.index(packing)])
        + b"".join(number.to_bytes(NUMBER_BYTES, "big") for number in tags)
        + body
    )


def decode_shown(payload: bytes, size: int, parties: int, bits: int) -> tuple[Integers, Tag]:
    """Read what `encode_shown` wrote.

    Raises:
        MessageError, ProtocolError: malformed, or a sum that so many members cannot have.
    """
    start = 1 + NUMBER_BYTES * len(PRIMES)
    if len(payload) < start or payload[0] >= len(PACKINGS):
        raise MessageError(f"a sum of {len(payload)} bytes; refused")
    tags = tuple(
        int.from_bytes(payload[at : at + NUMBER_BYTES], "big")
        for at in range(1, start, NUMBER_BYTES)
    )
    whole = unpack(PACKINGS[payload[0]], payload[start:], size, parties, bits)
    check_sum(whole, parties, bits)
    return whole, tags


def check_sum(whole: Integers, parties: int, bits: int) -> None:
    """Require a sum that so many values of `bits` bits can have: no other can be tagged.

    Raises:
        MessageError: it is none.
    """
    if int(whole.max(initial=0)) > 2 * parties * middle(bits):
        raise MessageError(
            f"a sum that {parties} members with values of {bits} bits cannot have; refused"
        )


def digest_of(whole: Integers) -> bytes:
    """32 bytes that name a sum [n] by all its integers."""
    return hashlib.sha256(whole.astype("<u4").data).digest()


def statement(
    policy: Policy, round_id: RoundId, digest: bytes, names: Sequence[str], sum_context: SumContext
) -> tuple[bytes, bytes]:
    """Context and message of a signature: these members' sum of this attempt is the one that
    `digest_of` gives this of.
    """
    columns = (
        []
        if sum_context.shares is None
        else [f"{name} {count}" for name, count in sum_context.shares.columns]
    )
    ranges = [f"{one.stop} {one.scale!r}" for one in sum_context.ranges]
    context = bind(PROTOCOL, policy.federation, round_id.run, round_id.round, round_id.attempt)
    meant = unit(policy)
    return context, bind(
        sum_context.start,
        digest,
        meant,
        len(ranges),
        *ranges,
        len(columns),
        *columns,
        *sorted(names),
    )


def unit(policy: Policy) -> str:
    """What the integers of a sum mean by this file: under a later one they might mean another
    change.
    """
    bits, noise = policy.protection.bits, policy.privacy
    if not noise.on:
        return f"{bits} bits, {policy.recipe.update_range!r}"
    shape = (
        f"{noise.clip!r} {noise.noise_multiplier!r} {noise.honest(policy.protection.min_cohort)}"
    )
    return f"{bits} bits, {noise.mechanism} {shape}{' of a quantile' if noise.adaptive else ''}"


def signed_by(
    policy: Policy, signed: tuple[bytes, bytes], names: Collection[str], proof: Mapping[str, bytes]
) -> tuple[str, ...]:
    """Those of `names` that signed this sum, by the reader's own roster.

    Args:
        said: `statement` of it.
    """
    (context, message), found = signed, list[str]()
    for name, signature in proof.items():
        member = policy.member(name) if name in names else None
        try:
            if member is not None:
                PublicIdentity(bytes.fromhex(member.key)).verify(context, message, signature)
                found.append(name)
        except AuthenticationError:
            continue
    return tuple(found)


def width(parties: int, bits: int) -> int:
    """Bytes of one zigzagged value."""
    return -(-(2 * parties * middle(bits) + 1).bit_length() // 8)


def spread(whole: Integers, centre: int, width: int) -> bytes:
    """Whole numbers around `centre` as planes of bytes, lowest first: small ones leave the
    higher planes empty.
    """
    away: npt.NDArray[np.signedinteger]  # where it suffices, half the memory is half the time
    away = whole.astype(np.int32) if width < 4 else whole.astype(np.int64)
    away -= away.dtype.type(centre)
    zigzag = away << 1
    zigzag ^= away >> (8 * away.itemsize - 1)  # 0, -1, 1, -2 … are 0, 1, 2, 3 …
    planes = np.empty((width, len(whole)), np.uint8)
    for place in range(width):
        planes[place] = zigzag >> 8 * place if place else zigzag
    return planes.tobytes()


def gathered(planes: bytes, centre: int, width: int) -> Integers:
    """Undo `spread`; `width` planes of equal length, 4 at most. What lies below zero comes out far
    above all that a sum may be.
    """
    rows = np.frombuffer(planes, np.uint8).reshape(width, -1)
    zigzag: npt.NDArray[np.uint32] = rows[0].astype(np.uint32)
    for place in range(1, width):
        zigzag |= rows[place].astype(np.uint32) << np.uint32(8 * place)
    below = np.negative(zigzag & np.uint32(1))  # all bits, where the number lies below the centre
    zigzag >>= np.uint32(1)
    zigzag ^= below
    zigzag += np.uint32(centre)
    return zigzag


def deflate(planes: bytes) -> bytes:
    """Runs and frequencies alone: sums do not repeat themselves in longer strings, and looking
    for those takes time.
    """
    press = zlib.compressobj(LEVEL, strategy=zlib.Z_RLE)
    return press.compress(planes) + press.flush()


def inflate(body: bytes, size: int) -> bytes:
    """Exactly `size` bytes out of `body`; never more is made of it, whatever it says.

    Raises:
        MessageError: it holds another number of bytes, is damaged, or goes on after its end.
    """
    press = zlib.decompressobj()
    try:
        # one more than there may be, so that the end is seen
        found = press.decompress(body, size + 1)
    except zlib.error as error:
        raise MessageError(f"a step that does not inflate ({error}); refused") from error
    if len(found) != size or not press.eof or press.unused_data:
        raise MessageError(f"a step that inflates to other than {size} bytes; refused")
    return found
