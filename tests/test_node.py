"""One whole node with the real model: HTTP in, tokens out, and everything let go again."""

import asyncio
import dataclasses
import json
import logging
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import torch
from aiohttp import web

from quietchoir import node as node_module
from quietchoir.core import paths
from quietchoir.core.assistant.assistant import Assistant
from quietchoir.core.assistant.context import Message
from quietchoir.core.assistant.events import ApprovalEvent, ChatRequest, Text, ToolResultEvent
from quietchoir.core.config import Config, EmbeddingConfig, EngineConfig, PowerConfig, ServerConfig
from quietchoir.core.engine.conversations import FOLDER
from quietchoir.core.engine.sampling.params import SamplingParams
from quietchoir.core.errors import ConfigError, ModelNotFoundError, RequestError
from quietchoir.core.hardware.discovery import core_list
from quietchoir.core.hardware.power import Allowance, Power
from quietchoir.core.history.remains import forgotten_at
from quietchoir.core.models.hub.catalog import model_name
from quietchoir.core.models.lora.adapter import AdapterShape, Layout, assemble
from quietchoir.core.models.weights import Weights
from quietchoir.core.server.app import claim
from quietchoir.core.toolcall import ToolCall, render
from quietchoir.crypto.identity.keys import Identity
from quietchoir.federation.adapters.registry import PERSONAL, Card, Registry, content_hash
from quietchoir.federation.client_node import ClientOptions
from quietchoir.federation.events import PersonalEvent
from quietchoir.node import Membership, Node, describe
from quietchoir.private_search import host
from quietchoir.private_search.budget import QueryBudget
from quietchoir.tests.fakes.http import until
from quietchoir.tests.fakes.search import FakeEmbedder, fake_index
from quietchoir.tests.fakes.server import engine_saying

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHAT = "v1/chat/completions"
CELL = {"type": "Battery", "status": "Discharging", "capacity": "64"}
CONFIG = Config(engine=EngineConfig(kv_bytes=64 << 20, context=512), server=ServerConfig(port=0))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node's home with a household in it."""
    folder = tmp_path_factory.mktemp("node")
    devices = [{"name": "lamp", "domain": "light", "area": "kitchen"}]
    (folder / "home.json").write_text(
        json.dumps({"areas": [{"name": "kitchen"}], "devices": devices, "lists": []})
    )
    return folder


