"""One private question: embed, encrypt, send, open, read.

Knows the order of messages and what the asker must check. Knows nothing of SEAL.
Always: what goes to the host has the same sizes and the same number of messages whatever the
question, the scores and the passages are. Only what the host itself, or anybody on the line, can
see may end a session early: no reply, a reply that is not the host's, a refusal. What an answer
opens to is told to the asker after the line is closed. The host's key stands in the address, and
nothing signed by another is believed.
"""

import contextlib
import os
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import numpy as np
import numpy.typing as npt

from ..core.errors import (
    AuthenticationError,
    ConfigError,
    CryptoError,
    MessageError,
    ProtocolError,
    QuietchoirError,
)
from ..core.paths import write_atomically
from ..crypto.identity.keys import Identity, PublicIdentity
from ..crypto.pir.clusters import ClusterMap
from ..crypto.pir.search import KEY_PART_BYTES, Near, Opened, PirClient, Shape, unit
from .index import PROBE, Embeds, Passage
from .messages import (
    MANIFEST_BYTES,
    PATH,
    LibraryManifest,
    RequestKind,
    SearchRequest,
    decode_clusters,
    decode_manifest,
    decode_reply,
    key_id,
    reply_limit,
)

Vector = npt.NDArray[np.float32]

PROBE_COSINE = 0.999  # below it the two embedding models are not the same
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class LibraryAddress:
    """Where a library is and whose signature counts there: `http://HOST:PORT/#KEY`."""

    url: str
    host: PublicIdentity

    @property
    def text(self) -> str:
        """As `parse` reads it."""
        return f"{self.url}/#{self.host.raw.hex()}"

    @staticmethod
    def parse(text: str) -> "LibraryAddress":
        """Read the line that `quietchoir library serve` prints.

        Raises:
            ConfigError: not an address, or without the host's key.
        """
        refusal = ConfigError(
            f"{text}: not a library's address, expected http://HOST:PORT/#KEY; "
            f"copy the address that `quietchoir library serve` prints"
        )
        try:
            parts = urlsplit(text.strip())
            # a port that is none, and a name that the network's names cannot be
            named = parts.port != 0 and (parts.hostname or "").encode("idna")
        except ValueError:
            raise refusal from None
        if parts.scheme not in ("http", "https") or not named or "@" in parts.netloc:
            raise refusal
        try:
            return LibraryAddress(
                f"{parts.scheme}://{parts.netloc}", PublicIdentity(bytes.fromhex(parts.fragment))
            )
        except (ValueError, AuthenticationError):
            raise ConfigError(
                f"{text}: the part after # must be the host's key, 64 hexadecimal digits; copy the "
                f"whole address that `quietchoir library serve` prints"
            ) from None


@dataclass(frozen=True, slots=True)
class Found:
    """A passage that was read."""

    passage: Passage
    score: float  # cosine, rounded to two places: finer digits would carry noise of the key


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchAnswer:
    """What one question brought, and what it cost."""

    found: tuple[Found, ...]  # best first
    passages: int  # in the library
    bytes_up: int
    bytes_down: int
    seconds: float
    cost: "SearchCost"


@dataclass(frozen=True, slots=True)
class SearchCost:
    """What questions cost on the line, beside having the whole library; all of it public."""

    session_bytes: int  # once: manifest and keys
    question_bytes: int  # each: question, answer, choices and columns
    near_bytes: int  # each near itself; 0 where the library has no clusters
    map_bytes: int  # of the clusters, once an edition; 0 likewise
    plain_bytes: int  # the texts, packed, and their embeddings in 8 bits

    @staticmethod
    def of(shape: Shape, text_bytes: int, passages: int) -> "SearchCost":
        """Of questions that read so many passages each, out of a library with so many bytes."""
        fetched = min(passages, shape.passages) * sum(shape.choice_parts + shape.column_parts)
        near = shape.near_parts + shape.near_answer_parts if shape.clustered else ()
        return SearchCost(
            session_bytes=sum(KEY_PART_BYTES),
            question_bytes=sum(shape.question_parts) + sum(shape.answer_parts) + fetched,
            near_bytes=sum(near) + fetched if near else 0,
            map_bytes=shape.clusters.map_bytes if near else 0,
            plain_bytes=text_bytes + shape.passages * shape.dimension,
        )

    @property
    def break_even(self) -> int:
        """Questions after which a plain download would have been cheaper."""
        return max(0, self.plain_bytes - self.session_bytes) // self.question_bytes + 1


