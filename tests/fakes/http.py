"""A server over a fake engine, on a free port of this machine, and a client that has its token."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from quietchoir.core.assistant.adapters import AdapterSwitch
from quietchoir.core.assistant.assistant import Assistant, Remember
from quietchoir.core.assistant.model_pool import LoadedModel, ModelPool, ModelProfile
from quietchoir.core.config import ServerConfig
from quietchoir.core.history.store import HistoryStore
from quietchoir.core.retrieval.memory import FactStore
from quietchoir.core.server.app import NodeServer, Parts, claim, encryption
from quietchoir.core.server.documents_api import OwnersDocuments
from quietchoir.core.server.embeddings import Source
from quietchoir.core.server.federation_api import Memberships
from quietchoir.core.server.models_api import OwnersModels
from quietchoir.core.server.plugins_api import OwnersPlugins
from quietchoir.private_search.known import KnownLibraries
from quietchoir.tests.fakes.server import FakeEngine, FakeShelf, FakeStore, FakeTools, WordTokenizer

TOKEN = "a-token-of-the-tests-" + "x" * 30
HELLO = {"messages": [{"role": "user", "content": "hello you"}]}


@dataclass
class Served:
    """A running server and what stands behind it."""

    engine: FakeEngine
    tools: FakeTools = field(default_factory=FakeTools)
    store: FakeStore = field(default_factory=FakeStore)
    embedding: Source[Any] | None = None
    reranker: Source[Any] | None = None
    history: HistoryStore | None = None
    documents: OwnersDocuments | None = None
    models: OwnersModels | None = None
    plugins: OwnersPlugins | None = None
    memberships: Memberships | None = None
    libraries: KnownLibraries | None = None
    destinations: dict[str, str] = field(default_factory=dict)
    tokenizer: WordTokenizer = field(default_factory=WordTokenizer)
    assistant: Assistant = field(init=False)
    adapters: AdapterSwitch = field(init=False)
    server: NodeServer = field(init=False)
    session: aiohttp.ClientSession = field(init=False)

    @asynccontextmanager
    async def running(self, **limits: Any) -> AsyncIterator["Served"]:
        self.adapters = AdapterSwitch("smollm2", FakeShelf(), self.store)
        await self.adapters.start()
        own = self.documents
        self.assistant = Assistant(
            self.engine,
            self.tokenizer,
            self.tools,
            context=2000,
            documents=own.collections if own else None,
            libraries=self.libraries,
            remember=keep_in(own.memory()) if own else None,
            facts=lambda: [one.text for one in own.memory().facts(kept=True)] if own else [],
        )
        config = ServerConfig(port=0, **limits)
        self.server = NodeServer(
            Parts(
                pool=ModelPool.of_one(
                    LoadedModel(
                        profile=ModelProfile(name="smollm2", adapters=self.adapters),
                        assistant=self.assistant,
                    )
                ),
                tools=self.tools,
                approvals=self.assistant.approvals,
                token=TOKEN,
                embedding=self.embedding,
                reranker=self.reranker,
                history=self.history,
                documents=self.documents,
                models=self.models,
                plugins=self.plugins,
                libraries=self.libraries.entries if self.libraries else tuple,
                memberships=self.memberships,
                destinations=lambda: self.destinations,
            ),
            config,
            claim(config),
            encryption(config),
        )
        await self.server.start()
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with aiohttp.ClientSession(self.server.url, headers=headers) as self.session:
            try:
                yield self
            finally:
                await self.server.stop()

    async def post(self, path: str, body: Any = None, **options: Any) -> tuple[int, Any]:
        """Status and JSON of one request."""
        if "data" not in options:
            options["json"] = body
        async with self.session.post(path, **options) as response:
            return response.status, await response.json()

    async def get(self, path: str, **options: Any) -> tuple[int, Any]:
        """Status and JSON of one request."""
        async with self.session.get(path, **options) as response:
            return response.status, await response.json()


def keep_in(memory: FactStore) -> Remember:
    """Keeps facts as a node does."""
    return lambda fact, conversation, turn, said: memory.propose(
        fact, conversation=conversation, turn=turn, said=said, kept=True
    )


async def until(true: Callable[[], object]) -> None:
    """Let the loop run until `true()`."""
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0)
