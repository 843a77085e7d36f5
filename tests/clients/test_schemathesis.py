"""The node answers whatever its own description allows and forbids as that description says."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quietchoir.core import paths
from quietchoir.core.config import EngineConfig
from quietchoir.core.engine import fit
from quietchoir.core.errors import DataError
from quietchoir.core.history.store import HistoryStore
from quietchoir.core.models.hub.client import HubClient
from quietchoir.core.retrieval.collections import Collections
from quietchoir.core.retrieval.memory import FactStore
from quietchoir.core.server.documents_api import OwnersDocuments
from quietchoir.core.server.models_api import OwnersModels
from quietchoir.tests.clients.serving import ENVIRONMENT, obliging
from quietchoir.tests.fakes.http import TOKEN
from quietchoir.tests.fakes.hub import FakeHub
from quietchoir.tests.fakes.retrieval import LineParser, WordEmbedder

SCHEMATHESIS = ENVIRONMENT / "bin" / "st"
EXAMPLES = "100" if os.environ.get("QUIETCHOIR_FUZZ") == "full" else "8"
pytestmark = [
    pytest.mark.skipif(
        not SCHEMATHESIS.exists() and not os.environ.get("CI"),
        reason=f"no schemathesis in {ENVIRONMENT}: make clients brings it",
    ),
    pytest.mark.timeout(1200),
    pytest.mark.fuzz,
]


class Member:
    """Of one federation, which was found by no id."""

    def federations(self) -> list[dict[str, Any]]:
        return [{"id": "a" * 64, "name": "choir", "paused": False}]

    def training(self, federation: str) -> dict[str, Any]:
        raise DataError(f"no member of {federation}")

    def pause(self, federation: str, paused: bool) -> None:
        raise DataError(f"no member of {federation}")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnersModels]:
    """A home without models, and a hub with one."""
    for name in ("HOME", paths.HOME_VARIABLE):
        monkeypatch.setenv(name, str(tmp_path / "user"))
    for name in (paths.MODELS_VARIABLE, "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fit, "READ_BYTES", 8 << 20)
    with FakeHub({"some/Tiny": {"tiny-Q4_0.gguf": b"four bits" * 40}}).running() as hub:
        client = HubClient(hub.address, token="")
        yield OwnersModels(
            hub=lambda: client, default="smollm2", engine=EngineConfig(), limit=4 << 30
        )


async def test_no_request_that_the_description_knows_brings_another_answer(
    tmp_path: Path, models: OwnersModels
) -> None:
    """No 5xx, no answer of another shape, no body taken that its schema forbids."""
    history, memory = HistoryStore(tmp_path / "home"), FactStore(tmp_path / "memory")
    collections = Collections(tmp_path / "collections", embedder=WordEmbedder)
    own = OwnersDocuments(
        collections, lambda: memory, LineParser, lambda: None, history.forget_collection
    )
    more = {"history": history, "documents": own, "models": models, "memberships": Member()}
    async with obliging(**more) as served:
        process = await asyncio.create_subprocess_exec(
            SCHEMATHESIS, "run", f"{served.server.url}openapi.json", "--no-color",
            "--header", f"Authorization: Bearer {TOKEN}",
            "--checks", "all",
            # what two fields say together (n beside a kept conversation, a last message that is
            # the assistant's) is refused with its sentence, and no schema says it
            "--exclude-checks", "positive_data_acceptance",
            "--phases", "coverage,fuzzing",
            "--max-examples", EXAMPLES, "--seed", "1",
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            said, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    collections.close()
    memory.close()
    history.close()
    assert process.returncode == 0, said.decode()[-6000:]
    assert " passed" in said.decode()
