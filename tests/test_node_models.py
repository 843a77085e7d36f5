"""One node and several models, over HTTP: loaded on demand, told everywhere, within a limit, let go
when idle; one that cannot be loaded, and what other programs brought.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from quietchoir.core import paths
from quietchoir.core.assistant.context import Message
from quietchoir.core.assistant.events import ChatRequest
from quietchoir.core.config import Config, EngineConfig, PluginsConfig, ServerConfig
from quietchoir.core.engine import fit
from quietchoir.core.engine.fit import MachineMemory
from quietchoir.core.engine.prompt_cache import PromptCache
from quietchoir.core.engine.sampling.params import SamplingParams
from quietchoir.core.history.remains import forget_saved
from quietchoir.node import Node
from quietchoir.tests.fakes.models import GgufWriter, make_model

pytestmark = pytest.mark.asyncio(loop_scope="module")
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
FOREIGN = "ollama:tiny:c"
HELLO = [{"role": "user", "content": "hello"}]


def tiny(path: Path, family: str) -> bytes:
    """A random model that can chat."""
    written = GgufWriter(make_model(family), path)
    written.writer.add_chat_template(TEMPLATE)
    written.write()
    return path.read_bytes()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models that their owner put there, a damaged one, and one of Ollama's."""
    folder = tmp_path_factory.mktemp("models")
    models = folder / "home" / "models"
    models.mkdir(parents=True)
    tiny(models / "tiny-a.gguf", "smollm2")
    tiny(models / "tiny-b.gguf", "qwen3")
    (models / "damaged.gguf").write_bytes(b"GGUF and nothing more")
    theirs = folder / "user/.ollama/models"
    manifest = theirs / "manifests/registry.ollama.ai/library/tiny/c"
    manifest.parent.mkdir(parents=True)
    (theirs / "blobs").mkdir()
    content = tiny(folder / "c.gguf", "qwen2")
    digest = hashlib.sha256(content).hexdigest()
    (folder / "c.gguf").rename(theirs / "blobs" / f"sha256-{digest}")
    kind = "application/vnd.ollama.image.model"
    layers = [{"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}]
    for tag in (manifest, manifest.with_name("latest")):
        tag.write_text(json.dumps({"layers": layers}))
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(home: Path) -> AsyncIterator[Node]:
    """A node that has room for two of them."""
    engine = EngineConfig(
        model="tiny-a", kv_bytes=1 << 20, context=64, kept_bytes=1 << 18, max_running=2
    )
    config = Config(engine=engine, server=ServerConfig(port=0), plugins=PluginsConfig(enabled=()))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(paths.MODELS_VARIABLE, raising=False)
        patch.delenv("OLLAMA_MODELS", raising=False)
        patch.setenv(paths.HOME_VARIABLE, str(home / "home"))
        patch.setenv("HOME", str(home / "user"))
        async with Node(config) as running:
            await running.start()
            one = running.pool.loaded["tiny-a"].bytes
            running.pool.limit = int(2.6 * one)
            yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(node: Node) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": f"Bearer {(node.home / 'token').read_text()}"}
    async with aiohttp.ClientSession(node.server.url, headers=headers) as session:
        yield session


async def post(client: aiohttp.ClientSession, path: str, **body: Any) -> tuple[int, Any]:
    async with client.post(path, json=body) as response:
        return response.status, await response.json()


async def said(client: aiohttp.ClientSession, model: str) -> str:
    status, told = await post(
        client, "/v1/chat/completions", model=model, messages=HELLO, max_tokens=4, temperature=0
    )
    assert status == 200, told
    assert told["model"] == model
    return str(told["choices"][0]["message"]["content"])


async def test_each_model_answers_by_its_name_and_the_least_used_makes_room(
    client: aiohttp.ClientSession, node: Node
) -> None:
    assert set(node.pool.loaded) == {"tiny-a"}
    first = await said(client, "tiny-a")
    assert await said(client, "tiny-b") != first
    assert set(node.pool.loaded) == {"tiny-a", "tiny-b"}
    await said(client, FOREIGN)
    assert set(node.pool.loaded) == {"tiny-b", FOREIGN}
    assert await said(client, "tiny-a") == first
    assert set(node.pool.loaded) == {FOREIGN, "tiny-a"}
    assert sum(node.pool.bytes_loaded().values()) <= node.pool.limit


async def test_every_protocol_answers_with_another_model_streamed_too(
    client: aiohttp.ClientSession, node: Node
) -> None:
    for path, body in (
        ("/v1/completions", {"prompt": "he", "max_tokens": 3}),
        ("/v1/responses", {"input": "hello", "max_output_tokens": 3}),
        ("/api/chat", {"messages": HELLO, "stream": False, "options": {"num_predict": 3}}),
        ("/api/generate", {"prompt": "he", "stream": False, "options": {"num_predict": 3}}),
    ):
        status, told = await post(client, path, model="tiny-b", **body)
        assert status == 200 and told["model"] == "tiny-b", (path, told)
    ask = {"model": "tiny-b", "messages": HELLO, "max_tokens": 3, "stream": True}
    async with client.post("/v1/chat/completions", json=ask) as response:
        lines = [line async for line in response.content if line.strip()]
    assert lines[-1].strip() == b"data: [DONE]" and b'"tiny-b"' in lines[0]
    kept = {"metadata": {"conversation": "with-b"}}
    status, _ = await post(
        client, "/v1/chat/completions", model="tiny-b", messages=HELLO, max_tokens=3, **kept
    )
    assert status == 200 and node.history is not None
    assert [one.role for one in node.history.messages("with-b")] == ["user", "assistant"]


async def test_installed_and_loaded_models_are_told_by_both_protocols(
    client: aiohttp.ClientSession, node: Node
) -> None:
    await said(client, "tiny-b")
    async with client.get("/v1/models") as response:
        names = [model["id"] for model in (await response.json())["data"]]
    assert names[0] == "tiny-a" and {"tiny-b", FOREIGN, "damaged"} <= set(names)
    async with client.get("/api/tags") as response:
        tags = {model["name"]: model for model in (await response.json())["models"]}
    assert set(tags) == set(names) - {"minilm-l6-v2"}
    assert tags["tiny-b"]["details"]["family"] == "qwen3" and tags[FOREIGN]["size"] > 1000
    async with client.get("/api/ps") as response:
        running = {model["name"] for model in (await response.json())["models"]}
    assert running == set(node.pool.loaded) and "tiny-b" in running
    status, told = await post(client, "/api/show", model=FOREIGN)
    assert status == 200 and told["details"]["family"] == "qwen2"
    async with client.get("/api/models") as response:
        here = {model["name"]: model for model in (await response.json())["installed"]}
    for name in (FOREIGN, "ollama:tiny", "ollama:tiny:latest", "ollama%3Atiny:latest"):
        async with client.get(f"/v1/models/{name}") as response:
            assert response.status == 200, name
    ask = {"messages": HELLO, "max_tokens": 2}
    status, told = await post(client, "/v1/chat/completions", model="ollama:tiny:latest", **ask)
    assert status == 200 and told["model"] == "ollama:tiny"
    assert here["tiny-b"]["loaded"] and here[FOREIGN]["origin"] == "Ollama"
    async with client.delete("/api/models/tiny-b") as response:
        assert response.status == 400
        assert "put here by hand" in (await response.json())["error"]["message"]


async def test_what_cannot_be_loaded_or_is_not_there_is_told_and_others_answer(
    client: aiohttp.ClientSession, node: Node
) -> None:
    ask = {"messages": HELLO, "max_tokens": 2}
    status, told = await post(client, "/v1/chat/completions", model="damaged", **ask)
    assert status == 400 and "damaged.gguf" in told["error"]["message"]
    status, told = await post(client, "/v1/chat/completions", model="gpt-5", **ask)
    assert status == 404 and told["error"]["code"] == "model_not_found"
    assert "tiny-b" in told["error"]["message"]
    # what is told to run here is what the node would load, to the byte
    need = node.need(FOREIGN)
    for limit in (need, need - 1):
        machine = MachineMemory(bytes=0, free=0, limit=limit, read_bytes_s=1.0)
        needs = fit.needs_of(node.path_of(FOREIGN))
        assert fit.fit(FOREIGN, needs, machine, node.config.engine).fits == (limit == need)
    node.pool.limit, before = 1000, node.pool.limit
    status, told = await post(client, "/v1/chat/completions", model=FOREIGN, **ask)
    if FOREIGN not in node.pool.loaded:
        assert status == 400 and "engine.memory_bytes" in told["error"]["message"]
    node.pool.limit = before
    await said(client, "tiny-a")


async def test_ten_at_once_for_two_models_all_get_an_answer_and_each_was_loaded_once(
    client: aiohttp.ClientSession, node: Node
) -> None:
    for name in list(node.pool.loaded):
        await node.pool.release(name)
    assert node.pool.loaded == {} and node.models == {}
    counted = node.stats()["finished"]
    names = ["tiny-a", "tiny-b"] * 5
    await asyncio.gather(*(said(client, name) for name in names))
    assert set(node.pool.loaded) == {"tiny-a", "tiny-b"}
    # what engines counted before they were let go is counted still
    assert node.stats()["finished"] == counted + len(names)


async def test_keep_alive_lets_go_and_the_page_still_works_while_nothing_is_loaded(
    client: aiohttp.ClientSession, node: Node
) -> None:
    status, told = await post(client, "/api/generate", model="tiny-b", keep_alive=0)
    assert status == 200 and told["done_reason"] == "unload"
    assert "tiny-b" not in node.pool.loaded
    status, told = await post(client, "/api/generate", model="tiny-b", keep_alive="10m")
    assert told["done_reason"] == "load"
    expires = node.pool.expires_in(node.pool.loaded["tiny-b"])
    assert expires is not None and 590 < expires <= 600
    status, told = await post(client, "/api/generate", model="tiny-b", keep_alive="soon")
    assert status == 400 and "keep_alive" in told["error"]
    node.pool.loaded["tiny-a"].keep_s = node.pool.loaded["tiny-b"].keep_s = 1e-6
    await node.pool.let_idle_go()
    assert node.pool.loaded == {}
    for path in ("/api/status", "/api/adapters", "/api/tools", "/v1/models", "/api/tags"):
        async with client.get(path) as response:
            assert response.status == 200, path
    status, _ = await post(client, "/api/adapters/activate", name=None)
    assert status == 200
    assert await said(client, "tiny-a")


async def test_what_is_forgotten_while_a_model_is_let_go_is_not_written_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path))
    monkeypatch.delenv(paths.MODELS_VARIABLE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    (tmp_path / "models").mkdir()
    tiny(tmp_path / "models/a.gguf", "smollm2")
    engine = EngineConfig(model="a", kv_bytes=8 << 20, context=512, keep_conversations=4)
    config = Config(engine=engine, plugins=PluginsConfig(enabled=()))
    question = ChatRequest(
        messages=(Message("user", "is it so? " * 20),), sampling_params=SamplingParams(max_tokens=2)
    )
    written, save_latest = list[int](), PromptCache.save_latest
    for forgets in (False, True):

        def save(kept: PromptCache, folder: Path, most: int, *, forgets: bool = forgets) -> int:
            if most and forgets:
                forget_saved(tmp_path)  # between the question whether to write, and the writing
            saved = save_latest(kept, folder, most)
            written.append(saved)
            return saved

        monkeypatch.setattr(PromptCache, "save_latest", save)
        async with Node(config) as running:
            await running.start_assistant()
            async for _ in running.assistant.reply(question):
                pass
        left = [path.name for path in (tmp_path / "conversations").iterdir()]
        assert bool(left) != forgets
    # the control keeps it; the forgotten one was written, and is gone
    assert written == [1, 1, 0]
