"""The service refuses what it must and survives what it parses; over real HTTP a private question
is answered.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import socket
from hashlib import sha256

import aiohttp
import pytest

from quietchoir.core.errors import (
    AuthenticationError,
    BudgetError,
    ConfigError,
    MessageError,
    ProtocolError,
    QuietchoirError,
    WorkerError,
)
from quietchoir.crypto.he.parameters import SEARCH
from quietchoir.crypto.identity.keys import Identity
from quietchoir.crypto.pir.search import PirClient
from quietchoir.private_search import host
from quietchoir.private_search.budget import QueryBudget
from quietchoir.private_search.client import LibraryAddress, SearchSession, ask
from quietchoir.private_search.messages import (
    ReplyKind,
    RequestKind,
    SearchReply,
    SearchRequest,
    decode_manifest,
    decode_reply,
    decode_request,
    key_id,
    reply_limit,
    request_limit,
)
from quietchoir.tests.fakes.search import TEXTS, FakeEmbedder, fake_index

HOST, ASKER, EVE = (Identity.generate() for _ in range(3))
LIMIT = 11  # the most that 24 dimensions allow
QUESTION = "When does the bus leave to the harbour?"


class Wire:
    """One asker at one service, without a network: keeps what it sent, forges on request."""

    def __init__(self, service, identity=ASKER):
        self.service, self.identity, self.sent, self.sequence = service, identity, [], 0
        self.manifest = decode_manifest(service.describe(), HOST.public)
        self.questioner = PirClient(self.manifest.shape)
        self.keys = self.questioner.keys()

    def request(self, kind, parts, **changes):
        self.sequence += 1
        fields = {
            "kind": kind,
            "library": self.manifest.library,
            "asker": self.identity.public,
            "key_id": key_id(self.keys),
            "sequence": self.sequence,
            "parts": tuple(parts),
        }
        return SearchRequest(**{**fields, **changes}).encode(self.identity)

    def send(self, raw):
        self.sent.append(raw)
        _, reply = self.service.answer(raw)
        return decode_reply(reply, raw, HOST.public)

    def question(self, text=QUESTION):
        return self.request(
            RequestKind.QUESTION, self.questioner.question(FakeEmbedder().embed([text])[0])
        )

    def choice(self, index):
        column = self.questioner.shape.layout.column_of(index)
        return self.request(RequestKind.CHOICE, self.questioner.prepare(1)[0].of(column))


@pytest.fixture(scope="module")
def shared_service(tmp_path_factory):
    service = host.LibraryService(
        fake_index(), HOST, QueryBudget(tmp_path_factory.mktemp("x") / "b.json", limit=LIMIT)
    )
    yield service
    service.close()


@pytest.fixture
def service(shared_service, tmp_path, monkeypatch):
    """The same workers with a new budget and no keys for every test."""
    monkeypatch.setattr(
        shared_service, "_budget", QueryBudget(tmp_path / "budget.json", limit=LIMIT)
    )
    shared_service._keys.clear()
    return shared_service


@pytest.fixture(scope="module")
def shared_wire(shared_service):
    wire = Wire(shared_service)
    yield wire
    wire.questioner.close()


@pytest.fixture
def wire(shared_wire, service):
    shared_wire.sent.clear()
    return shared_wire


@pytest.fixture
def enrolled(wire):
    assert wire.send(wire.request(RequestKind.KEYS, wire.keys)) == ()
    return wire


def state(service):
    return dict(service._keys), dict(service._budget._spent), dict(service._budget._last)


def test_a_question_is_answered_and_its_passage_read(enrolled):
    scores = enrolled.questioner.scores(enrolled.send(enrolled.question()))
    best = int(scores.argmax())
    text = enrolled.questioner.passage(enrolled.send(enrolled.choice(best)), best)
    assert text.decode() == f"notes.md\n{TEXTS[3]}"


def test_the_host_held_nothing_of_the_question_and_equal_sizes_for_all(enrolled):
    for text, index in ((QUESTION, 3), ("A cello?", 2)):
        enrolled.send(enrolled.question(text))
        enrolled.send(enrolled.choice(index))
    keys, first, choice, second, again = enrolled.sent
    assert len(first) == len(second) and len(choice) == len(again)
    for raw in (keys, first, second, choice, again):
        assert b"harbour" not in raw and b"cello" not in raw


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda wire, raw: raw[:-1], AuthenticationError),
        (lambda wire, raw: raw + b"\0", AuthenticationError),
        (lambda wire, raw: raw[:100], (MessageError, AuthenticationError)),
        (lambda wire, raw: b"", MessageError),
        (lambda wire, raw: b"QCQ3" + os.urandom(5000), AuthenticationError),
        (lambda wire, raw: raw[:300] + bytes([raw[300] ^ 4]) + raw[301:], AuthenticationError),
        (lambda wire, raw: wire.request(RequestKind.QUESTION, [b"x" * 100]), ProtocolError),
        (lambda wire, raw: wire.request(RequestKind.QUESTION, []), ProtocolError),
        (lambda wire, raw: wire.request(RequestKind.CHOICE, [b""] * 2), ProtocolError),
        (
            lambda wire, raw: wire.request(RequestKind.KEYS, wire.keys[::-1], key_id=bytes(32)),
            ProtocolError,
        ),
        (lambda wire, raw: wire.request(RequestKind.KEYS, [b""] * 2), ProtocolError),
        (
            lambda wire, raw: wire.request(
                RequestKind.QUESTION, [bytes(SEARCH.seeded_bytes)], key_id=bytes(32)
            ),
            MessageError,
        ),
        (
            lambda wire, raw: wire.request(
                RequestKind.QUESTION, [bytes(SEARCH.seeded_bytes)], library=bytes(32)
            ),
            MessageError,
        ),
        (
            lambda wire, raw: wire.request(
                RequestKind.QUESTION, [bytes(SEARCH.seeded_bytes)], sequence=0
            ),
            MessageError,
        ),
        (lambda wire, raw: wire.request(9, [bytes(SEARCH.seeded_bytes)]), MessageError),
        (lambda wire, raw: wire.request(RequestKind.QUESTION, [b"x"] * 5), MessageError),
    ],
)
def test_what_is_not_right_is_refused_and_nothing_changes(enrolled, service, spoil, kind):
    raw = spoil(enrolled, enrolled.question())
    before = state(service)
    status, reply = service.answer(raw)
    assert status in (400, 403)
    with pytest.raises(kind):
        decode_reply(reply, raw, HOST.public)
    assert state(service) == before


def test_a_replayed_question_is_refused(enrolled, service):
    raw = enrolled.question()
    enrolled.send(raw)
    before = state(service)
    with pytest.raises(MessageError, match="sent before"):
        enrolled.send(raw)
    assert state(service) == before


def test_another_parameter_set_is_refused(enrolled, service):
    raw = bytearray(enrolled.question())
    raw[5:13] = bytes(8)
    body = bytes(raw[:-64])
    from quietchoir.private_search.messages import REQUEST_CONTEXT

    with pytest.raises(MessageError, match="parameters"):
        decode_request(body + ASKER.sign(REQUEST_CONTEXT, body), enrolled.manifest.library)


def test_a_question_for_yesterdays_index_is_refused_with_a_sentence(enrolled, service):
    """An index that changed has another edition, and with it the library another name."""
    old = enrolled.manifest
    named = dataclasses.replace(old, edition=os.urandom(16).hex()).library
    assert named != old.library
    before = state(service)
    with pytest.raises(MessageError, match="before it changed; fetch the manifest again"):
        enrolled.send(
            enrolled.request(RequestKind.QUESTION, [bytes(SEARCH.seeded_bytes)], library=named)
        )
    assert state(service) == before


def test_keys_that_lie_cost_their_sender_alone(enrolled, service):
    """Rotation keys of somebody else's secret: the answer opens to nothing, for the liar; whoever
    asks beside it is answered right.
    """
    liar = Wire(service, EVE)
    try:
        keys = [enrolled.keys[0], liar.keys[1]]
        named = {"key_id": key_id(keys)}
        assert liar.send(liar.request(RequestKind.KEYS, keys, **named)) == ()
        vector = FakeEmbedder().embed([QUESTION])[0]
        parts = liar.questioner.question(vector)
        answer = liar.send(liar.request(RequestKind.QUESTION, parts, **named))
        with pytest.raises(ProtocolError, match="no cosines"):
            liar.questioner.scores(answer)
        garbage = [os.urandom(len(key)) for key in keys]
        with pytest.raises(ProtocolError):
            liar.send(liar.request(RequestKind.KEYS, garbage, key_id=key_id(garbage)))
        assert enrolled.questioner.scores(enrolled.send(enrolled.question())).argmax() == 3
    finally:
        liar.questioner.close()


def test_somebody_elses_key_id_is_refused(enrolled, service):
    eve = Identity.generate()
    raw = SearchRequest(
        kind=RequestKind.QUESTION,
        library=enrolled.manifest.library,
        asker=eve.public,
        key_id=key_id(enrolled.keys),
        sequence=1,
        parts=(bytes(SEARCH.seeded_bytes),),
    ).encode(eve)
    with pytest.raises(MessageError, match="does not hold for you"):
        decode_reply(service.answer(raw)[1], raw, HOST.public)


def test_signed_bytes_that_seal_cannot_read_are_charged_and_the_host_lives(enrolled, service):
    """An asker's own signature does not help it to end the host."""
    good = enrolled.questioner.question(FakeEmbedder().embed([QUESTION])[0])[0]
    for place in (20, 21, 30, 100, 5000):
        changed = good[:place] + bytes([good[place] ^ 16]) + good[place + 1 :]
        with contextlib.suppress(ProtocolError, WorkerError):
            enrolled.send(enrolled.request(RequestKind.QUESTION, [changed]))
    assert service._budget.left(ASKER.public, RequestKind.QUESTION) == LIMIT - 5
    assert enrolled.questioner.scores(enrolled.send(enrolled.question())).argmax() == 3


