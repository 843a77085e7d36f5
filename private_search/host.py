"""The host of a library: checks, counts, multiplies, signs.

`LibraryService` is the host without a network: bytes in, bytes out. `serve` puts it behind HTTP.
Knows identities, budgets and the PIR server. Never knows a question, a score or which passage was
read.
Always: signature, sequence, sizes and budget are checked in this order before SEAL sees a byte, and
whatever SEAL then does happens in a worker.
"""

import asyncio
import ssl
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from hashlib import sha256
from socket import socket

import numpy as np
from aiohttp import web

from ..core import log
from ..core.config import ServerConfig
from ..core.errors import ConfigError, MessageError, ProtocolError, QuietchoirError
from ..core.server import connections, errors
from ..crypto.he.parameters import SEARCH
from ..crypto.identity.keys import Identity, PublicIdentity
from ..crypto.pir.search import KEY_PART_BYTES, PirServer, exactly
from .budget import QueryBudget
from .classifier import Classifier
from .index import Index
from .messages import (
    PATH,
    LibraryManifest,
    ReplyKind,
    RequestKind,
    SearchReply,
    SearchRequest,
    decode_request,
    encode_clusters,
    key_id,
    refuse,
    request_limit,
)

KEPT_KEYS = 64  # strangers, and listed askers, whose keys are held; the longest unused goes first
BODY_S = 60.0  # a request that has not come whole by then is refused
AT_ONCE = 4  # requests that wait for the workers; more wait at the door
LOG = log.get("federation.library")