@dataclass(frozen=True, slots=True)
class Sealed:
    """What one question brought, still unopened where opening it can fail.

    Hazard: open it when nothing more is sent in this session, and its connection is closed.
    """

    questioner: PirClient
    chosen: Opened
    replies: tuple[tuple[bytes, ...], ...]  # one for each choice

    def open(self) -> tuple[Found, ...]:
        """The passages, best first.

        Raises:
            ProtocolError: the answer opened to no scores, or a reply to no passage.
            WorkerError: the host's bytes crashed our worker.
        """
        if self.chosen.fault is not None or self.chosen.scores is None:
            raise self.chosen.fault or ProtocolError("an answer without scores")
        texts = [
            self.questioner.passage(reply, index)
            for reply, index in zip(self.replies, self.chosen.picked, strict=True)
        ]
        scores = [round(float(self.chosen.scores[index]), 2) for index in self.chosen.picked]
        return tuple(
            Found(Passage.decode(text), score) for text, score in zip(texts, scores, strict=True)
        )


@dataclass(slots=True)
class SearchTraffic:
    """Bytes of one session, as far as it came."""

    up: int = 0
    down: int = 0


class SearchSession:
    """One asker at one library, with one fresh encryption key.

    Args:
        identity: signs the requests; the host counts against it, and learns from it nothing but
        that it is the same asker. One session at a time: the host refuses what one sends after a
        later one has begun.
        moved: counts bytes.
        kept: a folder for maps of clusters, so that one is fetched once while passages stay.
    """

    def __init__(
        self,
        address: LibraryAddress,
        identity: Identity,
        http: aiohttp.ClientSession,
        moved: SearchTraffic | None = None,
        kept: Path | None = None,
    ) -> None:
        self._kept = kept
        self.moved = moved if moved is not None else SearchTraffic()
        self._address, self._identity, self._http = address, identity, http
        self._manifest: LibraryManifest | None = None
        self._questioner: PirClient | None = None
        self._clusters: ClusterMap | None = None
        self._key_id = b""
        self._sequence = time.time_ns()  # above all earlier sessions' too, without a file

    async def fetch(self) -> LibraryManifest:
        """The manifest, signed by the key in the address.

        Raises:
            QuietchoirError: no host there, or not this one.
        """
        raw = await self._exchange("GET", b"", MANIFEST_BYTES)
        self._manifest = decode_manifest(raw, self._address.host)
        return self._manifest

    async def open(
        self, embedder: Embeds, passages: int = 0, *, near: bool = False
    ) -> LibraryManifest:
        """Fetch the manifest, check it, and leave public keys with the host.

        Args:
            passages: how many will be read.
            near: questions will be scored near themselves, where the library has clusters.

        Raises:
            ConfigError: the library was embedded with another model, or grants fewer passages;
            nothing was counted then.
            QuietchoirError: no host there, or it refuses.
        """
        manifest = await self.fetch()
        ours = embedder.embed([PROBE])[0]
        if (
            len(ours) != manifest.dimension
            or not float(np.dot(ours, np.asarray(manifest.probe))) >= PROBE_COSINE
        ):
            raise ConfigError(
                "this library was embedded with another model than ours; pull the model its host "
                "names, or ask its owner"
            )
        if min(passages, manifest.passages) > manifest.questions:
            raise ConfigError(
                f"{passages} passages of a library that grants an account {manifest.questions} in "
                f"all; ask for fewer with --passages"
            )
        if near and manifest.clustered:
            self._clusters = await self._map(manifest)
        self._questioner = PirClient(manifest.shape)
        keys = self._questioner.keys()
        self._key_id = key_id(keys)
        await self._ask(RequestKind.KEYS, keys)
        return manifest

    async def ask(self, vector: Vector, passages: int = 1) -> "Sealed":
        """Send one embedded question and the choice of `passages`, always so many; open with
        `Sealed.open`.

        Raises:
            CryptoError, MessageError, BudgetError: no answer of this host, or it refuses. Never for
            what one opens to.
        """
        assert self._questioner is not None and self._manifest is not None, "open() comes first"
        near: Near | None = None
        kind = RequestKind.QUESTION
        if self._clusters is None:
            question = self._questioner.question(vector)
        else:
            question, near = self._questioner.near(vector, self._clusters)
            kind = RequestKind.NEAR
        prepared = self._questioner.prepare(passages)
        answer = await self._ask(kind, question)
        chosen = self._questioner.choose(answer, prepared, near)
        replies = [await self._ask(RequestKind.CHOICE, parts) for parts in chosen.choices]
        return Sealed(self._questioner, chosen, tuple(replies))

    async def classify(self, vector: Vector) -> tuple[bytes, ...]:
        """Send one embedded text; open what comes with `labels`, when nothing more is sent.

        Raises:
            CryptoError, MessageError, BudgetError: as `ask`.
        """
        assert self._questioner is not None, "open() comes first"
        return await self._ask(RequestKind.CLASSIFY, self._questioner.question(vector))

    def labels(self, answer: Sequence[bytes]) -> list[tuple[str, float]]:
        """Labels and their scores, best first.

        Raises:
            ProtocolError, WorkerError: as `PirClient.scores`.
        """
        assert self._questioner is not None and self._manifest is not None, "open() comes first"
        scores = self._questioner.labels(answer)
        order = np.argsort(-scores, kind="stable")
        return [(self._manifest.labels[at], round(float(scores[at]), 2)) for at in order]

    def close(self) -> None:
        """End the worker that holds the key."""
        if self._questioner is not None:
            self._questioner.close()

    async def _map(self, manifest: LibraryManifest) -> ClusterMap:
        """The map of the clusters: as it is kept, if it is of this state of the library."""
        # one for each of our keys: who fetches none under a new key would be known by that
        ours = f"clusters-{self._address.host.fingerprint[:16]}-{self._identity.public.fingerprint}"
        kept = self._kept / f"{ours}-{manifest.library.hex()[:16]}" if self._kept else None
        if kept is not None and kept.exists():
            with contextlib.suppress(CryptoError, OSError):
                return decode_clusters(kept.read_bytes(), manifest, self._address.host)
        raw = b"".join(await self._ask(RequestKind.CLUSTERS, ()))
        found = decode_clusters(raw, manifest, self._address.host)
        if kept is not None:
            for former in kept.parent.glob(f"{ours}-*"):
                former.unlink()
            write_atomically(kept, raw, mode=0o600)
        return found

    async def _ask(self, kind: RequestKind, parts: Sequence[bytes]) -> tuple[bytes, ...]:
        assert self._manifest is not None
        # no time: between two messages our clock would tell the host what we did meanwhile
        self._sequence += 1
        request = SearchRequest(
            kind=kind,
            library=self._manifest.library,
            asker=self._identity.public,
            key_id=self._key_id,
            sequence=self._sequence,
            parts=tuple(parts),
        )
        raw = request.encode(self._identity)
        return decode_reply(
            await self._exchange("POST", raw, reply_limit(self._manifest.shape)),
            raw,
            self._address.host,
        )

    async def _exchange(self, method: str, body: bytes, limit: int) -> bytes:
        self.moved.up += len(body)  # whether or not somebody answers
        try:
            async with self._http.request(
                method, self._address.url + PATH, data=body or None, allow_redirects=False
            ) as reply:
                raw = await _bounded(reply.content, limit)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise QuietchoirError(
                f"{self._address.url}: no library answers there ({_why(error)}); "
                "is its host running?"
            ) from error
        if len(raw) > limit:
            raise MessageError(
                f"{self._address.url}: more than {limit} bytes in a reply; this is "
                f"no library of this version"
            )
        self.moved.down += len(raw)
        return raw


