"""A conversation asks a library on another machine where its owner chose it, and says what left."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from quietchoir.core.assistant.citations import Cited, SourceReport
from quietchoir.core.assistant.context import Message
from quietchoir.core.assistant.sources import fused
from quietchoir.core.assistant.terminal import TerminalChat
from quietchoir.core.errors import ConfigError, RetrievalError, UnknownEntryError
from quietchoir.core.retrieval.collections import Collections
from quietchoir.core.retrieval.memory import FactStore
from quietchoir.core.retrieval.store import RetrievedPassage
from quietchoir.core.server.client import RemoteAssistant
from quietchoir.core.server.documents_api import OwnersDocuments
from quietchoir.crypto.identity.keys import Identity
from quietchoir.private_search import host, known
from quietchoir.private_search.budget import QueryBudget
from quietchoir.private_search.known import READ, KnownLibraries
from quietchoir.tests.fakes.http import TOKEN, Served
from quietchoir.tests.fakes.retrieval import LineParser, WordEmbedder
from quietchoir.tests.fakes.search import TEXTS, FakeEmbedder, fake_index
from quietchoir.tests.fakes.server import FakeTools, engine_saying

KEY = Identity.generate().public.raw.hex()
CHAT = "/v1/chat/completions"
BUS = "When does the bus leave to the harbour?"
LIBRARY = "library:town"


class Written(host.LibraryService):
    """A service that keeps what it gets."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.requests: list[bytes] = []

    def answer(self, raw: bytes) -> tuple[int, bytes]:
        self.requests.append(raw)
        return super().answer(raw)


class Host:
    """A library, served for real in a thread of its own: the node's loop does not wait for it."""

    def __init__(self, folder: Path) -> None:
        identity = Identity.generate()
        budget = QueryBudget(folder / "budget.json", limit=11)
        self.service = Written(fake_index(), identity, budget)
        self.listener = socket.create_server(("127.0.0.1", 0))
        port = self.listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}/#{identity.public.raw.hex()}"
        self.ready = threading.Event()
        self.seen = self.service.requests
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        assert self.ready.wait(30)

    def run(self) -> None:
        async def serve() -> None:
            self.loop, self.ended = asyncio.get_running_loop(), asyncio.Event()
            runner = web.AppRunner(host.application(self.service), access_log=None)
            await runner.setup()
            await web.SockSite(runner, self.listener).start()
            self.ready.set()
            await self.ended.wait()
            await runner.cleanup()

        asyncio.run(serve())

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.ended.set)
        self.thread.join(30)
        self.service.close()


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    one = Host(tmp_path_factory.mktemp("host"))
    yield one
    one.close()


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("QUIETCHOIR_HOME", str(tmp_path / "home"))


@pytest.fixture
async def node(library, tmp_path: Path) -> AsyncIterator[Served]:
    """A server with a collection of its own, that knows a library."""
    collections = Collections(tmp_path / "collections", embedder=WordEmbedder)
    memory = FactStore(tmp_path / "memory")
    collections.create("own")
    collections.drop("own", "note.txt", b"the bus is always late", LineParser())
    served = Served(engine_saying(["At one [1]."]), FakeTools(names=()))
    served.documents = OwnersDocuments(
        collections, lambda: memory, LineParser, lambda: None, lambda _: None
    )
    served.libraries = KnownLibraries(FakeEmbedder)
    served.libraries.add("town", library.address)
    library.seen.clear()
    async with served.running() as running:
        yield running
    collections.close()
    memory.close()
    served.libraries.close()


class Silent:
    """Takes connections and never answers."""

    def __init__(self) -> None:
        self.asked = 0
        self.reached, self.left = asyncio.Event(), asyncio.Event()

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        self.reached.set()
        await reader.read()  # until whoever asks goes away
        self.left.set()
        writer.close()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self.take, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/#{KEY}"
        finally:
            server.close()


