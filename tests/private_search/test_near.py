"""A question near itself, over HTTP: answered, counted, and only by what its host signed."""

import shutil
import socket
from dataclasses import replace

import aiohttp
import numpy as np
import pytest
from aiohttp import web

from quietchoir.core.errors import AuthenticationError, MessageError, ProtocolError
from quietchoir.crypto.identity.keys import Identity
from quietchoir.private_search import host, index
from quietchoir.private_search.budget import QueryBudget
from quietchoir.private_search.client import LibraryAddress, SearchCost, SearchSession, ask
from quietchoir.private_search.index import Passage
from quietchoir.private_search.messages import (
    RequestKind,
    SearchRequest,
    decode_clusters,
    decode_reply,
    encode_clusters,
)
from quietchoir.tests.fakes.search import FakeEmbedder, fake_index

HOST, ASKER, EVE = (Identity.generate() for _ in range(3))
WORDS = ("kettle", "cello", "harbour", "tomato", "bus", "snow", "choir", "bread", "river", "clock")
TEXTS = [
    f"{WORDS[n % 10]} {WORDS[n // 10 % 10]} {WORDS[n // 7 % 10]} number {n}" for n in range(300)
]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    room = tmp_path_factory.mktemp("room")
    passages = [Passage(f"{n // 150}/{n}.md", text) for n, text in enumerate(TEXTS)]
    made = index.build(passages, FakeEmbedder(), room, clustered=True)
    return made, room, passages


@pytest.fixture(scope="module")
def service(built, tmp_path_factory):
    budget = QueryBudget(tmp_path_factory.mktemp("b") / "budget.json", limit=11)
    one = host.LibraryService(built[0], HOST, budget)
    yield one
    one.close()


def test_an_index_with_clusters_is_kept_in_their_order_and_made_anew_where_damaged(built, tmp_path):
    made, room, passages = built
    again = index.build(passages, FakeEmbedder(), room, clustered=True)
    assert again.edition == made.edition
    texts = [passage.text for passage in made.ordered(passages)]
    assert sorted(texts) == sorted(TEXTS) and texts != TEXTS
    assert np.allclose(made.rows(), FakeEmbedder().embed(texts), atol=1e-6)
    other = shutil.copytree(room, tmp_path / "copy")
    damaged = other / f"{made.edition}-near-table.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x7f")
    mended = index.build(passages, FakeEmbedder(), other, clustered=True)
    assert mended.edition != made.edition and not damaged.exists()
    assert mended.clusters is not None and made.clusters is not None
    assert np.array_equal(mended.clusters.table, made.clusters.table)
    plain = index.build(passages, FakeEmbedder(), other, clustered=False)
    assert plain.clusters is None and plain.ordered(passages) == passages


async def test_a_question_near_itself_is_answered_and_counted_as_one(service, tmp_path):
    runner = web.AppRunner(host.application(service), access_log=None)
    await runner.setup()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await web.SockSite(runner, listener).start()
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        address = LibraryAddress.parse(f"{base}/#{HOST.public.raw.hex()}")
        asked = {"passages": 2, "near": True, "kept": tmp_path}
        answer = await ask(address, TEXTS[77], FakeEmbedder(), ASKER, **asked)
        (kept,) = tmp_path.iterdir()
        again = await ask(address, TEXTS[12], FakeEmbedder(), ASKER, **asked)
        kept.write_bytes(kept.read_bytes()[:-1])  # a damaged one is fetched anew
        last = await ask(address, TEXTS[3], FakeEmbedder(), ASKER, **asked)
        async with aiohttp.ClientSession() as http:
            session = SearchSession(address, ASKER, http)
            manifest = await session.fetch()
            (raw,) = await session._ask(RequestKind.CLUSTERS, ())
            other = SearchSession(address, EVE, http, kept=tmp_path)  # not known by what it has
            await other._map(await other.fetch())
        await runner.cleanup()
    assert answer.found[0].passage == Passage("0/77.md", TEXTS[77]) and len(answer.found) == 2
    assert [one.found[0].passage.text for one in (again, last)] == [TEXTS[12], TEXTS[3]]
    map_bytes = service.manifest.shape.clusters.map_bytes
    assert answer.bytes_down == last.bytes_down > again.bytes_down + map_bytes - 100
    assert service.budget.spent()["strangers"] == {
        "CLUSTERS": 4,
        "KEYS": 3,
        "QUESTION": 3,
        "CHOICE": 6,
    }
    shape = service.manifest.shape
    cost = SearchCost.of(shape, 1, 2)
    said = cost.session_bytes + cost.near_bytes + shape.clusters.map_bytes
    assert 0 < answer.bytes_up + answer.bytes_down - said < 4000
    assert (
        decode_clusters(raw, manifest, HOST.public).encode() == service.server.clusters.map.encode()
    )


