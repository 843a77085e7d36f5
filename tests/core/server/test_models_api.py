"""Models over HTTP: what is here, what would run, pulls with progress that can be stopped, and what
cannot be removed.
"""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from quietchoir.core.config import EngineConfig
from quietchoir.core.models.hub import catalog, client
from quietchoir.core.models.hub.client import HubClient
from quietchoir.core.server.models_api import OwnersModels
from quietchoir.tests.fakes.http import Served
from quietchoir.tests.fakes.hub import FakeHub
from quietchoir.tests.fakes.server import engine_saying

FILE = b"four bits" * 40_000


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with one model, a home without any, and one model of LM Studio's."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("QUIETCHOIR_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("QUIETCHOIR_MODELS", raising=False)
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    monkeypatch.setattr(client, "PAUSE_S", 0.001)
    (tmp_path / "home").mkdir()
    theirs = tmp_path / "user/.lmstudio/models/maker/repo/theirs.gguf"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"GGUF, more or less")
    with FakeHub({"some/Tiny": {"tiny-Q4_0.gguf": FILE}}).running() as running:
        yield running


@pytest.fixture
async def served(hub: FakeHub) -> AsyncIterator[Served]:
    models = OwnersModels(
        hub=lambda: HubClient(hub.address, token=""),
        default="smollm2",
        engine=EngineConfig(),
        limit=4 << 30,
        loaded=lambda: {"smollm2": 100},
    )
    async with Served(engine_saying(["hi"]), models=models).running() as running:
        yield running


async def ended(served: Served, id: str) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while True:
            _, told = await served.get("/api/models/pulls")
            (pull,) = [one for one in told["pulls"] if one["id"] == id]
            if pull["state"] != "running":
                return dict(pull)
            await asyncio.sleep(0.01)


async def test_what_is_here_and_what_could_be_had_is_told_with_whether_it_runs(
    served: Served,
) -> None:
    status, told = await served.get("/api/models")
    assert status == 200 and told["default"] == "smollm2"
    assert told["memory"]["limit"] == 4 << 30 and told["memory"]["read_bytes_per_s"] > 0
    (theirs,) = told["installed"]
    assert theirs["name"] == "lmstudio:maker/repo/theirs" and theirs["origin"] == "LM Studio"
    assert not theirs["removable"] and not theirs["loaded"]
    known = {model["name"]: model for model in told["known"]}
    small, large = known["qwen3-0.6b"], known["qwen3-8b"]
    assert small["fit"]["fits"] and not large["fit"]["fits"]
    assert small["fit"]["tokens_per_s"] > large["fit"]["tokens_per_s"]
    assert not known["llama-3.2-1b-instruct"]["open_licence"]


async def test_a_pull_tells_its_progress_ends_and_its_model_can_be_removed(
    served: Served, hub: FakeHub, tmp_path: Path
) -> None:
    status, offer = await served.post("/api/models/offer", {"name": "hf:some/Tiny"})
    assert status == 200 and offer["name"] == "tiny-q4_0" and offer["bytes"] == len(FILE)
    hub.hold = threading.Event()
    _, begun = await served.post("/api/models/pulls", {"name": "hf:some/Tiny"})
    assert begun["state"] == "running" and begun["total"] == len(FILE)
    _, again = await served.post("/api/models/pulls", {"name": "hf:some/Tiny"})
    assert again["id"] == begun["id"]
    async with asyncio.timeout(30):
        while not (await served.get("/api/models/pulls"))[1]["pulls"][0]["bytes"]:
            await asyncio.sleep(0.01)
    hub.hold.set()
    assert (await ended(served, begun["id"]))["state"] == "done"
    _, told = await served.get("/api/models")
    (ours,) = [one for one in told["installed"] if one["removable"]]
    assert ours["name"] == "tiny-q4_0"
    async with served.session.delete("/api/models/tiny-q4_0") as response:
        assert response.status == 200 and (await response.json())["bytes"] == len(FILE)
    assert not (tmp_path / "home/models/tiny-q4_0").exists()


async def test_a_pull_can_be_stopped_and_one_that_failed_says_why(
    served: Served, hub: FakeHub
) -> None:
    hub.hold = threading.Event()
    _, begun = await served.post("/api/models/pulls", {"name": "hf:some/Tiny"})
    async with served.session.delete(f"/api/models/pulls/{begun['id']}") as response:
        assert response.status == 200
    hub.hold.set()
    assert (await ended(served, begun["id"]))["state"] == "stopped"
    hub.hashes["tiny-Q4_0.gguf"] = "0" * 64
    _, begun = await served.post("/api/models/pulls", {"name": "hf:some/Tiny"})
    told = await ended(served, begun["id"])
    assert told["state"] == "failed" and "did not stay" in told["error"]


