"""Attacks by hosts: who serves a library.

Knows the library's own bytes and what an asker sends. Knows no network but loopback.
Always: a host here keeps its key and signs what it likes; what it learns is measured at its own
end.
"""

import asyncio
import functools
import json
import os
import tempfile
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import aiohttp
import numpy as np
import numpy.typing as npt
from aiohttp import web

from ...core.errors import ConfigError, CryptoError, QuietchoirError, WorkerError
from ...crypto.identity.keys import Identity, PublicIdentity
from ...crypto.pir.search import Opened, PassageChoice, PassageTable, PirClient, PirServer
from ...private_search import known, messages
from ...private_search.budget import QueryBudget
from ...private_search.client import PROBE_COSINE, LibraryAddress, SearchSession
from ...private_search.host import LibraryService
from ...private_search.index import PROBE, Index, Passage
from ...private_search.messages import (
    MANIFEST_CONTEXT,
    LibraryManifest,
    decode_manifest,
    decode_request,
)
from .catalogue import Attack, Result

LIBRARY = "library"
HOST = Identity.generate()
TEXTS = (
    "The kettle in the kitchen whistles at seven.",
    "A cello has four strings, tuned in fifths.",
    "Snow closes the mountain pass in November.",
    "The night bus to the harbour leaves at one.",
)
TOPIC = TEXTS[1]
CHOICES = 2
# what an answer unpacks to; more than an honest one may make us hold
BOMB_BYTES, HELD_BYTES = 256 << 20, 32 << 20


class WordVectors:
    """Texts to unit vectors: each word a direction of its own. The asker's model and the host's."""

    dimension = 24

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """[texts, dimension]."""
        rows = np.stack(
            [
                sum(map(self.direction, text.lower().split()), np.zeros(self.dimension))
                for text in texts
            ]
        )
        units: npt.NDArray[np.float32] = (
            rows / np.linalg.norm(rows, axis=1, keepdims=True)
        ).astype(np.float32)
        return units

    def direction(self, word: str) -> npt.NDArray[np.float64]:
        """Of one word."""
        return np.random.default_rng(zlib.crc32(word.strip(".,").encode())).standard_normal(
            self.dimension
        )


class Other(WordVectors):
    """Another embedding model."""

    def direction(self, word: str) -> npt.NDArray[np.float64]:
        """Elsewhere."""
        return -super().direction(word[::-1])


def index() -> Index:
    """What the host serves."""
    vectors = WordVectors().embed([*TEXTS, PROBE])
    return Index.of([Passage("notes.md", text) for text in TEXTS], vectors[:-1], vectors[-1])


# A bit of the question, chosen by the host: does it lie near the topic? A row of 30 in that
# direction lifts the score of such a question out of its range, and of no other.


@functools.cache
def server() -> PirServer:
    """A host's arithmetic with the loud row; its process ends with ours."""
    rows = WordVectors().embed(TEXTS)
    rows[0] = 30 * WordVectors().embed([TOPIC])[0]
    return PirServer(rows, PassageTable.of([text.encode() for text in TEXTS]))


def quiet() -> str:
    """A question that the loud row does not hear."""
    loud = WordVectors().embed([TOPIC])[0]
    words = sorted({word.strip(".,") for text in TEXTS for word in text.lower().split()})
    return min(words, key=lambda word: abs(float(WordVectors().embed([word])[0] @ loud)))


def careless(
    asker: PirClient, answer: Sequence[bytes], prepared: Sequence[PassageChoice]
) -> Opened:
    """How choices were made before: the same messages, but encrypted anew only where the scores
    are of use.
    """
    column_of = asker.shape.layout.column_of
    try:
        scores = asker.scores(answer)
    except (CryptoError, WorkerError) as error:
        chance = tuple(range(len(prepared)))
        decoys = tuple(each.of(column_of(at)) for at, each in enumerate(prepared))
        return Opened(decoys, chance, None, error)
    best = tuple(int(number) for number in np.argsort(-scores)[: len(prepared)])
    anew = asker.prepare(len(prepared))
    choices = tuple(each.of(column_of(at)) for at, each in zip(best, anew, strict=True))
    return Opened(choices, best, scores, None)


