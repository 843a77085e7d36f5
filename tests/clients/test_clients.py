"""Real clients, in an environment of their own, get what they ask for."""

import os
from pathlib import Path

import pytest

from quietchoir.core import paths
from quietchoir.core.config import Config, EngineConfig, PluginsConfig, ServerConfig
from quietchoir.core.models.weights import Weights
from quietchoir.node import Node
from quietchoir.tests.clients import matrix
from quietchoir.tests.clients.serving import ENVIRONMENT, MODULES, PYTHON, obliging, run

pytestmark = [
    pytest.mark.skipif(
        not PYTHON.exists() and not os.environ.get("CI"),
        reason=f"no clients in {ENVIRONMENT}: make clients brings them",
    ),
    pytest.mark.timeout(600),
]
OUTCOMES: dict[str, dict[str, str]] = {}  # of the tests of this file that ran before


@pytest.mark.parametrize("module", MODULES)
async def test_a_client_gets_what_it_asks_for(module: str) -> None:
    async with obliging() as served:
        found = await run(module, served.server.url)
    OUTCOMES[module] = found
    assert len(found) >= 5, found
    assert {case: wrong for case, wrong in found.items() if wrong} == {}


async def test_with_a_real_model_the_protocols_agree_and_numbers_are_what_they_claim(
    tmp_path: Path, smollm2: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(paths.MODELS_VARIABLE, str(paths.models()))
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path / "home"))
    config = Config(
        engine=EngineConfig(kv_bytes=64 << 20, context=512),
        server=ServerConfig(port=0),
        plugins=PluginsConfig(enabled=()),
    )
    async with Node(config, loaded=smollm2) as node:
        await node.start()
        if not node.engine.backend.deterministic:
            pytest.skip("the kernels are not compiled, and others round by what runs beside")
        token = (node.home / "token").read_text()
        found = await run("real_model", node.server.url, token)
    assert len(found) >= 8, found
    assert {case: wrong for case, wrong in found.items() if wrong} == {}


def test_the_page_of_clients_tells_what_they_did_and_every_field_that_they_know() -> None:
    if OUTCOMES.keys() != {*MODULES}:
        pytest.skip("the clients did not run before")
    assert matrix.PAGE.read_text("utf-8") == matrix.page(OUTCOMES, matrix.known_fields())