async def asked(node: Served, **fields: object) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": BUS}], **fields}
    status, found = await node.post(CHAT, body)
    assert status == 200, found
    message: dict[str, Any] = found["choices"][0]["message"]
    return message


async def test_a_library_is_asked_where_it_was_chosen_and_cited_beside_what_is_here(node, library):
    message = await asked(node, collections=["own", LIBRARY])
    sources = {one["collection"]: one for one in reversed(message["citations"])}
    assert sources[LIBRARY]["text"] == TEXTS[3] and sources[LIBRARY]["place"].endswith(LIBRARY)
    assert sources[LIBRARY]["url"] == "" and sources["own"]["url"].startswith(
        "/api/collections/own"
    )
    assert len([one for one in message["citations"] if one["collection"] == LIBRARY]) == READ
    own, town = message["sources"]
    assert own["told"] == "own: on this machine; nothing left it" and own["sent_bytes"] == 0
    assert town["sent_bytes"] == sum(map(len, library.seen)) > 300_000
    assert "not the question, nor what was read" in town["told"] and BUS not in json.dumps(town)
    for raw in library.seen:
        assert b"harbour" not in raw.lower()  # a shorter word stands in noise by chance
    _, told = await node.get("/api/libraries")
    (entry,) = told["libraries"]
    assert (entry["collection"], entry["questions"]) == (LIBRARY, 1)
    assert entry["bytes_up"] == town["sent_bytes"] and entry["last"] > 0
    assert BUS not in (known.room() / known.FILE).read_text()


async def test_a_conversation_that_did_not_choose_it_sends_it_nothing(node, library):
    for collections in (["own"], []):
        message = await asked(node, collections=collections)
        assert "sources" not in message
    assert library.seen == []


async def test_a_name_that_nobody_gave_is_refused_before_anything_is_sent(node, library):
    body = {"messages": [{"role": "user", "content": BUS}]}
    status, found = await node.post(CHAT, body | {"collections": [LIBRARY, "library:zoe"]})
    assert status == 404 and "no library is called 'zoe'" in found["error"]["message"]
    assert library.seen == []


async def test_a_stream_and_a_terminal_are_told_who_saw_what(node, library):
    remote = RemoteAssistant(str(node.server.url), TOKEN, [LIBRARY])
    events = [event async for event in remote.reply([Message("user", BUS)])]
    cited = events[0]
    assert isinstance(cited, Cited) and cited.citations[0].passage.text == TEXTS[3]
    assert cited.sources[0].sent_bytes == sum(map(len, library.seen))
    shown: list[str] = []
    TerminalChat.show(type("Screen", (), {"write": shown.append})(), cited)
    assert f"[1] notes.md, {LIBRARY}\n" in shown
    assert any(
        line.startswith(f"[{LIBRARY}: ") and "kB of ciphertext to http" in line for line in shown
    )


async def test_a_library_that_gives_no_answer_is_said_and_the_rest_answers(node, library):
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    node.libraries.add("gone", f"http://127.0.0.1:{port}/#{library.service.manifest.host}")
    message = await asked(node, collections=["own", "library:gone"])
    assert message["content"] == "At one [1]." and len(message["citations"]) == 1
    problem = message["sources"][1]
    assert "no library answers there" in problem["problem"] and problem["sent_bytes"] == 0
    assert "nothing from there" in problem["told"]