def steps_before_the_next_message(
    choose: Callable[[PirClient, Sequence[bytes], Sequence[PassageChoice]], Opened], question: str
) -> int:
    """What an asker's worker does between an answer and the choices, in calls of some
    milliseconds each.
    """
    asker = PirClient(server().shape)
    try:
        answer = server().score(asker.keys(), asker.question(WordVectors().embed([question])[0]))
        prepared = asker.prepare(CHOICES)
        worker, calls = asker._worker, 0
        before = worker.call

        def counted(*arguments: Any, **options: Any) -> list[bytes]:
            nonlocal calls
            calls += 1
            return before(*arguments, **options)

        worker.call = counted  # type: ignore[method-assign]
        choose(asker, answer, prepared)
        return calls
    finally:
        asker.close()


def chosen_bit(
    choose: Callable[[PirClient, Sequence[bytes], Sequence[PassageChoice]], Opened],
) -> Result:
    """Does the time until the next message tell a question about the topic from another?"""
    near, far = (steps_before_the_next_message(choose, question) for question in (TOPIC, quiet()))
    return Result(
        near != far,
        f"calls before the choices leave: {near} about the topic, {far} about something else",
    )


@dataclass
class HeldReply:
    """What `aiohttp` hands to the asker."""

    raw: bytes

    @property
    def content(self) -> "HeldReply":
        """Itself."""
        return self

    async def read(self, size: int) -> bytes:
        """The next piece."""
        piece, self.raw = self.raw[:size], self.raw[size:]
        return piece


class DirectLine:
    """A host at the other end of a line without a network."""

    def __init__(
        self, service: LibraryService, describe: Callable[[], bytes] | None = None
    ) -> None:
        self.service, self.describe = service, describe or service.describe
        self.numbers: list[int] = []  # sequence numbers, as they came

    @asynccontextmanager
    async def request(
        self, method: str, url: str, *, data: bytes | None = None, **options: object
    ) -> AsyncIterator[HeldReply]:
        """One exchange."""
        del url, options
        if method == "GET":
            yield HeldReply(self.describe())
            return
        assert data is not None
        self.numbers.append(decode_request(data, self.service.manifest.library).sequence)
        yield HeldReply(self.service.answer(data)[1])


@contextmanager
def service() -> Iterator[LibraryService]:
    """An honest host's service."""
    with tempfile.TemporaryDirectory() as folder:
        open_ = LibraryService(index(), HOST, QueryBudget(Path(folder) / "budget.json", limit=11))
        try:
            yield open_
        finally:
            open_.close()


class Clocked(SearchSession):
    """Numbers its requests by the clock, as askers did."""

    async def _ask(self, kind: messages.RequestKind, parts: Sequence[bytes]) -> tuple[bytes, ...]:
        self._sequence = max(self._sequence, time.time_ns() - 1)
        return await super()._ask(kind, parts)


def clock_in_numbers(kind: type[SearchSession]) -> Result:
    """What the numbers of one session say of the time between its messages."""
    with service() as open_:
        line = DirectLine(open_)

        async def ask() -> None:
            asker = kind(
                LibraryAddress("http://x", HOST.public),
                Identity.generate(),
                cast(aiohttp.ClientSession, line),
            )
            try:
                await asker.open(WordVectors())
                await asker.ask(WordVectors().embed([TOPIC])[0], CHOICES)
            finally:
                asker.close()

        asyncio.run(ask())
    gaps = np.diff(line.numbers)
    longest = float(gaps.max()) / 1e6
    return Result(bool((gaps > 1).any()), f"longest pause that the numbers tell: {longest:.6f} ms")


def signed(text: str) -> bytes:
    """Anything, with the host's signature."""
    return json.dumps(
        {"manifest": text, "signature": HOST.sign(MANIFEST_CONTEXT, text.encode()).hex()}
    ).encode()


