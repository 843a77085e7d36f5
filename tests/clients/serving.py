"""A server over a model that does what every client is asked to have done, and the programs of
`programs/`, run in the clients' own environment.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quietchoir.core.engine.request import Generation, GenerationRequest
from quietchoir.core.server.embeddings import Source
from quietchoir.tests.fakes.http import TOKEN, Served
from quietchoir.tests.fakes.server import FakeEngine, FakeTools, WordTokenizer

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).parent / "programs"
# QUIETCHOIR_CLIENTS: another environment with constraints-clients.txt in it
ENVIRONMENT = Path(os.environ.get("QUIETCHOIR_CLIENTS", ROOT / ".venv" / "clients"))
PYTHON = ENVIRONMENT / "bin" / "python"
SHARED = ("common", "fields", "real_model", "run")
MODULES = tuple(sorted(path.stem for path in PROGRAMS.glob("*.py") if path.stem not in SHARED))
ANSWER = {"city": "Bern", "degrees": 7}
BROUGHT = "seven degrees in Bern"  # by the clients' tool
PROGRAM_S = 240.0


@dataclass
class ObligingEngine(FakeEngine):
    """Calls what may be called, says what a tool brought, fills a form, else wishes a good
    morning.
    """

    tokenizer: WordTokenizer = field(default_factory=WordTokenizer)

    def submit(self, request: GenerationRequest) -> Generation:
        self.scripts = iter([self.script(request)])
        return super().submit(request)

    def script(self, request: GenerationRequest) -> list[str]:
        form, last = request.sampling_params.constraint, self.tokenizer.last_messages
        if form is not None and not form.trigger:
            # a demanded call names its tool in the grammar
            name = "final_result" if "final_result" in form.text else "get_weather"
            return [json.dumps(ANSWER if form.kind != "lark" else called(name, ANSWER))]
        # results stand in the prompt as this template has them written, as data of a user's message
        if BROUGHT in (last[-1]["content"] if last else ""):
            return ["It is ", f"{BROUGHT}."]
        if form is not None:
            return [json.dumps(called("get_weather", {"city": "Bern"}))]
        return ["Good ", "morning."]


def called(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


class Lengths:
    """Embeds a text as its length."""

    width, longest = 2, 500

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return np.array([[len(text), 0.5] for text in texts], np.float32)


@asynccontextmanager
async def obliging(**more: Any) -> AsyncIterator[Served]:
    """The server; none of the node's own tools. `more` fields of it."""
    tokenizer = WordTokenizer()
    served = Served(
        ObligingEngine(iter(()), logprob=-0.5, tokenizer=tokenizer),
        FakeTools(names=()),
        embedding=Source("lengths", lambda: Path("lengths"), lambda _: Lengths()),
        tokenizer=tokenizer,
        **more,
    )
    async with served.running():
        yield served


async def run(module: str, url: str, token: str = TOKEN) -> dict[str, str]:
    """Case → what was wrong, of one program.

    Raises:
        RuntimeError: it did not get through; with its last words.
    """
    process = await asyncio.create_subprocess_exec(
        PYTHON,
        PROGRAMS / "run.py",
        module,
        env={"NODE_URL": url, "NODE_TOKEN": token, "HOME": str(ENVIRONMENT),
             "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        said, complained = await asyncio.wait_for(process.communicate(), PROGRAM_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RuntimeError(f"{module}: {complained.decode()[-2000:]}")
    found = [json.loads(line) for line in said.decode().splitlines() if line.startswith("{")]
    return {one["case"]: one["wrong"] for one in found}