class LibraryService:
    """One library, open for questions.

    Raises:
        ConfigError: a budget that would let one account work out the embeddings.
        DataError, ProtocolError: passages that do not fit.
    """

    def __init__(
        self,
        index: Index,
        identity: Identity,
        budget: QueryBudget,
        *,
        title: str = "library",
        workers: int = 1,
        classifier: Classifier | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        """`names`: what their owner calls accounts, by public key (hex)."""
        self.server = PirServer(
            index.embeddings,
            index.table,
            labels=classifier.weights if classifier else None,
            clusters=index.clusters,
            workers=workers,
        )
        most = self.server.shape.largest_budget // budget.accounts_of_one
        if not 1 <= budget.limit <= most:
            both = " on its own account and the strangers'" if budget.accounts_of_one > 1 else ""
            raise ConfigError(
                f"a budget of {budget.limit} questions, must be 1 to {most}: with as many answers "
                f"as half of the {self.server.shape.dimension} dimensions an asker could work out "
                f"the embeddings{both}"
            )
        budget.most = self.server.shape.largest_budget
        self._identity, self._budget = identity, budget
        self.names, self.since = dict(names or {}), time.time()
        self.last_seen: dict[str, float] = {}  # account -> when it last asked, seconds since 1970
        self._counts, self._seconds = Counter[str](), 0.0
        # One set of keys an asker, so that nobody can put out or take over another's.
        self._keys: OrderedDict[PublicIdentity, tuple[bytes, tuple[bytes, ...]]] = OrderedDict()
        self._lock = threading.Lock()
        self.manifest = LibraryManifest(
            title=title,
            host=identity.public.raw.hex(),
            dimension=self.server.shape.dimension,
            passages=self.server.shape.passages,
            chunk_bytes=self.server.shape.chunk_bytes,
            text_bytes=index.text_bytes,
            parameters=SEARCH.digest.hex(),
            edition=index.edition,
            questions=budget.limit,
            labels=classifier.labels if classifier else (),
            clustered=index.clusters is not None,
            probe=tuple(np.round(index.probe.astype(float), 5).tolist()),
        )
        self._map = (
            encode_clusters(index.clusters.map, self.manifest.library, identity)
            if index.clusters is not None
            else b""
        )

    @property
    def budget(self) -> QueryBudget:
        """How much was told to whom."""
        return self._budget

    def counts(self) -> dict[str, float]:
        """Since this host started: requests, bytes, seconds, crashes; and how many askers' keys it
        holds.
        """
        workers = self.server.workers
        with self._lock:
            counted = {
                name: self._counts[name]
                for name in ("answered", "refused", "bytes_up", "bytes_down")
            }
            keys, seconds = len(self._keys), round(self._seconds, 3)
        restarts = sum(max(0, worker.starts - 1) for worker in workers)
        return {**counted, "keys": keys, "restarts": restarts, "seconds": seconds}

    def describe(self) -> bytes:
        """The signed manifest."""
        return self.manifest.encode(self._identity)

    def clusters(self) -> bytes:
        """The signed map of clusters.

        Raises:
            ProtocolError: there are none.
        """
        if not self._map:
            raise ProtocolError("this library has no clusters; ask it whole")
        return self._map

    def answer(self, raw: bytes) -> tuple[int, bytes]:
        """HTTP status and signed reply to one request; never raises for what an asker sent."""
        before = time.perf_counter()
        try:
            request = decode_request(raw, self.manifest.library)
            parts = self._answer(request)
        except QuietchoirError as error:
            LOG.info("refused %d bytes: %s", len(raw), type(error).__name__)
            status, reply = refuse(raw, error, self._identity)
            self._count("refused", raw, reply, before)
            return status, reply
        LOG.info("answered a %s of %s", request.kind.name.lower(), request.asker.fingerprint[:16])
        answer = SearchReply(ReplyKind.ANSWER, sha256(raw).digest(), tuple(parts))
        reply = answer.encode(self._identity)
        self._count("answered", raw, reply, before)
        return 200, reply

    def _count(self, outcome: str, raw: bytes, reply: bytes, before: float) -> None:
        with self._lock:
            self._seconds += time.perf_counter() - before
            self._counts.update({outcome: 1, "bytes_up": len(raw), "bytes_down": len(reply)})

    def close(self) -> None:
        """End the workers."""
        self.server.close()

    def _answer(self, request: SearchRequest) -> list[bytes]:
        if request.kind is RequestKind.KEYS:
            return self._take_keys(request)
        if request.kind is RequestKind.CLUSTERS:
            exactly(request.parts, ())
            found = self.clusters()
            self._charge(request)
            return [found]
        keys = self._keys_of(request)
        if request.kind is RequestKind.NEAR:
            self.server.check_near(request.parts)
            # of the same embeddings: whichever way somebody asks, it is a question
            self._charge(request, RequestKind.QUESTION)
            return self.server.near(keys, request.parts)
        if request.kind in (RequestKind.QUESTION, RequestKind.CLASSIFY):
            self.server.check_question(request.parts)
            self._charge(request)
            if request.kind is RequestKind.CLASSIFY:
                return self.server.classify(keys, request.parts)
            return self.server.score(keys, request.parts)
        self.server.check_choice(request.parts)
        self._charge(request)
        return self.server.read(keys, request.parts)

    def _charge(self, request: SearchRequest, kind: RequestKind | None = None) -> None:
        # Before the work: whoever signs bytes that crash the worker pays for them too.
        self._budget.charge(request.asker, kind or request.kind, request.sequence)
        self.last_seen[self._budget.account(request.asker)] = time.time()

    def _take_keys(self, request: SearchRequest) -> list[bytes]:
        exactly(request.parts, KEY_PART_BYTES)
        if request.key_id != key_id(request.parts):
            raise ProtocolError("keys under another key's name; send them again")
        self._charge(request)
        self.server.check_keys(request.parts)
        with self._lock:
            self._keys[request.asker] = (request.key_id, request.parts)
            self._keys.move_to_end(request.asker)
            # A stranger costs nothing to make: strangers make room among themselves alone.
            listed = self._budget.is_listed(request.asker)
            kin = [asker for asker in self._keys if self._budget.is_listed(asker) == listed]
            for longest_unused in kin[:-KEPT_KEYS]:
                del self._keys[longest_unused]
        return []

    def _keys_of(self, request: SearchRequest) -> tuple[bytes, ...]:
        with self._lock:
            held, keys = self._keys.get(request.asker, (b"", ()))
            # A ciphertext under another key would decrypt to noise without an error, so it is bound
            # to a key and its owner.
            if held != request.key_id:
                raise MessageError(
                    "ciphertext under a key that this host does not hold for you; "
                    "send the keys first"
                )
            self._keys.move_to_end(request.asker)
            return keys


def application(service: LibraryService) -> web.Application:
    """HTTP around a service: one path, bodies bounded by the largest request that can be right."""
    door = asyncio.Semaphore(AT_ONCE)

    async def describe(_: web.Request) -> web.Response:
        return web.Response(body=service.describe(), content_type="application/json")

    async def answer(request: web.Request) -> web.Response:
        body = await request.read()
        async with door:
            status, reply = await asyncio.to_thread(service.answer, body)
        return web.Response(status=status, body=reply, content_type="application/octet-stream")

    around = [connections.occupy, errors.answer_errors, connections.read_bodies(BODY_S)]
    app = web.Application(middlewares=around, client_max_size=request_limit(service.manifest.shape))
    app.add_routes([web.get(PATH, describe), web.post(PATH, answer)])
    return app


async def serve(
    service: LibraryService,
    listener: socket,
    *,
    tls: ssl.SSLContext | None = None,
    ready: Callable[[], None] | None = None,
    beside: AbstractAsyncContextManager[object] | None = None,
) -> None:
    """Answer on `listener` until cancelled.

    Args:
        beside: what runs as long, such as a page for the owner.

    Raises:
        WorkerError: the matrices could not be encoded in time.
    """
    runner = web.AppRunner(application(service), access_log=None)
    try:
        await asyncio.to_thread(service.server.start)
        async with beside or nullcontext():
            listening, _ = await connections.listen(runner, ServerConfig(), listener, tls)
            if ready:
                ready()
            try:
                await asyncio.Event().wait()
            finally:
                listening.close()
    finally:
        await runner.cleanup()
        service.close()