async def test_a_map_is_for_those_who_may_ask_signed_counted_and_once(built, tmp_path):
    budget = QueryBudget(
        tmp_path / "b.json", limit=11, listed=frozenset({ASKER.public.raw.hex()}), strangers=False
    )
    closed = host.LibraryService(built[0], HOST, budget)

    def wanted(asker: Identity, sequence: int, signer: Identity) -> bytes:
        request = SearchRequest(
            kind=RequestKind.CLUSTERS,
            library=closed.manifest.library,
            asker=asker.public,
            key_id=b"",
            sequence=sequence,
            parts=(),
        )
        return request.encode(signer)

    try:
        for raw, said in (
            (wanted(EVE, 1, EVE), "whom its owner listed"),
            (wanted(ASKER, 1, EVE), "signature"),
        ):
            with pytest.raises(AuthenticationError, match=said):
                decode_reply(closed.answer(raw)[1], raw, HOST.public)
        assert budget.spent() == {}
        raw = wanted(ASKER, 1, ASKER)
        (found,) = decode_reply(closed.answer(raw)[1], raw, HOST.public)
        decode_clusters(found, closed.manifest, HOST.public)
        with pytest.raises(MessageError, match="sent before"):
            decode_reply(closed.answer(raw)[1], raw, HOST.public)
        assert budget.spent() == {ASKER.public.raw.hex(): {"CLUSTERS": 1}}
        paths = {str(route.url_for()) for route in host.application(closed).router.routes()}
        assert paths == {"/library"}
    finally:
        closed.close()


def test_a_map_of_another_host_or_another_state_is_not_believed(service):
    manifest, known = service.manifest, service.server.clusters.map
    for raw in (
        encode_clusters(known, manifest.library, EVE),
        encode_clusters(known, replace(manifest, edition="0" * 32).library, HOST),
        service.clusters()[:-1],
        b"",
    ):
        with pytest.raises(AuthenticationError):
            decode_clusters(raw, manifest, HOST.public)


async def test_a_library_without_clusters_is_asked_whole_and_has_no_map(tmp_path):
    small = host.LibraryService(fake_index(), HOST, QueryBudget(tmp_path / "b.json", limit=11))
    with pytest.raises(ProtocolError, match="ask it whole"):
        small.clusters()
    with pytest.raises(ProtocolError, match="ask it whole"):
        small.server.check_near([b"", b""])
    runner = web.AppRunner(host.application(small), access_log=None)
    await runner.setup()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await web.SockSite(runner, listener).start()
        address = LibraryAddress.parse(
            f"http://127.0.0.1:{listener.getsockname()[1]}/#{HOST.public.raw.hex()}"
        )
        try:
            answer = await ask(address, "A cello?", FakeEmbedder(), ASKER, near=True)
        finally:
            await runner.cleanup()
            small.close()
    assert "cello" in answer.found[0].passage.text
    with pytest.raises(ProtocolError, match="too few"):
        _ = replace(small.manifest, clustered=True).shape