def test_a_crashed_worker_is_told_and_replaced(enrolled, service):
    service.server.workers[0]._child.kill()
    with contextlib.suppress(WorkerError):
        enrolled.send(enrolled.question())
    assert enrolled.questioner.scores(enrolled.send(enrolled.question())).argmax() == 3


def test_the_budget_ends_the_questions_and_a_new_identity_does_not_help(enrolled, service):
    service._budget._spent["strangers"]["QUESTION"] = LIMIT
    with pytest.raises(BudgetError, match="used up"):
        enrolled.send(enrolled.question())
    status, _ = service.answer(enrolled.question())
    assert status == 429


def test_a_budget_that_gives_the_embeddings_away_cannot_be_set(tmp_path):
    for limit in (0, LIMIT + 1):
        with pytest.raises(ConfigError, match="work out the embeddings"):
            host.LibraryService(fake_index(), HOST, QueryBudget(tmp_path / "b.json", limit=limit))
    # who is listed can ask as a stranger as well, unless strangers get nothing
    listed = frozenset({ASKER.public.raw.hex()})
    for limit, strangers, fits in (
        (LIMIT, True, False),
        (LIMIT // 2, True, True),
        (LIMIT, False, True),
    ):
        budget = QueryBudget(tmp_path / "b.json", limit=limit, listed=listed, strangers=strangers)
        if fits:
            host.LibraryService(fake_index(), HOST, budget).close()
        else:
            with pytest.raises(ConfigError, match="and the strangers'"):
                host.LibraryService(fake_index(), HOST, budget)


def test_who_asks_as_a_stranger_and_then_as_listed_is_told_no_more(tmp_path):
    listed, told = frozenset({ASKER.public.raw.hex()}), 0
    for first in (True, False):
        for limit, known, strangers in (
            (LIMIT, frozenset(), True),
            (LIMIT // 2, listed, True),
            (LIMIT, listed, False),
        )[:: 1 if first else -1]:
            path = tmp_path / f"{first}.json"
            budget = QueryBudget(path, limit=limit, listed=known, strangers=strangers)
            host.LibraryService(fake_index(), HOST, budget).close()
            for asker in (ASKER.public, EVE.public):
                with pytest.raises((BudgetError, AuthenticationError)):
                    while True:
                        budget.charge(asker, RequestKind.QUESTION, told)
                        told += 1
        assert told == (LIMIT if first else 2 * LIMIT)


def test_old_keys_make_room_for_new_ones(wire, service, monkeypatch):
    monkeypatch.setattr(host, "KEPT_KEYS", 1)
    wire.send(wire.request(RequestKind.KEYS, wire.keys))
    other = Wire(service, EVE)
    try:
        other.send(other.request(RequestKind.KEYS, other.keys))
        with pytest.raises(MessageError, match="send the keys first"):
            wire.send(wire.question())
    finally:
        other.questioner.close()


def test_nobody_puts_out_or_takes_over_the_keys_of_another(enrolled, service, monkeypatch):
    monkeypatch.setattr(host, "KEPT_KEYS", 2)
    eve = Wire(service, EVE)
    try:
        for parts in (eve.keys, enrolled.keys, eve.keys):  # the asker's own too, under Eve's name
            eve.send(eve.request(RequestKind.KEYS, parts, key_id=key_id(parts)))
            assert enrolled.questioner.scores(enrolled.send(enrolled.question())).argmax() == 3
        assert len(service._keys) == 2
        # strangers make room among themselves: one who is listed keeps the keys
        service._budget._listed = frozenset({ASKER.public.raw.hex()})
        for stranger in (Identity.generate() for _ in range(3)):
            eve.identity = stranger
            eve.send(eve.request(RequestKind.KEYS, eve.keys))
        assert next(iter(service._keys)) == ASKER.public and len(service._keys) == 3
        assert enrolled.questioner.scores(enrolled.send(enrolled.question())).argmax() == 3
    finally:
        eve.questioner.close()


def test_replies_and_manifests_of_others_are_not_believed(enrolled, service):
    raw = enrolled.question()
    _, reply = service.answer(raw)
    for spoiled in (
        reply[:-1],
        reply[:200] + b"\1" + reply[201:],
        SearchReply(ReplyKind.ANSWER, sha256(raw).digest(), ()).encode(EVE),
    ):
        with pytest.raises(AuthenticationError):
            decode_reply(spoiled, raw, HOST.public)
    with pytest.raises(MessageError, match="another request"):
        decode_reply(reply, raw + b"x", HOST.public)
    with pytest.raises(MessageError):
        decode_reply(b"<html>", raw, HOST.public)
    with pytest.raises(AuthenticationError):
        decode_manifest(service.manifest.encode(EVE), HOST.public)
    for junk in (b"", b"{}", b"[]", b'{"manifest": 1, "signature": "zz"}'):
        with pytest.raises(ProtocolError, match="manifest"):
            decode_manifest(junk, HOST.public)
    assert len(reply) <= reply_limit(service.manifest.shape) and len(raw) <= request_limit(
        service.manifest.shape
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"text_bytes": 10**400}, "text_bytes"),
        ({"text_bytes": -(10**9)}, "text_bytes"),
        ({"questions": 10**4000}, "questions"),
        ({"questions": True}, "questions"),
        ({"dimension": 0}, "dimension"),
        ({"passages": -3}, "passages"),
        ({"chunk_bytes": 1 << 20}, "chunk_bytes"),
        ({"edition": "\n\n ab"}, "edition"),
        ({"parameters": "A" * 16}, "parameters"),
        ({"host": 5}, "host"),
        ({"title": "x" * 256}, "a name"),
        ({"labels": (["a"], "b")}, "a name"),
        ({"probe": (1e308,) * 24}, "probe"),
        ({"probe": (float("nan"),) * 24}, "probe"),
    ],
)
def test_every_field_of_a_manifest_has_bounds(service, change, said):
    assert decode_manifest(service.describe(), HOST.public) == service.manifest
    spoiled = dataclasses.replace(service.manifest, **change)
    with pytest.raises(ProtocolError, match=f"no library's manifest .(the )?{said}"):
        decode_manifest(spoiled.encode(HOST), HOST.public)


