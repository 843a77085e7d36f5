"""An opened sum as it travels to members, and what those whose sum it is sign about it.

Knows small whole numbers around a centre, and signatures of the roster. Knows nothing of optimizers
or messages.
Always: bytes from somebody else are measured against the federation's own numbers before anything
is allocated or inflated for them; what is signed says which sum it was, of whom, in which attempt,
in which ranges, and from which state of the adapter the step that it makes starts.

Whole numbers travel packed to the bits of the sum, or as deflated bytes where that is less.
"""

import hashlib
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ...core.errors import AuthenticationError, MessageError
from ...crypto.identity.keys import PublicIdentity, bind
from ...crypto.ring import BitRing, middle
from ...crypto.secagg.session import COMPLETE_UP_TO
from ...crypto.secagg.tag import PRIMES, Tag
from ..spec.policy import Policy
from ..wire.messages import RoundId
from .update import SumContext

Integers = npt.NDArray[np.int64] | npt.NDArray[np.uint32]
PACKINGS = ("bits", "deflate")
KEPT = "kept"  # not the integers but their digest: for a member that signed them, and has them
LEVEL = 1  # of zlib; runs and frequencies are all there is to find, see `deflate`
MAX_PARTIES = 1 << 16
PROTOCOL = "quietchoir opened sum 2"
NUMBER_BYTES = 4  # of a tag's number


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
    return f"{bits} bits, {noise.mechanism} {shape}"


def signed_by(
    policy: Policy, said: tuple[bytes, bytes], names: Collection[str], proof: Mapping[str, bytes]
) -> tuple[str, ...]:
    """Those of `names` that signed this sum, by the reader's own roster.

    Args:
        said: `statement` of it.
    """
    (context, message), found = said, list[str]()
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