def _why(error: Exception) -> str:
    """Why nobody answers, in the system's words; TLS's errors have their own."""
    if isinstance(error, TimeoutError):
        return f"nothing came in {TIMEOUT_S:.0f} s"
    if isinstance(error, aiohttp.ClientConnectorError) and not isinstance(
        error, aiohttp.ClientSSLError
    ):
        own = error.os_error
        known = own.errno is not None and own.errno > 0  # a name that is not found has none
        return os.strerror(own.errno or 0) if known else own.strerror or str(own)
    return str(error)


async def _bounded(stream: aiohttp.StreamReader, limit: int) -> bytes:
    """The whole body, or one byte more than `limit` of it."""
    raw = b""
    while len(raw) <= limit and (chunk := await stream.read(limit + 1 - len(raw))):
        raw += chunk
    return raw


async def describe(
    address: LibraryAddress, identity: Identity, *, tls: ssl.SSLContext | None = None
) -> LibraryManifest:
    """What a library says of itself, without asking it anything.

    Raises:
        QuietchoirError: no library there.
    """
    async with _line(tls) as http:
        return await SearchSession(address, identity, http).fetch()


async def classify(
    address: LibraryAddress,
    text: str,
    embedder: Embeds,
    identity: Identity,
    *,
    tls: ssl.SSLContext | None = None,
    moved: SearchTraffic | None = None,
) -> list[tuple[str, float]]:
    """A library's labels for one text that it does not see, best first, with their scores.

    Args:
        tls, moved: as in `ask`.

    Raises:
        ConfigError: the library has no classifier.
        QuietchoirError: no answer, with what to do about it.
    """
    vector = embedder.embed([text])[0]
    unit(vector)  # before the first message, as in `ask`
    async with _line(tls) as http:
        session = SearchSession(address, identity, http, moved)
        try:
            if not (await session.open(embedder)).labels:
                raise ConfigError("this library has no labels; its owner serves with --classify")
            answer = await session.classify(vector)
        except BaseException:
            session.close()
            raise
    try:
        return session.labels(answer)
    finally:
        session.close()


