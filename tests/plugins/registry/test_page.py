"""The market over HTTP: what the page is told; it installs what it showed, and nothing else."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from quietchoir.core.config import PluginsConfig
from quietchoir.plugins.host import PluginHost
from quietchoir.plugins.market import NodeMarket
from quietchoir.tests.fakes.http import Served
from quietchoir.tests.fakes.server import engine_saying

from .conftest import World, install, installed


@pytest.fixture
async def served(world: World) -> AsyncIterator[Served]:
    """A node whose market is the real one."""
    install("bob/teapot")
    config = PluginsConfig(enabled=())
    host = PluginHost(config)
    await host.start()
    async with Served(engine_saying(["hi"]), plugins=NodeMarket(host, config)).running() as running:
        yield running
    await host.stop()


async def told(served: Served, path: str, **body: Any) -> Any:
    """The answer to one request that is carried out."""
    status, answer = await served.post(f"/api/plugins/{path}", body)
    assert status == 200, answer
    return answer


async def test_the_page_finds_shows_and_installs_a_plugin(world: World, served: Served) -> None:
    _, api = await served.get("/openapi.json")
    assert {"/api/plugins/offer", "/api/plugins/install", "/api/plugins/look"} <= set(api["paths"])
    async with aiohttp.ClientSession(served.server.url) as stranger:  # without the token
        assert (await stranger.post("/api/plugins/look", json={})).status == 401
    _, there = await served.get("/api/plugins")
    assert there["registries"] == [{"name": "main"}]
    (teapot,) = [one for one in there["installed"] if one["removable"]]
    assert (teapot["id"], teapot["registry"], teapot["runs"]) == ("bob/teapot", "main", True)
    found = await told(served, "search", words="counts")
    assert [one["id"] for one in found["plugins"]] == ["ann/counter"]
    offer = await told(served, "offer", id="ann/counter")
    assert {"kind": "memory_mb", "value": "64"} in offer["permissions"]
    (review,) = offer["reviews"]
    assert (review["reviewer"], review["verdict"], review["commit"]) == ("rita", "approve", "")
    assert offer["author_key"] == world.public("ann") and offer["before"] == ""
    wanted = {name: offer[name] for name in ("id", "version", "registry", "sha256")}
    status, answer = await served.post("/api/plugins/install", {**wanted, "sha256": "0" * 64})
    assert status == 409 and "another archive than the one shown" in answer["error"]["message"]
    assert set(installed()) == {"bob/teapot"}
    await told(served, "install", **wanted)
    assert set(installed()) == {"ann/counter", "bob/teapot"}
    async with served.session.delete("/api/plugins/ann/counter") as response:
        assert await response.json() == {"removed": "ann/counter"}
    assert set(installed()) == {"bob/teapot"}


async def test_the_page_tells_what_is_newer_and_what_was_stopped(
    world: World, served: Served
) -> None:
    assert (await told(served, "look"))["newer"] == []
    world.release("bob/teapot", "1.1.0", "rita", "ruth", permissions={"folders": ["tea"]})
    assert (await told(served, "look"))["newer"] == [{"id": "bob/teapot", "version": "1.1.0"}]
    offer = await told(served, "offer", id="bob/teapot")
    assert offer["before"] == "1.0.0" and offer["new"] == ["read in the folders tea"]
    held = world.repository()
    held.revoke("bob/teapot", ["1.0.0"], "it leaks", world.keys("targets-1", "targets-2"))
    held.publish(world.signers["online"])
    assert (await told(served, "look"))["stopped"] == ["bob/teapot"]
    _, there = await served.get("/api/plugins")
    (teapot,) = [one for one in there["installed"] if one["removable"]]
    assert teapot["stopped"] == "revoked by main: it leaks"


async def test_a_registry_that_lies_is_an_answer_with_the_reason(
    world: World, served: Served
) -> None:
    for path in (world.folder / "targets").glob("*/*/counter/*.zip"):
        path.write_bytes(b"PK")
    status, answer = await served.post("/api/plugins/offer", {"id": "ann/counter"})
    assert status == 409 and "not the one that was signed" in answer["error"]["message"]
    status, _ = await served.post("/api/plugins/offer", {"id": "../../etc"})
    assert status == 409