@pytest.mark.parametrize("text", ["A" * 300, [[1]], None])
def test_a_refusal_has_bounds_too(text):
    def refused(reason):
        raw = json.dumps({"error": "BudgetError", "text": reason}).encode()
        reply = SearchReply(ReplyKind.REFUSAL, sha256(b"").digest(), (raw,)).encode(HOST)
        decode_reply(reply, b"", HOST.public)

    with pytest.raises(BudgetError, match=f"refused: {'A' * 256}$"):
        refused("A" * 256)
    with pytest.raises(MessageError, match="without a reason that can be read"):
        refused(text)


@contextlib.asynccontextmanager
async def served(service):
    """The service behind HTTP on a free port; its workers stay for the other tests."""
    from aiohttp import web

    runner = web.AppRunner(host.application(service), access_log=None)
    await runner.setup()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await web.SockSite(runner, listener).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/#{HOST.public.raw.hex()}"
        finally:
            await runner.cleanup()


async def test_over_http_the_best_passage_comes_back_with_its_costs(service):
    async with served(service) as address:
        answer = await ask(
            LibraryAddress.parse(address), QUESTION, FakeEmbedder(), ASKER, passages=2
        )
    assert answer.found[0].passage.text == TEXTS[3] and len(answer.found) == 2
    assert answer.found[0].score == round(answer.found[0].score, 2) > answer.found[1].score
    assert (
        answer.passages == len(TEXTS)
        and 300_000 < answer.bytes_up < 420_000
        and 60_000 < answer.bytes_down < 150_000
    )


