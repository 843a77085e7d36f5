"""What crosses the wire between an asker and a host.

Knows bytes, sizes and signatures. Knows nothing of what the ciphertexts mean.
Always: a decoded message was signed by the key it names, for this library, these parameters and
this direction, and its length is exactly what its own head says; anything else is a typed error.
"""

import enum
import json
import re
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

from ..core.errors import (
    AuthenticationError,
    BudgetError,
    CryptoError,
    MessageError,
    ProtocolError,
    QuietchoirError,
    WorkerError,
)
from ..core.screen import one_line
from ..crypto.he.parameters import SEARCH
from ..crypto.identity.keys import SIGNATURE_BYTES, Identity, PublicIdentity, bind, digest
from ..crypto.pir.clusters import ClusterMap
from ..crypto.pir.search import KEY_PART_BYTES, MAX_PASSAGES, Shape
from ..crypto.pir.table import MAX_CHUNK_BYTES

MANIFEST_CONTEXT = bind("quietchoir library manifest 3")
CLUSTERS_CONTEXT = bind("quietchoir library clusters 3")
REQUEST_CONTEXT = bind("quietchoir library request 3")
REPLY_CONTEXT = bind("quietchoir library reply 3")
PATH = "/library"  # GET the manifest, POST a request
REQUEST_MAGIC, REPLY_MAGIC = b"QCQ3", b"QCR3"
REQUEST_HEAD = struct.Struct(">4sB8s32s32s32sQB")
REPLY_HEAD = struct.Struct(">4sB32sB")
MAX_PARTS = 4
ERROR_BYTES = 2048
REASON_CHARACTERS = ERROR_BYTES // 8  # of a refusal: JSON may write six bytes for one
MANIFEST_BYTES = 64 << 10
# what a manifest's fields may hold; numbers begin at 1
LARGEST = {
    "dimension": SEARCH.slots,
    "passages": MAX_PASSAGES,
    "chunk_bytes": MAX_CHUNK_BYTES,
    "text_bytes": MAX_PASSAGES * MAX_CHUNK_BYTES,
    "questions": SEARCH.slots,
}
DIGITS = {"host": 64, "parameters": 2 * len(SEARCH.digest), "edition": 32}
NAME_CHARACTERS = 255  # of a folder: the title, and each label
# every other refusal is 400
STATUS = {AuthenticationError: 403, BudgetError: 429, WorkerError: 503}
ERRORS = {
    kind.__name__: kind
    for kind in (
        AuthenticationError,
        BudgetError,
        CryptoError,
        MessageError,
        ProtocolError,
        WorkerError,
    )
}


class RequestKind(enum.IntEnum):
    """What an asker can send."""

    KEYS = 1
    QUESTION = 2
    CHOICE = 3
    CLASSIFY = 4  # parts as of a question
    NEAR = 5  # a question near itself, counted as one
    CLUSTERS = 6  # their map; without parts


class ReplyKind(enum.IntEnum):
    """What a host can reply."""

    ANSWER = 1
    REFUSAL = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryManifest:
    """What a host tells everybody."""

    title: str
    host: str  # Ed25519 public key, hex
    dimension: int
    passages: int
    chunk_bytes: int  # of every passage in the table
    text_bytes: int  # of all passages, packed: what a plain download would cost
    parameters: str  # hex digest of the parameter set
    # drawn when the passages changed; a digest of them would let others test guesses at them
    edition: str
    questions: int  # one account's budget
    labels: tuple[str, ...]  # of its classifier, if it has one
    clustered: bool  # what is near a question can be scored alone
    probe: tuple[float, ...]  # embedding of the probe sentence, to see that both use the same model

    @property
    def library(self) -> bytes:
        """32 bytes that name this state of this library."""
        return digest(
            "library",
            bytes.fromhex(self.host),
            self.dimension,
            self.passages,
            self.chunk_bytes,
            self.edition,
            len(self.labels),
            int(self.clustered),
        )

    @property
    def shape(self) -> Shape:
        """Sizes of everything that follows.

        Raises:
            ProtocolError: larger than the parameter set can hold.
        """
        return Shape(
            dimension=self.dimension,
            passages=self.passages,
            chunk_bytes=self.chunk_bytes,
            labels=len(self.labels),
            clustered=self.clustered,
        )

    def encode(self, host: Identity) -> bytes:
        """Signed JSON."""
        text = json.dumps(asdict(self))
        return json.dumps(
            {"manifest": text, "signature": host.sign(MANIFEST_CONTEXT, text.encode()).hex()}
        ).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """One signed message from an asker."""

    kind: RequestKind
    library: bytes  # 32
    asker: PublicIdentity
    key_id: bytes  # 32: digest of the public keys that the ciphertexts belong to
    # rises with every request of this asker; from the session's beginning in nanoseconds since 1970
    sequence: int
    parts: tuple[bytes, ...]

    def encode(self, identity: Identity) -> bytes:
        """Bytes for the wire, signed by `identity`, which must be the asker's."""
        head = REQUEST_HEAD.pack(
            REQUEST_MAGIC,
            self.kind,
            SEARCH.digest,
            self.library,
            self.asker.raw,
            self.key_id,
            self.sequence,
            len(self.parts),
        )
        body = head + _pack(self.parts)
        return body + identity.sign(REQUEST_CONTEXT, body)