def manifests() -> Iterator[bytes]:
    """What a host may answer instead of a manifest."""
    yield b"[" * 60_000
    yield b'{"manifest": ' + b"[" * 30_000
    yield from map(
        signed, ("5", "null", "[" * 20_000, '{"probe": 5}', '{"probe": [1' + "0" * 400 + "]}")
    )
    with service() as open_:
        good = open_.manifest
    for change in (
        {"probe": ()},
        {"probe": (1.0,) * 999},
        {"edition": "\ud800"},
        {"dimension": 0},
        {"passages": -1},
        {"title": "\ud800"},
        {"dimension": 1 << 70},
        {"host": ""},
        {"edition": "x"},
        {"probe": (1e308,) * good.dimension},
    ):
        yield replace(good, **change).encode(HOST)


def old_manifest(raw: bytes, host: PublicIdentity) -> LibraryManifest:
    """The reader as it was: what is caught was thought of."""
    try:
        outer = json.loads(raw)
        host.verify(
            MANIFEST_CONTEXT, str(outer["manifest"]).encode(), bytes.fromhex(outer["signature"])
        )
        found = json.loads(outer["manifest"])
        return LibraryManifest(probe=tuple(map(float, found.pop("probe"))), **found)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError("no manifest") from error


def broken_off(read: Callable[[bytes, PublicIdentity], LibraryManifest]) -> Result:
    """How many of them end the asker's command with a traceback."""
    tried, ended = 0, set[str]()
    for raw in manifests():
        tried += 1
        try:
            manifest = read(raw, HOST.public)
            # what `open` does
            (
                manifest.library,
                manifest.shape,
                WordVectors().embed([PROBE])[0] @ np.asarray(manifest.probe),
            )
        except QuietchoirError:
            continue
        except Exception as error:
            ended.add(type(error).__name__)
    return Result(
        bool(ended),
        f"{tried} manifests, errors without a sentence: {', '.join(sorted(ended)) or 'none'}",
    )


def probe_of_nothing(judge: Callable[[LibraryManifest], bool]) -> Result:
    """A host with another model passes the probe, for numbers that are none are below nothing."""
    with service() as open_:
        raw = replace(open_.manifest, probe=(float("nan"),) * WordVectors.dimension).encode(HOST)
    try:
        taken = judge(decode_unchecked(raw))
    except QuietchoirError as error:
        return Result(False, f"{type(error).__name__}: {str(error)[:60]}")
    return Result(taken, f"taken: {taken}")


def decode_unchecked(raw: bytes) -> LibraryManifest:
    """The manifest as the host wrote it."""
    found = json.loads(json.loads(raw)["manifest"])
    return LibraryManifest(probe=tuple(found.pop("probe")), **found)


def opens(manifest: LibraryManifest) -> bool:
    """Does the product go on with this manifest, although its own model is another?"""
    with service() as open_:
        line = DirectLine(open_, describe=lambda: manifest.encode(HOST))

        async def begin() -> bool:
            asker = SearchSession(
                LibraryAddress("http://x", HOST.public),
                Identity.generate(),
                cast(aiohttp.ClientSession, line),
            )
            try:
                await asker.open(Other())
            except ConfigError:
                return False
            finally:
                asker.close()
            return True

        return asyncio.run(begin())


def below(manifest: LibraryManifest) -> bool:
    """The comparison as it was."""
    return not float(np.dot(Other().embed([PROBE])[0], np.asarray(manifest.probe))) < PROBE_COSINE


def two_hosts(key_for: Callable[[LibraryAddress], Identity]) -> Result:
    """Two hosts compare the keys that asked them."""
    addresses = [LibraryAddress("http://x", Identity.generate().public) for _ in range(2)]
    before = os.environ.get("QUIETCHOIR_HOME")
    with tempfile.TemporaryDirectory() as home:
        os.environ["QUIETCHOIR_HOME"] = home
        try:
            first, second, again = (
                key_for(address).public.raw for address in (*addresses, addresses[0])
            )
        finally:
            if before is None:
                del os.environ["QUIETCHOIR_HOME"]
            else:
                os.environ["QUIETCHOIR_HOME"] = before
    assert first == again
    return Result(
        first == second,
        f"keys of one asker at two hosts are {'the same' if first == second else 'different'}",
    )