def _line(tls: ssl.SSLContext | None) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(ssl=tls if tls is not None else True)
    return aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)
    )


async def ask(
    address: LibraryAddress,
    question: str,
    embedder: Embeds,
    identity: Identity,
    *,
    passages: int = 1,
    near: bool = False,
    tls: ssl.SSLContext | None = None,
    moved: SearchTraffic | None = None,
    kept: Path | None = None,
) -> SearchAnswer:
    """Ask one question of one library and read the best passages.

    Args:
        passages: how many to read; decided now, so that it says nothing about the scores.
        near: score what is near the question alone, where the library is large enough to have
        clusters; its host sees neither which nor more than otherwise.
        tls: for https; None takes the system's authorities.
        moved: counts what went and came, also where no answer did.
        kept: a folder for maps of clusters.

    Raises:
        QuietchoirError: no answer, with what to do about it.
    """
    start = time.perf_counter()
    vector = embedder.embed([question])[0]
    # before the first message: a session that breaks off later would tell of the question
    unit(vector)
    async with _line(tls) as http:
        session = SearchSession(address, identity, http, moved, kept)
        try:
            manifest = await session.open(embedder, passages, near=near)
            sealed = await session.ask(vector, passages)
        except BaseException:
            session.close()
            raise
    try:
        found = sealed.open()
    finally:
        session.close()
    return SearchAnswer(
        found=found,
        passages=manifest.passages,
        bytes_up=session.moved.up,
        bytes_down=session.moved.down,
        seconds=time.perf_counter() - start,
        cost=SearchCost.of(manifest.shape, manifest.text_bytes, passages),
    )