@dataclass(frozen=True, slots=True)
class SearchReply:
    """One signed message from a host, bound to the request it answers."""

    outcome: ReplyKind
    request: bytes  # SHA-256 of the whole request
    parts: tuple[bytes, ...]

    def encode(self, host: Identity) -> bytes:
        """Bytes for the wire, signed by the host."""
        body = REPLY_HEAD.pack(REPLY_MAGIC, self.outcome, self.request, len(self.parts)) + _pack(
            self.parts
        )
        return body + host.sign(REPLY_CONTEXT, body)


def key_id(keys: Sequence[bytes]) -> bytes:
    """32 bytes that name an asker's public keys; every ciphertext is bound to them."""
    return digest("ckks keys", *keys)


def request_limit(shape: Shape) -> int:
    """Size of the largest request in bytes; a longer body is not read."""
    near = shape.near_parts if shape.clustered else ()
    largest = max(map(sum, (KEY_PART_BYTES, shape.question_parts, shape.choice_parts, near)))
    return REQUEST_HEAD.size + 4 * MAX_PARTS + largest + SIGNATURE_BYTES


def reply_limit(shape: Shape) -> int:
    """Size of the largest reply in bytes."""
    return (
        REPLY_HEAD.size
        + 4 * MAX_PARTS
        + max(
            ERROR_BYTES,
            sum(shape.answer_parts),
            sum(shape.column_parts),
            sum(shape.near_answer_parts) if shape.clustered else 0,
            shape.clusters.map_bytes + SIGNATURE_BYTES if shape.clustered else 0,
        )
        + SIGNATURE_BYTES
    )


def decode_manifest(raw: bytes, host: PublicIdentity) -> LibraryManifest:
    """Read a manifest of the host whose key stands in the address.

    Raises:
        AuthenticationError: signed by somebody else.
        ProtocolError: not a manifest, or of another version, parameter set or size.
    """
    try:
        outer = json.loads(raw)
        text, signature = str(outer["manifest"]), bytes.fromhex(outer["signature"])
        host.verify(MANIFEST_CONTEXT, text.encode(), signature)
        manifest = _manifest(json.loads(text))
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise ProtocolError(
            f"this is no library's manifest ({one_line(str(error)):.80}); check the address and "
            f"update both sides"
        ) from error
    if (
        manifest.parameters != SEARCH.digest.hex()
        or manifest.host != host.raw.hex()
        or manifest.shape.passages < 1
    ):
        raise ProtocolError(
            "the library uses other encryption parameters than this version; update both sides"
        )
    return manifest


def encode_clusters(known: ClusterMap, library: bytes, host: Identity) -> bytes:
    """A library's map of clusters, signed for this state of it."""
    raw = known.encode()
    return raw + host.sign(CLUSTERS_CONTEXT, library + raw)


def decode_clusters(raw: bytes, manifest: LibraryManifest, host: PublicIdentity) -> ClusterMap:
    """Read the map of a library with this manifest.

    Raises:
        AuthenticationError: signed by somebody else, or for another state of the library.
        ProtocolError: no map.
    """
    body, signature = raw[:-SIGNATURE_BYTES], raw[-SIGNATURE_BYTES:]
    host.verify(CLUSTERS_CONTEXT, manifest.library + body, signature)
    return ClusterMap.decode(body, manifest.shape.clusters)