async def test_over_http_bad_bodies_are_refused_and_the_host_goes_on(service):
    async with served(service) as address, aiohttp.ClientSession() as http:
        url = address.split("/#")[0] + "/library"
        for body, status in (
            (b"", 400),
            (os.urandom(1000), 400),
            (bytes(request_limit(service.manifest.shape) + 1), 413),
        ):
            async with http.post(url, data=body) as reply:
                assert reply.status == status
        assert (await ask(LibraryAddress.parse(address), QUESTION, FakeEmbedder(), ASKER)).found[
            0
        ].passage.text == TEXTS[3]


async def test_another_model_another_host_and_no_host_are_sentences(service):
    async with served(service) as address:
        with pytest.raises(ConfigError, match="another model"):
            await ask(LibraryAddress.parse(address), QUESTION, FakeEmbedder(salt=1), ASKER)
        wrong = address.split("#")[0] + "#" + EVE.public.raw.hex()
        with pytest.raises(AuthenticationError):
            await ask(LibraryAddress.parse(wrong), QUESTION, FakeEmbedder(), ASKER)
    with pytest.raises(QuietchoirError, match="is its host running"):
        await ask(LibraryAddress.parse(address), QUESTION, FakeEmbedder(), ASKER)


async def test_a_host_that_sends_too_much_is_cut_off(service):
    from aiohttp import web

    app = web.Application()

    async def flood(_):
        return web.Response(body=bytes(1 << 20))

    app.add_routes([web.get("/library", flood)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await web.SockSite(runner, listener).start()
        address = LibraryAddress.parse(
            f"http://127.0.0.1:{listener.getsockname()[1]}/#{HOST.public.raw.hex()}"
        )
        async with aiohttp.ClientSession() as http:
            with pytest.raises(MessageError, match="more than"):
                await SearchSession(address, ASKER, http).open(FakeEmbedder())
        await runner.cleanup()


def test_serving_stops_cleanly_when_cancelled(tmp_path):
    async def run():
        service = host.LibraryService(
            fake_index(), HOST, QueryBudget(tmp_path / "b.json", limit=LIMIT)
        )
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ready = asyncio.Event()
            task = asyncio.create_task(host.serve(service, listener, ready=ready.set))
            await ready.wait()
            child = service.server.workers[0]._child
            assert child is not None
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert service.server.workers[0]._child is None
            with pytest.raises(ValueError, match="closed"):
                child.is_alive()

    asyncio.run(run())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost:80",
        "ftp://x/#00",
        "http://x:1/",
        "http://x:1/#12",
        "http://x:1/#" + "g" * 64,
        *(
            f"http://{host}/#{'ab' * 32}"
            for host in ("[::1", "[x]:1", "x:0x50", "x:99999", "h..x:1", "a" * 64 + ":1", ":1")
        ),
    ],
)
def test_an_address_that_is_none_or_without_the_hosts_key_is_refused(text):
    with pytest.raises(ConfigError, match="copy the "):
        LibraryAddress.parse(text)
    for good in ("x:1", "[::1]:1", "a" * 63 + ".b"):
        assert LibraryAddress.parse(f"http://{good}/#{HOST.public.raw.hex()}").url.endswith(good)