async def test_a_library_that_never_answers_holds_up_nobody_else_and_is_left_when_its_asker_goes(
    node, library, monkeypatch
):
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))  # for all of the node
    silent = Silent()
    async with silent.listening() as address, asyncio.timeout(60):
        node.libraries.add("silent", address)
        body = {
            "messages": [{"role": "user", "content": BUS}],
            "collections": ["library:silent"],
            "n": 8,
        }
        waiting = asyncio.create_task(node.post(CHAT, body))
        more = asyncio.create_task(node.post(CHAT, body))  # another question to it
        await silent.reached.wait()
        assert (await asked(node))["content"] == "At one [1]."
        message = await asked(node, collections=["own", LIBRARY])
        assert {one["collection"] for one in message["citations"]} == {"own", LIBRARY}
        once = len(library.seen)
        await node.post(CHAT, body | {"collections": [LIBRARY]})
        assert len(library.seen) == 2 * once  # for eight answers
        assert not waiting.done() and silent.asked == 1  # one question at a time
        silent.reached.clear()
        waiting.cancel()
        await silent.left.wait()
        await silent.reached.wait()  # now the other one's turn has come
        silent.left.clear()
        more.cancel()
        await silent.left.wait()
        monkeypatch.setattr(known, "ANSWER_S", 0.5)
        message = await asked(node, collections=["own", "library:silent"])
        assert [one["collection"] for one in message["citations"]] == ["own"]
        assert "no whole answer in" in message["sources"][1]["problem"]
        await asyncio.gather(waiting, more, return_exceptions=True)
    assert silent.asked == 3


def test_names_and_addresses_are_right_or_refused_and_a_damaged_file_is_not_forgotten():
    libraries = KnownLibraries(FakeEmbedder)
    address = f"http://127.0.0.1:1/#{KEY}"
    libraries.add("town", address)
    for name, where, said in (
        ("town", address, "known already"),
        ("twin", address, "known already, as town"),
        ("other", f"http://ann:pw@127.0.0.1:1/#{KEY}", "not a library's address"),
        ("To wn", address, "no name for a library"),
        ("other", "http://127.0.0.1:1/", "copy the"),
    ):
        with pytest.raises(ConfigError, match=said):
            libraries.add(name, where)
    with pytest.raises(ConfigError, match="not encrypted on the way"):
        libraries.add("tls", address, Path("x.pem"))
    assert [entry.name for entry in libraries.entries()] == ["town"]
    with pytest.raises(UnknownEntryError, match="there are: town"):
        libraries.remove("zoe")
    libraries.remove("town")
    assert list(libraries.entries()) == []
    (known.room() / known.FILE).write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        libraries.entries()
    with pytest.raises(ConfigError, match="cannot be read"):
        libraries.add("town", address)
    assert (known.room() / known.FILE).read_text() == "{"


def passage(text: str) -> RetrievedPassage:
    return RetrievedPassage(0, "a.md", 0, 0, 0, "", text)


def test_ranks_are_fused_and_a_text_of_two_sources_counts_twice():
    one = [("a", passage(text)) for text in ("first", "both", "third")]
    two = [("b", passage(text)) for text in ("other", " both\n", "last")]
    found = [(source, each.text) for source, each in fused([one, two], 4)]
    assert found == [("a", "both"), ("a", "first"), ("b", "other"), ("a", "third")]
    again = [("b", passage("same")), ("b", passage("same"))]  # nobody raises a text of its own
    own = [("a", passage("first"))]
    assert [source for source, _ in fused([own, again], 4)] == ["a", "b"]


def test_a_report_never_holds_a_question_and_says_where_it_went():
    here, there = (
        SourceReport(name="own"),
        SourceReport(name="library:x", place="http://h", sent_bytes=9),
    )
    assert "nothing left it" in here.told() and "http://h" in there.told()
    assert {"name", "place", "sent_bytes", "received_bytes", "problem"} == set(
        SourceReport.__slots__
    )


async def test_a_loop_that_cannot_begin_is_an_error_and_not_a_wait(monkeypatch):
    """The instance: without a descriptor left the node's own loop waited for ever."""
    libraries = KnownLibraries(FakeEmbedder)
    libraries.add("town", f"http://127.0.0.1:1/#{KEY}")

    def none_left(coroutine):
        coroutine.close()
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as without:
        without.setattr("quietchoir.private_search.known.asyncio.run", none_left)
        with pytest.raises(RetrievalError, match="cannot be asked now"):
            await libraries.ask(["town"], "where")
    ((report, _),) = await libraries.ask(["town"], "where")  # nobody listens there
    assert report.problem
    libraries.close()