@asynccontextmanager
async def served(answer: Callable[[web.Request], web.StreamResponse]) -> AsyncIterator[str]:
    """A web server on loopback that answers everything so; its address."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return answer(request)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def as_asked(url: str) -> None:
    """The product's own request for a manifest."""
    async with aiohttp.ClientSession() as http:
        try:
            await SearchSession(LibraryAddress(url, HOST.public), HOST, http)._exchange(
                "GET", b"", messages.MANIFEST_BYTES
            )
        except QuietchoirError:
            return


async def as_usual(url: str) -> None:
    """An ordinary client's."""
    async with aiohttp.ClientSession() as http, http.get(url + messages.PATH) as reply:
        await reply.read()


def sent_elsewhere(fetch: Callable[[str], Any]) -> Result:
    """A host sends its asker to a service of the asker's own network."""
    visits: list[str] = []

    def inside(request: web.Request) -> web.Response:
        visits.append(request.path)
        return web.Response(text="ok")

    async def both() -> None:
        async with (
            served(inside) as private,
            served(lambda _: web.Response(status=307, headers={"Location": private})) as url,
        ):
            await fetch(url)

    asyncio.run(both())
    return Result(bool(visits), f"requests that reached the private service: {len(visits)}")


def bomb(fetch: Callable[[str], Any]) -> Result:
    """A small answer that unpacks to a large one."""
    packed = zlib.compress(bytes(BOMB_BYTES), 9)

    def answer(_: web.Request) -> web.Response:
        return web.Response(body=packed, headers={"Content-Encoding": "deflate"})

    async def fetched() -> int:
        async with served(answer) as url:
            tracemalloc.start()
            try:
                await fetch(url)
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    held = asyncio.run(fetched())
    return Result(
        held > HELD_BYTES, f"{len(packed) >> 10} KiB answered, {held >> 20} MiB held at once"
    )


ATTACKS: tuple[Attack, ...] = (
    Attack(
        name="a chosen bit of a question, by the time until the next message",
        who="library's host",
        mode=LIBRARY,
        promise="between an answer and the next message an asker does the same work whatever it "
        "opened to",
        unprotected=lambda: chosen_bit(careless),
        protected=lambda: chosen_bit(PirClient.choose),
    ),
    Attack(
        name="the asker's clock in its sequence numbers",
        who="library's host",
        mode=LIBRARY,
        promise="messages carry no time but that of the session's beginning",
        unprotected=lambda: clock_in_numbers(Clocked),
        protected=lambda: clock_in_numbers(SearchSession),
    ),
    Attack(
        name="a manifest that ends the asker's command",
        who="library's host",
        mode=LIBRARY,
        promise="anything that is no message of a library is a typed error",
        unprotected=lambda: broken_off(old_manifest),
        protected=lambda: broken_off(decode_manifest),
    ),
    Attack(
        name="a probe of numbers that are none",
        who="library's host",
        mode=LIBRARY,
        promise="both use the same embedding model; the asker checks that with a probe sentence",
        unprotected=lambda: probe_of_nothing(below),
        protected=lambda: probe_of_nothing(opens),
    ),
    Attack(
        name="two hosts compare who asked them",
        who="two libraries' hosts",
        mode=LIBRARY,
        promise="a host learns a key that was made for it alone",
        unprotected=lambda: two_hosts(lambda _: known.lasting("asker")),
        protected=lambda: two_hosts(known.asker),
    ),
    Attack(
        name="an asker is sent on to a private address",
        who="library's host",
        mode=LIBRARY,
        promise="an asker talks to the address that it was given, and to no other",
        unprotected=lambda: sent_elsewhere(as_usual),
        protected=lambda: sent_elsewhere(as_asked),
    ),
    Attack(
        name="an answer that unpacks to a thousand times its size",
        who="library's host",
        mode=LIBRARY,
        promise="a reply is read up to its limit and no further",
        unprotected=lambda: bomb(as_usual),
        protected=lambda: bomb(as_asked),
    ),
)