async def test_of_many_pulls_asked_for_at_once_two_are_begun(served: Served, hub: FakeHub) -> None:
    hub.hold = threading.Event()
    hub.repositories |= {f"some/T{n}": {f"t{n}-Q4_0.gguf": FILE} for n in range(4)}
    names = ["hf:some/T0", *(f"hf:some/T{n}" for n in range(4))]
    bodies = [{"name": name} for name in names]
    got = await asyncio.gather(*(served.post("/api/models/pulls", body) for body in bodies))
    assert sorted(status for status, _ in got) == [200, 200, 200, 400, 400]
    assert len({told["id"] for status, told in got if status == 200}) == 2
    hub.hold.set()
    for id in {told["id"] for status, told in got if status == 200}:
        assert (await ended(served, id))["state"] == "done"


async def test_the_model_that_answers_is_not_deleted_under_the_catalogs_name_for_it(
    hub: FakeHub,
) -> None:
    path = catalog.pull("hf:some/Tiny", hub=HubClient(hub.address, token=""))
    for named, code in ((path, 400), (path.parent, 400), (path.parent.parent / "x.gguf", 200)):
        models = OwnersModels(
            hub=lambda: HubClient(hub.address, token=""),
            default=catalog.model_name(str(named)),
            default_path=named,
            engine=EngineConfig(),
            limit=4 << 30,
        )
        async with Served(engine_saying(["hi"]), models=models).running() as served:
            _, told = await served.get("/api/models")
            (ours,) = [one for one in told["installed"] if one["name"] == "tiny-q4_0"]
            assert ours["removable"] == (code == 200)
            async with served.session.delete("/api/models/tiny-q4_0") as response:
                assert response.status == code
        assert path.exists() == (code == 400)


async def test_a_model_that_cannot_be_looked_at_takes_no_list_with_it(
    served: Served, hub: FakeHub, tmp_path: Path
) -> None:
    odd = tmp_path / "home/models/odd"
    odd.mkdir(parents=True)
    numbers = {"n_embd": 64, "n_head": 128, "n_layer": 2, "vocab_size": 300, "n_positions": 512}
    (odd / "config.json").write_text(json.dumps({"model_type": "gptj", **numbers}))
    (odd / "model.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "home/models/around.gguf").symlink_to("around.gguf")
    status, told = await served.get("/api/models")
    assert status == 200
    assert [one["name"] for one in told["installed"]] == ["odd", "lmstudio:maker/repo/theirs"]


async def test_names_licences_and_owners_are_told_before_anything_is_fetched(
    served: Served, hub: FakeHub
) -> None:
    status, told = await served.post("/api/models/pulls", {"name": "llama3"})
    assert status == 404 and "model search" in told["error"]["message"]
    hub.licence = "llama3.2"
    status, told = await served.post("/api/models/pulls", {"name": "hf:some/Tiny"})
    assert status == 400 and told["error"]["code"] == "licence"
    body = {"name": "hf:some/Tiny", "accept_licence": "llama3.2"}
    status, begun = await served.post("/api/models/pulls", body)
    assert status == 200 and (await ended(served, begun["id"]))["state"] == "done"
    for name, said in (
        ("lmstudio:maker/repo/theirs", "not brought by quietchoir"),
        ("smollm2", "is what this node answers with"),
        ("nothing", "not on this disk"),
    ):
        async with served.session.delete(f"/api/models/{name}") as response:
            assert response.status in (400, 404)
            assert said in (await response.json())["error"]["message"]
    status, told = await served.post("/api/models/search", {"words": "tiny", "hub": True})
    assert status == 200 and told["models"][0]["name"] == "hf:some/Tiny"
    status, told = await served.post("/api/models/search", {"words": "qwen3 4b"})
    assert [model["name"] for model in told["models"]] == ["qwen3-4b"]


@pytest.mark.parametrize(("path", "taken"), [("search", "POST"), ("pulls/", "GET,HEAD,POST")])
async def test_what_a_path_takes_is_told_without_what_a_models_path_takes(
    served: Served, path: str, taken: str
) -> None:
    async with served.session.delete(f"/api/models/{path}") as response:
        assert (response.status, response.headers["Allow"]) == (405, taken)
    async with served.session.delete(f"/api/models/re{path}") as response:
        assert response.status == 404  # a name that no model has