@pytest.fixture(scope="module")
def adapter(home: Path, smollm2: Weights) -> str:
    """A signed adapter in that home which turns the model's words upside down."""
    shape = AdapterShape(rank=2, upper_layers=2)
    noise = torch.randn(
        Layout(shape, smollm2.architecture).size, generator=torch.Generator().manual_seed(1)
    )
    made = assemble(shape, smollm2.architecture, smollm2.digest, noise)
    card = Card(
        adapter=content_hash(made),
        federation="00",
        name="choir",
        run="1",
        rounds=3,
        model=smollm2.digest,
        parent="",
        protection="masked",
        accuracy_before=0.1,
        accuracy_after=0.9,
    ).signed(Identity.generate())
    return Registry(home).put(made, card)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(home: Path, adapter: str, smollm2: Weights) -> AsyncIterator[Node]:
    """A running node."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(paths.MODELS_VARIABLE, str(paths.models()))
        patch.setenv(paths.HOME_VARIABLE, str(home))
        async with Node(CONFIG, home_file=home / "home.json", loaded=smollm2) as running:
            await running.start()
            yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(node: Node) -> AsyncIterator[aiohttp.ClientSession]:
    """A client that has the token."""
    headers = {"Authorization": f"Bearer {(node.home / 'token').read_text()}"}
    async with aiohttp.ClientSession(node.server.url, headers=headers) as session:
        yield session


def ask(text: str, **fields: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 24,
        "temperature": 0.0,
    } | fields


async def answer(client: aiohttp.ClientSession, body: dict[str, Any]) -> dict[str, Any]:
    async with client.post(CHAT, json=body) as response:
        assert response.status == 200, await response.text()
        return dict(await response.json())


async def test_the_model_answers_whole_and_streamed_alike(client: aiohttp.ClientSession) -> None:
    question = ask("Where is the Eiffel Tower?")  # no near-tie: every runner answers it alike
    whole = await answer(client, question)
    text = whole["choices"][0]["message"]["content"]
    assert "Paris" in text
    async with client.post(CHAT, json=question | {"stream": True}) as response:
        lines = [line[6:].strip() async for line in response.content if line.strip()]
    assert lines[-1] == b"[DONE]"
    assert (
        "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines[:-1])
        == text
    )


async def test_many_requests_at_once_are_all_answered(
    client: aiohttp.ClientSession, node: Node
) -> None:
    questions = [
        ask(f"Count to {number}.", max_tokens=8, temperature=0.7, seed=number)
        for number in range(6)
    ]
    found = await asyncio.gather(*(answer(client, question) for question in questions))
    assert all(body["choices"][0]["message"]["content"] for body in found)
    assert all(1 <= body["usage"]["completion_tokens"] <= 8 for body in found)
    stats = node.engine.stats()
    assert (stats.running, stats.waiting, stats.failed) == (0, 0, 0)


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_client_that_goes_away_frees_its_cache(
    client: aiohttp.ClientSession, node: Node, streamed: bool
) -> None:
    before = node.engine.stats()
    asked = asyncio.create_task(
        client.post(CHAT, json=ask("Tell me everything.", max_tokens=400, stream=streamed))
    )
    async with asyncio.timeout(60):
        while node.engine.stats().completion_tokens < before.completion_tokens + 3:
            await asyncio.sleep(0.005)
        if streamed:
            (await asked).close()
        asked.cancel()
        while node.engine.stats().cancelled == before.cancelled:
            await asyncio.sleep(0.005)
    after = node.engine.stats()
    assert (after.running, after.blocks_free) == (0, after.blocks_total)
    assert after.completion_tokens < before.completion_tokens + 400


async def test_a_conversation_of_a_real_node_asks_a_real_library(
    client: aiohttp.ClientSession, node: Node, tmp_path: Path
) -> None:
    """Where it is chosen; its passage stands before the model, and the page is told what left."""
    identity = Identity.generate()
    service = host.LibraryService(fake_index(), identity, QueryBudget(tmp_path / "b", limit=4))
    runner = web.AppRunner(host.application(service), access_log=None)
    await runner.setup()
    with socket.create_server(("127.0.0.1", 0)) as door:
        await web.SockSite(runner, door).start()
        node.libraries.add(
            "town", f"http://127.0.0.1:{door.getsockname()[1]}/#{identity.public.raw.hex()}"
        )
        question = "When does the night bus to the harbour leave?"
        body = ask(question, collections=["library:town"], max_tokens=1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(node.libraries, "_embedder", FakeEmbedder)
            message = (await answer(client, body))["choices"][0]["message"]
        node.libraries.remove("town")
        await runner.cleanup()
    service.close()
    assert "harbour leaves at one" in message["citations"][0]["text"]
    (source,) = message["sources"]
    assert source["sent_bytes"] > 300_000 and source["problem"] == ""
    assert service.budget.spent()["strangers"] == {"KEYS": 1, "QUESTION": 1, "CHOICE": 2}


async def test_an_adapter_is_swapped_in_and_out_of_the_running_node(
    client: aiohttp.ClientSession, node: Node, adapter: str
) -> None:
    question = ask("What is the capital of France?", tool_choice="none")
    plain = (await answer(client, question))["choices"][0]["message"]["content"]
    async with client.get("api/adapters") as response:
        assert (await response.json())["adapters"] == [
            {"id": adapter, "description": "choir, 3 rounds, 90 % right"}
        ]
    async with client.post("api/adapters/activate", json={"name": adapter[:12]}) as response:
        assert await response.json() == {"active": adapter}
    assert Registry(node.home).active() == adapter
    changed = await answer(client, question)
    assert changed["model"] == f"smollm2-135m-instruct:{adapter}"
    assert changed["choices"][0]["message"]["content"] != plain
    assert (await answer(client, question | {"model": "base"}))["choices"][0]["message"][
        "content"
    ] == plain
    async with client.post("api/adapters/activate", json={"name": None}) as response:
        assert response.status == 200
    assert (await answer(client, question))["choices"][0]["message"]["content"] == plain
    # as `quietchoir adapter activate` does, in another process
    Registry(node.home).activate(adapter)
    await until(lambda: node.adapters.active == adapter)
    Registry(node.home).rollback()
    await until(lambda: node.adapters.active is None)


async def test_a_tool_call_reaches_the_sandboxed_household(node: Node) -> None:
    if not node.plugins.report.available:
        if os.environ.get("CI") == "true":
            pytest.fail(f"no sandbox: {node.plugins.report.reason}")
        pytest.skip(f"no sandbox: {node.plugins.report.reason}; {node.plugins.report.advice}")
    call = f"<tool_call>{render(ToolCall('HassTurnOn', {'name': 'lamp'}))}</tool_call>"
    assistant = Assistant(
        engine_saying([call], ["Done."]), node.weights.tokenizer, node.plugins, context=512
    )
    results = []
    async for event in assistant.reply(ChatRequest(messages=(Message("user", "lamp on"),))):
        if isinstance(event, ApprovalEvent):
            assert event.question == "Turns on a device or entity: name 'lamp'. Shall I?"
            assistant.approvals.answer(event.id, True)
        elif isinstance(event, ToolResultEvent):
            results.append(event.result.text)
    assert ["lamp" in text for text in results] == [True]


async def test_the_model_writes_for_a_plugin_within_its_tokens(node: Node) -> None:
    messages = [{"role": "user", "content": "Name three colours."}]
    written = await node.write_text(messages, 6, 1000)
    assert written.text and not written.whole
    prompt = written.tokens - 6
    assert 0 < prompt < 100
    assert (await node.write_text(messages, 6, prompt + 2)).tokens == prompt + 2
    with pytest.raises(RequestError, match=f"the messages have {prompt} tokens; 1 too many"):
        await node.write_text(messages, 6, prompt)


async def test_a_conversation_longer_than_the_context_goes_on_with_its_newest_turns(
    client: aiohttp.ClientSession,
) -> None:
    turns = [
        {"role": role, "content": f"{word} {number} " * 10}
        for number in range(30)
        for role, word in (("user", "question"), ("assistant", "reply"))
    ]
    body = await answer(
        client, {"messages": [*turns, {"role": "user", "content": "Say yes."}], "max_tokens": 4}
    )
    assert 256 < body["usage"]["prompt_tokens"] <= 508


async def test_a_message_longer_than_the_context_is_excerpted_and_a_system_message_is_refused(
    client: aiohttp.ClientSession, node: Node
) -> None:
    found = await answer(client, ask("word " * 2000 + "\n\nWhat is the capital of France?"))
    assert found["context"]["excerpted_turns"] == [1]
    assert found["usage"]["prompt_tokens"] == found["context"]["shown_tokens"] < 512
    system = {"role": "system", "content": "word " * 2000}
    body = ask("Hello") | {"messages": [system, {"role": "user", "content": "Hello"}]}
    async with client.post(CHAT, json=body) as response:
        said = (await response.json())["error"]["message"]
    assert response.status == 400
    assert "system message takes" in said and "raise engine.context, now" in said
    assert node.engine.stats().running == 0


async def test_a_deleted_conversation_leaves_nothing_that_was_made_of_it(
    node: Node, client: aiohttp.ClientSession, adapter: str, smollm2: Weights
) -> None:
    assert node.history is not None
    registry = Registry(node.home)
    under = registry.card(adapter)
    whole = registry.load_for(adapter, smollm2.digest)
    noise = torch.ones(Layout(whole.shape, smollm2.architecture).size)
    made = assemble(whole.shape, smollm2.architecture, smollm2.digest, noise)
    card = dataclasses.replace(
        under, adapter=content_hash(made), parent=adapter, scope=PERSONAL, signature="", signer=""
    )
    personal = registry.put(made, card.signed(Identity.generate()))
    asked = [Message("user", "where is Kestrel?"), Message("assistant", "in the barn")]
    node.history.keep("birds", asked, source="page")
    for name in (adapter, personal):
        node.history.note_trained(name, [node.history.approve("birds")])
    node.documents.memory().propose("has a kestrel", conversation="birds", turn=1, said="Kestrel")
    node.history.keep_note("birds", "n1", "Kestrel: barn")
    assert node.condenser is not None
    node.condenser.notes("kept:birds", ["user: where is Kestrel? " + "She was out all day. " * 9])
    state = paths.private_folder(node.home / FOLDER) / "0000-aa.conversation"
    state.write_bytes(b"Kestrel")
    before = forgotten_at(node.home)
    registry.activate(personal)
    await until(lambda: node.adapters.active == personal)
    async with client.delete("api/conversations/birds") as response:
        assert await response.json() == {"forgotten": 1, "adapters": [personal]}
    assert not state.exists() and forgotten_at(node.home) > before
    assert node.documents.memory().facts() == [] and node.history.notes("birds") == {}
    assert "kept:birds" not in {kept for kept, _ in node.condenser._pending}
    assert registry.list() == [adapter] and registry.active() == adapter
    assert node.history.marks() == {adapter: 1}
    await until(lambda: node.adapters.active == adapter)
    registry.activate("")
    await until(lambda: node.adapters.active is None)


async def test_a_taken_port_is_told_before_anything_is_loaded(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(paths.HOME_VARIABLE, str(home))
    with claim(ServerConfig(port=0)) as taken:
        config = Config(
            server=ServerConfig(port=taken.getsockname()[1]),
            engine=EngineConfig(model="not-a-model"),
        )
        async with Node(config) as node:
            with pytest.raises(ConfigError, match="--port"):
                await node.start()


async def test_a_missing_model_is_told_with_the_command_that_brings_it_and_the_port_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path))
    monkeypatch.delenv(paths.MODELS_VARIABLE, raising=False)
    with claim(ServerConfig(port=0)) as probe:
        config = Config(server=ServerConfig(port=probe.getsockname()[1]))
    async with Node(config) as node:
        with pytest.raises(ModelNotFoundError, match="quietchoir model pull smollm2-135m-instruct"):
            await node.start()
    claim(config.server).close()


async def test_a_reranker_that_is_not_there_is_told_at_the_start_and_one_that_is_read_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path))
    monkeypatch.delenv(paths.MODELS_VARIABLE, raising=False)
    there = tmp_path / "reranker"
    there.mkdir()
    for named, told in (
        (tmp_path / "absent", "--reranker .*absent: neither"),
        (there, "model pull smoll"),
    ):
        embedding = EmbeddingConfig(reranker=str(named))
        async with Node(Config(server=ServerConfig(port=0), embedding=embedding)) as node:
            with pytest.raises(ModelNotFoundError, match=told):  # the last: of the chat model
                await node.start()


async def test_a_federation_that_cannot_be_joined_does_not_end_the_node(tmp_path: Path) -> None:
    said: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("quietchoir.node").addHandler(listener)
    membership = Membership(
        ClientOptions(file=tmp_path / "nowhere.toml", data=None, home=tmp_path), Config()
    )
    membership.thread.start()
    membership.leave()
    logging.getLogger("quietchoir.node").removeHandler(listener)
    assert not membership.thread.is_alive()
    assert (
        len(said) == 1
        and said[0].startswith("not in the federation: ")
        and "nowhere.toml" in said[0]
    )


async def test_personal_training_can_see_whether_somebody_waits(
    client: aiohttp.ClientSession, node: Node
) -> None:
    # turns of the tests before may still be condensed, in quiet moments and by the same engine
    await until(lambda: not node.answering())
    asked = asyncio.create_task(
        client.post(CHAT, json=ask("Tell me everything.", max_tokens=400, stream=True))
    )
    await until(node.answering)
    (await asked).close()
    await until(lambda: not node.answering())


async def test_what_came_of_personal_training_is_told_in_the_log(tmp_path: Path) -> None:
    said: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("quietchoir.node").addHandler(listener)
    Membership(ClientOptions(file=tmp_path, data=None, home=tmp_path), Config()).tell(
        PersonalEvent(parent="", words="7 of 10")
    )
    logging.getLogger("quietchoir.node").removeHandler(listener)
    assert said == ["7 of 10"]
    card = Card.unsigned("ab" * 32, "choir", "cd" * 32)
    assert describe(dataclasses.replace(card, scope="personal", accuracy_after=0.7)) == (
        "choir, personal, 70 % right here"
    )


async def test_a_model_file_is_called_by_its_name() -> None:
    names = {
        "smollm2": "smollm2",
        "/models/My-Model.Q4_1.gguf": "My-Model.Q4_1",
        "models/Llama-3.2-1B-Instruct": "Llama-3.2-1B-Instruct",
        "models/Llama-3.2-1B-Instruct/": "Llama-3.2-1B-Instruct",
        "/models/big-Q4_K-00002-of-00003.gguf": "big-Q4_K",
    }
    assert {name: model_name(name) for name in names} == names


async def test_on_battery_a_node_takes_less_of_its_machine_and_on_ac_all_of_it_again(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supplies = tmp_path / "sys/class/power_supply"
    for name, files in {"AC": {"type": "Mains"}, "BAT0": CELL}.items():
        (supplies / name).mkdir(parents=True)
        for file, text in files.items():
            (supplies / name / file).write_text(text)
    mains = supplies / "AC/online"
    mains.write_text("0")
    monkeypatch.setattr(node_module, "POWER_S", 0.02)
    monkeypatch.setattr(node, "power", Power(PowerConfig(), root=tmp_path))
    cores = len(core_list())
    sparing = asyncio.create_task(node.spare())
    try:
        await until(lambda: node.allowance.share == 0.5)
        assert (len(core_list()), node.engine.scheduler.max_admitted) == (-(-cores // 2), 8)
        assert not node.has_time() and node.power_numbers()["on_battery"] == 1
        assert "on battery" in node.why_not_train()
        mains.write_text("1")
        await until(lambda: node.allowance.share == 1)
        assert (len(core_list()), node.engine.scheduler.max_admitted) == (cores, 16)
        await until(node.has_time)  # once the engine has ended what an earlier test began
        assert node.why_not_train() == ""
        mains.write_text("0")
        await until(lambda: node.allowance.share == 0.5)
    finally:
        sparing.cancel()
        await asyncio.wait((sparing,))
        node.allowance = Allowance()
        node.engine.admit(16)
    assert len(core_list()) == cores


async def test_conversations_are_computed_once_over_a_restart_and_deleted_when_none_are_kept(
    tmp_path: Path, smollm2: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(paths.MODELS_VARIABLE, str(paths.models()))
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path))
    question = ChatRequest(
        messages=(Message("user", "Say yes or no: " + "is it so? " * 12),),
        sampling_params=SamplingParams(max_tokens=2),
    )
    answers, reused = [], []
    for keep in (2, 2, 0):
        engine = EngineConfig(kv_bytes=64 << 20, context=512, keep_conversations=keep)
        async with Node(Config(engine=engine), loaded=smollm2) as running:
            await running.start_assistant()
            answers.append(
                [
                    event.text
                    async for event in running.assistant.reply(question)
                    if isinstance(event, Text)
                ]
            )
            reused.append(running.engine.stats().reused_tokens)
    assert answers[0] == answers[1] == answers[2]
    assert (reused[0], reused[2]) == (0, 0) and reused[1] >= 32
    assert list((tmp_path / "conversations").iterdir()) == []
