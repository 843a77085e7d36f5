"""The node answers whatever its own description allows and forbids as that description says."""

import asyncio
import os
from pathlib import Path

import pytest

from quietchoir.core.history.store import HistoryStore
from quietchoir.core.retrieval.collections import Collections
from quietchoir.core.retrieval.memory import FactStore
from quietchoir.core.server.documents_api import OwnersDocuments
from quietchoir.tests.clients.serving import ENVIRONMENT, obliging
from quietchoir.tests.fakes.http import TOKEN
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


async def test_no_request_that_the_description_knows_brings_another_answer(tmp_path: Path) -> None:
    """No 5xx, no answer of another shape, no body taken that its schema forbids."""
    history, memory = HistoryStore(tmp_path / "home"), FactStore(tmp_path / "memory")
    collections = Collections(tmp_path / "collections", embedder=WordEmbedder)
    own = OwnersDocuments(
        collections, lambda: memory, LineParser, lambda: None, history.forget_collection
    )
    async with obliging(history=history, documents=own) as served:
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