def decode_request(raw: bytes, library: bytes) -> SearchRequest:
    """Read a request for `library`; no part of it was touched by SEAL yet.

    Raises:
        MessageError: truncated, oversized, of another version or for another library.
        AuthenticationError: not signed by the asker it names.
    """
    if len(raw) < REQUEST_HEAD.size + SIGNATURE_BYTES or raw[:4] != REQUEST_MAGIC:
        raise MessageError(f"{len(raw)} bytes that are no library request; update both sides")
    _, kind, parameters, named, asker, key, sequence, count = REQUEST_HEAD.unpack_from(raw)
    body, signature = raw[:-SIGNATURE_BYTES], raw[-SIGNATURE_BYTES:]
    identity = PublicIdentity(asker)
    identity.verify(REQUEST_CONTEXT, body, signature)
    parts = _unpack(body[REQUEST_HEAD.size :], count)
    if kind not in set(RequestKind) or parameters != SEARCH.digest:
        raise MessageError(
            "a request of another kind or with other encryption parameters; update both sides"
        )
    if named != library:
        raise MessageError(
            "a request for another library, or for this one before it changed; "
            "fetch the manifest again"
        )
    return SearchRequest(
        kind=RequestKind(kind),
        library=named,
        asker=identity,
        key_id=key,
        sequence=sequence,
        parts=parts,
    )


def decode_reply(raw: bytes, request: bytes, host: PublicIdentity) -> tuple[bytes, ...]:
    """Read the host's reply to exactly `request` and return its parts.

    Raises:
        MessageError: truncated, or the reply to another request.
        AuthenticationError: not signed by this host.
        CryptoError: the host's refusal, with the host's own words.
    """
    if len(raw) < REPLY_HEAD.size + SIGNATURE_BYTES or raw[:4] != REPLY_MAGIC:
        raise MessageError(f"{len(raw)} bytes that are no library reply; check the address")
    _, outcome, bound, count = REPLY_HEAD.unpack_from(raw)
    body, signature = raw[:-SIGNATURE_BYTES], raw[-SIGNATURE_BYTES:]
    host.verify(REPLY_CONTEXT, body, signature)
    if bound != sha256(request).digest():
        raise MessageError("the host's reply belongs to another request; ask again")
    parts = _unpack(body[REPLY_HEAD.size :], count)
    if outcome == ReplyKind.REFUSAL:
        raise _refusal(parts)
    return parts


def refuse(raw: bytes, error: QuietchoirError, host: Identity) -> tuple[int, bytes]:
    """HTTP status and signed reply that tell the asker why."""
    text = json.dumps({"error": type(error).__name__, "text": str(error)[:REASON_CHARACTERS]})
    status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 400)
    return status, SearchReply(ReplyKind.REFUSAL, sha256(raw).digest(), (text.encode(),)).encode(
        host
    )


def _refusal(parts: Sequence[bytes]) -> QuietchoirError:
    try:
        found: dict[str, Any] = json.loads(parts[0])
        kind, text = found["error"], found["text"]
        if type(text) is not str or len(text) > REASON_CHARACTERS:
            raise TypeError("no reason as `refuse` gives it")
        return ERRORS.get(str(kind), MessageError)(f"the library's host refused: {text}")
    except (ValueError, LookupError, TypeError, RecursionError):
        return MessageError(
            "the library's host refused without a reason that can be read; ask its owner"
        )


def _manifest(found: dict[str, Any]) -> LibraryManifest:
    probe = tuple(float(value) for value in found.pop("probe"))
    manifest = LibraryManifest(probe=probe, labels=tuple(found.pop("labels")), **found)
    for name, most in LARGEST.items():
        number = getattr(manifest, name)
        if type(number) is not int or not 1 <= number <= most:
            raise ValueError(f"{name} is no number from 1 to {most}")
    for name, digits in DIGITS.items():
        text = getattr(manifest, name)
        if type(text) is not str or not re.fullmatch(f"[0-9a-f]{{{digits}}}", text):
            raise ValueError(f"{name} is not of {digits} hexadecimal digits")
    if type(manifest.clustered) is not bool:
        raise ValueError("clustered is neither true nor false")
    names = (manifest.title, *manifest.labels)
    if not all(type(name) is str and len(name) <= NAME_CHARACTERS for name in names):
        raise ValueError(f"a name is no text of at most {NAME_CHARACTERS} characters")
    if len(probe) != manifest.dimension or not all(-1 <= value <= 1 for value in probe):
        raise ValueError(f"the probe is not of {manifest.dimension} numbers from -1 to 1")
    return manifest


def _pack(parts: Sequence[bytes]) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") for part in parts) + b"".join(parts)


def _unpack(raw: bytes, count: int) -> tuple[bytes, ...]:
    sizes = [
        int.from_bytes(raw[4 * index : 4 * index + 4], "big")
        for index in range(min(count, MAX_PARTS))
    ]
    if count > MAX_PARTS or len(raw) != 4 * count + sum(sizes):
        raise MessageError(
            f"{count} parts in {len(raw)} bytes do not add up; send the message whole"
        )
    parts, at = [], 4 * count
    for size in sizes:
        parts.append(raw[at : at + size])
        at += size
    return tuple(parts)
